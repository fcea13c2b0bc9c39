package admission

import (
	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/trust"
)

// LowersTrust says how a change lowers the trust level that boots must reach,
// which only an admin may do; empty when it does not. next is nil for a
// deletion, current for a creation.
func LowersTrust(w *World, next, current api.Object) string {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return trust.Lowers(next, current, func(name string) *api.Profile {
		p, _ := w.objects[id{"Profile", name}].(*api.Profile)
		return p
	})
}
