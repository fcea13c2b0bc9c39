package network

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
)

const reasonDeleting = "Deleting"

// remove removes a deleted Network: each host is ordered to remove it, and its lease is released when it has; the
// rest goes with the last one.
func (c *Controller) remove(ctx context.Context, w *world, n *api.Network) (time.Duration, error) {
	if !control.HasFinalizer(n, Finalizer) {
		return 0, nil // another finalizer is running
	}
	waiting, leases, err := c.clear(ctx, w, n)
	if err != nil {
		return 0, err
	}
	if len(waiting) > 0 {
		return recheck, c.report(ctx, n, 0, leases, control.Finding{Status: api.False, Reason: reasonDeleting, Event: api.Normal,
			Message: fmt.Sprintf("waiting for %s to report that nothing of it is left: bring back hosts that are down, or delete their Machines", names(waiting))})
	}
	if err := c.freeVNIs(ctx, n); err != nil {
		return 0, err
	}
	if err := control.Write(ctx, c.Env, n, func(n *api.Network) bool { return control.DropFinalizer(n, Finalizer) }); err != nil {
		return 0, err
	}
	c.Event(n, api.Normal, "Removed", "nothing of it is left on any host, and its leases are released")
	return 0, nil
}

// clear releases a deleted Network's leases, as far as its hosts have removed it.
func (c *Controller) clear(ctx context.Context, w *world, n *api.Network) (waiting []string, leases int, err error) {
	for range maxRounds {
		l, err := c.read(ctx, n.Metadata.Name)
		if err != nil {
			return nil, 0, err
		}
		if l.of.uid != n.Metadata.UID {
			return nil, 0, nil // nothing there belongs to this Network
		}
		todo := w.end(n, l)
		if len(l.hosts) == 0 {
			return nil, 0, c.Store.Flannel.Drop(ctx, n.Metadata.Name, l.owner.Revision)
		}
		if len(todo.writes) == 0 {
			return l.holders(), len(l.subnets), nil
		}
		if err := c.write(ctx, n, l.of.vni, l, todo); err != nil {
			return nil, 0, err
		}
	}
	return []string{"more hosts than one pass handles"}, 0, nil
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
