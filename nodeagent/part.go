package nodeagent

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// Want is what is asked for a part.
type Want int

// The three things that can be asked for.
const (
	Present  Want = iota // make it so
	Orphaned             // the HostSpec names it no more: leave it running as it is
	Removed              // a tombstone names it: take away what has this uid
)

// Part is one part of the HostSpec as its handler sees it.
type Part struct {
	Name   string // base, network/NAME, guest/NAME, bgp
	UID    string
	Digest string
	// Value points to the part's type in package api. It may be nil when the
	// part is Removed: then the uid alone says what to take away.
	Value any
	Want  Want
}

// Key tells parts of one name apart: a Removed one may have the name of its
// successor.
func (p Part) Key() string {
	if p.Want == Removed {
		return p.Name + "@" + p.UID
	}
	return p.Name
}

// Handler makes the parts of one kind true. It is called by one goroutine, at
// every change of the HostSpec or of the host's NICs and every half minute,
// and compares what is asked for with what the kernel shows.
type Handler interface {
	// Kind is the first word of the parts' names: base, network, guest or bgp.
	Kind() string
	// Reconcile answers the status of each part by its Key. Applied means that
	// it is so now; for a Removed part, that nothing is left of it. Whatever is
	// not in parts stays untouched. State Pending stands for what may come
	// right by itself, Failed for what needs a person.
	Reconcile(ctx context.Context, parts []Part) map[string]api.PartStatus
}

// Underlaid is a Handler that builds on the host's underlay: it is told of it
// before each Reconcile.
type Underlaid interface {
	SetUnderlay(api.Underlay)
}

// Opener is a Handler that has something that people reach by a channel.
type Opener interface {
	// Open opens it, or tells them why not.
	Open(ctx context.Context, c api.Channel) (io.ReadWriteCloser, error)
}

// Runner is a Handler that works on between the calls of Reconcile: it is run
// beside them, from the agent's start to its end.
type Runner interface {
	// Run lasts until ctx is done and all that it started has ended.
	Run(ctx context.Context, host Host)
}

// Auditor is a Handler that hears what other hosts have received of this one.
type Auditor interface {
	// Audit must not block.
	Audit(api.BGPAudit)
}

// Host is what a Runner may ask of its agent, from any goroutine.
type Host interface {
	// Changed asks for another Reconcile soon; many make one.
	Changed()
	// Event tells bootd of something that happened. An event without a time
	// gets the present one. When too many wait, the new one is only logged.
	Event(api.Event)
	// BGP tells bootd how the host's speaker stands. The same again is not sent.
	BGP(api.BGPStatus)
}

// worker runs one handler.
type worker struct {
	agent   *Agent
	handler Handler
	wake    wait.Signal
	done    int64 // generation that it has passed; owned by the agent's loop
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
		return ctx.Err() // what a handler says while it is being stopped counts for nothing
	}
	return w.agent.do(ctx, func() { w.agent.observed(w, generation, parts, got) })
}

// Changed implements Host.
func (w *worker) Changed() { w.wake.Set() }

// Event implements Host.
func (w *worker) Event(e api.Event) { w.agent.tell(e) }

// BGP implements Host.
func (w *worker) BGP(s api.BGPStatus) { w.agent.bgp.put(s) }

// unhandled is the status of a part that this build has no handler for.
func unhandled(kind, version string) api.PartStatus {
	return api.PartStatus{State: api.PartPending,
		Message: fmt.Sprintf("nodeagent %s has no handler for %s parts: it keeps the part and does nothing with it; a later version applies it", version, kind)}
}

// workers are all of an agent's, one for each kind.
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

// audit hands on what another host has received of this one.
func (l workers) audit(x api.BGPAudit) {
	for _, w := range l {
		if h, ok := w.handler.(Auditor); ok {
			h.Audit(x)
		}
	}
}

// opener is the handler that opens channels; nil when there is none.
func (l workers) opener() Opener {
	for _, w := range l {
		if o, ok := w.handler.(Opener); ok {
			return o
		}
	}
	return nil
}
