package server

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
)

// network judges a Network by the others, and by what its hosts already have.
func (v *verdict) network(w world, n *api.Network, current api.Object) {
	if n.Metadata.Name == "subnets" {
		v.fail("/metadata/name", "a stock flanneld with its default prefix would take the leases of a Network of this name for its own: choose another")
	}
	v.cidrs(n)
	for _, other := range w.networks {
		if other.Metadata.Name != n.Metadata.Name {
			v.networks(n, other)
		}
	}
	if n.Spec.Advertise {
		v.advertised(w, n)
	}
	if old, ok := current.(*api.Network); ok {
		v.networkChange(old, n)
	}
}

// cidrs holds a Network to what flannel can cut (CheckNetworkConfig in its
// pkg/subnet/config.go, v0.26.7).
func (v *verdict) cidrs(n *api.Network) {
	v4 := false
	for i, c := range n.Spec.CIDRs {
		at := api.Pointer("spec", "cidrs", i)
		for j, d := range n.Spec.CIDRs[:i] {
			if c.Overlaps(d) {
				v.fail(at, "%s overlaps %s (cidrs entry %d)", c, d, j)
			}
		}
		switch {
		case !c.Addr().Is4():
			v.warnings = append(v.warnings, fmt.Sprintf("%s: no leases are cut from IPv6 CIDRs yet", at))
		case c.Addr().IsLinkLocalUnicast() || c.Addr().IsMulticast() || c.Addr().IsLoopback() || c.Addr().IsUnspecified():
			v.fail(at, "%s is not for unicast between hosts: choose a private CIDR, such as one of 10.0.0.0/8", c)
		case n.Spec.HostPrefix < c.Bits()+2:
			v.fail("/spec/hostPrefix", "/%d cuts %s into fewer than the four leases that flannel wants, and the first is never given to a host: choose /%d or longer, or a larger CIDR", n.Spec.HostPrefix, c, c.Bits()+2)
		}
		v4 = v4 || c.Addr().Is4()
	}
	if !v4 && len(n.Spec.CIDRs) > 0 {
		v.fail("/spec/cidrs", "at least one IPv4 CIDR is required: hosts' leases are cut from it")
	}
}

// networks judges a Network by another one.
func (v *verdict) networks(n, other *api.Network) {
	name := other.Metadata.Name
	if n.Spec.VNI != 0 && (other.Spec.VNI == n.Spec.VNI || other.Status.VNI == n.Spec.VNI) {
		v.fail("/spec/vni", "VNI %d is that of Network %s", n.Spec.VNI, name)
	}
	overlap := network.Overlap(n.Spec.CIDRs, other.Spec.CIDRs)
	sameZone := n.Spec.Zone == other.Spec.Zone
	if overlap && sameZone && n.Spec.Advertise && other.Spec.Advertise {
		v.fail("/spec/advertise", "its CIDRs overlap those of Network %s (%s), which is advertised in Zone %s too: routes would mix them", name, prefixes(other.Spec.CIDRs), n.Spec.Zone)
	}
	at := slices.Index(n.Spec.Allow, name)
	switch {
	case at >= 0 && !sameZone:
		v.fail(api.Pointer("spec", "allow", at), "Network %s is in Zone %s, and this one in %s: Networks talk to each other within a Zone only", name, other.Spec.Zone, n.Spec.Zone)
	case at >= 0 && overlap:
		v.fail(api.Pointer("spec", "allow", at), "its CIDRs overlap those of Network %s (%s): which of the two an address is in could not be told", name, prefixes(other.Spec.CIDRs))
	case overlap && sameZone && slices.Contains(other.Spec.Allow, n.Metadata.Name):
		v.fail("/spec/cidrs", "they overlap those of Network %s (%s), whose spec.allow names this Network: which of the two an address is in could not be told", name, prefixes(other.Spec.CIDRs))
	}
}

// advertised keeps routes of tenants off the Site's own addresses.
func (v *verdict) advertised(w world, n *api.Network) {
	for _, s := range w.subnets {
		if network.Overlap(n.Spec.CIDRs, s.Spec.Prefixes) {
			v.fail("/spec/advertise", "its CIDRs overlap Subnet %s (%s): advertising them would draw that Subnet's traffic to guests", s.Metadata.Name, prefixes(s.Spec.Prefixes))
		}
	}
	for _, z := range w.zones {
		if z.Metadata.Name != n.Spec.Zone {
			continue
		}
		for i, c := range n.Spec.CIDRs {
			if !covered(z.Spec.Prefixes, c) {
				v.warnings = append(v.warnings, fmt.Sprintf("%s: %s is in none of spec.prefixes of Zone %s, so it is not advertised", api.Pointer("spec", "cidrs", i), c, n.Spec.Zone))
			}
		}
	}
}

// networkChange refuses what would break leases that hosts have.
func (v *verdict) networkChange(old, n *api.Network) {
	if vni := old.Status.VNI; vni != 0 && n.Spec.VNI != 0 && n.Spec.VNI != vni {
		v.fail("/spec/vni", "the VNI is %d and stays so for the Network's life: delete the Network and create it anew for another", vni)
	}
	if old.Status.Leases == 0 {
		return
	}
	if n.Spec.Zone != old.Spec.Zone {
		v.fail("/spec/zone", "%d leases are given to hosts of Zone %s: a Network stays in its Zone", old.Status.Leases, old.Spec.Zone)
	}
	if n.Spec.HostPrefix != old.Spec.HostPrefix {
		v.fail("/spec/hostPrefix", "%d leases are /%d: their length stays so while there are any", old.Status.Leases, old.Spec.HostPrefix)
	}
	for _, c := range old.Spec.CIDRs {
		if !covered(n.Spec.CIDRs, c) {
			v.fail("/spec/cidrs", "%s is gone, and hosts may have leases of it (%d in all): CIDRs may be added or widened, not taken away", c, old.Status.Leases)
		}
	}
}

// covered reports whether a CIDR lies within one of a list.
func covered(list []netip.Prefix, c netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Bits() <= c.Bits() && p.Contains(c.Addr()) })
}
