package zone

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
)

// Parts compiles the bgp parts of hosts from their Zone. It is safe for concurrent use; a nil one compiles none.
type Parts struct {
	Cache *store.Cache
	// Networks has the leases of every Network; there are none without it.
	Networks *network.Index
	Keys     *Keys
}

// With returns a Parts that reads another cache.
func (p *Parts) With(cache *store.Cache) *Parts {
	return &Parts{Cache: cache, Networks: p.Networks, Keys: p.Keys}
}

// NoPart says why a host gets no bgp part now. It keeps one that it already has.
type NoPart struct{ Reason string }

func (e *NoPart) Error() string { return e.Reason }

// compile adds the bgp part.
func (p *Parts) compile(ctx context.Context, m *api.Machine, s *part.Spec) error {
	if p == nil {
		return nil
	}
	made, err := p.Part(ctx, m)
	var none *NoPart
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.Put(api.PartBGP, made)
}

// Part compiles the bgp part of a host; a *NoPart when it has none.
func (p *Parts) Part(ctx context.Context, m *api.Machine) (*api.BGPPart, error) {
	z, ok := store.Cached[api.Zone](p.Cache, m.Spec.Zone)
	if !ok {
		return nil, &NoPart{"it is in no Zone"}
	}
	members := p.Members(z.Metadata.Name)
	i := slices.IndexFunc(members, func(o Member) bool { return o.Machine.Metadata.UID == m.Metadata.UID })
	if i < 0 {
		return nil, &NoPart{"it is not a host of Zone " + z.Metadata.Name}
	}
	if members[i].Fault != "" {
		return nil, &NoPart{members[i].Fault}
	}
	b := &bgpCompiler{parts: p, zone: z, self: members[i], members: members}
	return b.part(ctx)
}

// bgpCompiler compiles the bgp part of one host.
type bgpCompiler struct {
	parts   *Parts
	zone    *api.Zone
	self    Member
	members []Member
}

func (b *bgpCompiler) part(ctx context.Context) (*api.BGPPart, error) {
	s := b.zone.Spec
	p := &api.BGPPart{
		Zone: b.zone.Metadata.Name, ASN: s.ASN, RouterID: b.self.V4(), Role: api.BGPClient, Community: b.zone.Community(),
		// Clients listen too: a host that becomes a reflector must not have to
		// restart its speaker.
		Listen: []netip.Addr{b.self.V4()}, NextHops: b.self.Addresses, ZoneNextHops: b.zoneNextHops(),
		Originate: b.originate(b.self.Machine), Loopbacks: Loopbacks(b.zone, b.self.Machine), Services: services(b.zone, b.self.Machine),
		Inside:          b.parts.inside(b.zone, b.self.Machine),
		AllPaths:        s.BGP.Paths != api.PathsBest,
		EVPN:            s.BGP.EVPN,
		GracefulRestart: s.BGP.GracefulRestart, LongLived: s.BGP.LongLived, StaleHold: s.BGP.StaleHold,
		Drain: ShuttingDown(b.self.Machine),
	}
	if !b.reflects(b.self) {
		for _, other := range b.members {
			if b.reflects(other) {
				p.Neighbors = append(p.Neighbors, b.host(other, api.BGPReflector))
			}
		}
		return p, nil
	}
	// Reflectors peer with each other, so each is a cluster of its own: with one cluster id, each would drop what
	// the other reflects (RFC 4456, 8).
	p.Role, p.ClusterID, p.BMP = api.BGPReflector, b.self.V4(), s.BGP.BMP
	for _, other := range b.members {
		switch {
		case other.Fault != "" || other.Machine == b.self.Machine:
		case b.reflects(other):
			p.Neighbors = append(p.Neighbors, b.host(other, api.BGPReflector))
		default:
			p.Neighbors = append(p.Neighbors, b.host(other, api.BGPClient))
			p.Accept = append(p.Accept, b.accept(other))
		}
	}
	if err := b.uplinks(ctx, p); err != nil {
		return nil, err
	}
	return p, nil
}

// reflects reports whether a member is one of the Zone's reflectors, whatever
// its state.
func (b *bgpCompiler) reflects(m Member) bool {
	return m.Fault == "" && slices.ContainsFunc(b.zone.Status.Reflectors, func(r api.ReflectorStatus) bool {
		return r.Machine == m.Machine.Metadata.Name && r.UID == m.Machine.Metadata.UID
	})
}

// farHops is the maximum distance of hosts on different Subnets.
const farHops = 16

// host returns another host as a neighbour. Clients connect to reflectors; of two reflectors the first by name
// connects.
func (b *bgpCompiler) host(other Member, role string) api.BGPNeighbor {
	self, peer := b.self.Machine.Metadata, other.Machine.Metadata
	n := api.BGPNeighbor{
		Name: peer.Name, Address: other.V4(), Source: b.self.V4(), ASN: b.zone.Spec.ASN, Role: role,
		Passive:  role == api.BGPClient || b.reflects(b.self) && self.Name > peer.Name,
		Password: b.parts.Keys.Key(self.UID, peer.UID),
		HoldTime: b.zone.Spec.BGP.HoldTime,
	}
	if role == api.BGPReflector {
		n.Import = b.routable()
	}
	if p, ok := b.self.Subnet.Prefix(b.self.V4()); !ok || !p.Contains(other.V4()) {
		n.Hops = farHops
	}
	return n
}

// routable lists all prefixes that the Zone may route: those that its hosts originate, and those that its uplinks
// may advertise.
func (b *bgpCompiler) routable() []api.PrefixFilter {
	var list []api.PrefixFilter
	for _, p := range b.zone.Spec.Prefixes {
		list = append(list, api.PrefixFilter{Prefix: p, LE: p.Addr().BitLen()})
	}
	for _, u := range b.zone.Spec.Uplinks {
		for _, f := range u.Import {
			if !slices.Contains(list, f) {
				list = append(list, f)
			}
		}
	}
	return list
}

// zoneNextHops are the Zone's production Subnets, and the uplinks that are in
// none of them.
func (b *bgpCompiler) zoneNextHops() []netip.Prefix {
	var list []netip.Prefix
	for _, s := range store.CachedList[api.Subnet](b.parts.Cache) {
		if s.Spec.Purpose == api.Production && s.Spec.Zone == b.zone.Metadata.Name {
			list = append(list, s.Spec.Prefixes...)
		}
	}
	for _, u := range b.zone.Spec.Uplinks {
		if !slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(u.Address) }) {
			list = append(list, netip.PrefixFrom(u.Address, u.Address.BitLen()))
		}
	}
	return list
}

// originate lists the prefixes that a host advertises as long as its part contains them.
func (b *bgpCompiler) originate(m *api.Machine) []netip.Prefix {
	return sorted(b.parts.leases(b.zone, m))
}

// accept lists the prefixes that a client may advertise.
func (b *bgpCompiler) accept(client Member) api.BGPAccept {
	a := api.BGPAccept{Client: client.Machine.Metadata.Name, Prefixes: sorted(b.parts.Originates(b.zone, client.Machine)), NextHops: client.Addresses}
	for _, x := range b.parts.inside(b.zone, client.Machine) {
		a.Within = append(a.Within, x.Prefixes...)
		a.MaxWithin += x.MaxPrefixes
	}
	return a
}

func sorted(of map[netip.Prefix]Origin) []netip.Prefix {
	list := slices.Collect(maps.Keys(of))
	slices.SortFunc(list, netip.Prefix.Compare)
	return list
}
