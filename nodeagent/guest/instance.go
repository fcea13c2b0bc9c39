package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

// QEMU's RunState, as query-status returns it.
const (
	qemuSilent        = "" // it does not answer
	qemuRunning       = "running"
	qemuPaused        = "paused"
	qemuPrelaunch     = "prelaunch"
	qemuSuspended     = "suspended"
	qemuShutdown      = "shutdown"
	qemuPanicked      = "guest-panicked"
	qemuWatchdog      = "watchdog"
	qemuInternalError = "internal-error"
	qemuIOError       = "io-error"
	qemuSent          = "postmigrate" // the source of a move has sent everything
	qemuReceiving     = "inmigrate"   // the target of a move waits for the state
)

// running is a QEMU that was identified as the Guest's.
type running struct {
	process *launch.Process
	exited  chan struct{}
	release context.CancelFunc // stops watching the process
	monitor *qmp.Client        // nil when it does not answer
	state   string             // QEMU's RunState
}

// instance is the QEMU of a Guest, which outlives the agent: it is adopted,
// queried and released. The Guest's goroutine owns all fields that are not
// under mu.
type instance struct {
	*identity
	record     *ledger
	conditions *conditions
	socket     string   // which of QEMU's two monitors is used
	running    *running // nil when no QEMU is known
	events     chan event

	mu      sync.Mutex
	monitor *qmp.Client // of the last QEMU that was adopted; nil before
	seen    glimpse     // of its run, for measurements
}

func newInstance(id *identity, record *ledger, conditions *conditions) *instance {
	return &instance{identity: id, record: record, conditions: conditions, socket: "qmp.sock", events: make(chan event, 64)}
}

// event is an event from QEMU in a run.
type event struct {
	qmp.Event
	run *running
}

// ended returns a channel that is closed when the process has ended; nil when
// there is no process.
func (i *instance) ended() <-chan struct{} {
	if i.running == nil {
		return nil
	}
	return i.running.exited
}

// letGo releases the process without stopping it.
func (i *instance) letGo() {
	r := i.running
	if r == nil {
		return
	}
	i.running = nil
	i.show()
	if r.monitor != nil {
		r.monitor.Close()
	}
	r.release()
	<-r.exited
	r.process.Close()
}

// adopt attaches to the QEMU that holds the lock, once its identity is proven.
func (i *instance) adopt(ctx context.Context) error {
	process, err := i.process()
	if errors.Is(err, launch.ErrGone) {
		return fmt.Errorf("its lock %s is held, but not by a QEMU that nodeagent knows: see `fuser %[1]s` and end that process", filepath.Join(i.dir, "lock"))
	}
	if err != nil {
		return err
	}
	watch, release := context.WithCancel(context.WithoutCancel(ctx)) // until letGo
	r := &running{process: process, exited: make(chan struct{}), release: release}
	go func() { // letGo waits for it
		defer close(r.exited)
		_ = process.Wait(watch) // it has ended, or letGo was called
	}()
	i.running = r
	if err := i.askState(ctx); err != nil {
		i.letGo()
		return err
	}
	i.log.Info("adopted", "pid", process.PID, "state", r.state)
	return nil
}

// errStranger is returned for a process that is not this Guest's QEMU.
var errStranger = errors.New("the monitor belongs to another QEMU")

// connect opens the monitor and checks the Guest's UUID.
func (i *instance) connect(ctx context.Context, r *running) error {
	monitor, err := qmp.Dial(ctx, filepath.Join(i.run, i.socket), func(e qmp.Event) {
		select {
		case i.events <- event{e, r}:
		default: // the queue is full; the state is queried anyway
		}
	})
	if err != nil {
		return err
	}
	var id struct{ UUID string }
	err = monitor.Execute(ctx, "query-uuid", nil, &id)
	if err == nil && !strings.EqualFold(id.UUID, machineID(i.uid)) {
		err = fmt.Errorf("%w: its uuid is %s", errStranger, id.UUID)
	}
	if err != nil {
		monitor.Close()
		return err
	}
	r.monitor = monitor
	i.mu.Lock()
	defer i.mu.Unlock()
	i.monitor = monitor
	return nil
}

// askState queries QEMU's state, over a new connection if the old one has
// ended. A QEMU that does not answer sets a condition and is not an error.
func (i *instance) askState(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, i.timing.answer)
	defer cancel()
	r := i.running
	if r.monitor != nil && r.monitor.Err() != nil {
		r.monitor.Close()
		r.monitor = nil
	}
	var err error
	if r.monitor == nil {
		err = i.connect(ctx, r)
	}
	var status struct{ Status string }
	if err == nil {
		err = r.monitor.Execute(ctx, "query-status", nil, &status)
	}
	r.state = status.Status
	i.show()
	switch {
	case errors.Is(err, errStranger):
		return err
	case err != nil && context.Cause(ctx) == context.Canceled:
		return err
	case err != nil:
		i.conditions.set(conditionResponsive, false, "NoAnswer", "QEMU does not answer: "+err.Error())
	default:
		i.conditions.set(conditionResponsive, true, "Answers", "")
	}
	return nil
}

// command runs one command within the usual time limit.
func (i *instance) command(ctx context.Context, name string, arguments, result any) error {
	return i.commandIn(ctx, i.timing.answer, name, arguments, result)
}

// commandIn runs one command within the given time limit.
func (i *instance) commandIn(ctx context.Context, limit time.Duration, name string, arguments, result any) error {
	if i.running.monitor == nil {
		return errors.New("QEMU does not answer")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return i.running.monitor.Execute(ctx, name, arguments, result)
}

// monitorCommand runs one command from outside the Guest's goroutine.
func (i *instance) monitorCommand(ctx context.Context, name string, arguments, result any) error {
	return i.withMonitor(ctx, func(ctx context.Context, m *qmp.Client) error { return m.Execute(ctx, name, arguments, result) })
}

func (i *instance) withMonitor(ctx context.Context, fn func(context.Context, *qmp.Client) error) error {
	i.mu.Lock()
	monitor := i.monitor
	i.mu.Unlock()
	if monitor == nil || monitor.Err() != nil {
		return fmt.Errorf("guest %s does not run", i.name)
	}
	ctx, cancel := context.WithTimeout(ctx, i.timing.answer)
	defer cancel()
	return fn(ctx, monitor)
}

// newSocket passes one end of a new socket to QEMU and returns the other.
func (i *instance) newSocket(ctx context.Context, name string) (net.Conn, error) {
	if i.running == nil || i.running.monitor == nil {
		return nil, errors.New("QEMU does not answer")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name)
	defer func() { _, _ = theirs.Close(), ours.Close() }() // QEMU and the connection have duplicates
	limited, cancel := context.WithTimeout(ctx, i.timing.answer)
	defer cancel()
	if err := i.running.monitor.GiveFile(limited, name, theirs); err != nil {
		return nil, err
	}
	return net.FileConn(ours)
}

// glimpse is the part of a Guest's run that other goroutines see.
type glimpse struct {
	process launch.Identity // the zero value when it does not run
	monitor *qmp.Client     // nil when QEMU does not answer
	network string
	disks   []string
}

// show publishes the current run to other goroutines.
func (i *instance) show() {
	var seen glimpse
	if r := i.running; r != nil {
		seen.process = r.process.Identity
		if r.state != qemuSilent {
			seen.monitor = r.monitor
		}
		if i.record.known() {
			seen.network = i.record.Part.Network
			for _, d := range i.record.Part.Disks {
				seen.disks = append(seen.disks, d.Name)
			}
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.seen = seen
}

func (i *instance) glimpse() glimpse {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.seen
}

// facts returns a string that differs between machines with incompatible
// migration state.
func (i *instance) facts(ctx context.Context) (string, error) {
	var version struct {
		QEMU    struct{ Major, Minor, Micro int }
		Package string
	}
	if err := i.command(ctx, "query-version", nil, &version); err != nil {
		return "", err
	}
	l := i.record.Launched
	v := version.QEMU
	facts := fmt.Sprintf("QEMU %d.%d.%d %s, %s", v.Major, v.Minor, v.Micro, version.Package, l.Accelerator)
	if l.Accelerator == qemu.KVM {
		facts += ", " + processor()
	}
	return facts + ", machine " + l.Machine[:12], nil
}

// processor returns the properties of the host's processor that a Guest under
// KVM depends on.
func processor() string {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	model := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(raw)
	flags := regexp.MustCompile(`(?m)^flags\s*: (.*)$`).FindSubmatch(raw)
	if model == nil || flags == nil {
		return "unknown processor"
	}
	sum := sha256.Sum256(flags[1])
	return fmt.Sprintf("%s (%s)", model[1], hex.EncodeToString(sum[:4]))
}
