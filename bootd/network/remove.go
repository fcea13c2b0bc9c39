package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

const reasonDeleting = "Deleting"

// remove takes a deleted Network away: each host is told to give it up, and its
// lease goes when it has; the rest goes with the last.
func (c *Controller) remove(ctx context.Context, n *api.Network) (time.Duration, error) {
	if !slices.Contains(n.Metadata.Finalizers, Finalizer) {
		return 0, nil // somebody else's finalizer is at work
	}
	waiting, leases, err := c.clear(ctx, n)
	switch {
	case errors.Is(err, store.ErrConflict):
		c.loop.Add(n.Metadata.Name)
		return 0, nil
	case err != nil:
		return 0, err
	case len(waiting) > 0:
		return recheck, c.report(ctx, n, 0, leases, api.False, reasonDeleting,
			fmt.Sprintf("waiting for %s to report that nothing of it is left: bring hosts that are down back, or delete their Machines", names(waiting)))
	}
	if err := c.freeVNIs(ctx, n); err != nil {
		return 0, err
	}
	_, err = c.mutate(ctx, n, func(n *api.Network) bool {
		n.Metadata.Finalizers = slices.DeleteFunc(n.Metadata.Finalizers, func(f string) bool { return f == Finalizer })
		return true
	})
	if err != nil {
		return 0, err
	}
	c.Event(n, api.Normal, "Removed", "no host has anything of it any more, and its leases are gone")
	return 0, nil
}

// clear brings a deleted Network's leases to an end, as far as its hosts have.
func (c *Controller) clear(ctx context.Context, n *api.Network) (waiting []string, leases int, err error) {
	w := c.world(ctx, n.Metadata.Name)
	for range maxRounds {
		l, err := c.read(ctx, n.Metadata.Name)
		if err != nil {
			return nil, 0, err
		}
		if l.of.uid != n.Metadata.UID {
			return nil, 0, nil // nothing there is this Network's
		}
		var todo plan
		w.stand(n, l.of.vni, l, nil, &todo, new(faults))
		if len(l.hosts) == 0 {
			return nil, 0, c.Store.DropFlannel(ctx, n.Metadata.Name, l.owner.Revision)
		}
		if len(todo.writes) == 0 {
			return l.holders(), len(l.subnets), nil
		}
		if err := c.write(ctx, n, l.of.vni, l, todo); err != nil {
			return nil, 0, err
		}
	}
	return []string{"more hosts than one pass takes"}, 0, nil
}

// holders names the hosts that have a lease.
func (l *layout) holders() []string {
	var list []string
	for _, h := range l.hosts {
		if !slices.Contains(list, h.Machine) {
			list = append(list, h.Machine)
		}
	}
	return list
}
