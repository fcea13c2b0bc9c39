package hostspec

import (
	"context"
	"errors"
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// networks adds the parts of the Networks that a host has a lease of, and
// tombstones of those that it is to give up. A Network that merely is not in
// the cache leaves neither: the host keeps it running.
func (c *Compiler) networks(ctx context.Context, m *api.Machine, underlay api.Underlay, s *hostSpec) error {
	if c.Networks == nil {
		return nil
	}
	vtep := network.VTEP(c.Cache, m)
	var site api.SiteSpec
	if s, ok := store.Cached[api.Site](c.Cache, api.SiteName); ok {
		site = s.Spec
	}
	for _, l := range c.Networks.Memberships(m.Metadata.UID) {
		name := api.NetworkPartName(l.Network)
		n, ok := store.Cached[api.Network](c.Cache, l.Network)
		ok = ok && n.Metadata.UID == l.UID
		if l.Buried > 0 || ok && n.Metadata.DeletionTimestamp != nil {
			s.bury(api.Tombstone{Part: name, UID: l.UID}, l.Buried)
			continue
		}
		if !ok {
			continue
		}
		peering, err := c.peering(ctx, n)
		var none *NoPart
		if errors.As(err, &none) {
			continue // the host goes on with the part that it has
		}
		if err != nil {
			return err
		}
		allow, _ := network.Allow(c.Cache, n)
		part, err := l.View.NewPart(m.Metadata.UID, api.NetworkPart{
			UID: l.UID, VNI: l.VNI, MTU: network.MTU(underlay, vtep), CIDRs: n.Spec.CIDRs,
			Lease: l.Lease, Lease6: l.Lease6, Moved: l.Moved, MAC: network.VTEPMAC(m.Metadata.UID, l.VNI),
			Egress: n.Spec.Egress, Advertise: n.Spec.Advertise, Allow: allow, Direct: n.Spec.Direct && underlay.Encryption == nil,
			Limits: n.Spec.Limits, GuestLimits: n.Spec.GuestLimits,
			DNS: site.DNS, Domain: domain(l.Network, site.Domain), Peering: peering,
		})
		if err != nil {
			return fmt.Errorf("compile part %s of %s: %w", name, m.Metadata.Name, err)
		}
		s.parts[name] = part
	}
	return nil
}

// peering is how a Network's guests peer; nil where they do not, be it that
// their Secret is not there yet or not for them: never without its key.
func (c *Compiler) peering(ctx context.Context, n *api.Network) (*api.PeeringPart, error) {
	p := n.Spec.Peering
	z, ok := store.Cached[api.Zone](c.Cache, n.Spec.Zone)
	if p == nil || !ok || z.Spec.ASN == p.ASN {
		return nil, nil
	}
	out := &api.PeeringPart{Zone: z.Metadata.Name, ASN: z.Spec.ASN, Community: z.Community(), GuestASN: p.ASN,
		Prefixes: p.Prefixes, MaxPrefixes: p.MaxPrefixes, Advertise: p.Advertise, GracefulRestart: z.Spec.BGP.GracefulRestart}
	if p.Secret == "" {
		return out, nil
	}
	use := api.UseNetwork(n.Metadata.Name)
	s, ok := store.Cached[api.Secret](c.Cache, p.Secret)
	if !ok || s.Status.Digests[UplinkPassword] == "" || s.Permits(use) != nil || c.BGP == nil {
		return nil, nil
	}
	var err error
	out.Password, err = c.BGP.password(ctx, s, use)
	out.Salt = c.BGP.salt(n.Metadata.UID)
	return out, err
}

// domain is that of a Network's guests: a name below the Site's, where it has one.
func domain(network, site string) string {
	if site == "" {
		return ""
	}
	return network + "." + site
}
