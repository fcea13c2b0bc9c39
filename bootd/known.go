package bootd

import (
	"context"
	"net/netip"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// pinned counts the addresses that registered Machines pin, so that each new connection needs one lookup.
type pinned struct {
	mu sync.RWMutex
	of map[netip.Addr]int
}

func (p *pinned) has(a netip.Addr) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.of[a] > 0
}

// follow updates the count until ctx ends.
func (p *pinned) follow(ctx context.Context, cache *store.Cache) error {
	machines, err := api.LookupKinds("Machine")
	if err != nil {
		return err
	}
	return cache.Subscribe(ctx, func(c store.Change) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.of == nil {
			p.of = map[netip.Addr]int{}
		}
		p.add(c.Old, -1)
		p.add(c.New, 1)
	}, machines...)
}

func (p *pinned) add(o api.Object, n int) {
	m, ok := o.(*api.Machine)
	if !ok || m == nil {
		return
	}
	for _, l := range m.Spec.Links {
		for _, a := range l.Addresses {
			if p.of[a] += n; p.of[a] == 0 {
				delete(p.of, a)
			}
		}
	}
}

// known reports whether an address is a registered Machine's: pinned by it, or leased to it for a boot. A share of
// the connections is reserved for these.
func (d *daemon) known(a netip.Addr) bool { return d.pinned.has(a) || d.decider.Registered(a) }
