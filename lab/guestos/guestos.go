// Package guestos builds the system that test Guests boot: Debian's kernel, and
// an initrd whose init obeys commands on its console.
package guestos

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rackweft/rackweft/internal/command"
)

// Arguments are the kernel's arguments. It does not test its ciphers, which is a seventh of an emulated boot.
func Arguments() []string {
	return []string{"console=ttyS0", "panic=-1", "quiet", "rdinit=/init", "cryptomgr.notests"}
}

// CalmArgument is the kernel argument that makes the init count slowly: console
// output is expensive in nested emulation.
const CalmArgument = "calm"

// Kernel is a kernel of Debian, by the name of its package.
type Kernel string

// The kernels. Cloud has neither watchdog drivers nor 9p, and is packed with
// LZ4 instead of XZ: emulated, it boots in half the time.
const (
	Iron  Kernel = "linux-image-amd64"
	Cloud Kernel = "linux-image-cloud-amd64"
)

// modules are listed in the order in which they are loaded at boot.
func modules() []string {
	return []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
		"virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net", "qemu_fw_cfg", "button", "evdev"}
}

// moreModules are loaded on request of a test; Iron has them.
func moreModules() []string {
	return []string{"watchdog", "i6300esb", "pvpanic", "pvpanic-mmio", "virtio_balloon", "virtio-rng",
		"netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "cdrom", "isofs",
		"scsi_common", "scsi_mod", "virtio_scsi", "crc64", "crc64-rocksoft", "crct10dif_common", "crc-t10dif", "t10-pi", "sd_mod",
		"crc32c_generic", "crc16", "mbcache", "jbd2", "ext4"}
}

// Build builds the kernel and the initrd. root is the directory of go.mod.
func Build(ctx context.Context, root string, k Kernel) (kernel, initrd []byte, err error) {
	from, err := unpack(ctx, root, k)
	if err != nil {
		return nil, nil, err
	}
	kernels, err := filepath.Glob(filepath.Join(from, "boot", "vmlinuz*"))
	if err != nil || len(kernels) != 1 {
		return nil, nil, fmt.Errorf("the package holds the kernels %q: %w", kernels, err)
	}
	if kernel, err = os.ReadFile(kernels[0]); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "guestos")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	init := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", init, "./lab/guestos/testdata/init")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("build the init: %w: %s", err, out)
	}
	initrd, err = pack(init, filepath.Join(from, "lib"))
	return kernel, initrd, err
}

// unpack returns where the kernel and its modules are.
func unpack(ctx context.Context, root string, k Kernel) (string, error) {
	wanted := modules()
	if k == Iron {
		wanted = append(wanted, moreModules()...)
	}
	patterns := []string{"./boot/vmlinuz*"}
	for _, m := range wanted {
		patterns = append(patterns, "*/"+m+".ko")
	}
	out, err := command.Output(exec.CommandContext(ctx, filepath.Join(root, "lab", "unpack"), append([]string{string(k)}, patterns...)...))
	if err != nil {
		return "", fmt.Errorf("unpack Debian's kernel: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// pack builds an initrd from an init and the modules below a directory.
func pack(init, below string) ([]byte, error) {
	content, err := os.ReadFile(init)
	if err != nil {
		return nil, err
	}
	var archive cpio
	archive.dir("dev")
	archive.dir("modules")
	archive.file("init", content)
	archive.file("modules/order", []byte(strings.Join(modules(), ".ko ")+".ko"))
	err = filepath.WalkDir(below, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		archive.file("modules/"+d.Name(), raw)
		return err
	})
	return archive.end(), err
}

// cpio writes the newc format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	bytes.Buffer
	inode int
}

func (c *cpio) dir(name string)                  { c.entry(name, 0o40755, nil) }
func (c *cpio) file(name string, content []byte) { c.entry(name, 0o100755, content) }

func (c *cpio) entry(name string, mode int, content []byte) {
	c.inode++
	_, _ = fmt.Fprintf(c, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.Write(content)
	c.pad()
}

func (c *cpio) pad() { c.Write(make([]byte, -c.Len()&3)) }

func (c *cpio) end() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.Bytes()
}
