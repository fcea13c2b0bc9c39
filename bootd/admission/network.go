package admission

import (
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
)

func networkRules() rules {
	return rules{
		kind: "Network",
		judge: func(v *Verdict, w *World, o, current api.Object) {
			n := o.(*api.Network)
			v.network(w, n, current)
			if p := n.Spec.Peering; p != nil {
				v.refused(w, "/spec/peering/secret", p.Secret, api.UseNetwork(n.Metadata.Name))
			}
		},
		keys: func(o api.Object) []key {
			n := o.(*api.Network)
			list := []key{{byVNI, number(n.Spec.VNI)}, {byVNI, number(n.Status.VNI)}}
			if n.Spec.Peering != nil && n.Spec.Peering.Secret != "" {
				list = append(list, key{keyedZone, ""})
			}
			return list
		},
		layers: func(o api.Object) map[layer][]netip.Prefix {
			n := o.(*api.Network)
			return map[layer][]netip.Prefix{
				{what: routedPrefixes}:                   inZone(n),
				{what: guestPrefixes, zone: n.Spec.Zone}: guests(n),
			}
		},
		sends: func(w *World, o, current api.Object) string { return w.peeringSecret(o.(*api.Network), current) },
	}
}

// peeringSecret says why an operator may not choose the Secret of a Network's peering; "" when an operator may.
func (w *World) peeringSecret(n *api.Network, current api.Object) string {
	old, _ := current.(*api.Network)
	p := n.Spec.Peering
	if p == nil || p.Secret == "" || old != nil && old.Spec.Peering != nil && old.Spec.Peering.Secret == p.Secret && old.Spec.Zone == n.Spec.Zone {
		return ""
	}
	return w.unsaid("spec.peering.secret", p.Secret, api.UseNetwork(n.Metadata.Name))
}

// network judges a Network against the others, and against the leases that its hosts already have.
func (v *Verdict) network(w *World, n *api.Network, current api.Object) {
	if n.Metadata.Name == "subnets" {
		v.fail("/metadata/name", "invalid name: a stock flanneld with its default prefix would use this Network's leases as its own")
	}
	v.cidrs(n)
	for _, other := range sorted[*api.Network](w, w.networkRivals(n)) {
		if other.Metadata.Name != n.Metadata.Name {
			v.networks(n, other)
		}
	}
	v.allowed(w, n)
	v.keepsOff(w, n.Spec.CIDRs, "/spec/cidrs", func(a announced) bool { return a.zone == n.Spec.Zone })
	v.keepsOff(w, n.Spec.AdvertisedPeering(), "/spec/peering/prefixes", func(a announced) bool { return a.zone == n.Spec.Zone })
	if n.Spec.Advertise {
		v.advertised(w, n)
	}
	if n.Spec.Direct {
		v.direct(w, n)
	}
	if n.Spec.Peering != nil {
		v.peering(w, n)
	}
	if old, ok := current.(*api.Network); ok {
		v.networkChange(old, n)
	}
}

// cidrs refuses CIDRs that flannel cannot divide (CheckNetworkConfig in its
// pkg/subnet/config.go, v0.26.7).
func (v *Verdict) cidrs(n *api.Network) {
	v4 := false
	for i, c := range n.Spec.CIDRs {
		at := api.Pointer("spec", "cidrs", i)
		for j, d := range n.Spec.CIDRs[:i] {
			if c.Overlaps(d) {
				v.fail(at, "%s overlaps %s (cidrs entry %d)", c, d, j)
			}
		}
		switch {
		case c.Addr().Is4In6() || c.Addr().IsLinkLocalUnicast() || c.Addr().IsMulticast() || c.Addr().IsLoopback() || c.Addr().IsUnspecified():
			v.fail(at, "%s is not for unicast between hosts: choose a private CIDR, such as one of 10.0.0.0/8 or fd00::/8", c)
		case c.Addr().Is4() && n.Spec.HostPrefix < c.Bits()+2:
			v.fail("/spec/hostPrefix", "/%d cuts %s into fewer than the four leases that flannel needs, of which hosts never get the first: choose /%d or longer, or a larger CIDR", n.Spec.HostPrefix, c, c.Bits()+2)
		}
		v4 = v4 || c.Addr().Is4()
	}
	if !v4 && len(n.Spec.CIDRs) > 0 {
		v.fail("/spec/cidrs", "at least one IPv4 CIDR is required: hosts' leases are cut from it")
	}
}

// networkRivals are the Networks that may conflict with this one, or that either allows.
func (w *World) networkRivals(n *api.Network) found {
	f := found{}.networks(n.Spec.Allow...).with(w, referrer+"Network", n.Metadata.Name)
	f.over(w, layer{what: routedPrefixes}, guests(n)...)
	if n.Spec.VNI != 0 {
		f.with(w, byVNI, number(n.Spec.VNI))
	}
	if n.Spec.Direct {
		f.over(w, layer{guestPrefixes, n.Spec.Zone}, n.Spec.CIDRs...)
	}
	return f
}

// networks judges a Network against another one.
func (v *Verdict) networks(n, other *api.Network) {
	name := other.Metadata.Name
	if n.Spec.VNI != 0 && (other.Spec.VNI == n.Spec.VNI || other.Status.VNI == n.Spec.VNI) {
		v.fail("/spec/vni", "VNI %d belongs to Network %s", n.Spec.VNI, name)
	}
	overlap := network.Overlap(n.Spec.CIDRs, other.Spec.CIDRs)
	sameZone := n.Spec.Zone == other.Spec.Zone
	if overlap && sameZone && n.Spec.Advertise && other.Spec.Advertise {
		v.fail("/spec/advertise", "its CIDRs overlap those of Network %s (%s), which is advertised in Zone %s too: routes would mix them", name, prefixes(other.Spec.CIDRs), n.Spec.Zone)
	}
	if overlap && sameZone && (n.Spec.Direct || other.Spec.Direct) {
		v.directOverlap(n, other)
	}
	if sameZone {
		v.peeringAdvertised(n, other)
	}
	at := slices.Index(n.Spec.Allow, name)
	allows := slices.Contains(other.Spec.Allow, n.Metadata.Name)
	if at >= 0 || allows {
		v.peeringAllowed(n, other)
	}
	switch {
	case at >= 0 && !sameZone:
		v.fail(api.Pointer("spec", "allow", at), "Network %s is in Zone %s, and this one in %s: Networks can be allowed within one Zone only", name, other.Spec.Zone, n.Spec.Zone)
	case at >= 0 && overlap:
		v.fail(api.Pointer("spec", "allow", at), "its CIDRs overlap those of Network %s (%s): an address would be ambiguous between the two", name, prefixes(other.Spec.CIDRs))
	case allows && !sameZone:
		v.fail("/spec/zone", "Network %s of Zone %s names this one in its spec.allow, and Networks can be allowed within one Zone only: remove it there, or choose that Zone", name, other.Spec.Zone)
	case allows && overlap:
		v.fail("/spec/cidrs", "they overlap those of Network %s (%s), whose spec.allow names this Network: an address would be ambiguous between the two", name, prefixes(other.Spec.CIDRs))
	}
}

// peeringAllowed refuses guest prefixes that overlap the CIDRs of an allowed Network: the guests would attract
// its traffic.
func (v *Verdict) peeringAllowed(n, other *api.Network) {
	name := other.Metadata.Name
	if p := n.Spec.Peering; p != nil && network.Overlap(p.Prefixes, other.Spec.CIDRs) {
		v.fail("/spec/peering/prefixes", "they overlap the CIDRs of Network %s (%s), which is allowed with this one (spec.allow): guests would attract its traffic", name, prefixes(other.Spec.CIDRs))
	}
	if p := other.Spec.Peering; p != nil && network.Overlap(p.Prefixes, n.Spec.CIDRs) {
		v.fail("/spec/cidrs", "they overlap spec.peering.prefixes of Network %s (%s), which is allowed with this one (spec.allow): its guests would attract this one's traffic", name, prefixes(p.Prefixes))
	}
}

// peeringAdvertised refuses guest prefixes, advertised to the Zone, that belong to another Network there.
func (v *Verdict) peeringAdvertised(n, other *api.Network) {
	name := other.Metadata.Name
	if in := inZone(other); network.Overlap(n.Spec.AdvertisedPeering(), in) {
		v.fail("/spec/peering/prefixes", "they overlap prefixes of Network %s that are routed in Zone %s (%s), and spec.peering.advertise advertises them to the Zone: routes would mix the two", name, n.Spec.Zone, prefixes(in))
	}
	if at := other.Spec.AdvertisedPeering(); network.Overlap(at, n.Spec.CIDRs) && (n.Spec.Advertise || n.Spec.Direct) {
		v.fail("/spec/cidrs", "they overlap spec.peering.prefixes of Network %s (%s), which are advertised in Zone %s: routes would mix the two", name, prefixes(at), n.Spec.Zone)
	}
}

// inZone lists the prefixes that the Zone routes to a Network, by BGP or directly.
func inZone(n *api.Network) []netip.Prefix {
	if n.Spec.Direct && !n.Spec.Advertise {
		return n.Spec.CIDRs
	}
	return n.Spec.Routed()
}

// peering refuses the hosts' ASN for guests, and a Secret without the sessions' key.
func (v *Verdict) peering(w *World, n *api.Network) {
	p := n.Spec.Peering
	if z := w.zone(n.Spec.Zone); z != nil && z.Spec.ASN == p.ASN {
		v.fail("/spec/peering/asn", "%d is the ASN of Zone %s, which the hosts use: guests need another", p.ASN, n.Spec.Zone)
	}
	if s := w.secret(p.Secret); s != nil && s.Status.Digests[api.SessionPassword] == "" {
		v.fail("/spec/peering/secret", "Secret %s has no %s, the key with the sessions' MD5 key", p.Secret, api.SessionPassword)
	}
}

// allowed refuses Networks with overlapping CIDRs in one spec.allow: this Network's, or another's that names it.
func (v *Verdict) allowed(w *World, n *api.Network) {
	byName := func(name string) *api.Network {
		if name == n.Metadata.Name {
			return n
		}
		return w.network(name)
	}
	for i, name := range n.Spec.Allow {
		for _, before := range n.Spec.Allow[:i] {
			a, b := byName(name), byName(before)
			if a != nil && b != nil && a != b && network.Overlap(a.Spec.CIDRs, b.Spec.CIDRs) {
				v.fail(api.Pointer("spec", "allow", i), "the CIDRs of Network %s (%s) overlap those of Network %s (%s), which is allowed too: an address would be ambiguous between the two",
					name, prefixes(a.Spec.CIDRs), before, prefixes(b.Spec.CIDRs))
			}
		}
	}
	for _, other := range referrersOf[*api.Network](w, "Network", n.Metadata.Name) {
		if other.Metadata.Name == n.Metadata.Name || !slices.Contains(other.Spec.Allow, n.Metadata.Name) {
			continue
		}
		for _, name := range other.Spec.Allow {
			if also := byName(name); also != nil && also != n && network.Overlap(n.Spec.CIDRs, also.Spec.CIDRs) {
				v.fail("/spec/cidrs", "they overlap those of Network %s (%s), and spec.allow of Network %s names both: an address would be ambiguous between the two",
					name, prefixes(also.Spec.CIDRs), other.Metadata.Name)
			}
		}
	}
}

// directOverlap refuses a direct Network that shares addresses with another: packets without a VXLAN header do
// not show their Network.
func (v *Verdict) directOverlap(n, other *api.Network) {
	if n.Spec.Direct {
		v.fail("/spec/direct", "its CIDRs overlap those of Network %s (%s) in Zone %s: without VXLAN the two would mix", other.Metadata.Name, prefixes(other.Spec.CIDRs), n.Spec.Zone)
		return
	}
	v.fail("/spec/cidrs", "they overlap those of Network %s (%s), which is direct in Zone %s: without VXLAN the two would mix", other.Metadata.Name, prefixes(other.Spec.CIDRs), n.Spec.Zone)
}

// direct refuses a Network without VXLAN whose prefixes are already routed. Zone prefixes within which it is
// advertised are its own.
func (v *Verdict) direct(w *World, n *api.Network) {
	for _, s := range sorted[*api.Subnet](w, found{}.over(w, layer{what: subnetPrefixes}, n.Spec.CIDRs...)) {
		if network.Overlap(n.Spec.CIDRs, s.Spec.Prefixes) {
			v.fail("/spec/direct", "its CIDRs overlap Subnet %s (%s), whose addresses would be taken for guests'", s.Metadata.Name, prefixes(s.Spec.Prefixes))
		}
	}
	if z := w.zone(n.Spec.Zone); z != nil && !n.Spec.Advertise && network.Overlap(n.Spec.CIDRs, z.Spec.Prefixes) {
		v.fail("/spec/direct", "its CIDRs overlap spec.prefixes of Zone %s (%s), which others originate: choose other CIDRs, or set spec.advertise", n.Spec.Zone, prefixes(z.Spec.Prefixes))
	}
}

// routed refuses prefixes of a Subnet that are routed to a Network, by BGP or directly.
func (v *Verdict) routed(w *World, s *api.Subnet) {
	for _, n := range sorted[*api.Network](w, found{}.over(w, layer{what: routedPrefixes}, s.Spec.Prefixes...)) {
		at := inZone(n)
		for i, p := range s.Spec.Prefixes {
			if network.Overlap(at, []netip.Prefix{p}) {
				v.fail(api.Pointer("spec", "prefixes", i), "%s overlaps Network %s (%s), which is routed in Zone %s (spec.direct or spec.advertise): its traffic would go to guests", p, n.Metadata.Name, prefixes(at), n.Spec.Zone)
			}
		}
	}
}

// originated refuses prefixes of a Zone that overlap a direct Network's.
func (v *Verdict) originated(w *World, z *api.Zone) {
	for _, n := range referrersOf[*api.Network](w, "Zone", z.Metadata.Name) {
		if n.Spec.Zone != z.Metadata.Name || !n.Spec.Direct || n.Spec.Advertise {
			continue
		}
		for i, p := range z.Spec.Prefixes {
			if network.Overlap(n.Spec.CIDRs, []netip.Prefix{p}) {
				v.fail(api.Pointer("spec", "prefixes", i), "%s overlaps Network %s (%s), which is direct in this Zone: its guests would mix with routes originated there", p, n.Metadata.Name, prefixes(n.Spec.CIDRs))
			}
		}
	}
}

// advertised refuses tenants' routes to the Site's own addresses.
func (v *Verdict) advertised(w *World, n *api.Network) {
	for _, s := range sorted[*api.Subnet](w, found{}.over(w, layer{what: subnetPrefixes}, n.Spec.Routed()...)) {
		if network.Overlap(n.Spec.CIDRs, s.Spec.Prefixes) {
			v.fail("/spec/advertise", "its CIDRs overlap Subnet %s (%s): advertising them would send that Subnet's traffic to guests", s.Metadata.Name, prefixes(s.Spec.Prefixes))
		}
		if network.Overlap(n.Spec.AdvertisedPeering(), s.Spec.Prefixes) {
			v.fail("/spec/peering/advertise", "spec.peering.prefixes overlap Subnet %s (%s): advertising them would send that Subnet's traffic to guests", s.Metadata.Name, prefixes(s.Spec.Prefixes))
		}
	}
	z := w.zone(n.Spec.Zone)
	if z == nil {
		return
	}
	if c, out := outside(n, z); out {
		at := "/spec/advertise"
		if slices.Contains(n.Spec.AdvertisedPeering(), c) {
			at = "/spec/peering/advertise"
		}
		v.fail(at, "%s is in none of spec.prefixes of Zone %s (%s), and nothing else is routed there: have an admin add it, or use another", c, n.Spec.Zone, prefixes(z.Spec.Prefixes))
	}
}

// networkChange refuses changes that would break the hosts' leases.
func (v *Verdict) networkChange(old, n *api.Network) {
	if vni := old.Status.VNI; vni != 0 && n.Spec.VNI != 0 && n.Spec.VNI != vni {
		v.fail("/spec/vni", "the VNI is %d and cannot change: for another, delete the Network and create it again", vni)
	}
	if old.Status.Leases == 0 {
		return
	}
	if n.Spec.Zone != old.Spec.Zone {
		v.fail("/spec/zone", "hosts of Zone %[2]s have %[1]d leases: a Network cannot change its Zone", old.Status.Leases, old.Spec.Zone)
	}
	if n.Spec.HostPrefix != old.Spec.HostPrefix {
		v.fail("/spec/hostPrefix", "%d leases are /%d: their length cannot change while there are any", old.Status.Leases, old.Spec.HostPrefix)
	}
	if had := old.Spec.HostPrefix6; had != 0 && n.Spec.HostPrefix6 != had {
		v.fail("/spec/hostPrefix6", "IPv6 leases are /%d: their length cannot change while there are any; set it in spec.hostPrefix6", had)
	}
	for _, c := range old.Spec.CIDRs {
		if !covered(n.Spec.CIDRs, c) {
			v.fail("/spec/cidrs", "%s is missing, and hosts may have leases of it (%d in total): CIDRs may be added or widened, not removed", c, old.Status.Leases)
		}
	}
}

// covered reports whether a CIDR lies within one of a list.
func covered(list []netip.Prefix, c netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Bits() <= c.Bits() && p.Contains(c.Addr()) })
}
