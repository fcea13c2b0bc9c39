package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/lab/bmc"
)

// Machine is one server of the rack: a QEMU process while its power is on, and
// its BMC always. Its methods act on the server without its BMC: faults, and
// actions at the machine itself.
type Machine struct {
	rack   *Rack
	config MachineConfig
	dir    string
	uuid   string
	log    *slog.Logger
	bmc    controller

	power sync.Mutex // held for a complete power operation, to serialise them

	mu        sync.Mutex // guards the fields below
	boot      *boot      // nil while the power is off
	override  bmc.Override
	unplugged bool
	tag       string // the asset tag; a QEMU shows the one at its start
	media     string // the image in the USB drive; a QEMU has the one at its start
	staleTag  bool   // the firmware shows its own tag instead of the BMC's
	cause     string // the cause of the next event; empty: the server itself
	direct    *DirectBoot
	poweredOn time.Time
}

// boot is one run of the QEMU process.
type boot struct {
	process *child
	monitor *qmp
	target  bmc.Target // with which the process was started
	tag     string     // with which the process was started
	media   string     // the same
	events  chan qmpMessage
	reset   wait.Signal   // holds a token when a reset has been handled
	gone    chan struct{} // closed when the process has ended and all are notified
}

const (
	causeBMC   = "the BMC"
	causeFault = "a fault"
	causeSelf  = "the server itself"
)

// Name is the machine's name.
func (m *Machine) Name() string { return m.config.Name }

// Config returns the machine's configuration, with defaults set.
func (m *Machine) Config() MachineConfig { return m.config }

// BMC is the machine's controller, for its faults and its fingerprint. Machines
// may share one.
func (m *Machine) BMC() *bmc.Server { return m.bmc.Server }

// ConsoleLog is the file with the output of the machine's serial port.
func (m *Machine) ConsoleLog() string { return m.path("console.log") }

// ConsoleSocket is a unix socket to the serial port while the power is on. It serves one client at a time.
func (m *Machine) ConsoleSocket() string { return m.path("console.sock") }

// MonitorSocket speaks QMP while the power is on; the rack itself uses another.
func (m *Machine) MonitorSocket() string { return m.path("monitor.sock") }

// Power is the state of the power.
func (m *Machine) Power() bmc.Power {
	if m.current() == nil {
		return bmc.Off
	}
	return bmc.On
}

func (m *Machine) current() *boot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boot
}

// PoweredOn is when the processor last started to run after the power had been
// off; zero if it never has.
func (m *Machine) PoweredOn() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.poweredOn
}

// CPUTime is the processor time that the emulator has used for this machine
// since power-on, to 10 ms; zero while the power is off. Unlike elapsed time it
// does not depend on the load of the computer.
func (m *Machine) CPUTime() (time.Duration, error) {
	b := m.current()
	if b == nil {
		return 0, nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.process.pid))
	if err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", m.config.Name, err)
	}
	ticks, err := parseCPUTicks(string(stat))
	return time.Duration(ticks) * (time.Second / userHZ), err
}

// SetDirect makes every later power-on start this kernel: no OVMF, no option
// ROM, no network boot, which is the minimum for a boot of that kernel. nil
// restores the firmware.
func (m *Machine) SetDirect(d *DirectBoot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.direct = d
}

func (m *Machine) directBoot() *DirectBoot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.direct
}

// WipeDisk empties the machine's disk. Its power must be off.
func (m *Machine) WipeDisk() error {
	m.power.Lock()
	defer m.power.Unlock()
	if m.current() != nil {
		return fmt.Errorf("wipe the disk of %s: its power is on", m.config.Name)
	}
	if err := os.Remove(m.path("disk.qcow2")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("wipe the disk of %s: %w", m.config.Name, err)
	}
	return nil
}

// Override returns the current boot override.
func (m *Machine) Override() bmc.Override {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.override
}

// SetOverride sets what the next boot uses. A running machine is updated at
// once, so that a reset by the machine itself uses it too; only UefiHttp needs
// a power cycle, which the BMC's Reset does.
func (m *Machine) SetOverride(ctx context.Context, o bmc.Override) error {
	m.mu.Lock()
	m.override = o
	b := m.boot
	m.mu.Unlock()
	if b == nil {
		return nil
	}
	return m.orderBoot(ctx, b, o.Target)
}

// orderBoot changes the boot order of a running machine. QEMU passes it to the
// firmware at the next reset.
func (m *Machine) orderBoot(ctx context.Context, b *boot, target bmc.Target) error {
	disk, pxe := bootIndexes(target)
	type place struct {
		device string
		index  int
	}
	// Remove from the order first: QEMU refuses an index that is in use, even
	// by the same device.
	order := []place{{"disk", -1}, {"pxe", -1}, {"disk", disk}, {"pxe", pxe}}
	if b.media != "" {
		order = append([]place{{mediaDevice, -1}}, append(order, place{mediaDevice, mediaIndex(target)})...)
	}
	for _, one := range order {
		err := b.monitor.run(ctx, "qom-set", map[string]any{
			"path": "/machine/peripheral/" + one.device, "property": "bootindex", "value": one.index,
		})
		if err != nil {
			return fmt.Errorf("boot order of %s: %w", m.config.Name, err)
		}
	}
	return nil
}

// AssetTag returns the tag stored by the BMC.
func (m *Machine) AssetTag() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tag
}

// SetAssetTag changes the tag. The firmware shows it from the next power-on, or
// reset by the BMC.
func (m *Machine) SetAssetTag(tag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tag = tag
}

// SetStaleTag makes the firmware show a tag of its own in SMBIOS instead of the
// BMC's.
func (m *Machine) SetStaleTag(stale bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.staleTag = stale
}

// shownTag returns the tag for the SMBIOS of a QEMU started now.
func (m *Machine) shownTag() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.staleTag {
		return m.config.Name
	}
	return m.tag
}

// PowerOn starts the machine. It returns once the processor runs.
func (m *Machine) PowerOn(ctx context.Context) error { return m.powerOn(ctx, "a person") }

func (m *Machine) powerOn(ctx context.Context, cause string) error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.start(ctx, cause)
}

// start starts the machine. The caller holds power.
func (m *Machine) start(ctx context.Context, cause string) error {
	if m.current() != nil {
		return fmt.Errorf("power on %s: it is on already", m.config.Name)
	}
	override := m.Override()
	if err := m.prepare(ctx, override); err != nil {
		return fmt.Errorf("power on %s: %w", m.config.Name, err)
	}
	if err := m.markConsole("power on"); err != nil {
		return fmt.Errorf("power on %s: %w", m.config.Name, err)
	}
	b, err := m.launch(ctx, override.Target)
	if err != nil {
		return fmt.Errorf("power on %s: %w", m.config.Name, err)
	}
	m.mu.Lock()
	m.boot = b
	m.cause = ""
	m.poweredOn = time.Now()
	m.mu.Unlock()
	m.bmc.notify(bmc.PoweredOn, override.Target, cause)
	m.rack.work.Go(func() { m.watch(b) })
	m.consumeOverride(ctx, b)
	return nil
}

// launch starts QEMU, attaches the monitor and lets the processor run.
func (m *Machine) launch(ctx context.Context, target bmc.Target) (*boot, error) {
	tag, media := m.shownTag(), usbDrive{m}.image()
	argv := inside(m.rack.netNamespace(), append(m.qemuArguments(target, tag), mediaArguments(media, target)...)...)
	output, err := os.OpenFile(m.path("qemu.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = output.Close() }() // the child has a duplicate
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, output, output
	for _, name := range []string{"qmp.sock", "monitor.sock", "console.sock"} {
		_ = os.Remove(m.path(name)) // left by a QEMU that was killed
	}
	process, err := m.rack.spawner.start("qemu "+m.config.Name, cmd)
	if err != nil {
		return nil, err
	}
	b := &boot{process: process, target: target, tag: tag, media: media,
		events: make(chan qmpMessage, 64), reset: wait.NewSignal(), gone: make(chan struct{})}
	if err := m.attach(ctx, b); err != nil {
		process.kill()
		tail, _ := tailFile(m.path("qemu.log"), 0, 5)
		return nil, fmt.Errorf("%w; QEMU says: %s", err, tail)
	}
	return b, nil
}

func (m *Machine) attach(ctx context.Context, b *boot) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := dialWhile(ctx, b.process, m.path("qmp.sock"))
	if err != nil {
		return err
	}
	b.monitor, err = newQMP(ctx, conn, func(name string, data map[string]any) {
		select {
		case b.events <- qmpMessage{Event: name, Data: data}:
		default: // the queue is full; the first events are enough
		}
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	unplugged := m.unplugged
	m.mu.Unlock()
	if unplugged {
		err = b.monitor.run(ctx, "set_link", map[string]any{"name": "pxe", "up": false})
	}
	if err == nil {
		err = b.monitor.run(ctx, "cont", nil)
	}
	if err != nil {
		b.monitor.close()
	}
	return err
}

// dialWhile connects to a socket that the process is about to create.
func dialWhile(ctx context.Context, process *child, path string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-process.exited:
			return nil, fmt.Errorf("%s ended at once (%s)", process.what, process.state)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s has not opened %s: %w", process.what, path, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// watch follows one boot to its end.
func (m *Machine) watch(b *boot) {
	defer close(b.gone)
	for {
		select {
		case e := <-b.events:
			m.observe(b, e)
		case <-b.process.exited:
			b.monitor.close()
			for len(b.events) > 0 {
				m.observe(b, <-b.events)
			}
			m.mu.Lock()
			cause := m.cause
			m.boot, m.cause = nil, ""
			m.mu.Unlock()
			if cause == "" {
				cause = fmt.Sprintf("a QEMU that ended by itself (%s)", b.process.state)
			}
			m.bmc.notify(bmc.PoweredOff, bmc.None, cause)
			return
		}
	}
}

func (m *Machine) observe(b *boot, e qmpMessage) {
	byGuest, _ := e.Data["guest"].(bool)
	switch e.Event {
	case "SHUTDOWN":
		m.mu.Lock()
		if byGuest && m.cause == "" {
			m.cause = causeSelf
		}
		m.mu.Unlock()
	case "RESET":
		m.mu.Lock()
		cause := m.cause
		m.cause = ""
		m.mu.Unlock()
		if byGuest || cause == "" {
			cause = causeSelf
		}
		_ = m.markConsole("reset") // informational; a full disk must not stop the machine
		m.bmc.notify(bmc.Reset, m.Override().Target, cause)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		m.consumeOverride(ctx, b)
		cancel()
		b.reset.Set()
	}
}

// consumeOverride ends an override for one boot. The firmware already has its
// boot order: QEMU builds it at reset, before it reports the reset.
func (m *Machine) consumeOverride(ctx context.Context, b *boot) {
	m.mu.Lock()
	once := m.override.Once
	if once {
		m.override = bmc.Override{Target: bmc.None}
	}
	m.mu.Unlock()
	if !once {
		return
	}
	if err := m.orderBoot(ctx, b, bmc.None); err != nil && !errors.Is(err, errQMPClosed) {
		m.log.Warn("the boot override stays for the next reset too", "error", err)
	}
}

// PullPower cuts the power like a pulled plug.
func (m *Machine) PullPower() error {
	m.power.Lock()
	defer m.power.Unlock()
	b := m.blame(causeFault)
	if b == nil {
		return fmt.Errorf("pull the power of %s: %w", m.config.Name, bmc.ErrOff)
	}
	b.process.kill()
	<-b.gone
	return nil
}

// Reset resets the machine like a crash, without the BMC; the BMC notices.
func (m *Machine) Reset(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.resetInPlace(ctx, causeSelf)
}

func (m *Machine) resetInPlace(ctx context.Context, cause string) error {
	b := m.blame(cause)
	if b == nil {
		return fmt.Errorf("reset %s: %w", m.config.Name, bmc.ErrOff)
	}
	select {
	case <-b.reset: // left by an earlier reset
	default:
	}
	if err := b.monitor.run(ctx, "system_reset", nil); err != nil {
		return fmt.Errorf("reset %s: %w", m.config.Name, err)
	}
	select {
	case <-b.reset:
		return nil
	case <-b.gone:
		return fmt.Errorf("reset %s: %w", m.config.Name, bmc.ErrOff)
	case <-ctx.Done():
		return fmt.Errorf("reset %s: %w", m.config.Name, ctx.Err())
	}
}

// blame sets the cause of what comes next, and returns the current boot.
func (m *Machine) blame(cause string) *boot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boot != nil {
		m.cause = cause
	}
	return m.boot
}

// Unplug disconnects the provisioning NIC; it stays disconnected across power
// cycles until Plug.
func (m *Machine) Unplug(ctx context.Context) error { return m.setCable(ctx, false) }

// Plug connects it again.
func (m *Machine) Plug(ctx context.Context) error { return m.setCable(ctx, true) }

func (m *Machine) setCable(ctx context.Context, plugged bool) error {
	m.power.Lock()
	defer m.power.Unlock()
	m.mu.Lock()
	m.unplugged = !plugged
	b := m.boot
	m.mu.Unlock()
	if b == nil {
		return nil
	}
	if err := b.monitor.run(ctx, "set_link", map[string]any{"name": "pxe", "up": plugged}); err != nil {
		return fmt.Errorf("cable of %s: %w", m.config.Name, err)
	}
	return nil
}

// powerOff ends QEMU: gracefully, so that its disk is closed, then by force.
// The caller holds power.
func (m *Machine) powerOff(ctx context.Context, cause string) error {
	b := m.blame(cause)
	if b == nil {
		return fmt.Errorf("power off %s: %w", m.config.Name, bmc.ErrOff)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := b.monitor.run(ctx, "quit", nil); err != nil && !errors.Is(err, errQMPClosed) {
		m.log.Warn("QEMU does not quit, it is killed", "error", err)
		b.process.kill()
	}
	select {
	case <-b.gone:
	case <-ctx.Done():
		b.process.kill()
		<-b.gone
	}
	return nil
}

// prepare creates what the machine keeps between boots, its disk and its
// firmware's variables, and the variables of one HTTP boot, which are new each
// time.
func (m *Machine) prepare(ctx context.Context, override bmc.Override) error {
	if _, err := os.Stat(m.path("disk.qcow2")); errors.Is(err, fs.ErrNotExist) {
		cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", m.path("disk.qcow2"), fmt.Sprint(diskBytes))
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("make the disk: %w: %s", err, output)
		}
	}
	if m.config.Firmware != UEFI {
		return nil
	}
	file := m.path(variablesFile(override.Target))
	if _, err := os.Stat(file); err == nil && override.Target != bmc.UefiHTTP {
		return nil
	}
	variables, err := os.ReadFile(ovmfVars)
	if err != nil {
		return fmt.Errorf("OVMF (package ovmf): %w", err)
	}
	if override.URI != "" {
		mac, err := net.ParseMAC(m.config.MAC(0))
		if err != nil {
			return err
		}
		if variables, err = bootVariables(variables, mac, override.URI); err != nil {
			return err
		}
	}
	return os.WriteFile(file, variables, 0o600)
}

// markConsole writes a line between two boots into the console's log.
func (m *Machine) markConsole(what string) error {
	f, err := os.OpenFile(m.ConsoleLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "\n--- %s %s\n", what, time.Now().UTC().Format(time.RFC3339))
	return errors.Join(err, f.Close())
}
