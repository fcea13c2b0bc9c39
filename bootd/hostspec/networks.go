package hostspec

import (
	"fmt"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// networks adds the parts of the Networks that a host has a lease of, and
// tombstones of those that it is to give up. A Network that merely is not in
// the cache leaves neither: the host keeps it running.
func (c *Compiler) networks(m *api.Machine, s *hostSpec) error {
	if c.Networks == nil {
		return nil
	}
	underlay, vtep := network.Underlay(c.Cache, m), network.VTEP(c.Cache, m)
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
		part, err := l.View.NewPart(m.Metadata.UID, api.NetworkPart{
			UID: l.UID, VNI: l.VNI, MTU: network.MTU(underlay, vtep), CIDRs: n.Spec.CIDRs,
			Lease: l.Lease, MAC: network.VTEPMAC(m.Metadata.UID, l.VNI),
			Egress: n.Spec.Egress, Advertise: n.Spec.Advertise, AllowCIDRs: c.allowed(n),
		})
		if err != nil {
			return fmt.Errorf("compile part %s of %s: %w", name, m.Metadata.Name, err)
		}
		s.parts[name] = part
	}
	return nil
}

// allowed lists the CIDRs of the Networks that may talk to one: those of its own
// Zone. What overlaps cannot be told apart, and is left out.
func (c *Compiler) allowed(n *api.Network) []netip.Prefix {
	var list []netip.Prefix
	for _, name := range n.Spec.Allow {
		other, ok := store.Cached[api.Network](c.Cache, name)
		if !ok || other.Spec.Zone != n.Spec.Zone || name == n.Metadata.Name || network.Overlap(n.Spec.CIDRs, other.Spec.CIDRs) {
			continue
		}
		list = append(list, other.Spec.CIDRs...)
	}
	return list
}
