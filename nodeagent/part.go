package nodeagent

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// Want is the desired state of a part.
type Want int

// The desired states of a part.
const (
	Present  Want = iota // apply it
	Orphaned             // the HostSpec no longer contains it: leave it running as it is
	Removed              // a tombstone names it: remove everything with this uid
)

// Part is one part of the HostSpec as its handler sees it.
type Part struct {
	Name   string // base, network/NAME, guest/NAME, bgp
	UID    string
	Digest string
	// Value points to the part's type in package api. It may be nil if the part is
	// Removed: then only the uid says what to remove.
	Value any
	Want  Want
}

// Key identifies a part: a Removed one may have the name of its successor.
func (p Part) Key() string {
	if p.Want == Removed {
		return p.Name + "@" + p.UID
	}
	return p.Name
}

// Handler applies the parts of one kind. One goroutine calls it, at every change of
// the HostSpec or of the host's NICs and every half minute. It compares the desired
// state with the kernel's.
type Handler interface {
	// Kind is the first word of the parts' names: base, network, guest or bgp.
	Kind() string
	// Reconcile returns the status of each part by its Key. Applied means that the
	// part is in effect; for a Removed part, that nothing is left of it. Whatever is
	// not in parts stays untouched. Pending means that the fault may go away by
	// itself, Failed that it needs an operator.
	Reconcile(ctx context.Context, parts []Part) map[string]api.PartStatus
}

// Underlaid is a Handler that builds on the host's underlay: it receives it before
// each Reconcile.
type Underlaid interface {
	SetUnderlay(api.Underlay)
}

// Opener is a Handler with consoles or the like, which people reach by a channel.
type Opener interface {
	// Open opens a channel's end on this host.
	Open(ctx context.Context, c api.Channel) (io.ReadWriteCloser, error)
}

// Runner is a Handler that also works between the calls of Reconcile, from the
// agent's start to its end.
type Runner interface {
	// Run lasts until ctx is done and all that it started has ended.
	Run(ctx context.Context, host Host)
}

// Auditor is a Handler that receives reports of what other hosts have received from
// this one.
type Auditor interface {
	// Audit must not block.
	Audit(api.BGPAudit)
}

// Host is the agent as a Runner sees it. Its methods may be called from any
// goroutine.
type Host interface {
	// Changed requests another Reconcile soon; many requests cause one.
	Changed()
	// Event reports an event to bootd. An event without a time gets the present one.
	// When too many wait, the new one is only logged.
	Event(api.Event)
	// BGP reports the state of the host's speaker to bootd. An unchanged one is not
	// sent again.
	BGP(api.BGPStatus)
}

// worker runs one handler.
type worker struct {
	agent   *Agent
	handler Handler
	wake    wait.Signal
	done    int64 // last generation that it has passed; owned by the agent's loop
	passed  bool  // it has passed once; owned by the agent's loop
}

// run reconciles until ctx is done.
func (w *worker) run(ctx context.Context) {
	for {
		if w.pass(ctx) != nil || w.wake.Wait(ctx, w.agent.timing.resync) != nil {
			return
		}
	}
}

func (w *worker) pass(ctx context.Context) error {
	var parts []Part
	var underlay api.Underlay
	var generation int64
	stale := false
	err := w.agent.do(ctx, func() {
		if stale = w.agent.stale(); stale {
			w.passed = true
			w.agent.noteApplied()
			return
		}
		parts, _ = w.agent.spec.parts(w.handler.Kind())
		underlay = w.agent.spec.underlay()
		generation = w.agent.generation
	})
	if err != nil || stale {
		return err
	}
	if h, ok := w.handler.(Underlaid); ok {
		h.SetUnderlay(underlay)
	}
	got := w.handler.Reconcile(ctx, parts)
	if ctx.Err() != nil {
		return ctx.Err() // statuses of a handler that is being stopped do not count
	}
	return w.agent.do(ctx, func() { w.agent.observed(w, generation, parts, got) })
}

// Changed implements Host.
func (w *worker) Changed() { w.wake.Set() }

// Event implements Host.
func (w *worker) Event(e api.Event) { w.agent.queue(e) }

// BGP implements Host.
func (w *worker) BGP(s api.BGPStatus) { w.agent.bgp.put(s) }

// unhandled is the status of a part for which this build has no handler.
func unhandled(kind, version string) api.PartStatus {
	return api.PartStatus{State: api.PartPending,
		Message: fmt.Sprintf("nodeagent %s has no handler for %s parts: it stores the part without applying it; a later version applies it", version, kind)}
}

// workers holds an agent's workers, one for each kind.
type workers []*worker

func (l workers) handle(kind string) bool {
	return slices.ContainsFunc(l, func(w *worker) bool { return w.handler.Kind() == kind })
}

func (l workers) kick() {
	for _, w := range l {
		w.wake.Set()
	}
}

// passed reports whether every handler has passed a generation of the HostSpec.
func (l workers) passed(generation int64) bool {
	return !slices.ContainsFunc(l, func(w *worker) bool { return !w.passed || w.done < generation })
}

// audit passes on what another host has received from this one.
func (l workers) audit(x api.BGPAudit) {
	for _, w := range l {
		if h, ok := w.handler.(Auditor); ok {
			h.Audit(x)
		}
	}
}

// opener returns the handler that opens channels, or nil.
func (l workers) opener() Opener {
	for _, w := range l {
		if o, ok := w.handler.(Opener); ok {
			return o
		}
	}
	return nil
}
