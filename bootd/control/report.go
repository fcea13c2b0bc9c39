package control

import (
	"context"
	"time"

	"github.com/rackweft/rackweft/api"
)

// Finding is the result of a step for one of an object's conditions.
type Finding struct {
	Condition       string // Default: Ready
	Status          api.ConditionStatus
	Reason, Message string
	// Event is the type of the event. Default: Warning when Status is False, else Normal.
	Event api.EventType
	// Silent suppresses the event.
	Silent bool
}

// Report writes a finding into an object's conditions, and records an event if it is news: the condition's first,
// or another status or reason. also sets further fields in the same write, and reports whether that changed
// anything; nil for none. A finding about a spec that has changed since is dropped: the change makes the object due
// again.
func Report[T api.Object](ctx context.Context, e Env, o T, f Finding, also func(fresh T) bool) error {
	conditions := api.KindOf(o).Conditions
	news := false
	err := Write(ctx, e, o, func(fresh T) bool {
		news = false
		if fresh.Meta().Generation != o.Meta().Generation {
			return false
		}
		changed := false
		news, changed = f.set(conditions(fresh))
		return also != nil && also(fresh) || changed
	})
	if err != nil || !news || f.Silent {
		return err
	}
	e.Event(o, f.event(), f.Reason, f.Message)
	return nil
}

// set sets the condition.
func (f Finding) set(conditions *api.Conditions) (news, changed bool) {
	typ := f.Condition
	if typ == "" {
		typ = api.CondReady
	}
	old := conditions.Get(typ)
	news = old == nil || old.Status != f.Status || old.Reason != f.Reason
	return news, conditions.Set(time.Now(), typ, f.Status, f.Reason, f.Message)
}

func (f Finding) event() api.EventType {
	switch {
	case f.Event != "":
		return f.Event
	case f.Status == api.False:
		return api.Warning
	}
	return api.Normal
}
