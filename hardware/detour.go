package hardware

import "context"

// Detour is a verb that went by another protocol than the one that a BMC is spoken to in first.
type Detour struct {
	Verb     string
	Protocol string // that did it
	Command  bool   // it changes something
	Why      error  // it was not done by the first
}

type detourKey struct{}

// WithDetours has note called with each detour of a BMC call, once it has led to the end.
func WithDetours(ctx context.Context, note func(Detour)) context.Context {
	return context.WithValue(ctx, detourKey{}, note)
}

// NoteDetour passes on a detour, where the context says to whom.
func NoteDetour(ctx context.Context, d Detour) {
	if note, _ := ctx.Value(detourKey{}).(func(Detour)); note != nil {
		note(d)
	}
}
