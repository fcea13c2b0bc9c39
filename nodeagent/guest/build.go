package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// opened holds the files that a start has open. QEMU gets duplicates of them,
// so all are closed when the start returns.
type opened []io.Closer

func (o *opened) add(c io.Closer) { *o = append(*o, c) }

func (o *opened) close() {
	for _, c := range slices.Backward(*o) {
		_ = c.Close()
	}
}

// builder describes the machine that QEMU emulates for the Guest.
type builder struct {
	*identity
	disks     *disk.Store
	network   Plugger // nil on a host without Networks
	shares    *shares
	cloudInit *cloudInit
	tpm       *tpm
}

// machine opens everything that the Guest's machine consists of.
func (b *builder) machine(ctx context.Context, part *api.GuestPart, a qemu.Accelerator, access *access, files *opened) (qemu.VM, error) {
	vm := qemu.VM{Name: b.name, UUID: machineID(b.uid), Machine: part.Machine, Accelerator: a, CPUs: part.CPUs,
		Memory: part.Memory.Value(), HugePages: part.Tuning.HugePages, NUMANode: part.Tuning.NUMANode}
	if vm.Machine == "" {
		vm.Machine = qemu.Q35
	}
	vm.Display = vm.Machine == qemu.Q35 && part.Display != "none"
	vm.Incoming = elsewhere(part)
	for _, d := range part.Disks {
		o, err := b.disks.Open(ctx, disk.Wanted{Network: part.Network, Guest: b.name, UID: b.uid, GuestDisk: d})
		if err != nil {
			return vm, err
		}
		files.add(closer(o.Close))
		vm.Disks = append(vm.Disks, qemu.Disk{Name: d.Name, File: o.File, Format: o.Format, SCSI: d.Bus == api.DiskVirtioSCSI, Base: o.Base, BaseFormat: o.BaseFormat})
	}
	for _, open := range []func(context.Context, *api.GuestPart, *qemu.VM, *opened) error{b.openKernel, b.openFirmware, b.openNIC, b.openChannels, b.shares.open, b.cloudInit.open, b.tpm.start} {
		if err := open(ctx, part, &vm, files); err != nil {
			return vm, err
		}
	}
	return vm, openConfig(part, access, &vm, files)
}

type closer func()

func (c closer) Close() error { c(); return nil }

func (b *builder) openKernel(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	k := part.Kernel
	if k == nil {
		return nil
	}
	kernel, err := b.disks.Image(ctx, k.Kernel)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	files.add(kernel)
	vm.Kernel = &qemu.Kernel{Kernel: kernel, Arguments: strings.Join(k.Arguments, " ")}
	if k.Initrd != "" {
		if vm.Kernel.Initrd, err = b.disks.Image(ctx, k.Initrd); err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		files.add(vm.Kernel.Initrd)
	}
	return nil
}

// Files of Debian's package ovmf.
const (
	ovmfCode            = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVariables       = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	ovmfSecureCode      = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfSecureVariables = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
)

func (b *builder) openFirmware(_ context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if part.Firmware != "uefi" {
		return nil
	}
	code, template := ovmfCode, ovmfVariables
	if part.SecureBoot {
		code, template = ovmfSecureCode, ovmfSecureVariables
	}
	c, err := os.Open(code)
	if err != nil {
		return fmt.Errorf("the UEFI firmware is missing: install Debian's package ovmf: %w", err)
	}
	files.add(c)
	path := filepath.Join(b.dir, filepath.Base(template))
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		content, err := os.ReadFile(template)
		if err == nil {
			err = file.Replace(path, content, file.Options{})
		}
		if err != nil {
			return fmt.Errorf("UEFI's variables: %w", err)
		}
	}
	v, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("UEFI's variables: %w", err)
	}
	files.add(v)
	vm.UEFI = &qemu.UEFI{Code: c, Variables: v, SecureBoot: part.SecureBoot}
	return nil
}

// openConfig writes the Ignition config that points to the Guest's own. It is
// small because Ignition reads a config from fw_cfg in time quadratic in its
// length.
func openConfig(part *api.GuestPart, access *access, vm *qemu.VM, files *opened) error {
	if access == nil {
		return nil
	}
	raw, err := pointer(part.Config, access.Token)
	if err != nil {
		return err
	}
	// Not on the command line, where every user of the host could read the token.
	fd, err := unix.MemfdCreate("ignition", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("the Ignition pointer: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ignition")
	files.add(f)
	vm.Ignition = f
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	_, err = f.Write(raw)
	return err
}

// pointer returns an Ignition config that is replaced by another one, which
// Ignition fetches.
func pointer(c api.GuestConfig, token string) ([]byte, error) {
	type header struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	type source struct {
		Source  string   `json:"source"`
		Headers []header `json:"httpHeaders,omitempty"`
	}
	var config struct {
		Ignition struct {
			Version string `json:"version"`
			Config  struct {
				Replace source `json:"replace"`
			} `json:"config"`
		} `json:"ignition"`
	}
	config.Ignition.Version = c.IgnitionVersion
	if c.IgnitionVersion == "" {
		config.Ignition.Version = "3.1.0" // the first version with httpHeaders
	}
	config.Ignition.Config.Replace.Source = c.URL
	config.Ignition.Config.Replace.Headers = []header{{"Authorization", bearer + token}}
	return json.Marshal(config)
}

// vhostNet is the kernel's virtio NIC backend: QEMU gets it as an open file.
const vhostNet = "/dev/vhost-net"

func (b *builder) openNIC(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if part.Network == "" {
		return nil
	}
	if b.network == nil {
		return errors.New("this nodeagent does not serve Networks")
	}
	port := nodePort(b.name, part)
	port.Silent = elsewhere(part)
	a, err := b.network.Attach(ctx, port)
	if err != nil {
		return fmt.Errorf("its port on Network %s: %w", part.Network, err)
	}
	files.add(a.Tap)
	vm.NIC = &qemu.NIC{MAC: string(part.MAC), MTU: a.MTU, Tap: a.Tap}
	if v, err := os.OpenFile(vhostNet, os.O_RDWR, 0); err == nil {
		files.add(v)
		vm.NIC.VHost = v
	}
	return nil
}

func (b *builder) openChannels(_ context.Context, _ *api.GuestPart, vm *qemu.VM, files *opened) error {
	for name, to := range map[string]**os.File{"qmp.sock": &vm.Control, "monitor.sock": &vm.Monitor, "console.sock": &vm.Console, "agent.sock": &vm.Agent} {
		l, err := launch.Listen(filepath.Join(b.run, name))
		if err != nil {
			return err
		}
		f, err := l.File()
		_ = l.Close() // File returned a duplicate
		if err != nil {
			return err
		}
		files.add(f)
		*to = f
	}
	var err error
	vm.ConsoleLog, err = os.OpenFile(b.consoleLog(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		files.add(vm.ConsoleLog)
	}
	return err
}
