package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// beAsWritten brings a Guest to its wanted state when no move concerns it.
func (g *guest) beAsWritten(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if part.State == api.GuestStopped {
		return g.beStopped(ctx, part)
	}
	return g.beRunning(ctx, part)
}

// beRunning makes the Guest run, or pauses it.
func (g *guest) beRunning(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if g.vm.running == nil {
		g.ladder.stop = nil
		return g.mayStart(ctx, part)
	}
	if g.ladder.stop != nil { // a stop that has begun is completed
		return g.ladder.climb(ctx, g.ladder.stop.why)
	}
	if r := part.Request; g.record.asked(r) {
		if r.Verb == api.GuestRestart {
			return g.ladder.climb(ctx, stopRestart)
		}
		if err := g.vm.command(ctx, "system_reset", nil, nil); err != nil {
			return 0, fmt.Errorf("reset it: %w", err)
		}
		if err := g.record.doneRequest(part); err != nil {
			return 0, err
		}
	}
	if l := g.record.Launched; l != nil {
		g.conditions.noteLaunched(l, part)
		g.conditions.noteSteady(g.record.Crash, g.timing.settled)
		g.tpm.note()
		g.hearing.note(ctx)
	}
	return g.follow(ctx, part)
}

// follow acts on QEMU's state.
func (g *guest) follow(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if err := g.storage.check(ctx); err != nil {
		return g.timing.retry, err
	}
	paused := part.State == api.GuestPaused
	switch state := g.vm.running.state; {
	case endOf(state) != nil:
		g.restarts.noteEnd(*endOf(state))
		return g.ladder.climb(ctx, stopForced)
	case state == qemuSent: // the move was cancelled
		if err := g.vm.command(ctx, "cont", nil, nil); err != nil {
			return 0, fmt.Errorf("resume it: %w", err)
		}
		return time.Millisecond, pending("going on")
	case state == qemuPrelaunch && !paused, state == qemuPaused && !paused:
		if err := g.configure(ctx, part); err != nil {
			return 0, err
		}
		if err := g.vm.command(ctx, "cont", nil, nil); err != nil {
			return 0, fmt.Errorf("resume it: %w", err)
		}
		return time.Millisecond, pending("starting")
	case state == qemuRunning && paused:
		if err := g.vm.command(ctx, "stop", nil, nil); err != nil {
			return 0, fmt.Errorf("pause it: %w", err)
		}
		return time.Millisecond, pending("pausing")
	case state == qemuRunning:
		if err := g.configure(ctx, part); err != nil {
			return 0, err
		}
		return 0, g.shares.settle(ctx, part)
	}
	return 0, nil
}

// configure is deferred during an export, when the disks are below filters.
func (g *guest) configure(ctx context.Context, part *api.GuestPart) error {
	if g.exporter.active {
		return nil
	}
	return g.limits.configure(ctx, part)
}

// endOf returns how a Guest has ended according to QEMU's state, nil when it
// has not.
func endOf(state string) *ended {
	switch state {
	case qemuShutdown:
		return &ended{Word: "Ended", Reason: "it shut down by itself"}
	case qemuPanicked:
		return &ended{Word: "Panicked", Failed: true, Reason: "its kernel panicked: see its console"}
	case qemuWatchdog:
		return &ended{Word: "Hung", Failed: true, Reason: "it hung: nothing in it fed its watchdog in time; see its console"}
	case qemuInternalError:
		return &ended{Word: "Crashed", Failed: true, Reason: "its processor failed: see its console"}
	}
	return nil
}

// mayStart starts the Guest unless its restart policy forbids it.
func (g *guest) mayStart(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if g.exporter.active {
		return g.timing.retry, pending("it starts when the export of its disks has ended")
	}
	if !g.record.asked(part.Request) {
		if wait, err := g.restarts.hold(part.Restart); err != nil {
			return wait, err
		}
	}
	again := g.record.Ended != nil
	// Recorded before the start, so that a crash in between does not repeat it.
	if err := g.record.doneRequest(part); err != nil {
		return 0, err
	}
	if err := g.start(ctx, part); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	if again {
		g.restarts.count++
	}
	return time.Millisecond, pending("starting")
}

// start launches QEMU, paused, and adopts it.
func (g *guest) start(ctx context.Context, part *api.GuestPart) error {
	seeded, err := g.launch(ctx, part)
	if err != nil {
		return err
	}
	g.conditions.clear()
	g.limits.configured = ""
	err = g.comeUp(ctx)
	if err != nil || g.vm.running.state == qemuSilent {
		return fmt.Errorf("QEMU does not come up: %s", g.complaint(err))
	}
	g.reached("create: adopted, not expected")
	if !seeded || g.record.Seeded {
		return g.record.expect(true)
	}
	return g.record.change(func(r *record) { r.Expected, r.Ended, r.Seeded = true, nil, true })
}

// launch starts QEMU and records how. When it returns, only QEMU holds the
// files passed to it, so a QEMU that ends closes them. It reports whether the
// Guest was given its user data.
func (g *guest) launch(ctx context.Context, part *api.GuestPart) (seeded bool, err error) {
	var files opened
	defer files.close()
	lock, err := g.lock()
	if err != nil {
		return false, err
	}
	if lock == nil {
		return false, errors.New("a QEMU of it is running already")
	}
	files.add(lock)
	program, err := lookUp(g.h.o.Program)
	if err != nil {
		return false, fmt.Errorf("QEMU is not installed on this host: its image must contain it (Debian's qemu-system-x86 and qemu-utils): %w", err)
	}
	verdict, err := g.h.accelerator(ctx)
	if err != nil {
		return false, err
	}
	if part.Tuning.HugePages {
		if err := enoughHugePages(part.Memory.Value()); err != nil {
			return false, err
		}
	}
	if err := os.MkdirAll(g.run, 0o700); err != nil {
		return false, err
	}
	access := newAccess(part)
	vm, err := g.builder.machine(ctx, part, verdict.Accelerator, access, &files)
	if err != nil {
		return false, err
	}
	g.reached("create: disks made")
	args, handed, err := vm.Command()
	if err != nil {
		return false, err
	}
	log, err := os.OpenFile(filepath.Join(g.dir, "qemu.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return false, err
	}
	files.add(log)
	cpus, err := api.ParseCPUSet(part.Tuning.CPUSet)
	if err != nil {
		return false, err
	}
	err = g.record.change(func(r *record) {
		r.Expected, r.Access, r.Frozen = false, access, false
		r.Launched = &launched{BootID: bootID(), Time: time.Now().UTC(), Accelerator: verdict.Accelerator, Reason: verdict.Reason, Machine: machineDigest(*part),
			TPM: part.TPM, VHost: vm.NIC != nil && vm.NIC.VHost != nil, Moved: vm.Incoming}
	})
	if err != nil {
		return false, err
	}
	service := Service{Guest: g.name, UID: g.uid, CPUWeight: part.Limits.CPUWeight, IOWeight: part.Limits.IOWeight,
		StopTimeout: part.StopTimeout.Or(api.GuestStopTimeout) + maxForce*g.timing.force}
	_, err = g.h.launcher(service).Start(ctx, launch.Task{Path: program, Args: args, FirstFile: qemu.FirstFile, Dir: g.run,
		UID: g.record.User, GID: g.record.User, Groups: kvmGroups(verdict.Accelerator), CPUs: cpus,
		Files: handed, Kept: []*os.File{lock}, Log: log})
	if err != nil {
		return false, err
	}
	g.reached("create: launched")
	return vm.Seed != nil, nil
}

// comeUp adopts a QEMU that was just started, and waits until it answers.
func (g *guest) comeUp(ctx context.Context) error {
	const patience, pause = 30 * time.Second, 100 * time.Millisecond
	err := g.adopt(ctx)
	for end := time.Now().Add(patience); err == nil && g.vm.running.state == qemuSilent && time.Now().Before(end); {
		select {
		case <-g.vm.ended():
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		err = g.vm.askState(ctx)
	}
	return err
}

func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// kvmGroups returns the group that may open /dev/kvm, if there is one.
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
