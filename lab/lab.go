// Package lab is a virtual rack on one Linux machine: QEMU servers with real firmware, each behind a
// Redfish BMC that really powers it, three networks between them, and the built bootd in the middle.
// It owns the namespaces, bridges, taps and processes of the rack and takes every one of them away again.
//
// A rack named N lives in two network namespaces. N-net is the machine room: three bridges (pxe, mgmt,
// prod), a tap per NIC, the QEMUs, the BMCs. N-bootd is the server that bootd runs on, with a veth to each
// bridge that has the bridge's name. lab imports neither bootd nor nodeagent: it runs binaries.
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

// Config configures a rack.
type Config struct {
	// Name is the rack's name: letters, digits and dashes, at most 16. Racks
	// with different names can run at the same time.
	Name string
	// Dir holds logs, disks, sockets and state. Its path must be short, because
	// it is part of unix addresses.
	Dir string
	// Fresh starts from empty disks, new firmware variables, new passwords and no state of bootd.
	Fresh bool
	// Machines of the rack. Default: DefaultMachines.
	Machines []MachineConfig
	// Accelerator of the machines. Default: TCG; see PickAccelerator.
	Accelerator Accelerator
	// Binaries is the directory with bootd.
	Binaries string
	// BootdConfig is the content of bootd's configuration file; empty: no file.
	BootdConfig []byte
	// SuperviseBootd restarts bootd when it ends unexpectedly, as systemd's
	// Restart=always does.
	SuperviseBootd bool
	// ImageDir has vmlinuz, initrd, rootfs.squashfs and their SHA256SUMS; empty: no image.yaml is written.
	ImageDir string
}

// MachineConfig configures one machine.
type MachineConfig struct {
	Name     string // at most 10 letters and digits, because it is part of the taps' names
	Unit     int    // 1 to 99: its place in the rack, and part of its MACs and of its BMC's address
	Firmware Firmware
	CPUs     int // Default: 1; a second emulated one costs more than it gains
	// MemoryMiB is the memory in MiB. Default: 2048.
	MemoryMiB int
	// ClockBase is the real-time clock at power-on, such as
	// 1980-01-01T00:00:00. Default: the current time.
	ClockBase string
	// Direct boots a kernel without firmware, network boot or boot loader; see Machine.SetDirect.
	Direct *DirectBoot
	// BMC says how the machine's BMC behaves.
	BMC BMCConfig
}

// DirectBoot is a kernel that the emulator loads itself.
type DirectBoot struct {
	Kernel, Initrd string // paths
	Append         string // the kernel's command line
}

// DefaultMachines are one with SeaBIOS, whose clock starts in 1980, and two
// with OVMF.
func DefaultMachines() []MachineConfig {
	return []MachineConfig{
		{Name: "r1u01", Unit: 1, Firmware: BIOS, ClockBase: "1980-01-01T00:00:00"},
		{Name: "r1u02", Unit: 2, Firmware: UEFI},
		{Name: "r1u03", Unit: 3, Firmware: UEFI},
	}
}

// MAC is the address of a NIC: 0 on the provisioning network, 1 on the production network.
func (c MachineConfig) MAC(nic int) string { return fmt.Sprintf("52:54:00:01:%02d:%02d", c.Unit, nic) }

// BMCAddress is the address of the machine's BMC on the management network.
func (c MachineConfig) BMCAddress() net.IP { return net.IPv4(198, 18, 1, byte(10+c.bmcUnit())) }

// ProductionAddress is the machine's address on the production network.
func (c MachineConfig) ProductionAddress() net.IP { return net.IPv4(198, 18, 8, byte(10+c.Unit)) }

// Rack is a rack that is up.
type Rack struct {
	config   Config
	log      *slog.Logger
	record   *record
	spawner  *spawner
	machines []*Machine
	password string
	started  time.Time
	bootd    bootd
	work     sync.WaitGroup // watchers of machines, servers of BMCs
	closing  sync.Once
	closeErr error
}

var (
	rackName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?$`)
	machineName = regexp.MustCompile(`^[a-z0-9]{1,10}$`)
)

func (c *Config) complete() error {
	if !rackName.MatchString(c.Name) {
		return fmt.Errorf("rack name %q: use 1 to 16 of a-z, 0-9 and -", c.Name)
	}
	if len(c.Machines) == 0 {
		c.Machines = DefaultMachines()
	}
	if c.Accelerator == "" {
		c.Accelerator = TCG
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("rack directory %q: %w", c.Dir, err)
	}
	c.Dir = dir
	c.Machines = slices.Clone(c.Machines) // the defaults below must not change the caller's slice
	names, units := map[string]bool{}, map[int]bool{}
	for i := range c.Machines {
		m := &c.Machines[i]
		if !machineName.MatchString(m.Name) {
			return fmt.Errorf("machine name %q: use 1 to 10 of a-z and 0-9", m.Name)
		}
		if m.Unit < 1 || m.Unit > 99 {
			return fmt.Errorf("machine %s: unit %d is not in 1 to 99", m.Name, m.Unit)
		}
		if names[m.Name] || units[m.Unit] {
			return fmt.Errorf("machine %s (unit %d): the name or the unit is there twice", m.Name, m.Unit)
		}
		names[m.Name], units[m.Unit] = true, true
		if m.Firmware != BIOS && m.Firmware != UEFI {
			return fmt.Errorf("machine %s: firmware %q is neither %s nor %s", m.Name, m.Firmware, BIOS, UEFI)
		}
		if m.CPUs == 0 {
			m.CPUs = 1
		}
		if m.MemoryMiB == 0 {
			m.MemoryMiB = 2048
		}
		if err := fitsUnixAddress(filepath.Join(c.Dir, m.Name, "monitor.sock")); err != nil {
			return err
		}
	}
	if err := nameSystems(c.Machines); err != nil {
		return err
	}
	for _, name := range []string{"run/bootd.sock", "notify.sock"} {
		if err := fitsUnixAddress(filepath.Join(c.Dir, "bootd", name)); err != nil {
			return err
		}
	}
	return nil
}

// fitsUnixAddress: sun_path holds 108 bytes with its end (unix(7)).
func fitsUnixAddress(path string) error {
	if len(path) > 107 {
		return fmt.Errorf("the rack's directory is too long: %s is %d bytes, a unix address holds 107", path, len(path))
	}
	return nil
}

// New builds the rack, with every machine off and its BMC answering. It first
// cleans up after an earlier rack in config.Dir; for one that is up it returns
// ErrInUse. ctx bounds only the build.
func New(ctx context.Context, config Config, log *slog.Logger) (*Rack, error) {
	if err := requireRoot(); err != nil {
		return nil, err
	}
	if err := config.complete(); err != nil {
		return nil, err
	}
	if err := Clean(config.Dir); err != nil {
		return nil, err
	}
	if config.Fresh {
		if err := forget(config); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("rack directory: %w", err)
	}
	r := &Rack{config: config, log: log, started: time.Now()}
	if err := r.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("rack %s: %w", config.Name, err), r.Close(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// forget removes state of an earlier rack in Dir.
func forget(config Config) error {
	var errs []error
	for _, m := range config.Machines {
		errs = append(errs, os.RemoveAll(filepath.Join(config.Dir, m.Name)))
	}
	for _, name := range []string{"bootd", "manifests", "password"} {
		errs = append(errs, os.RemoveAll(filepath.Join(config.Dir, name)))
	}
	return errors.Join(errs...)
}

func (r *Rack) build(ctx context.Context) error {
	var err error
	if r.record, err = newRecord(r.config.Dir, r.config.Name); err != nil {
		return fmt.Errorf("write rack.json: %w", err)
	}
	r.spawner = newSpawner(r.record)
	if r.password, err = r.loadPassword(); err != nil {
		return fmt.Errorf("BMC password: %w", err)
	}
	if err := r.wire(ctx); err != nil {
		return err
	}
	for _, c := range r.config.Machines {
		m, err := r.addMachine(c)
		if err != nil {
			return fmt.Errorf("machine %s: %w", c.Name, err)
		}
		r.machines = append(r.machines, m)
	}
	for _, m := range r.machines {
		if !m.config.ownsBMC() {
			continue
		}
		if err := r.addBMC(m); err != nil {
			return fmt.Errorf("BMC of machine %s: %w", m.config.Name, err)
		}
	}
	return r.writeManifests()
}

func (r *Rack) netNamespace() string   { return r.config.Name + "-net" }
func (r *Rack) bootdNamespace() string { return r.config.Name + "-bootd" }

// networks lists the rack's bridges, and bootd's address on each.
func networks() [][2]string {
	return [][2]string{{"pxe", "198.18.0.1/24"}, {"mgmt", "198.18.1.1/24"}, {"prod", "198.18.8.1/24"}}
}

// wire creates the namespaces and everything between them.
func (r *Rack) wire(ctx context.Context) error {
	for _, name := range []string{r.netNamespace(), r.bootdNamespace()} {
		if err := createNamespace(r.record, name); err != nil {
			return err
		}
	}
	var room, server strings.Builder // ip(8) scripts for the two namespaces
	fmt.Fprintln(&room, "link set lo up")
	fmt.Fprintln(&server, "link set lo up")
	for _, n := range networks() {
		bridge, address := n[0], n[1]
		// forward_delay: without STP a port would still spend 15s in the learning state.
		fmt.Fprintf(&room, "link add %s type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n", bridge)
		fmt.Fprintf(&room, "link set %s up\n", bridge)
		fmt.Fprintf(&room, "link add bootd-%s type veth peer name %s netns %s\n", bridge, bridge, r.bootdNamespace())
		fmt.Fprintf(&room, "link set bootd-%s master %s up\n", bridge, bridge)
		fmt.Fprintf(&server, "address add %s dev %s\nlink set %s up\n", address, bridge, bridge)
	}
	for _, m := range r.config.Machines {
		for _, bridge := range []string{"pxe", "prod"} {
			fmt.Fprintf(&room, "tuntap add dev %s-%s mode tap\n", m.Name, bridge)
			fmt.Fprintf(&room, "link set %s-%s master %s up\n", m.Name, bridge, bridge)
		}
		if m.ownsBMC() {
			fmt.Fprintf(&room, "address add %s/24 dev mgmt\n", m.BMCAddress())
		}
	}
	if err := ipScript(ctx, r.netNamespace(), room.String()); err != nil {
		return fmt.Errorf("wire %s: %w", r.netNamespace(), err)
	}
	if err := ipScript(ctx, r.bootdNamespace(), server.String()); err != nil {
		return fmt.Errorf("wire %s: %w", r.bootdNamespace(), err)
	}
	if err := inNamespace(r.bootdNamespace(), enableLinkLocal); err != nil {
		return fmt.Errorf("wire %s: %w", r.bootdNamespace(), err)
	}
	return nil
}

// enableLinkLocal gives bootd's provisioning interface an IPv6 link-local
// address, as servers have: without one, bootd cannot shorten iPXE's wait of 18
// s for an IPv6 router.
func enableLinkLocal() error {
	for _, setting := range []struct{ name, value string }{{"accept_dad", "0"}, {"disable_ipv6", "0"}} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/pxe/"+setting.name, []byte(setting.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no such file: a kernel without IPv6
			return err
		}
	}
	return nil
}

// BMCUser is the account of every BMC of every rack; the password is the rack's own.
const BMCUser = "admin"

// loadPassword reads the rack's BMC password, or creates one.
func (r *Rack) loadPassword() (string, error) {
	path := filepath.Join(r.config.Dir, "password")
	known, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(known)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	made := rand.Text()
	return made, os.WriteFile(path, []byte(made+"\n"), 0o600)
}

func (r *Rack) addMachine(c MachineConfig) (*Machine, error) {
	m := &Machine{rack: r, config: c, dir: filepath.Join(r.config.Dir, c.Name), log: r.log.With("machine", c.Name),
		uuid: systemUUID(r.config.Name, c.Name), direct: c.Direct, tag: c.Name}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	return m, nil
}

// listen opens a TCP listener inside a namespace; it can be used from outside.
func (r *Rack) listen(namespace, address string) (l net.Listener, err error) {
	entered := inNamespace(namespace, func() error {
		l, err = net.Listen("tcp4", address)
		return err
	})
	return l, entered
}

// DialContext connects from bootd's server, to bootd's own ports and to the
// BMCs. It fits http.Transport. Addresses must be literal: names are not
// resolved.
func (r *Rack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return dialIn(ctx, r.bootdNamespace(), network, address)
}

// Listen listens on bootd's server. The address must be literal.
func (r *Rack) Listen(address string) (net.Listener, error) {
	return r.listen(r.bootdNamespace(), address)
}

// Dir is the rack's directory.
func (r *Rack) Dir() string { return r.config.Dir }

// Namespaces returns the names of the two network namespaces: of the machine
// room and of bootd's server.
func (r *Rack) Namespaces() (room, bootd string) { return r.netNamespace(), r.bootdNamespace() }

// BMCPassword is the password of BMCUser.
func (r *Rack) BMCPassword() string { return r.password }

// Machines are the machines of the rack, in the order of the configuration.
func (r *Rack) Machines() []*Machine { return r.machines }

// Machine returns the machine of that name, or nil.
func (r *Rack) Machine(name string) *Machine {
	for _, m := range r.machines {
		if m.config.Name == name {
			return m
		}
	}
	return nil
}

// Close takes the rack down: bootd, machines, BMCs, namespaces, sockets. Logs,
// disks and state stay in Dir. It can be called again, and then returns the
// same result.
func (r *Rack) Close(ctx context.Context) error {
	r.closing.Do(func() { r.closeErr = r.takeDown(ctx) })
	return r.closeErr
}

func (r *Rack) takeDown(ctx context.Context) error {
	if r.record == nil {
		return nil
	}
	var errs []error
	errs = append(errs, r.StopBootd(ctx))
	for _, m := range r.machines {
		// The BMC first, so that no client powers a machine on again.
		if m.bmc.Server != nil {
			errs = append(errs, m.bmc.Close())
		}
		if err := (behindBMC{m}).PowerOff(ctx); err != nil && !errors.Is(err, bmc.ErrOff) {
			errs = append(errs, err)
		}
	}
	r.work.Wait()
	if r.spawner != nil {
		r.spawner.close()
	}
	errs = append(errs, r.record.removeNamespaces())
	errs = append(errs, removeSockets(r.config.Dir))
	if err := errors.Join(errs...); err != nil {
		// rack.json stays, so that Clean can try again.
		return fmt.Errorf("take down rack %s: %w", r.config.Name, err)
	}
	return r.record.remove()
}
