package hostspec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
)

// BGP is what bgp parts are made with, beside the objects. It is safe for
// concurrent use.
type BGP struct {
	// Key is the MD5 key between two Machines, by their uids in any order.
	Key func(one, other string) string
	// Secret opens a Secret for a use.
	Secret func(ctx context.Context, name string, use api.SecretUse) (map[string]string, error)

	mu      sync.Mutex
	opened  map[string]opened // Secrets, by name
	members memberMemo
}

// opened is a Secret as it stood at a version.
type opened struct {
	version string
	values  map[string]string
}

// memberMemo is every Zone's members as they stood at a revision: a change of a
// Zone has all of its hosts compiled at once.
type memberMemo struct {
	cache    *store.Cache
	revision int64
	zones    map[string][]Member
}

// DrainAnnotation on a Machine asks its neighbours for any other path than
// through it (RFC 8326), and keeps it from being a reflector.
const DrainAnnotation = "rackweft/bgp-drain"

// Draining reports whether a host is to be left by traffic.
func Draining(m *api.Machine) bool {
	return m.Metadata.Annotations[DrainAnnotation] == "true" || m.Spec.State != api.StateActive || m.Status.Phase == api.PhaseDraining
}

// Member is a Machine of a Zone as its speakers see it.
type Member struct {
	Machine *api.Machine
	// Addresses are of its underlay: one IPv4, and one IPv6 where it has one.
	Addresses []netip.Addr
	Subnet    *api.Subnet
	// Fault says why it takes no part in BGP; it has no Addresses then.
	Fault string
}

// V4 is the address that sessions run over.
func (m Member) V4() netip.Addr { return m.Addresses[0] }

// Members lists the Machines of a Zone, by name. They are shared, and must not
// be changed.
func (c *Compiler) Members(zone string) []Member {
	if c.BGP == nil {
		return membersOf(c.Cache)[zone]
	}
	b := c.BGP
	revision := c.Cache.Revision()
	b.mu.Lock()
	known := b.members
	b.mu.Unlock()
	if known.cache == c.Cache && known.revision == revision {
		return known.zones[zone]
	}
	fresh := memberMemo{c.Cache, revision, membersOf(c.Cache)}
	b.mu.Lock()
	b.members = fresh
	b.mu.Unlock()
	return fresh.zones[zone]
}

// membersOf finds the members of all Zones. An address that a host merely
// reports is its word alone: it counts only where it could be the host's, and
// nobody else has or reports it.
func membersOf(cache *store.Cache) map[string][]Member {
	machines := store.CachedList[api.Machine](cache)
	taken := takenAddresses(cache, machines)
	reported := map[netip.Addr]int{}
	for _, m := range machines {
		if _, s := underlay(cache, m); s != nil {
			for _, a := range reportedAddresses(cache, m) {
				reported[a]++
			}
		}
	}
	zones := map[string][]Member{}
	for _, m := range machines {
		if m.Spec.Zone == "" || m.Metadata.DeletionTimestamp != nil || m.Metadata.Labels[api.DiscoveredLabel] == "true" {
			continue
		}
		member := Member{Machine: m}
		link, s := underlay(cache, m)
		member.Subnet = s
		switch {
		case s == nil:
			member.Fault = "it has no link on a production Subnet of Zone " + m.Spec.Zone
		case s.Spec.Zone != m.Spec.Zone:
			member.Fault = fmt.Sprintf("its link %s is on Subnet %s of Zone %s", link.Name, s.Metadata.Name, s.Spec.Zone)
		case len(link.Addresses) > 0:
			member.Addresses = oneOfEach(link.Addresses)
		default:
			member.Addresses, member.Fault = usable(s, reportedAddresses(cache, m), taken, reported)
		}
		if member.Fault == "" && (len(member.Addresses) == 0 || !member.Addresses[0].Is4()) {
			member.Addresses, member.Fault = nil, fmt.Sprintf("its link %s has no IPv4 address: pin one out of Subnet %s", link.Name, s.Metadata.Name)
		}
		zones[m.Spec.Zone] = append(zones[m.Spec.Zone], member)
	}
	return zones
}

// underlay is a Machine's first link on a production Subnet, as
// network.Underlay finds it.
func underlay(cache *store.Cache, m *api.Machine) (api.Link, *api.Subnet) {
	for _, l := range m.Spec.Links {
		if s, ok := store.Cached[api.Subnet](cache, l.Subnet); ok && s.Spec.Purpose == api.Production {
			return l, s
		}
	}
	return api.Link{}, nil
}

// reportedAddresses are those that a host says are on its underlay.
func reportedAddresses(cache *store.Cache, m *api.Machine) []netip.Addr {
	u := network.Underlay(cache, m)
	if m.Status.Host == nil || u.Interface == "" || len(u.Addresses) > 0 {
		return nil
	}
	var list []netip.Addr
	for _, nic := range m.Status.Host.NICs {
		if nic.Name != u.Interface {
			continue
		}
		for _, p := range nic.Addresses {
			if a := p.Addr(); a.IsGlobalUnicast() && !a.Is4In6() && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	return list
}

// takenAddresses are those that something in particular has.
func takenAddresses(cache *store.Cache, machines []*api.Machine) map[netip.Addr]string {
	taken := map[netip.Addr]string{}
	for _, s := range store.CachedList[api.Subnet](cache) {
		taken[s.Spec.Gateway] = "the gateway of Subnet " + s.Metadata.Name
	}
	for _, z := range store.CachedList[api.Zone](cache) {
		for _, u := range z.Spec.Uplinks {
			taken[u.Address] = "an uplink of Zone " + z.Metadata.Name
		}
	}
	for _, m := range machines {
		for _, l := range m.Spec.Links {
			for _, a := range l.Addresses {
				taken[a] = "pinned by Machine " + m.Metadata.Name
			}
		}
	}
	return taken
}

func usable(s *api.Subnet, reported []netip.Addr, taken map[netip.Addr]string, times map[netip.Addr]int) ([]netip.Addr, string) {
	var good []netip.Addr
	fault := ""
	for _, a := range reported {
		_, inside := s.Prefix(a)
		switch {
		case !inside:
		case taken[a] != "":
			fault = fmt.Sprintf("it reports the address %s, which is %s: pin one of its own", a, taken[a])
		case times[a] > 1:
			fault = fmt.Sprintf("it reports the address %s, and so does another Machine: pin each its own", a)
		default:
			good = append(good, a)
		}
	}
	if good = oneOfEach(good); len(good) > 0 && good[0].Is4() {
		return good, ""
	}
	return nil, fault
}

// oneOfEach is the first address of each family, IPv4 first.
func oneOfEach(list []netip.Addr) []netip.Addr {
	var both []netip.Addr
	for _, is4 := range []bool{true, false} {
		if i := slices.IndexFunc(list, func(a netip.Addr) bool { return a.Is4() == is4 && !a.IsLinkLocalUnicast() }); i >= 0 {
			both = append(both, list[i])
		}
	}
	return both
}

// NoPart says why a host has no bgp part now. One that it holds already goes on.
type NoPart struct{ Reason string }

func (e *NoPart) Error() string { return e.Reason }

// bgp adds the bgp part.
func (c *Compiler) bgp(ctx context.Context, m *api.Machine, s *part.Spec) error {
	if c.BGP == nil {
		return nil
	}
	p, err := c.BGPPart(ctx, m)
	var none *NoPart
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.Put(api.PartBGP, p)
}

// BGPPart compiles the bgp part of a host; a *NoPart when it has none.
func (c *Compiler) BGPPart(ctx context.Context, m *api.Machine) (*api.BGPPart, error) {
	z, ok := store.Cached[api.Zone](c.Cache, m.Spec.Zone)
	if !ok {
		return nil, &NoPart{"it is in no Zone"}
	}
	members := c.Members(z.Metadata.Name)
	i := slices.IndexFunc(members, func(o Member) bool { return o.Machine.Metadata.UID == m.Metadata.UID })
	if i < 0 {
		return nil, &NoPart{"it is no host of Zone " + z.Metadata.Name}
	}
	if members[i].Fault != "" {
		return nil, &NoPart{members[i].Fault}
	}
	b := &bgpCompiler{c: c, zone: z, self: members[i], members: members}
	return b.part(ctx)
}

// bgpCompiler makes the bgp part of one host.
type bgpCompiler struct {
	c       *Compiler
	zone    *api.Zone
	self    Member
	members []Member
}

func (b *bgpCompiler) part(ctx context.Context) (*api.BGPPart, error) {
	s := b.zone.Spec
	p := &api.BGPPart{
		Zone: b.zone.Metadata.Name, ASN: s.ASN, RouterID: b.self.V4(), Role: api.BGPClient, Community: b.zone.Community(),
		// Clients listen too: a host that becomes a reflector must not have to
		// open its speaker anew.
		Listen: []netip.Addr{b.self.V4()}, NextHops: b.self.Addresses, ZoneNextHops: b.zoneNextHops(),
		Originate: b.originate(b.self.Machine), Loopbacks: Loopbacks(b.zone, b.self.Machine), Services: services(b.zone, b.self.Machine),
		Inside:          b.c.inside(b.zone, b.self.Machine),
		AllPaths:        s.BGP.Paths != api.PathsBest,
		EVPN:            s.BGP.EVPN,
		GracefulRestart: s.BGP.GracefulRestart, LongLived: s.BGP.LongLived, StaleHold: s.BGP.StaleHold,
		Drain: Draining(b.self.Machine),
	}
	if !b.reflects(b.self) {
		for _, other := range b.members {
			if b.reflects(other) {
				p.Neighbors = append(p.Neighbors, b.host(other, api.BGPReflector))
			}
		}
		return p, nil
	}
	// Reflectors peer with each other, so each is a cluster of its own: of two
	// with one cluster id, either would drop what the other reflects (RFC 4456, 8).
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

// farHops is how far hosts on different Subnets may be from each other.
const farHops = 16

// host is another host as a neighbour. Clients connect to reflectors; of two
// reflectors the first by name connects.
func (b *bgpCompiler) host(other Member, role string) api.BGPNeighbor {
	self, peer := b.self.Machine.Metadata, other.Machine.Metadata
	n := api.BGPNeighbor{
		Name: peer.Name, Address: other.V4(), Source: b.self.V4(), ASN: b.zone.Spec.ASN, Role: role,
		Passive:  role == api.BGPClient || b.reflects(b.self) && self.Name > peer.Name,
		Password: b.c.BGP.Key(self.UID, peer.UID),
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

// routable is all that a route of the Zone may lead to: what its hosts
// originate, and what its uplinks may tell.
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
	for _, s := range store.CachedList[api.Subnet](b.c.Cache) {
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

// originate is what a host tells of for as long as its part says so.
func (b *bgpCompiler) originate(m *api.Machine) []netip.Prefix {
	return sorted(b.c.leases(b.zone, m))
}

// accept is what a client may tell of.
func (b *bgpCompiler) accept(client Member) api.BGPAccept {
	a := api.BGPAccept{Client: client.Machine.Metadata.Name, Prefixes: sorted(b.c.Originates(b.zone, client.Machine)), NextHops: client.Addresses}
	for _, x := range b.c.inside(b.zone, client.Machine) {
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

// Origin is why a host may tell of a prefix: it is its lease of a Network, an
// address of a service, or else the host's own.
type Origin struct{ Network, Service string }

// Originates is what a host of a Zone may tell of.
func (c *Compiler) Originates(z *api.Zone, m *api.Machine) map[netip.Prefix]Origin {
	from := c.leases(z, m)
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

// leases are a host's IPv4 leases of Networks that are advertised, those of
// Guests that came with their address among them, as far as they lie within the
// Zone's prefixes. IPv6 leases are not routed out of a host.
func (c *Compiler) leases(z *api.Zone, m *api.Machine) map[netip.Prefix]Origin {
	from := map[netip.Prefix]Origin{}
	for l := range c.advertised(z, m) {
		for _, lease := range append([]netip.Prefix{l.Lease}, l.Moved...) {
			if lease.Addr().Is4() && within(z.Spec.Prefixes, lease) {
				from[lease] = Origin{Network: l.Network}
			}
		}
	}
	return from
}

// advertised are a host's memberships of Networks that are advertised.
func (c *Compiler) advertised(z *api.Zone, m *api.Machine) iter.Seq2[network.Membership, *api.Network] {
	return func(yield func(network.Membership, *api.Network) bool) {
		if c.Networks == nil {
			return
		}
		for _, l := range c.Networks.Memberships(m.Metadata.UID) {
			n, ok := store.Cached[api.Network](c.Cache, l.Network)
			if !ok || n.Metadata.UID != l.UID || !n.Spec.Advertise || n.Spec.Zone != z.Metadata.Name || l.Buried > 0 || n.Metadata.DeletionTimestamp != nil {
				continue
			}
			if !yield(l, n) {
				return
			}
		}
	}
}

// inside are the Networks whose guests' routes a host tells of, as far as they
// lie within the Zone's prefixes, by uid.
func (c *Compiler) inside(z *api.Zone, m *api.Machine) []api.BGPInside {
	var list []api.BGPInside
	for l, n := range c.advertised(z, m) {
		at := slices.DeleteFunc(n.Spec.AdvertisedPeering(), func(p netip.Prefix) bool { return !within(z.Spec.Prefixes, p) })
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
