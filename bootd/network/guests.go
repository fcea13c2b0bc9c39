package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// A Guest keeps its address for its lifetime. On a host whose lease does not contain it, an extra lease of a /31
// routes it there. A /31 is flannel's longest: it cannot read a /32 and then drops every peer (ParseSubnetKey in
// pkg/subnet/subnet.go).

// place is the location of a moved Guest.
type place struct {
	guest   string
	machine *api.Machine
	lease6  netip.Prefix // of its IPv6 address, if it has one
}

// guestLease is the extra lease of an IPv4 address.
func guestLease(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 31).Masked() }

// places lists the extra leases that should exist. A Guest without a host, or on a host that is not a member, has
// none.
func (w *world) places(n *api.Network, l *layout) map[netip.Prefix]place {
	if n.Metadata.DeletionTimestamp != nil {
		return nil
	}
	homes := map[string]held{} // by Machine's name
	for _, h := range l.hosts {
		if h.Guest == "" && h.Buried == 0 {
			homes[h.Machine] = h
		}
	}
	machines := map[string]*api.Machine{}
	for _, m := range w.machines {
		machines[m.Metadata.Name] = m
	}
	places := map[netip.Prefix]place{}
	for _, g := range w.guests {
		home, ok := homes[g.Status.Host]
		m := machines[g.Status.Host]
		if g.Spec.Network != n.Metadata.Name || !ok || m == nil || m.Metadata.UID != home.UID || !stays(n, m) {
			continue
		}
		if uid := g.Status.HostUID; uid != "" && uid != home.UID {
			continue // its host was recreated, and the Guest is not on the new one
		}
		p := place{guest: g.Metadata.Name, machine: m}
		var lease netip.Prefix
		for _, a := range g.Status.Addresses {
			switch {
			case home.key.Subnet.Contains(a) || home.Lease6.IsValid() && home.Lease6.Contains(a):
			case a.Is4() && !lease.IsValid() && within(n.Spec.CIDRs, guestLease(a)):
				lease = guestLease(a)
			case a.Is6() && !p.lease6.IsValid() && within(n.Spec.CIDRs, netip.PrefixFrom(a, 128)):
				p.lease6 = netip.PrefixFrom(a, 128)
			}
		}
		if _, taken := places[lease]; lease.IsValid() && !taken {
			places[lease] = p
		}
	}
	return places
}

// guestAddresses are those of a Network's Guests, on any host: no host gets a lease that contains one of them.
func (w *world) guestAddresses(n *api.Network) []netip.Addr {
	var all []netip.Addr
	for _, g := range w.guests {
		if g.Spec.Network == n.Metadata.Name {
			all = append(all, g.Status.Addresses...)
		}
	}
	return all
}

// maxDrops limits the leases that one transaction takes from a host; the rest follows in the next.
const maxDrops = 40

// follow moves the extra leases to the Guests' hosts. It returns the leases to drop by the uid of the host that
// loses them.
func (x *planner) follow(byUID map[string]*api.Machine) map[string][]store.FlannelWrite {
	places := x.places(x.network, x.layout)
	drops := map[string][]store.FlannelWrite{}
	for _, h := range x.layout.records() {
		if _, exists := places[h.key.Subnet]; h.Guest == "" || exists || len(drops[h.UID]) >= maxDrops {
			continue
		}
		if x.network.Metadata.DeletionTimestamp == nil && !x.left(h, byUID) {
			continue
		}
		drops[h.UID] = append(drops[h.UID], x.plan.end(x.layout, h)...)
	}
	for _, lease := range slices.SortedFunc(maps.Keys(places), comparePrefix) {
		x.put(lease, places[lease])
	}
	return drops
}

// left checks in the store that an extra lease leads to no Guest: the cache may lag behind.
func (w *world) left(h held, byUID map[string]*api.Machine) bool {
	if byUID[h.UID] == nil && !w.deleted(h.hostRecord) {
		return false
	}
	return w.current(h.Guest)
}

// put writes an extra lease. One of another host is overwritten in place, which every flanneld follows.
func (x *planner) put(lease netip.Prefix, at place) {
	h, known := x.layout.hosts[lease]
	if _, exists := x.layout.subnets[lease]; exists && !known {
		x.faults.reserved = append(x.faults.reserved, at.guest)
		return
	}
	record := hostRecord{Network: x.network.Metadata.UID, Machine: at.machine.Metadata.Name, UID: at.machine.Metadata.UID, Lease6: at.lease6, Guest: at.guest}
	group := x.lease(lease, at.machine, record != h.hostRecord)
	if record != h.hostRecord {
		h.hostRecord = record
		h.key.FlannelID = store.FlannelID{Network: x.network.Metadata.Name, Kind: store.FlannelHost, Subnet: lease}
		group = append(group, h.write())
	}
	x.plan.add(group)
}

// currentGuest reports whether the cache has the store's version of a Guest. If it did not, and does by now,
// behind is true.
func (c *Controller) currentGuest(ctx context.Context, name string) (current, behind bool) {
	stored, err := store.Get[api.Guest](ctx, c.Store, name)
	cached, ok := store.Cached[api.Guest](c.Cache, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return !ok, false
	case err != nil:
		return false, false
	case ok && cached.Metadata.ResourceVersion == stored.Metadata.ResourceVersion:
		return true, false
	}
	return false, c.Cache.WaitRevision(ctx, store.RevisionOf(stored)) == nil
}

// guestNetworks lists those that a Guest's place affects.
func guestNetworks(ch store.Change) (networks []string) {
	old, _ := ch.Old.(*api.Guest)
	now, _ := ch.New.(*api.Guest)
	if old != nil && now != nil && old.Spec.Network == now.Spec.Network && old.Status.Host == now.Status.Host && old.Status.HostUID == now.Status.HostUID && slices.Equal(old.Status.Addresses, now.Status.Addresses) {
		return nil
	}
	for _, g := range []*api.Guest{old, now} {
		if g != nil {
			networks = append(networks, g.Spec.Network)
		}
	}
	return networks
}
