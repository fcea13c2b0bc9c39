package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// member is a Network as reported by one host.
type member struct {
	host *api.Machine
	held api.HeldNetwork
}

// reported is the hosts' reports about all Networks.
type reported struct {
	members map[string][]member // by Network
	owners  map[uint32]string   // the uid of the Network that keeps each VNI
}

// networks sets the VNIs and leases to those that hosts have of each Network.
func (k *Keeper) networks(ctx context.Context, reports []report, out *outcome) error {
	claims, err := k.Store.VNIs.List(ctx)
	if err != nil {
		return err
	}
	all := reported{members: map[string][]member{}}
	for _, r := range reports {
		for _, n := range r.recount.Networks {
			all.members[n.Name] = append(all.members[n.Name], member{r.machine, n})
		}
	}
	all.owners = vniOwners(claims, all.members)
	for _, name := range slices.Sorted(maps.Keys(all.members)) {
		if err := k.network(ctx, name, all, out); err != nil {
			return fmt.Errorf("adopt Network %s: %w", name, err)
		}
	}
	for _, r := range reports {
		for _, f := range r.recount.Flannelds {
			if of := all.members[f.Network]; len(of) > 0 {
				if err := network.Reserve(ctx, k.Store, chosen(nil, of).VNI, f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// chosen chooses among Networks of one name: the store's if any host has it, else the one that most hosts have.
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

// vniOwners chooses the Network that keeps each VNI: the store's owner if any host has it, else the one for which
// most hosts have it.
func vniOwners(claims map[uint32]store.VNIClaim, members map[string][]member) map[uint32]string {
	counts := map[uint32]map[string]int{}
	for _, list := range members {
		for _, m := range list {
			if counts[m.held.VNI] == nil {
				counts[m.held.VNI] = map[string]int{}
			}
			counts[m.held.VNI][m.held.UID]++
		}
	}
	owners := map[uint32]string{}
	for vni, count := range counts {
		claim := claims[vni]
		stored := func(uid string) bool { return claim.UID == uid && claim.Freed.IsZero() }
		owners[vni] = slices.MinFunc(slices.Collect(maps.Keys(count)), func(a, b string) int {
			return cmp.Or(first(stored(a), stored(b)), cmp.Compare(count[b], count[a]), strings.Compare(a, b))
		})
	}
	return owners
}

func (k *Keeper) network(ctx context.Context, name string, all reported, out *outcome) error {
	members := all.members[name]
	n, err := store.Get[api.Network](ctx, k.Store, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	it := chosen(n, members)
	if it.VNI, err = k.claimVNI(ctx, name, it, all, out); err != nil {
		return err
	}
	var leases []network.HostLease
	for _, m := range members {
		if m.held.UID != it.UID {
			out.conflicts = append(out.conflicts, fmt.Sprintf("host %s has another Network %s (uid %s): it stays there unchanged, and its VNI %d is reserved", m.host.Metadata.Name, name, m.held.UID, m.held.VNI))
			if _, err := k.claimVNI(ctx, name, m.held, all, out); err != nil {
				return err
			}
			continue
		}
		leases = append(leases, network.HostLease{Machine: m.host.Metadata.Name, UID: m.host.Metadata.UID, Lease: m.held.Lease, Lease6: m.held.Lease6, VTEP: network.VTEP(k.Cache, m.host)})
	}
	conflicts, err := network.Adopt(ctx, k.Store, network.Claims{Network: name, UID: it.UID, VNI: it.VNI, Leases: leases})
	out.conflicts = append(out.conflicts, conflicts...)
	switch {
	case err != nil:
		return err
	case n == nil:
		out.unknown = append(out.unknown, api.RecoveryPart{Kind: "Network", Name: name, UID: it.UID, VNI: it.VNI})
		return nil
	case n.Metadata.UID != it.UID:
		out.conflicts = append(out.conflicts, fmt.Sprintf("Network %s was deleted and recreated since the backup: it has the uid and VNI that hosts know, and the spec of the backup: apply its manifest", name))
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

// claimVNI assigns a VNI to the Network for which hosts have it, and returns it. A Network to which the store
// assigns it, and that no host has, gets another VNI. So does a Network whose VNI hosts also have for another one
// with precedence: then the result is 0.
func (k *Keeper) claimVNI(ctx context.Context, name string, it api.HeldNetwork, all reported, out *outcome) (uint32, error) {
	if all.owners[it.VNI] != it.UID {
		out.conflicts = append(out.conflicts, fmt.Sprintf("hosts have VNI %d for Network %s (uid %s) and for another Network, which keeps it: check those hosts", it.VNI, name, it.UID))
		return 0, nil
	}
	claims, err := k.Store.VNIs.List(ctx)
	if err != nil {
		return 0, err
	}
	old := claims[it.VNI]
	if old.UID == it.UID && old.Freed.IsZero() {
		return it.VNI, nil
	}
	if err := k.Store.VNIs.Put(ctx, old, store.VNIClaim{VNI: it.VNI, Network: name, UID: it.UID}); err != nil {
		return 0, err
	}
	if old.UID == "" || old.UID == it.UID || !old.Freed.IsZero() || slices.ContainsFunc(all.members[old.Network], func(m member) bool { return m.held.UID == old.UID }) {
		return it.VNI, nil
	}
	out.conflicts = append(out.conflicts, fmt.Sprintf("Network %s of the backup had VNI %d, which hosts now have for Network %s: it gets another", old.Network, it.VNI, name))
	_, err = store.Mutate(ctx, k.Store, old.Network, func(n *api.Network) error {
		if n.Metadata.UID != old.UID || n.Status.VNI != it.VNI {
			return store.ErrUnchanged
		}
		n.Status.VNI = 0
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return it.VNI, err
}
