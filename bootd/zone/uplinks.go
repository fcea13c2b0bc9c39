package zone

import (
	"context"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// uplinks adds a reflector's uplinks. It has the aggregates even without the sessions: while it is withdrawn from
// its uplinks it must not send back to them packets that no longer route covers.
func (b *bgpCompiler) uplinks(ctx context.Context, p *api.BGPPart) error {
	for _, u := range b.zone.Spec.Uplinks {
		n, ok, err := b.uplink(ctx, u)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		p.Aggregates = b.zone.Spec.Prefixes
		if b.hasUplinks() {
			p.Neighbors = append(p.Neighbors, n)
		}
		if n.Password != "" {
			p.Salt = b.parts.Keys.salt(b.self.Machine.Metadata.UID)
		}
	}
	return nil
}

// hasUplinks reports whether the host, a reflector, has sessions with uplinks: from the time that it is known to
// forward until others do so in its place. Transit says what it forwards, which begins earlier and ends later.
func (b *bgpCompiler) hasUplinks() bool {
	return slices.ContainsFunc(b.zone.Status.Reflectors, func(r api.ReflectorStatus) bool {
		return r.UID == b.self.Machine.Metadata.UID && r.State.HasUplinks()
	})
}

// Transit lists the prefixes for which uplinks use a host as next hop though it does not have them: the Zone's
// prefixes, for a reflector of a Zone with an uplink that does not receive the hosts' own next hops.
func Transit(c *store.Cache, m *api.Machine) []netip.Prefix {
	z, ok := store.Cached[api.Zone](c, m.Spec.Zone)
	if !ok || z.Spec.ASN == 0 {
		return nil
	}
	reflects := slices.ContainsFunc(z.Status.Reflectors, func(r api.ReflectorStatus) bool { return r.UID == m.Metadata.UID })
	told := slices.ContainsFunc(z.Spec.Uplinks, func(u api.Uplink) bool { return !u.KeepNextHop })
	if !reflects || !told {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(z.Spec.Prefixes), func(p netip.Prefix) bool { return !p.Addr().Is4() })
}

// uplink returns a border leaf as a neighbour; not ok while its Secret is missing.
func (b *bgpCompiler) uplink(ctx context.Context, u api.Uplink) (n api.BGPNeighbor, ok bool, err error) {
	n = api.BGPNeighbor{
		Name: u.Address.String(), Address: u.Address, ASN: u.ASN, Role: api.BGPUplink,
		Import: u.Import, Export: u.Export, KeepNextHop: u.KeepNextHop, PrivateASNs: u.PrivateASNs,
		HoldTime: u.HoldTime, MaxPrefixes: u.MaxPrefixes, Hops: u.Hops,
	}
	if u.Address.Is4() {
		n.Source = b.self.V4()
	}
	if u.EVPN && b.zone.Spec.BGP.EVPN {
		n.Families = []string{api.FamilyIPv4, api.FamilyIPv6, api.FamilyEVPN}
	}
	if len(n.Export) == 0 {
		n.Export = b.zone.DefaultExport()
	}
	if u.Secret == "" {
		return n, true, nil
	}
	use := api.UseUplink(b.zone.Metadata.Name)
	s, ok := store.Cached[api.Secret](b.parts.Cache, u.Secret)
	if !ok || s.Status.Digests[api.SessionPassword] == "" || s.Permits(use) != nil {
		return n, false, nil // never without its key
	}
	n.Password, err = b.parts.Keys.password(ctx, s, use)
	return n, true, err
}
