package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

// running is a QEMU that was proven to be the Guest's.
type running struct {
	process *launch.Process
	exited  chan struct{}
	release context.CancelFunc // ends the watch on the process
	monitor *qmp.Client        // nil when it does not answer
	state   string             // QEMU's RunState, "" when it does not answer
}

// event is one of QEMU's, of a run.
type event struct {
	qmp.Event
	run *running
}

// ended is closed when the process has ended; nil, and so never, without one.
func (g *guest) ended() <-chan struct{} {
	if g.running == nil {
		return nil
	}
	return g.running.exited
}

// letGo forgets the process, and leaves it as it is.
func (g *guest) letGo() {
	r := g.running
	if r == nil {
		return
	}
	g.running = nil
	g.show()
	if r.monitor != nil {
		r.monitor.Close()
	}
	r.release()
	<-r.exited
	r.process.Close()
}

// adopt takes up the QEMU that holds the lock, once it is proven which it is.
func (g *guest) adopt(ctx context.Context) error {
	process, err := g.process()
	if errors.Is(err, launch.ErrGone) {
		return fmt.Errorf("its lock %s is held, but not by a QEMU that nodeagent knows: see `fuser %[1]s` and end that process", filepath.Join(g.dir, "lock"))
	}
	if err != nil {
		return err
	}
	watch, release := context.WithCancel(context.WithoutCancel(ctx)) // until letGo
	r := &running{process: process, exited: make(chan struct{}), release: release}
	go func() { // letGo waits for it
		defer close(r.exited)
		_ = process.Wait(watch) // either it has ended or letGo does not care
	}()
	g.running = r
	if err := g.askState(ctx); err != nil {
		g.letGo()
		return err
	}
	g.log.Info("adopted", "pid", process.PID, "state", r.state)
	return g.record.expect(g.stop == nil)
}

// errStranger is a process that is no QEMU of this Guest.
var errStranger = errors.New("the monitor belongs to another QEMU")

// connect opens the monitor and asks whose it is.
func (g *guest) connect(ctx context.Context, r *running) error {
	monitor, err := qmp.Dial(ctx, filepath.Join(g.run, g.socket), func(e qmp.Event) {
		select {
		case g.events <- event{e, r}:
		default: // a storm; the state is asked for anyway
		}
	})
	if err != nil {
		return err
	}
	var id struct{ UUID string }
	err = monitor.Execute(ctx, "query-uuid", nil, &id)
	if err == nil && !strings.EqualFold(id.UUID, machineID(g.uid)) {
		err = fmt.Errorf("%w: its uuid is %s", errStranger, id.UUID)
	}
	if err != nil {
		monitor.Close()
		return err
	}
	r.monitor = monitor
	g.mu.Lock()
	defer g.mu.Unlock()
	g.monitor = monitor
	return nil
}

// askState asks QEMU for its state, over a new connection if the old one has
// ended. A QEMU that does not answer is a condition and no error.
func (g *guest) askState(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.timing.answer)
	defer cancel()
	r := g.running
	if r.monitor != nil && r.monitor.Err() != nil {
		r.monitor.Close()
		r.monitor = nil
	}
	var err error
	if r.monitor == nil {
		err = g.connect(ctx, r)
	}
	var status struct{ Status string }
	if err == nil {
		err = r.monitor.Execute(ctx, "query-status", nil, &status)
	}
	r.state = status.Status
	g.show()
	switch {
	case errors.Is(err, errStranger):
		return err
	case err != nil && context.Cause(ctx) == context.Canceled:
		return err
	case err != nil:
		g.conditions.set(conditionResponsive, false, "NoAnswer", "QEMU does not answer: "+err.Error())
	default:
		g.conditions.set(conditionResponsive, true, "Answers", "")
	}
	return nil
}

// command runs one command in a limited time.
func (g *guest) command(ctx context.Context, name string, arguments, result any) error {
	return g.commandIn(ctx, g.timing.answer, name, arguments, result)
}

// commandIn runs one that may take longer.
func (g *guest) commandIn(ctx context.Context, limit time.Duration, name string, arguments, result any) error {
	if g.running.monitor == nil {
		return errors.New("QEMU does not answer")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return g.running.monitor.Execute(ctx, name, arguments, result)
}

// monitorCommand runs one command for whoever reaches a Guest from outside of
// its goroutine.
func (g *guest) monitorCommand(ctx context.Context, name string, arguments, result any) error {
	return g.withMonitor(ctx, func(ctx context.Context, m *qmp.Client) error { return m.Execute(ctx, name, arguments, result) })
}

func (g *guest) withMonitor(ctx context.Context, fn func(context.Context, *qmp.Client) error) error {
	g.mu.Lock()
	monitor := g.monitor
	g.mu.Unlock()
	if monitor == nil || monitor.Err() != nil {
		return fmt.Errorf("guest %s does not run", g.name)
	}
	ctx, cancel := context.WithTimeout(ctx, g.timing.answer)
	defer cancel()
	return fn(ctx, monitor)
}

// newSocket hands QEMU one end of a new socket, and returns the other.
func (g *guest) newSocket(ctx context.Context, name string) (net.Conn, error) {
	if g.running == nil || g.running.monitor == nil {
		return nil, errors.New("QEMU does not answer")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name)
	defer func() { _, _ = theirs.Close(), ours.Close() }() // each side has its own
	limited, cancel := context.WithTimeout(ctx, g.timing.answer)
	defer cancel()
	if err := g.running.monitor.GiveFile(limited, name, theirs); err != nil {
		return nil, err
	}
	return net.FileConn(ours)
}

// glimpse is what others than its goroutine see of a Guest's run.
type glimpse struct {
	process launch.Identity // the zero one when it does not run
	monitor *qmp.Client     // nil when QEMU does not answer
	network string
	disks   []string
}

// show lets others see the run as it is now.
func (g *guest) show() {
	var seen glimpse
	if r := g.running; r != nil {
		seen.process = r.process.Identity
		if r.state != "" {
			seen.monitor = r.monitor
		}
		if g.record.known() {
			seen.network = g.record.Part.Network
			for _, d := range g.record.Part.Disks {
				seen.disks = append(seen.disks, d.Name)
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = seen
}

// visible is the run of a Guest that the HostSpec has or had; one that goes may
// have a successor of its name.
func (g *guest) visible() (glimpse, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen, g.seen.process.PID != 0 && g.want.Want != nodeagent.Removed
}
