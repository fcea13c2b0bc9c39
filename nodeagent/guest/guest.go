package guest

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/qga"
)

// guest manages one Guest. Its goroutine owns all fields that are not under mu.
type guest struct {
	*identity
	h    *Handler
	wake wait.Signal

	mu     sync.Mutex
	want   nodeagent.Part
	status api.PartStatus
	undo   context.CancelFunc // cancels work for an earlier want; nil when there is none
	gone   bool               // the Guest is removed completely

	record      *ledger
	conditions  *conditions
	vm          *instance
	agent       *guestAgent
	ladder      *ladder
	storage     *storage
	limits      *limits
	console     *console
	grant       *grant
	shares      *shares
	tpm         *tpm
	builder     *builder
	exporter    *exporter
	snapshots   *snapshots
	move        *move
	restarts    *restarts
	hearing     *hearing
	lastFailure string // the last failure reported by an event
}

func newGuest(h *Handler, name, uid string) *guest {
	id := newIdentity(h, name, uid)
	g := &guest{identity: id, h: h, wake: wait.NewSignal(), status: api.PartStatus{State: api.PartPending, Message: "not looked at yet"},
		record: &ledger{dir: id.dir}, conditions: new(conditions)}
	g.vm = newInstance(id, g.record, g.conditions)
	g.agent = &guestAgent{identity: id, record: g.record, vm: g.vm, client: qga.New(filepath.Join(id.run, "agent.sock"))}
	g.ladder = &ladder{identity: id, record: g.record, vm: g.vm, agent: g.agent}
	g.restarts = &restarts{identity: id, record: g.record}
	g.storage = &storage{identity: id, vm: g.vm, conditions: g.conditions}
	g.hearing = &hearing{identity: id, record: g.record, conditions: g.conditions, vm: g.vm, network: h.o.Network}
	g.limits = &limits{identity: id, vm: g.vm}
	g.console = &console{identity: id, vm: g.vm}
	g.grant = &grant{identity: id, record: g.record, vm: g.vm, wake: g.wake}
	g.shares = &shares{identity: id, record: g.record, fetch: h.o.Share}
	g.tpm = &tpm{identity: id, record: g.record, conditions: g.conditions, launch: h.launcher}
	g.builder = &builder{identity: id, disks: h.disks, network: h.o.Network, shares: g.shares, tpm: g.tpm,
		cloudInit: &cloudInit{identity: id, record: g.record, config: h.o.Config}}
	g.exporter = &exporter{identity: id, record: g.record, vm: g.vm, ladder: g.ladder, agent: g.agent, limits: g.limits, disks: h.disks,
		tasks: make(chan task), left: make(chan struct{})}
	g.snapshots = &snapshots{identity: id, record: g.record, vm: g.vm, ladder: g.ladder, agent: g.agent, disks: h.disks, export: g.exporter}
	g.move = newMove(g)
	return g
}

func newMove(g *guest) *move {
	share := &moveShare{log: g.log, life: g}
	return &move{identity: g.identity, record: g.record, life: g, share: share, arrivals: &g.h.arrivals,
		source: &moveSource{identity: g.identity, record: g.record, vm: g.vm, snapshots: g.snapshots, exporter: g.exporter, tpm: g.tpm,
			disks: g.h.disks, life: g, share: share, credentials: g.h.o.Credentials},
		target: &moveTarget{identity: g.identity, record: g.record, vm: g.vm, ladder: g.ladder, storage: g.storage, tpm: g.tpm, disks: g.h.disks,
			life: g, share: share, arrivals: &g.h.arrivals, wake: g.wake, receiving: make(chan struct{}, 1), orders: make(chan order)},
	}
}

// ask sets the wanted part and returns the current status.
func (g *guest) ask(p nodeagent.Part) api.PartStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.want.Want == nodeagent.Removed && p.Want != nodeagent.Removed {
		return g.status // the tombstone takes precedence over any other part with this uid
	}
	if g.want.Want != p.Want || g.want.Digest != p.Digest || g.want.Value == nil && p.Value != nil {
		g.want = p
		g.status = api.PartStatus{State: api.PartPending, Message: "being looked at", Guest: g.status.Guest}
		if g.undo != nil {
			g.undo()
		}
		g.wake.Set()
	}
	return g.status
}

func (g *guest) over() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gone
}

// begin returns the wanted part and a context that ends when another one is
// wanted.
func (g *guest) begin(ctx context.Context) (context.Context, nodeagent.Part) {
	ctx, cancel := context.WithCancel(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.undo = cancel
	return ctx, g.want
}

// finish publishes the status after one look at the wanted part.
func (g *guest) finish(p nodeagent.Part, s api.PartStatus, gone bool) {
	g.mu.Lock()
	g.undo()
	g.undo = nil
	same := g.want.Want == p.Want && g.want.Digest == p.Digest
	changed := same && !alike(g.status, s)
	if same {
		g.status, g.gone = s, gone
	}
	g.mu.Unlock()
	if changed {
		g.h.changed()
	}
	if !same {
		g.wake.Set()
	}
}

// publish reports that the current step takes time.
func (g *guest) publish(message string) {
	g.mu.Lock()
	g.status.State, g.status.Message, g.status.Guest = api.PartPending, message, g.observed()
	g.mu.Unlock()
	g.h.changed()
}

func alike(a, b api.PartStatus) bool {
	if a.State != b.State || a.Message != b.Message || (a.Guest == nil) != (b.Guest == nil) {
		return false
	}
	return digest(a.Guest) == digest(b.Guest)
}

// work manages the Guest until ctx is done or it is removed. QEMU keeps
// running.
func (g *guest) work(ctx context.Context) {
	defer g.vm.letGo()
	defer close(g.exporter.left)
	defer g.h.arrivals.forget(g.move.target)
	for ctx.Err() == nil && !g.over() {
		next := g.look(ctx)
		timer := time.NewTimer(next)
		select {
		case <-g.wake:
		case e := <-g.vm.events:
			g.heed(e)
		case o := <-g.move.target.orders:
			g.move.target.obey(o)
		case t := <-g.exporter.tasks:
			if g.over() {
				t.done <- errors.New("the Guest is removed")
				break
			}
			t.done <- t.run(t.ctx)
		case <-g.vm.ended():
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// look compares the actual state with the wanted one, takes one step, and
// returns when to look again.
func (g *guest) look(ctx context.Context) time.Duration {
	step, p := g.begin(ctx)
	next, err := g.step(step, p)
	g.grant.settle()
	gone := p.Want == nodeagent.Removed && err == nil && next == 0
	if next == 0 {
		next = g.timing.look
	}
	s := api.PartStatus{State: api.PartApplied, Guest: g.observed()}
	var waits pending
	switch {
	case gone:
		s.Guest = nil
	case errors.As(err, &waits):
		s.State, s.Message = api.PartPending, waits.Error()
	case err != nil:
		s.State, s.Message = api.PartPending, err.Error()
		next = min(next, g.timing.retry)
		if step.Err() == nil && g.lastFailure != s.Message {
			g.lastFailure = s.Message
			g.event(api.Warning, "Failed", s.Message)
		}
	default:
		g.lastFailure = ""
	}
	if failed := new(fatal); errors.As(err, failed) {
		s.State = api.PartFailed
	}
	g.finish(p, s, gone)
	return next
}

// pending is not a failure: the step takes time.
type pending string

func (p pending) Error() string { return string(p) }

// fatal is an error that a retry does not help: an operator must act.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// step takes one step towards the wanted state. It returns when to look again,
// 0 when nothing is left to do.
func (g *guest) step(ctx context.Context, p nodeagent.Part) (time.Duration, error) {
	part, _ := p.Value.(*api.GuestPart)
	if p.Want == nodeagent.Removed {
		g.h.arrivals.forget(g.move.target)
		return g.remove(ctx, part)
	}
	if err := g.loadRecord(part); err != nil {
		return 0, err
	}
	if err := g.move.whole(part); err != nil {
		return 0, err
	}
	if err := g.record.remember(part); err != nil {
		return 0, err
	}
	if err := g.find(ctx); err != nil {
		return 0, err
	}
	g.console.rotate()
	if err := g.agent.thaw(ctx); err != nil { // a snapshot of an earlier agent may have left it frozen
		g.log.Warn("after a snapshot", "error", err)
	}
	if g.record.Export != nil && !g.exporter.active {
		if err := g.exporter.end(ctx); err != nil { // an earlier agent may have left it paused
			g.log.Warn("after an export", "error", err)
		}
	}
	if p.Want == nodeagent.Orphaned {
		return 0, g.storage.check(ctx) // an orphaned Guest stays as it is
	}
	if next, err := g.snapshots.step(ctx, part); next != 0 || err != nil {
		return next, err
	}
	if next, done, err := g.move.step(ctx, part); done || err != nil {
		return next, err
	}
	return g.beAsWritten(ctx, part)
}

// observed returns the observed state of the Guest.
func (g *guest) observed() *api.GuestObserved {
	o := &api.GuestObserved{State: api.GuestStopped, Restarts: g.restarts.count, Conditions: append(api.Conditions{}, g.conditions.list...)}
	o.Transfer = g.move.share.reported
	if g.record.known() {
		o.Request, o.Result, o.Snapshots = g.record.Request, g.record.Result, g.snapshots.listed()
	}
	if g.vm.running == nil {
		return o
	}
	switch g.vm.running.state {
	case qemuRunning:
		o.State = api.GuestRunning
	case qemuSilent:
		o.State = api.GuestUnknown
	default:
		o.State = api.GuestPaused
	}
	if g.record.known() && g.record.Launched != nil {
		o.Accelerator = string(g.record.Launched.Accelerator)
	}
	return o
}
