package admission

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
)

func zoneRules() rules {
	return rules{
		kind: "Zone",
		judge: func(v *Verdict, w *World, o, _ api.Object) {
			z := o.(*api.Zone)
			v.zone(w, z)
			for i, u := range z.Spec.Uplinks {
				v.refused(w, api.Pointer("spec", "uplinks", i, "secret"), u.Secret, api.UseUplink(z.Metadata.Name))
			}
		},
		keys: func(o api.Object) []key { return zoneKeys(o.(*api.Zone)) },
		layers: func(o api.Object) map[layer][]netip.Prefix {
			z := o.(*api.Zone)
			return map[layer][]netip.Prefix{
				{what: zonePrefixes}:      z.Spec.Prefixes,
				{what: uplinkAddresses}:   uplinks(z),
				{what: announcedPrefixes}: prefixesOf(announcedIn(z)),
			}
		},
	}
}

func zoneKeys(z *api.Zone) []key {
	list := []key{{byASN, number(z.Spec.ASN)}}
	if slices.ContainsFunc(z.Spec.Uplinks, func(u api.Uplink) bool { return u.Secret != "" }) {
		list = append(list, key{keyedZone, ""})
	}
	for _, u := range z.Spec.Uplinks {
		list = append(list, key{byUplinkASN, number(u.ASN)}, key{byUplink, u.Address.String()})
	}
	for _, l := range z.Status.Loopbacks {
		for _, a := range l.Addresses {
			list = append(list, key{byChosen, a.String()})
		}
	}
	return list
}

// zone refuses a Zone that shares an ASN, a prefix, an uplink or a segment with another: it would join the two.
func (v *Verdict) zone(w *World, z *api.Zone) {
	for _, other := range sorted[*api.Zone](w, w.zoneRivals(z)) {
		if other.Metadata.Name != z.Metadata.Name {
			v.zones(z, other)
		}
	}
	segments := found{}.over(w, layer{what: subnetPrefixes}, slices.Concat(z.Spec.Prefixes, uplinks(z))...)
	for _, s := range sorted[*api.Subnet](w, segments) {
		for i, p := range z.Spec.Prefixes {
			if why := taboo(z.Metadata.Name, p, s); why != "" {
				v.fail(api.Pointer("spec", "prefixes", i), "%s", why)
			}
		}
		for i, u := range z.Spec.Uplinks {
			if _, in := s.Prefix(u.Address); in && foreign(s, z.Metadata.Name) {
				v.fail(api.Pointer("spec", "uplinks", i, "address"), "%s is in Subnet %s of Zone %s: an uplink there would join the two Zones", u.Address, s.Metadata.Name, s.Spec.Zone)
			}
		}
	}
	pinning := found{}
	for _, u := range z.Spec.Uplinks {
		pinning.with(w, byAddress, u.Address.String())
	}
	for _, m := range sorted[*api.Machine](w, pinning) {
		_, taken := pointersOf(m)
		for i, u := range z.Spec.Uplinks {
			if slices.ContainsFunc(taken, func(a pinned) bool { return a.address == u.Address }) {
				v.fail(api.Pointer("spec", "uplinks", i, "address"), "%s is pinned by Machine %s: an uplink is a border leaf, outside the Zone", u.Address, m.Metadata.Name)
			}
		}
	}
	for _, n := range referrersOf[*api.Network](w, "Zone", z.Metadata.Name) {
		if p := n.Spec.Peering; p != nil && n.Spec.Zone == z.Metadata.Name && p.ASN == z.Spec.ASN {
			v.fail("/spec/asn", "ASN %d is that of the guests of Network %s (spec.peering): hosts and guests need different ones", z.Spec.ASN, n.Metadata.Name)
		}
		if c, out := outside(n, z); out {
			v.fail("/spec/prefixes", "%s of Network %s, which is advertised, lies in none of them: add it, or remove spec.advertise from the Network", c, n.Metadata.Name)
		}
	}
	v.originated(w, z)
	v.services(w, z)
	for i, u := range z.Spec.Uplinks {
		if s := w.secret(u.Secret); s != nil && s.Status.Digests[api.SessionPassword] == "" {
			v.fail(api.Pointer("spec", "uplinks", i, "secret"), "Secret %s has no %s, the key with the session's MD5 key", u.Secret, api.SessionPassword)
		}
	}
}

// zoneRivals are the Zones that may conflict with this one.
func (w *World) zoneRivals(z *api.Zone) found {
	f := found{}.over(w, layer{what: zonePrefixes}, z.Spec.Prefixes...)
	f.with(w, byASN, number(z.Spec.ASN)).with(w, byUplinkASN, number(z.Spec.ASN))
	for _, u := range z.Spec.Uplinks {
		f.with(w, byASN, number(u.ASN)).with(w, byUplink, u.Address.String())
	}
	return f
}

// zones judges a Zone against another one.
func (v *Verdict) zones(z, other *api.Zone) {
	name := other.Metadata.Name
	if other.Spec.ASN == z.Spec.ASN {
		v.fail("/spec/asn", "ASN %d belongs to Zone %s: each Zone needs its own, because the mark of its routes is derived from it", z.Spec.ASN, name)
	}
	for i, p := range z.Spec.Prefixes {
		for _, q := range other.Spec.Prefixes {
			if p.Overlaps(q) {
				v.fail(api.Pointer("spec", "prefixes", i), "%s overlaps %s of Zone %s: each could attract the other's traffic", p, q, name)
			}
		}
	}
	for i, u := range z.Spec.Uplinks {
		if u.ASN == other.Spec.ASN {
			v.fail(api.Pointer("spec", "uplinks", i, "asn"), "%d is the ASN of Zone %s: Zones meet at the core's firewall, they do not peer", u.ASN, name)
		}
		if slices.ContainsFunc(other.Spec.Uplinks, func(o api.Uplink) bool { return o.Address == u.Address }) {
			v.fail(api.Pointer("spec", "uplinks", i, "address"), "%s is an uplink of Zone %s: each Zone needs a VRF of its own on the border leafs, with an address of its own", u.Address, name)
		}
	}
	for _, u := range other.Spec.Uplinks {
		if u.ASN == z.Spec.ASN {
			v.fail("/spec/asn", "%d is the ASN of an uplink of Zone %s", z.Spec.ASN, name)
		}
	}
}

// foreign reports whether a Subnet is the segment of another Zone's hosts.
func foreign(s *api.Subnet, zone string) bool {
	return s.Spec.Purpose == api.Production && s.Spec.Zone != zone
}

// taboo says why a Zone's prefix must not overlap a Subnet; "" where it may.
func taboo(zone string, p netip.Prefix, s *api.Subnet) string {
	if s.Spec.Purpose == api.Production && s.Spec.Zone == zone {
		return ""
	}
	for _, q := range s.Spec.Prefixes {
		if p.Overlaps(q) {
			of := fmt.Sprintf("%s Subnet %s", s.Spec.Purpose, s.Metadata.Name)
			if s.Spec.Zone != "" {
				of += " of Zone " + s.Spec.Zone
			}
			return fmt.Sprintf("%s overlaps %s of %s: routes of Zone %s could attract its traffic", p, q, of, zone)
		}
	}
	return ""
}

// outside finds a prefix of a Network of the Zone that is advertised and not in
// the Zone's prefixes.
func outside(n *api.Network, z *api.Zone) (netip.Prefix, bool) {
	if n.Spec.Zone != z.Metadata.Name || !n.Spec.Advertise || n.Metadata.DeletionTimestamp != nil {
		return netip.Prefix{}, false
	}
	for _, c := range n.Spec.Routed() {
		if !covered(z.Spec.Prefixes, c) {
			return c, true
		}
	}
	return netip.Prefix{}, false
}

// apart refuses a Subnet that overlaps prefixes, or contains uplinks, of other Zones.
func (v *Verdict) apart(w *World, s *api.Subnet) {
	near := found{}.over(w, layer{what: zonePrefixes}, s.Spec.Prefixes...).over(w, layer{what: uplinkAddresses}, s.Spec.Prefixes...)
	for _, z := range sorted[*api.Zone](w, near) {
		for _, p := range z.Spec.Prefixes {
			if why := taboo(z.Metadata.Name, p, s); why != "" {
				v.fail("/spec/prefixes", "%s", why)
			}
		}
		for _, u := range z.Spec.Uplinks {
			if _, in := s.Prefix(u.Address); in && foreign(s, z.Metadata.Name) {
				v.fail("/spec/prefixes", "%s, an uplink of Zone %s, is in it: this Subnet belongs to Zone %s, and the uplink would join the two", u.Address, z.Metadata.Name, s.Spec.Zone)
			}
		}
	}
}
