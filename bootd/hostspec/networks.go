package hostspec

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// networks adds the parts of the Networks that a host has a lease of, and
// tombstones of those that it is to give up. A Network that merely is not in
// the cache leaves neither: the host keeps it running.
func (c *Compiler) networks(m *api.Machine, underlay api.Underlay, s *hostSpec) error {
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
		allow, _ := network.Allow(c.Cache, n)
		part, err := l.View.NewPart(m.Metadata.UID, api.NetworkPart{
			UID: l.UID, VNI: l.VNI, MTU: network.MTU(underlay, vtep), CIDRs: n.Spec.CIDRs,
			Lease: l.Lease, Lease6: l.Lease6, Moved: l.Moved, MAC: network.VTEPMAC(m.Metadata.UID, l.VNI),
			Egress: n.Spec.Egress, Advertise: n.Spec.Advertise, Allow: allow, Direct: n.Spec.Direct && underlay.Encryption == nil,
			Limits: n.Spec.Limits, GuestLimits: n.Spec.GuestLimits,
			DNS: site.DNS, Domain: domain(l.Network, site.Domain),
		})
		if err != nil {
			return fmt.Errorf("compile part %s of %s: %w", name, m.Metadata.Name, err)
		}
		s.parts[name] = part
	}
	return nil
}

// domain is that of a Network's guests: a name below the Site's, where it has one.
func domain(network, site string) string {
	if site == "" {
		return ""
	}
	return network + "." + site
}
