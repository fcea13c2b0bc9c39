package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
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

// lock takes the Guest's lock, which a QEMU of its holds as long as it lives.
// nil without an error: one lives.
func (g *guest) lock() (*os.File, error) {
	return takeLock(filepath.Join(g.dir, "lock"))
}

// takeLock locks a file, nil without an error when somebody else has it locked.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("the lock %s: %w", path, err)
}

// find makes running true: it adopts a QEMU that lives, forgets one that has
// ended, and asks for its state.
func (g *guest) find(ctx context.Context) error {
	if r := g.running; r != nil {
		select {
		case <-r.exited:
			g.died()
		default:
			return g.askState(ctx)
		}
	}
	lock, err := g.lock()
	if err != nil {
		return err
	}
	if lock != nil {
		g.noteVanished()
		return lock.Close()
	}
	return g.adopt(ctx)
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
	return g.expect(g.stop == nil)
}

// process is the QEMU that was started last, ErrGone when it has ended.
func (g *guest) process() (*launch.Process, error) {
	id, err := launch.ReadIdentity(g.run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, launch.ErrGone
	}
	if err != nil {
		return nil, err
	}
	return launch.Open(id)
}

// expect writes down whether QEMU should be there.
func (g *guest) expect(there bool) error {
	if g.record.Expected == there {
		return nil
	}
	return g.change(func(r *record) {
		r.Expected = there
		if there {
			r.Ended = nil
		}
	})
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
	ctx, cancel := context.WithTimeout(ctx, g.h.timing.answer)
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
		g.condition(conditionResponsive, false, "NoAnswer", "QEMU does not answer: "+err.Error())
	default:
		g.condition(conditionResponsive, true, "Answers", "")
	}
	return nil
}

// command runs one command in a limited time.
func (g *guest) command(ctx context.Context, name string, arguments, result any) error {
	return g.commandIn(ctx, g.h.timing.answer, name, arguments, result)
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

// heed takes in an event; the next look does the rest.
func (g *guest) heed(e event) {
	if e.run != g.running {
		return
	}
	switch e.Name {
	case "RESET":
		g.renewAccess()
		var data struct{ Guest bool }
		if json.Unmarshal(e.Data, &data) == nil && data.Guest {
			g.h.event(g, api.Normal, "Rebooted", "it has rebooted by itself")
		}
	case "SHUTDOWN":
		var data struct{ Reason string }
		if json.Unmarshal(e.Data, &data) == nil {
			g.log.Info("shut down", "reason", data.Reason)
		}
	case "BLOCK_IO_ERROR":
		g.storageFailed(e.Data)
	}
}

// storageFailed notes what a disk failed of.
func (g *guest) storageFailed(raw json.RawMessage) {
	var data struct {
		Node      string `json:"node-name"`
		Operation string `json:"operation"`
		NoSpace   bool   `json:"nospace"`
		Reason    string `json:"reason"`
	}
	if json.Unmarshal(raw, &data) != nil {
		return
	}
	data.Node = strings.TrimPrefix(data.Node, mirrorNode("")) // while it is exported
	reason, message := "IOError", fmt.Sprintf("disk %s: %s fails: %s; the Guest is paused and tried again every %s", strings.TrimPrefix(data.Node, "disk-"), data.Operation, data.Reason, g.h.timing.retry)
	if data.NoSpace {
		reason = "NoSpace"
		message = fmt.Sprintf("disk %s: the host's file system is full: make room there; the Guest is paused and tried again every %s", strings.TrimPrefix(data.Node, "disk-"), g.h.timing.retry)
	}
	if old := g.conditions.Get(conditionStorage); old == nil || old.Status != api.False || old.Reason != reason {
		g.h.event(g, api.Warning, reason, message)
	}
	g.ioFailed = time.Now()
	g.condition(conditionStorage, false, reason, message)
}

// died notes that the process has ended under the agent's eyes.
func (g *guest) died() {
	for { // what it said last
		select {
		case e := <-g.events:
			g.heed(e)
			continue
		default:
		}
		break
	}
	g.letGo()
	g.conditions = nil
}

// noteVanished finds out how a run ended that the record knows as lasting.
func (g *guest) noteVanished() {
	r := g.record
	if elsewhere(&r.Part) { // it has never run here
		return
	}
	if r.Launched == nil || r.Ended != nil || !r.Expected || g.stop != nil {
		return
	}
	if bootID() != r.Launched.BootID {
		return // the host has rebooted: it is started again whatever its restart policy
	}
	g.noteEnd(ended{Word: "Crashed", Failed: true, Reason: "its QEMU has ended unexpectedly: see " + filepath.Join(g.dir, "qemu.log")})
}

// noteEnd writes down that the Guest has ended by itself.
func (g *guest) noteEnd(e ended) {
	e.Time = time.Now().UTC()
	typ := api.Normal
	edit := func(r *record) { r.Ended = &e }
	if e.Failed {
		typ = api.Warning
		edit = func(r *record) { r.Ended, r.Crash = &e, &e }
	}
	if err := g.change(edit); err != nil {
		g.log.Warn("the end of a run is not on disk", "error", err)
		edit(g.record)
	}
	g.h.event(g, typ, e.Word, e.Reason)
	if time.Since(g.record.launchTime()) > g.h.timing.settled {
		g.backoff = 0
	}
	g.backoff = min(max(2*g.backoff, g.h.timing.minBackoff), g.h.timing.maxBackoff)
	g.notBefore = time.Now().Add(g.backoff)
}

func (r *record) launchTime() time.Time {
	if r.Launched == nil {
		return time.Time{}
	}
	return r.Launched.Time
}
