package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// report is one host's recount.
type report struct {
	machine *api.Machine
	recount api.Recount
}

// outcome collects what people must resolve.
type outcome struct {
	unknown   []api.RecoveryPart
	conflicts []string
}

// settle updates the store to what hosts have, then ends the hold. Each step may be repeated: the Site stays held
// until the last write.
func (k *Keeper) settle(ctx context.Context) error {
	reports, err := k.reports(ctx)
	if err != nil {
		return err
	}
	var out outcome
	for _, step := range []func(context.Context, []report, *outcome) error{k.machines, k.networks, k.guests, k.zones, k.leases} {
		if err := step(ctx, reports, &out); err != nil {
			return err
		}
	}
	if raw, err := json.Marshal(out.unknown); err != nil || len(raw) > maxRecord {
		return fmt.Errorf("hosts have %d Networks and Guests that the backup does not know, more than can be recorded: apply their manifests, which is possible now (%w)", len(out.unknown), errors.Join(err))
	}
	if err := k.writeOffKeys(ctx); err != nil {
		return err
	}
	err = k.record(ctx, func(r *api.Recovery) bool {
		if !r.Held {
			return false
		}
		r.Held, r.Unknown, r.Conflicts = false, out.unknown, out.conflicts
		return true
	})
	if err != nil {
		return err
	}
	if site, ok := store.Cached[api.Site](k.Cache, api.SiteName); ok {
		k.Event(site, api.Normal, "Recovered", fmt.Sprintf("every Machine is accounted for after the restore: %d hosts have reported, %d of their Networks and Guests are not in the backup, %d conflicts", len(reports), len(out.unknown), len(out.conflicts)))
	}
	return nil
}

// reports are the recounts of hosts that are accounted for by them.
func (k *Keeper) reports(ctx context.Context) ([]report, error) {
	raw, err := k.Store.Raw.List(ctx, recounts)
	if err != nil {
		return nil, err
	}
	var list []report
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		m, ok := store.Cached[api.Machine](k.Cache, name)
		var s stored
		if err := json.Unmarshal(raw[name], &s); err != nil {
			return nil, fmt.Errorf("read the recount of host %s: %w", name, err)
		}
		if !ok || m.Metadata.UID != s.UID || m.Status.Conditions.Get(api.CondAccounted).Reason != api.AccountedReport {
			continue
		}
		list = append(list, report{m, s.Recount})
	}
	return list, nil
}

// machines sets Machines whose hosts run to Active: none of them is provisioned again.
func (k *Keeper) machines(ctx context.Context, reports []report, _ *outcome) error {
	for _, r := range reports {
		_, err := store.Mutate(ctx, k.Store, r.machine.Metadata.Name, func(m *api.Machine) error {
			if m.Metadata.UID != r.machine.Metadata.UID || !machine.Adopt(m, time.Now()) {
				return store.ErrUnchanged
			}
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("adopt Machine %s: %w", r.machine.Metadata.Name, err)
		}
	}
	return nil
}

// writeOffKeys revokes the keys of hosts that were written off: a host that returns with such a key is refused.
func (k *Keeper) writeOffKeys(ctx context.Context) error {
	for _, m := range store.CachedList[api.Machine](k.Cache) {
		c := m.Status.Conditions.Get(api.CondAccounted)
		if c == nil || c.Reason != api.AccountedGone || m.Status.HostKey == "" {
			continue
		}
		_, err := store.Mutate(ctx, k.Store, m.Metadata.Name, func(m *api.Machine) error {
			m.Status.HostKey = ""
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("revoke the key of host %s: %w", m.Metadata.Name, err)
		}
	}
	return nil
}

// guests assigns each Guest to the host that has it.
func (k *Keeper) guests(ctx context.Context, reports []report, out *outcome) error {
	by := map[string][]claim{}
	for _, r := range reports {
		for _, g := range r.recount.Guests {
			by[g.Name] = append(by[g.Name], claim{api.GuestPlace{Host: r.machine.Metadata.Name, HostUID: r.machine.Metadata.UID}, g})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		if err := k.guest(ctx, name, by[name], out); err != nil {
			return fmt.Errorf("adopt Guest %s: %w", name, err)
		}
	}
	return nil
}

func (k *Keeper) guest(ctx context.Context, name string, claims []claim, out *outcome) error {
	g, err := store.Get[api.Guest](ctx, k.Store, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	w := locate(g, claims, time.Now())
	if w.conflict != "" {
		out.conflicts = append(out.conflicts, w.conflict)
	}
	for _, c := range w.others {
		out.unknown = append(out.unknown, w.part(c))
		out.conflicts = append(out.conflicts, fmt.Sprintf("host %s has another Guest %s (uid %s): it stays there unchanged, and its addresses are reserved", c.place.Host, name, c.held.UID))
	}
	switch {
	case w.owner == nil:
		return nil
	case g == nil:
		out.unknown = append(out.unknown, w.part(*w.owner))
		return nil
	case g.Metadata.UID != w.uid:
		out.conflicts = append(out.conflicts, fmt.Sprintf("Guest %s was deleted and recreated since the backup: it has the uid that host %s knows, and the spec of the backup: apply its manifest", name, w.owner.place.Host))
		return k.Store.Reidentify(ctx, api.KindOf(g), name, w.uid, func(o api.Object) {
			fresh := o.(*api.Guest)
			fresh.Status = api.GuestStatus{MAC: guest.MAC(w.uid)}
			w.apply(fresh)
		})
	}
	_, err = store.Mutate(ctx, k.Store, name, func(g *api.Guest) error {
		g.Status.MAC = guest.MAC(w.uid)
		w.apply(g)
		return nil
	})
	return err
}

// zones keeps the loopbacks and reflectors that hosts have received.
func (k *Keeper) zones(ctx context.Context, reports []report, out *outcome) error {
	by := map[string][]report{}
	for _, r := range reports {
		if len(r.recount.Loopbacks) > 0 || r.recount.Reflector {
			by[r.machine.Spec.Zone] = append(by[r.machine.Spec.Zone], r)
		}
	}
	delete(by, "")
	for _, zone := range slices.Sorted(maps.Keys(by)) {
		var conflicts []string
		_, err := store.Mutate(ctx, k.Store, zone, func(z *api.Zone) error {
			conflicts = adoptInto(z, by[zone])
			return nil
		})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("adopt Zone %s: %w", zone, err)
		}
		out.conflicts = append(out.conflicts, conflicts...)
	}
	return nil
}

// adoptInto sets a Zone's loopbacks and reflectors to those that its hosts have.
func adoptInto(z *api.Zone, reports []report) (conflicts []string) {
	owners := loopbackOwners(z, reports)
	for _, r := range reports {
		name, uid := r.machine.Metadata.Name, r.machine.Metadata.UID
		if r.recount.Reflector && !slices.ContainsFunc(z.Status.Reflectors, func(s api.ReflectorStatus) bool { return s.UID == uid }) {
			z.Status.Reflectors = append(z.Status.Reflectors, api.ReflectorStatus{Machine: name, UID: uid, State: api.ReflectorServing, Since: time.Now().UTC()})
		}
		var own []netip.Addr
		for _, a := range r.recount.Loopbacks {
			if owners[a] == uid {
				own = append(own, a)
				continue
			}
			conflicts = append(conflicts, fmt.Sprintf("host %s has loopback %s of Zone %s, and so does another host, which keeps it: check those hosts", name, a, z.Metadata.Name))
		}
		if len(own) > 0 {
			giveLoopbacks(z, api.LoopbackStatus{Machine: name, UID: uid, Addresses: own})
		}
	}
	return conflicts
}

// loopbackOwners chooses the host, by its uid, that keeps each loopback: the one to which the Zone assigns it if
// that has it, else the first that has it.
func loopbackOwners(z *api.Zone, reports []report) map[netip.Addr]string {
	owners := map[netip.Addr]string{}
	for _, r := range reports {
		uid := r.machine.Metadata.UID
		for _, a := range r.recount.Loopbacks {
			stored := slices.ContainsFunc(z.Status.Loopbacks, func(l api.LoopbackStatus) bool { return l.UID == uid && slices.Contains(l.Addresses, a) })
			if stored || owners[a] == "" {
				owners[a] = uid
			}
		}
	}
	return owners
}

// giveLoopbacks assigns a host exactly its loopbacks, and removes them from other hosts.
func giveLoopbacks(z *api.Zone, to api.LoopbackStatus) {
	for i := range z.Status.Loopbacks {
		l := &z.Status.Loopbacks[i]
		l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a netip.Addr) bool { return slices.Contains(to.Addresses, a) })
	}
	z.Status.Loopbacks = slices.DeleteFunc(z.Status.Loopbacks, func(l api.LoopbackStatus) bool { return l.UID == to.UID || len(l.Addresses) == 0 })
	z.Status.Loopbacks = append(z.Status.Loopbacks, to)
}

// leases records the addresses of provisioning Subnets that hosts use.
func (k *Keeper) leases(ctx context.Context, reports []report, _ *outcome) error {
	for _, r := range reports {
		if r.machine.Status.Host == nil {
			continue
		}
		for _, nic := range r.machine.Status.Host.NICs {
			for _, p := range nic.Addresses {
				s := k.provisioning(p.Addr())
				if s == nil || nic.MAC == "" {
					continue
				}
				if err := k.Lease(ctx, r.machine.Metadata.Name, nic.MAC, s, p.Addr()); err != nil {
					k.Log.Warn("record the address of a host", "host", r.machine.Metadata.Name, "address", p.Addr(), "error", err)
				}
			}
		}
	}
	return nil
}

// provisioning is the provisioning Subnet of an address.
func (k *Keeper) provisioning(a netip.Addr) *api.Subnet {
	for _, s := range store.CachedList[api.Subnet](k.Cache) {
		if _, in := s.Prefix(a); in && a.Is4() && s.Spec.Purpose == api.Provisioning && s.Spec.Mode != api.Proxy {
			return s
		}
	}
	return nil
}
