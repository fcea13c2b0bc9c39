package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// checkPart refuses what no QEMU can be made of.
func checkPart(p *api.GuestPart) error {
	cpus, err := api.ParseCPUSet(p.Tuning.CPUSet)
	switch {
	case err != nil:
		return err
	case p.CPUs < 1 || p.Memory.Value() < 1<<20:
		return errors.New("a Guest needs at least one processor and 1Mi of memory")
	case !slices.Contains([]string{"", qemu.Q35, qemu.MicroVM}, p.Machine):
		return fmt.Errorf("no machine is called %q", p.Machine)
	case p.Firmware == "uefi" && p.Machine == qemu.MicroVM:
		return errors.New("a microvm has no UEFI")
	case p.TPM && p.Machine == qemu.MicroVM:
		return errors.New("a microvm has no TPM")
	case slices.ContainsFunc(p.Shares, func(s api.GuestShare) bool { return api.ValidateName(s.Name) != nil }):
		return errors.New("a share's name is none")
	case !slices.Contains([]string{"", "vga", "none"}, p.Display):
		return fmt.Errorf("no display is called %q", p.Display)
	case !slices.Contains([]string{"Running", "Paused", "Stopped"}, p.State):
		return fmt.Errorf("no state is called %q", p.State)
	case slices.ContainsFunc(p.Disks, func(d api.GuestDisk) bool {
		return !slices.Contains([]string{"", api.DiskVirtioBlk, api.DiskVirtioSCSI}, d.Bus)
	}):
		return errors.New("a disk is on a bus that this nodeagent does not know: it knows virtio-blk and virtio-scsi")
	case len(cpus) > 0 && len(cpus) < p.CPUs && p.Tuning.HugePages:
		return fmt.Errorf("%d processors cannot be had from the %d of %s", p.CPUs, len(cpus), p.Tuning.CPUSet)
	}
	return nil
}

// digest tells values apart.
func digest(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error() // never: these are plain values
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// machineDigest is over what takes effect at a start only.
func machineDigest(p api.GuestPart) string {
	p.State, p.Restart, p.StopTimeout, p.Request, p.Config, p.Transfer = "", "", 0, nil, api.GuestConfig{}, nil
	p.Limits.Receive, p.Limits.Send, p.Limits.DiskBytes, p.Limits.DiskOperations = api.Quantity{}, api.Quantity{}, api.Quantity{}, 0
	p.Shares = slices.Clone(p.Shares)
	for i := range p.Shares {
		p.Shares[i].Version = ""
	}
	p.Disks = slices.Clone(p.Disks)
	for i := range p.Disks {
		p.Disks[i].Size, p.Disks[i].Retain = api.Quantity{}, false
	}
	return digest(p)
}

// machineID is the UUID that the Guest's machine has: its uid where that is one.
func machineID(uid string) string {
	if id, err := uuid.Parse(uid); err == nil {
		return id.String()
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("rackweft guest "+uid)).String()
}

// beRunning makes the Guest run, or be paused.
func (g *guest) beRunning(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if g.running == nil {
		g.stop = nil
		return g.mayStart(ctx, part)
	}
	if g.stop != nil { // a stop that has begun is gone through with
		return g.climb(ctx, g.stop.why)
	}
	if r := part.Request; g.asked(r) {
		if r.Verb == api.GuestRestart {
			return g.climb(ctx, stopRestart)
		}
		if err := g.command(ctx, "system_reset", nil, nil); err != nil {
			return 0, fmt.Errorf("reset it: %w", err)
		}
		if err := g.doneRequest(part); err != nil {
			return 0, err
		}
	}
	g.noteCurrent(part)
	if g.record.Launched != nil {
		g.hearing.note(ctx, g)
	}
	return g.follow(ctx, part)
}

// follow heeds the state that QEMU is in.
func (g *guest) follow(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if err := g.heedState(ctx); err != nil {
		return g.h.timing.retry, err
	}
	paused := part.State == "Paused"
	switch state := g.running.state; {
	case endOf(state) != nil:
		g.noteEnd(*endOf(state))
		return g.climb(ctx, stopForced)
	case state == postmigrate: // the move was given up
		if err := g.command(ctx, "cont", nil, nil); err != nil {
			return 0, fmt.Errorf("let it go on: %w", err)
		}
		return time.Millisecond, pending("going on")
	case state == "prelaunch" && !paused, state == "paused" && !paused:
		if err := g.configure(ctx, part); err != nil {
			return 0, err
		}
		if err := g.command(ctx, "cont", nil, nil); err != nil {
			return 0, fmt.Errorf("let it run: %w", err)
		}
		return time.Millisecond, pending("starting")
	case state == "running" && paused:
		if err := g.command(ctx, "stop", nil, nil); err != nil {
			return 0, fmt.Errorf("pause it: %w", err)
		}
		return time.Millisecond, pending("pausing")
	case state == "running":
		if err := g.configure(ctx, part); err != nil {
			return 0, err
		}
		return 0, g.settleShares(ctx, part)
	}
	return 0, nil
}

// endOf is how a Guest has ended in a state of QEMU's, nil for one that has not.
func endOf(state string) *ended {
	switch state {
	case "shutdown":
		return &ended{Word: "Ended", Reason: "it has shut down by itself"}
	case "guest-panicked":
		return &ended{Word: "Panicked", Failed: true, Reason: "its kernel has panicked: see its console"}
	case "watchdog":
		return &ended{Word: "Hung", Failed: true, Reason: "it has hung: nothing in it has fed its watchdog in time; see its console"}
	case "internal-error":
		return &ended{Word: "Crashed", Failed: true, Reason: "its processor has failed: see its console"}
	}
	return nil
}

// heedState reports what keeps a QEMU that lives from running its Guest.
func (g *guest) heedState(ctx context.Context) error {
	if g.running == nil {
		return nil
	}
	switch g.running.state {
	case "":
		return pending("QEMU does not answer: it is asked again; see its log " + filepath.Join(g.dir, "qemu.log"))
	case "io-error":
		return g.retryStorage(ctx)
	case "running":
		c := g.conditions.Get(conditionStorage)
		if c != nil && c.Status == api.False && time.Since(g.ioFailed) > g.h.timing.retry {
			g.h.event(g, api.Normal, "StorageRecovered", "its disks can be written again")
			g.condition(conditionStorage, true, "Works", "")
		}
		if c != nil && c.Status == api.False {
			return pending(c.Message)
		}
		if c == nil {
			g.condition(conditionStorage, true, "Works", "")
		}
	}
	return nil
}

// retryStorage lets a Guest that a disk error holds try again.
func (g *guest) retryStorage(ctx context.Context) error {
	if c := g.conditions.Get(conditionStorage); c == nil || c.Status != api.False { // the event came while nobody listened
		g.storageFailed([]byte(`{"node-name":"of it","operation":"I/O","reason":"see the log of its QEMU"}`))
	}
	if time.Since(g.ioFailed) >= g.h.timing.retry {
		g.ioFailed = time.Now()
		if err := g.command(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("let it try its disk again: %w", err)
		}
	}
	return pending(g.conditions.Get(conditionStorage).Message)
}

// noteCurrent tells whether a restart is due for the Guest to be what its part
// says.
func (g *guest) noteCurrent(part *api.GuestPart) {
	l := g.record.Launched
	if l == nil {
		return
	}
	current := l.Machine == machineDigest(*part)
	reason, message := "AsWritten", ""
	if !current {
		reason, message = "RestartNeeded", "it was changed since it was started: restart it for the change to take effect"
	}
	g.condition(conditionCurrent, current, reason, message)
	g.condition(conditionAccelerated, l.Accelerator == qemu.KVM, strings.ToUpper(string(l.Accelerator)), l.Reason)
	if part.Network != "" {
		g.noteVHost(l.VHost)
	}
	g.noteSteady()
	g.noteTPM()
}

func (g *guest) noteVHost(used bool) {
	if used {
		g.condition(conditionVHost, true, "Used", "")
		return
	}
	g.condition(conditionVHost, false, "Missing", "the host had no "+vhostNet+" when it was started, and its packets go through QEMU, which costs more: `modprobe vhost_net`, then restart it")
}

// noteSteady tells of a failure until a run has been good for some time.
func (g *guest) noteSteady() {
	c := g.record.Crash
	if c == nil || time.Since(c.Time) > g.h.timing.settled {
		g.condition(conditionSteady, true, "Runs", "")
		return
	}
	g.condition(conditionSteady, false, c.Word, fmt.Sprintf("at %s: %s", c.Time.Format(time.RFC3339), c.Reason))
}

// asked reports whether a request about the Guest's run is yet to be done.
func (g *guest) asked(r *api.GuestRequest) bool {
	return r != nil && r.ID != g.record.Request && !r.AboutSnapshot()
}

// doneRequest notes that a part's request is done.
func (g *guest) doneRequest(part *api.GuestPart) error {
	if !g.asked(part.Request) {
		return nil
	}
	return g.result(part.Request, "", nil)
}

// result writes down what came of a request: a message, or the error that it
// failed of.
func (g *guest) result(r *api.GuestRequest, message string, failure error, edits ...func(*record)) error {
	result := &api.GuestResult{ID: r.ID, Verb: r.Verb, Message: message, Time: time.Now().UTC().Truncate(time.Second)}
	if failure != nil {
		result.Failed, result.Message = true, failure.Error()
	}
	return g.change(func(rec *record) {
		rec.Request, rec.Result = r.ID, result
		for _, edit := range edits {
			edit(rec)
		}
	})
}

// mayStart starts the Guest unless its restart policy has it stay as it is.
func (g *guest) mayStart(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if g.exporting {
		return g.h.timing.retry, pending("it starts when the export of its disks is over")
	}
	asked := g.asked(part.Request)
	if e := g.record.Ended; e != nil && !asked {
		if part.Restart == "Never" || part.Restart == "OnFailure" && !e.Failed {
			return 0, pending(fmt.Sprintf("%s, and stays so by its restart policy %s: restart it, or stop and start it", e.Reason, part.Restart))
		}
		if wait := time.Until(g.notBefore); wait > 0 {
			return wait, pending(fmt.Sprintf("%s; it is started again in %s", e.Reason, g.backoff))
		}
	}
	again := g.record.Ended != nil
	// Before, so that a crash in between does not do it twice.
	if err := g.doneRequest(part); err != nil {
		return 0, err
	}
	if err := g.start(ctx, part); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	if again {
		g.restarts++
	}
	return time.Millisecond, pending("starting")
}

// opened is what a start has open for itself; QEMU has its own then.
type opened []io.Closer

func (o *opened) add(c io.Closer) { *o = append(*o, c) }

func (o *opened) close() {
	for _, c := range slices.Backward(*o) {
		_ = c.Close()
	}
}

// start launches QEMU, paused.
func (g *guest) start(ctx context.Context, part *api.GuestPart) error {
	var files opened
	defer files.close()
	lock, err := g.lock()
	if err != nil {
		return err
	}
	if lock == nil {
		return errors.New("a QEMU of it lives already")
	}
	files.add(lock)
	program, err := lookUp(g.h.o.Program)
	if err != nil {
		return fmt.Errorf("QEMU is not installed on this host: its image is to have it (Debian's qemu-system-x86 and qemu-utils): %w", err)
	}
	verdict, err := g.h.accelerator(ctx)
	if err != nil {
		return err
	}
	if part.Tuning.HugePages {
		if err := enoughHugePages(part.Memory.Value()); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(g.run, 0o700); err != nil {
		return err
	}
	access := newAccess(part)
	vm, err := g.machine(ctx, part, verdict.Accelerator, access, &files)
	if err != nil {
		return err
	}
	g.h.reached("create: disks made")
	args, handed, err := vm.Command()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(g.dir, "qemu.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	files.add(log)
	cpus, err := api.ParseCPUSet(part.Tuning.CPUSet)
	if err != nil {
		return err
	}
	err = g.change(func(r *record) {
		r.Expected, r.Access, r.Frozen = false, access, false
		r.Launched = &launched{BootID: bootID(), Time: time.Now().UTC(), Accelerator: verdict.Accelerator, Reason: verdict.Reason, Machine: machineDigest(*part),
			TPM: part.TPM, VHost: vm.NIC != nil && vm.NIC.VHost != nil, Moved: vm.Incoming}
	})
	if err != nil {
		return err
	}
	service := Service{Guest: g.name, UID: g.uid, CPUWeight: part.Limits.CPUWeight, IOWeight: part.Limits.IOWeight,
		StopTimeout: part.StopTimeout.Or(api.GuestStopTimeout) + maxForce*g.h.timing.force}
	launcher := launch.Launcher{Command: g.h.o.Launch, Run: func(ctx context.Context, argv []string) error { return g.h.o.Start(ctx, service, argv) }}
	_, err = launcher.Start(ctx, launch.Task{Path: program, Args: args, FirstFile: qemu.FirstFile, Dir: g.run,
		UID: g.record.User, GID: g.record.User, Groups: kvmGroups(verdict.Accelerator), CPUs: cpus,
		Files: handed, Kept: []*os.File{lock}, Log: log})
	if err != nil {
		return err
	}
	g.h.reached("create: launched")
	files.close() // a QEMU that ends hangs up now
	files = nil
	g.conditions, g.configured = nil, ""
	err = g.comeUp(ctx)
	if err != nil || g.running.state == "" {
		return fmt.Errorf("QEMU does not come up: %s", g.complaint(err))
	}
	g.h.reached("create: adopted, not expected")
	if vm.Seed == nil || g.record.Seeded {
		return g.expect(true)
	}
	return g.change(func(r *record) { r.Expected, r.Ended, r.Seeded = true, nil, true })
}

// comeUp adopts a QEMU that was just started, and gives it time to answer.
func (g *guest) comeUp(ctx context.Context) error {
	const patience, pause = 30 * time.Second, 100 * time.Millisecond
	err := g.adopt(ctx)
	for end := time.Now().Add(patience); err == nil && g.running.state == "" && time.Now().Before(end); {
		select {
		case <-g.ended():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		err = g.askState(ctx)
	}
	return err
}

// complaint is what QEMU has said last.
func (g *guest) complaint(err error) string {
	raw, readErr := os.ReadFile(filepath.Join(g.dir, "qemu.log"))
	said := strings.Join(strings.Fields(string(raw[max(0, len(raw)-500):])), " ")
	if readErr != nil || said == "" {
		return fmt.Sprint(err)
	}
	return said
}

func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// kvmGroups lets QEMU open /dev/kvm where a group may.
func kvmGroups(a qemu.Accelerator) []int {
	if a != qemu.KVM {
		return nil
	}
	info, err := os.Stat("/dev/kvm")
	if err != nil || info.Mode()&0o060 != 0o060 {
		return nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Gid != 0 {
		return []int{int(st.Gid)}
	}
	return nil
}

// machine opens all that the Guest's machine consists of.
func (g *guest) machine(ctx context.Context, part *api.GuestPart, a qemu.Accelerator, access *access, files *opened) (qemu.VM, error) {
	vm := qemu.VM{Name: g.name, UUID: machineID(g.uid), Machine: part.Machine, Accelerator: a, CPUs: part.CPUs,
		Memory: part.Memory.Value(), HugePages: part.Tuning.HugePages, NUMANode: part.Tuning.NUMANode}
	if vm.Machine == "" {
		vm.Machine = qemu.Q35
	}
	vm.Display = vm.Machine == qemu.Q35 && part.Display != "none"
	vm.Incoming = elsewhere(part)
	for _, d := range part.Disks {
		o, err := g.h.disks.Open(ctx, disk.Wanted{Network: part.Network, Guest: g.name, UID: g.uid, GuestDisk: d})
		if err != nil {
			return vm, err
		}
		files.add(closer(o.Close))
		vm.Disks = append(vm.Disks, qemu.Disk{Name: d.Name, File: o.File, Format: o.Format, SCSI: d.Bus == api.DiskVirtioSCSI, Base: o.Base, BaseFormat: o.BaseFormat})
	}
	for _, open := range []func(context.Context, *api.GuestPart, *qemu.VM, *opened) error{g.openKernel, g.openFirmware, g.openNIC, g.openChannels, g.openShares, g.openSeed, g.openTPM} {
		if err := open(ctx, part, &vm, files); err != nil {
			return vm, err
		}
	}
	return vm, openConfig(part, access, &vm, files)
}

type closer func()

func (c closer) Close() error { c(); return nil }

func (g *guest) openKernel(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	k := part.Kernel
	if k == nil {
		return nil
	}
	kernel, err := g.h.disks.Image(ctx, k.Kernel)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	files.add(kernel)
	vm.Kernel = &qemu.Kernel{Kernel: kernel, Arguments: strings.Join(k.Arguments, " ")}
	if k.Initrd != "" {
		if vm.Kernel.Initrd, err = g.h.disks.Image(ctx, k.Initrd); err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		files.add(vm.Kernel.Initrd)
	}
	return nil
}

// Where Debian's package ovmf has its firmware.
const (
	ovmfCode            = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVariables       = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	ovmfSecureCode      = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfSecureVariables = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
)

func (g *guest) openFirmware(_ context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if part.Firmware != "uefi" {
		return nil
	}
	code, template := ovmfCode, ovmfVariables
	if part.SecureBoot {
		code, template = ovmfSecureCode, ovmfSecureVariables
	}
	c, err := os.Open(code)
	if err != nil {
		return fmt.Errorf("UEFI's firmware is missing: install Debian's package ovmf: %w", err)
	}
	files.add(c)
	path := filepath.Join(g.dir, filepath.Base(template))
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

// openConfig makes the Ignition config that points to the Guest's own. It is
// small: Ignition's way to read it takes time by the square of its length.
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

// pointer is an Ignition config that has another one fetched.
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
		config.Ignition.Version = "3.1.0" // the first that has headers
	}
	config.Ignition.Config.Replace.Source = c.URL
	config.Ignition.Config.Replace.Headers = []header{{"Authorization", bearer + token}}
	return json.Marshal(config)
}

// vhostNet is the kernel's own virtio NIC: QEMU is handed it open.
const vhostNet = "/dev/vhost-net"

func (g *guest) openNIC(ctx context.Context, part *api.GuestPart, vm *qemu.VM, files *opened) error {
	if part.Network == "" {
		return nil
	}
	if g.h.o.Network == nil {
		return errors.New("this nodeagent has no Networks")
	}
	port := nodePort(g.name, part)
	port.Silent = elsewhere(part)
	a, err := g.h.o.Network.Attach(ctx, port)
	if err != nil {
		return fmt.Errorf("its place on Network %s: %w", part.Network, err)
	}
	files.add(a.Tap)
	vm.NIC = &qemu.NIC{MAC: string(part.MAC), MTU: a.MTU, Tap: a.Tap}
	if v, err := os.OpenFile(vhostNet, os.O_RDWR, 0); err == nil {
		files.add(v)
		vm.NIC.VHost = v
	}
	return nil
}

func (g *guest) openChannels(_ context.Context, _ *api.GuestPart, vm *qemu.VM, files *opened) error {
	for name, to := range map[string]**os.File{"qmp.sock": &vm.Control, "monitor.sock": &vm.Monitor, "console.sock": &vm.Console, "agent.sock": &vm.Agent} {
		l, err := launch.Listen(filepath.Join(g.run, name))
		if err != nil {
			return err
		}
		f, err := l.File()
		_ = l.Close() // f is another one of it
		if err != nil {
			return err
		}
		files.add(f)
		*to = f
	}
	var err error
	vm.ConsoleLog, err = os.OpenFile(g.consoleLog(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		files.add(vm.ConsoleLog)
	}
	return err
}

// configure does what is done through the monitor: disks get their size and
// limits, and processors their place.
func (g *guest) configure(ctx context.Context, part *api.GuestPart) error {
	if g.exporting {
		return nil // the disks are below filters: it waits
	}
	limits := diskLimits(part)
	wanted := digest([]any{part.Disks, limits})
	if g.configured == wanted {
		return nil
	}
	disks, err := g.queryDisks(ctx)
	if err != nil {
		return err
	}
	for _, d := range part.Disks {
		seen, ok := disks[d.Name]
		if !ok {
			continue // it comes with the next start
		}
		if err := g.growDisk(ctx, d, seen.Image.Size); err != nil {
			return err
		}
		if seen.throttle == limits {
			continue
		}
		args := throttleArguments{ID: seen.device, Group: "guest", throttle: limits}
		if err := g.command(ctx, "block_set_io_throttle", args, nil); err != nil {
			return fmt.Errorf("limit disk %s: %w", d.Name, err)
		}
	}
	if err := g.pin(ctx, part); err != nil {
		return err
	}
	g.configured = wanted
	return nil
}

// throttle is what QEMU calls a disk's limits. Those of reads or writes alone
// are not used.
type throttle struct {
	Bytes           int64 `json:"bps"`
	ReadBytes       int64 `json:"bps_rd"`
	WriteBytes      int64 `json:"bps_wr"`
	Operations      int64 `json:"iops"`
	ReadOperations  int64 `json:"iops_rd"`
	WriteOperations int64 `json:"iops_wr"`
}

// throttleArguments are those of block_set_io_throttle. The disks of a group
// share its limits.
type throttleArguments struct {
	ID    string `json:"id"`
	Group string `json:"group"`
	throttle
}

func diskLimits(part *api.GuestPart) throttle {
	return throttle{Bytes: part.Limits.DiskBytes.Value(), Operations: int64(part.Limits.DiskOperations)}
}

// attachedDisk is what QEMU has as a disk.
type attachedDisk struct {
	Node  string `json:"node-name"`
	Image struct {
		Size int64 `json:"virtual-size"`
	} `json:"image"`
	throttle
	device string // QOM path of what it is plugged into
}

// queryDisks asks for the disks that QEMU has, by name.
func (g *guest) queryDisks(ctx context.Context) (map[string]attachedDisk, error) {
	var blocks []struct {
		Device   string        `json:"qdev"`
		Inserted *attachedDisk `json:"inserted"`
	}
	if err := g.command(ctx, "query-block", nil, &blocks); err != nil {
		return nil, err
	}
	disks := map[string]attachedDisk{}
	for _, b := range blocks {
		if b.Inserted == nil {
			continue
		}
		if name, ok := strings.CutPrefix(b.Inserted.Node, qemu.DiskNode("")); ok {
			b.Inserted.device = b.Device
			disks[name] = *b.Inserted
		}
	}
	return disks, nil
}

// growDisk makes a disk as large as it is to be, if it is smaller.
func (g *guest) growDisk(ctx context.Context, d api.GuestDisk, size int64) error {
	if size > d.Size.Value() {
		g.log.Warn("a disk is larger than it is to be, and stays so", "disk", d.Name, "bytes", size)
	}
	if size >= d.Size.Value() {
		return nil
	}
	args := map[string]any{"node-name": qemu.DiskNode(d.Name), "size": d.Size.Value()}
	if err := g.command(ctx, "block_resize", args, nil); err != nil {
		return fmt.Errorf("grow disk %s: %w", d.Name, err)
	}
	g.h.event(g, api.Normal, "DiskGrown", fmt.Sprintf("disk %s has grown to %d bytes", d.Name, d.Size.Value()))
	return nil
}

// pin gives each of the Guest's processors one of the host's, when there is one
// for each.
func (g *guest) pin(ctx context.Context, part *api.GuestPart) error {
	cpus, err := api.ParseCPUSet(part.Tuning.CPUSet)
	if err != nil || len(cpus) != part.CPUs {
		return err
	}
	var threads []struct {
		Index  int `json:"cpu-index"`
		Thread int `json:"thread-id"`
	}
	if err := g.command(ctx, "query-cpus-fast", nil, &threads); err != nil {
		return err
	}
	for _, t := range threads {
		if t.Index >= len(cpus) || t.Thread <= 0 {
			continue
		}
		var set unix.CPUSet
		set.Set(cpus[t.Index])
		if err := unix.SchedSetaffinity(t.Thread, &set); err != nil {
			return fmt.Errorf("bind processor %d to the host's %d: %w", t.Index, cpus[t.Index], err)
		}
	}
	return nil
}
