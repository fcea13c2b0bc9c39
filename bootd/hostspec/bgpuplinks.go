package hostspec

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
)

// uplinks adds what a reflector is to uplinks. It has the aggregates without the
// sessions, too: while it is withdrawn from its uplinks it must not send back to
// them what no longer route covers.
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
			p.Salt = b.c.BGP.salt(b.self.Machine.Metadata.UID)
		}
	}
	return nil
}

// hasUplinks reports whether the host, which reflects, has sessions with uplinks:
// from when it is known to forward, to when others do so in its place. What it
// forwards, transit says, which is for longer at both ends.
func (b *bgpCompiler) hasUplinks() bool {
	return slices.ContainsFunc(b.zone.Status.Reflectors, func(r api.ReflectorStatus) bool {
		return r.UID == b.self.Machine.Metadata.UID && r.State.HasUplinks()
	})
}

// transit is what a host is the next hop for to uplinks, without having it: the
// Zone's prefixes, for a reflector of a Zone with an uplink that is not told the
// hosts' own next hops.
func (c *Compiler) transit(m *api.Machine) []netip.Prefix {
	z, ok := store.Cached[api.Zone](c.Cache, m.Spec.Zone)
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

// uplink is a border leaf as a neighbour; not ok while its Secret is not there.
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
	s, ok := store.Cached[api.Secret](b.c.Cache, u.Secret)
	if !ok || s.Status.Digests[api.SessionPassword] == "" || s.Permits(use) != nil {
		return n, false, nil // never without its key
	}
	n.Password, err = b.c.BGP.password(ctx, s, use)
	return n, true, err
}

// salt is what a part of the object with that uid has beside a password that a person chose. Without it the part's
// digest would tell whoever sees the rest of the part whether a guess is right.
func (b *BGP) salt(uid string) string { return b.Key(uid, "digest") }

// password opens the Secret of an uplink or of guests' sessions, once for each version of it. The caller
// has found that s permits the use.
func (b *BGP) password(ctx context.Context, s *api.Secret, use api.SecretUse) (string, error) {
	name, version := s.Metadata.Name, s.Metadata.UID+"/"+s.Metadata.ResourceVersion
	b.mu.Lock()
	known, ok := b.opened[name]
	b.mu.Unlock()
	if ok && known.version == version {
		return known.values[api.SessionPassword], nil
	}
	values, err := b.Secret(ctx, name, use)
	var refused *api.NotPermittedError
	switch {
	case errors.As(err, &refused): // the store is ahead of the cache
		return "", &NoPart{err.Error()}
	case errors.Is(err, ca.ErrUnknownKey) || errors.Is(err, ca.ErrTampered):
		return "", &NoPart{fmt.Sprintf("Secret %s cannot be opened: %s", name, err)}
	case err != nil:
		return "", fmt.Errorf("open Secret %s: %w", name, err)
	case len(values[api.SessionPassword]) > api.MaxSessionPassword:
		return "", &NoPart{fmt.Sprintf("the %s in Secret %s has %d bytes, and an MD5 key has %d at most", api.SessionPassword, name, len(values[api.SessionPassword]), api.MaxSessionPassword)}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened == nil {
		b.opened = map[string]opened{}
	}
	b.opened[name] = opened{version, values}
	return values[api.SessionPassword], nil
}
