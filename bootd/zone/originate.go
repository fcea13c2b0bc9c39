package zone

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// Origin is why a host may advertise a prefix: it is its lease of a Network, an address of a service, or else the
// host's own.
type Origin struct{ Network, Service string }

// Originates lists the prefixes that a host of a Zone may advertise.
func (p *Parts) Originates(z *api.Zone, m *api.Machine) map[netip.Prefix]Origin {
	from := p.leases(z, m)
	for _, a := range Loopbacks(z, m) {
		from[api.HostPrefix(a)] = Origin{}
	}
	for _, s := range services(z, m) {
		for _, a := range s.Addresses {
			from[api.HostPrefix(a)] = Origin{Service: s.Name}
		}
	}
	return from
}

// Loopbacks are a host's own addresses: those that it pins, else those that were
// chosen for it.
func Loopbacks(z *api.Zone, m *api.Machine) []netip.Addr {
	list := m.Spec.Loopbacks
	if i := slices.IndexFunc(z.Status.Loopbacks, func(l api.LoopbackStatus) bool { return l.UID == m.Metadata.UID }); i >= 0 && len(list) == 0 {
		list = z.Status.Loopbacks[i].Addresses
	}
	var own []netip.Addr
	for _, a := range list {
		if within(z.Spec.Prefixes, api.HostPrefix(a)) {
			own = append(own, a)
		}
	}
	return own
}

// services are those of a Zone that a host has.
func services(z *api.Zone, m *api.Machine) []api.BGPService {
	var list []api.BGPService
	for _, s := range z.Spec.Services {
		if s.Selects(m) {
			list = append(list, api.BGPService{Name: s.Name, Addresses: s.Addresses, Check: s.Check, LastResort: s.OnFailure == api.OnFailureLastResort})
		}
	}
	return list
}

// leases are a host's IPv4 leases of advertised Networks, including those of Guests that moved there with their
// address, as far as they lie within the Zone's prefixes. IPv6 leases are not routed out of a host.
func (p *Parts) leases(z *api.Zone, m *api.Machine) map[netip.Prefix]Origin {
	from := map[netip.Prefix]Origin{}
	for l := range p.advertised(z, m) {
		for _, lease := range append([]netip.Prefix{l.Lease}, l.Moved...) {
			if lease.Addr().Is4() && within(z.Spec.Prefixes, lease) {
				from[lease] = Origin{Network: l.Network}
			}
		}
	}
	return from
}

// advertised lists a host's memberships of advertised Networks.
func (p *Parts) advertised(z *api.Zone, m *api.Machine) iter.Seq2[network.Membership, *api.Network] {
	return func(yield func(network.Membership, *api.Network) bool) {
		if p.Networks == nil {
			return
		}
		for _, l := range p.Networks.Memberships(m.Metadata.UID) {
			n, ok := store.Cached[api.Network](p.Cache, l.Network)
			if !ok || n.Metadata.UID != l.UID || !n.Spec.Advertise || n.Spec.Zone != z.Metadata.Name || l.Buried > 0 || n.Metadata.DeletionTimestamp != nil {
				continue
			}
			if !yield(l, n) {
				return
			}
		}
	}
}

// inside lists the Networks whose guests' routes a host advertises, as far as they lie within the Zone's
// prefixes, by uid.
func (p *Parts) inside(z *api.Zone, m *api.Machine) []api.BGPInside {
	var list []api.BGPInside
	for l, n := range p.advertised(z, m) {
		at := slices.DeleteFunc(n.Spec.AdvertisedPeering(), func(q netip.Prefix) bool { return !within(z.Spec.Prefixes, q) })
		if len(at) > 0 {
			list = append(list, api.BGPInside{UID: l.UID, Prefixes: at, MaxPrefixes: cmp.Or(n.Spec.Peering.MaxPrefixes, api.DefaultPeerPrefixes)})
		}
	}
	slices.SortFunc(list, func(a, b api.BGPInside) int { return strings.Compare(a.UID, b.UID) })
	return list
}

// within reports whether a prefix lies in one of a list.
func within(list []netip.Prefix, p netip.Prefix) bool {
	return p.IsValid() && slices.ContainsFunc(list, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}
