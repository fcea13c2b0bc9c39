package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// member is a Network as one host has it.
type member struct {
	host *api.Machine
	held api.HeldNetwork
}

// networks brings VNIs and leases to what hosts have of each Network.
func (k *Keeper) networks(ctx context.Context, reports []report, out *outcome) error {
	by := map[string][]member{}
	for _, r := range reports {
		for _, n := range r.recount.Networks {
			by[n.Name] = append(by[n.Name], member{r.machine, n})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		if err := k.network(ctx, name, by[name], by, out); err != nil {
			return fmt.Errorf("take over Network %s: %w", name, err)
		}
	}
	for _, r := range reports {
		for _, f := range r.recount.Flannelds {
			if of := by[f.Network]; len(of) > 0 {
				if err := network.Reserve(ctx, k.Store, chosen(nil, of).VNI, f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// chosen is the Network of a name that counts: the store's if any host has it,
// else the one that most hosts have.
func chosen(n *api.Network, members []member) api.HeldNetwork {
	count := map[string]int{}
	for _, m := range members {
		count[m.held.UID]++
	}
	return slices.MinFunc(members, func(a, b member) int {
		return cmp.Or(first(n != nil && a.held.UID == n.Metadata.UID, n != nil && b.held.UID == n.Metadata.UID),
			cmp.Compare(count[b.held.UID], count[a.held.UID]), strings.Compare(a.held.UID, b.held.UID))
	}).held
}

func (k *Keeper) network(ctx context.Context, name string, members []member, all map[string][]member, out *outcome) error {
	n, err := store.Get[api.Network](ctx, k.Store, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	it := chosen(n, members)
	if err := k.claimVNI(ctx, name, it, all, out); err != nil {
		return err
	}
	var leases []network.HostLease
	for _, m := range members {
		if m.held.UID != it.UID {
			out.conflicts = append(out.conflicts, fmt.Sprintf("host %s has another Network %s (uid %s): it stays there as it is, and its VNI %d is kept", m.host.Metadata.Name, name, m.held.UID, m.held.VNI))
			if err := k.claimVNI(ctx, name, m.held, all, out); err != nil {
				return err
			}
			continue
		}
		leases = append(leases, network.HostLease{Machine: m.host.Metadata.Name, UID: m.host.Metadata.UID, Lease: m.held.Lease, Lease6: m.held.Lease6, VTEP: network.VTEP(k.Cache, m.host)})
	}
	conflicts, err := network.Adopt(ctx, k.Store, name, it.UID, it.VNI, leases)
	out.conflicts = append(out.conflicts, conflicts...)
	switch {
	case err != nil:
		return err
	case n == nil:
		out.unknown = append(out.unknown, api.RecoveryPart{Kind: "Network", Name: name, UID: it.UID, VNI: it.VNI})
		return nil
	case n.Metadata.UID != it.UID:
		out.conflicts = append(out.conflicts, fmt.Sprintf("Network %s was deleted and made again since the backup: it has the uid and VNI that hosts know, and the spec of the backup: apply its manifest", name))
		return k.Store.Reidentify(ctx, api.KindOf(n), name, it.UID, func(o api.Object) { o.(*api.Network).Status.VNI = it.VNI })
	}
	_, err = store.Mutate(ctx, k.Store, name, func(n *api.Network) error {
		if n.Status.VNI == it.VNI {
			return store.ErrUnchanged
		}
		n.Status.VNI = it.VNI
		return nil
	})
	return err
}

// claimVNI gives a VNI to the Network that hosts have it of. One that the store
// gives it to, and that no host has, gets another.
func (k *Keeper) claimVNI(ctx context.Context, name string, it api.HeldNetwork, all map[string][]member, out *outcome) error {
	claims, err := k.Store.VNIs(ctx)
	if err != nil {
		return err
	}
	old := claims[it.VNI]
	if old.UID == it.UID && old.Freed.IsZero() {
		return nil
	}
	if err := k.Store.PutVNI(ctx, old, store.VNIClaim{VNI: it.VNI, Network: name, UID: it.UID}); err != nil {
		return err
	}
	if old.UID == "" || old.UID == it.UID || !old.Freed.IsZero() || slices.ContainsFunc(all[old.Network], func(m member) bool { return m.held.UID == old.UID }) {
		return nil
	}
	out.conflicts = append(out.conflicts, fmt.Sprintf("Network %s of the backup had VNI %d, which hosts have for Network %s by now: it gets another", old.Network, it.VNI, name))
	_, err = store.Mutate(ctx, k.Store, old.Network, func(n *api.Network) error {
		if n.Metadata.UID != old.UID || n.Status.VNI != it.VNI {
			return store.ErrUnchanged
		}
		n.Status.VNI = 0
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// valid reports whether what a host says of a Network can be so.
func valid(n api.HeldNetwork) bool {
	v4 := n.Lease.IsValid() && n.Lease.Addr().Is4() && n.Lease == n.Lease.Masked() && n.Lease.Bits() >= 8 && n.Lease.Bits() <= 31
	v6 := n.Lease6 == netip.Prefix{} || n.Lease6.IsValid() && n.Lease6.Addr().Is6() && n.Lease6 == n.Lease6.Masked()
	return api.ValidateName(n.Name) == nil && api.ValidateName(n.UID) == nil && n.VNI > 0 && n.VNI < 1<<24 && v4 && v6
}
