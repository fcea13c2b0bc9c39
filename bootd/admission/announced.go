package admission

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/rackweft/rackweft/api"
)

// announced is an address that hosts announce as their own, or a prefix from which such addresses are chosen.
type announced struct {
	prefix  netip.Prefix
	pointer string // in its object
	what    string
	zone    string
}

// announcedIn lists those in a Zone's spec.
func announcedIn(z *api.Zone) []announced {
	var list []announced
	for i, p := range z.Spec.Loopbacks {
		list = append(list, announced{p, api.Pointer("spec", "loopbacks", i), "spec.loopbacks of Zone " + z.Metadata.Name, z.Metadata.Name})
	}
	for i, s := range z.Spec.Services {
		for j, a := range s.Addresses {
			list = append(list, announced{api.HostPrefix(a), api.Pointer("spec", "services", i, "addresses", j), "service " + s.Name + " of Zone " + z.Metadata.Name, z.Metadata.Name})
		}
	}
	return list
}

// announcedBy lists those that a Machine pins.
func announcedBy(m *api.Machine) []announced {
	var list []announced
	for i, a := range m.Spec.Loopbacks {
		list = append(list, announced{api.HostPrefix(a), api.Pointer("spec", "loopbacks", i), "Machine " + m.Metadata.Name, m.Spec.Zone})
	}
	return list
}

// keepsOff refuses prefixes of an object that overlap addresses which hosts announce.
func (v *Verdict) keepsOff(w *World, prefixes []netip.Prefix, at string, concerns func(announced) bool) {
	var all []announced
	f := found{}.over(w, layer{what: announcedPrefixes}, prefixes...)
	for _, z := range sorted[*api.Zone](w, f) {
		all = append(all, announcedIn(z)...)
	}
	for _, m := range sorted[*api.Machine](w, f) {
		all = append(all, announcedBy(m)...)
	}
	for _, a := range all {
		i := slices.IndexFunc(prefixes, a.prefix.Overlaps)
		if i >= 0 && concerns(a) {
			v.fail(at+"/"+strconv.Itoa(i), "%s overlaps %s of %s, which hosts of Zone %s announce as their own", prefixes[i], a.prefix, a.what, a.zone)
		}
	}
}

// disjoint refuses announced addresses that a Subnet, or a Network of the Zone, already contains.
func (v *Verdict) disjoint(w *World, own []announced) {
	for _, a := range own {
		f := found{}.over(w, layer{what: subnetPrefixes}, a.prefix).over(w, layer{guestPrefixes, a.zone}, a.prefix)
		for _, s := range sorted[*api.Subnet](w, f) {
			if slices.ContainsFunc(s.Spec.Prefixes, a.prefix.Overlaps) {
				v.fail(a.pointer, "%s overlaps Subnet %s (%s): an announced address must not be on any segment", a.prefix, s.Metadata.Name, prefixes(s.Spec.Prefixes))
			}
		}
		for _, n := range sorted[*api.Network](w, f) {
			if n.Spec.Zone == a.zone && slices.ContainsFunc(guests(n), a.prefix.Overlaps) {
				v.fail(a.pointer, "%s overlaps Network %s (%s), whose guests have such addresses", a.prefix, n.Metadata.Name, prefixes(n.Spec.CIDRs))
			}
		}
	}
}

// services judges the addresses that a Zone's hosts announce.
func (v *Verdict) services(w *World, z *api.Zone) {
	own := announcedIn(z)
	v.disjoint(w, own)
	for _, m := range sorted[*api.Machine](w, found{}.with(w, byLoopbacks, z.Metadata.Name)) {
		if m.Spec.Zone != z.Metadata.Name {
			continue
		}
		for _, a := range m.Spec.Loopbacks {
			if !covered(z.Spec.Prefixes, api.HostPrefix(a)) {
				v.fail("/spec/prefixes", "%s, a loopback of Machine %s, lies in none of them: add it, or remove it from the Machine", a, m.Metadata.Name)
			}
			for _, o := range own {
				if o.prefix == api.HostPrefix(a) {
					v.fail(o.pointer, "%s is pinned as a loopback by Machine %s", a, m.Metadata.Name)
				}
			}
		}
	}
}

// loopbacks judges the addresses that a Machine pins for itself.
func (v *Verdict) loopbacks(w *World, m *api.Machine) {
	own := announcedBy(m)
	v.disjoint(w, own)
	if m.Spec.Zone == "" && len(own) > 0 {
		v.fail("/spec/loopbacks", "loopbacks are announced in a Zone, and this Machine is in none: set spec.zone")
	}
	z := w.zone(m.Spec.Zone)
	if z == nil {
		return
	}
	taken := announcedIn(z)
	for _, a := range own {
		if !covered(z.Spec.Prefixes, a.prefix) {
			v.fail(a.pointer, "%s is in none of spec.prefixes of Zone %s (%s), and nothing else is routed there", a.prefix.Addr(), z.Metadata.Name, prefixes(z.Spec.Prefixes))
		}
		for _, o := range taken {
			if o.prefix == a.prefix {
				v.fail(a.pointer, "%s belongs to %s", a.prefix.Addr(), o.what)
			}
		}
		v.chosen(w, m, z, a)
	}
}

// chosen refuses a loopback that was chosen for another Machine of the Zone.
func (v *Verdict) chosen(w *World, m *api.Machine, z *api.Zone, a announced) {
	if _, any := (found{}.with(w, byChosen, a.prefix.Addr().String()))[id{"Zone", z.Metadata.Name}]; !any {
		return
	}
	for _, l := range z.Status.Loopbacks {
		if l.Machine != m.Metadata.Name && slices.Contains(l.Addresses, a.prefix.Addr()) {
			v.fail(a.pointer, "%s was chosen for Machine %s: use another, or one outside of spec.loopbacks of Zone %s", a.prefix.Addr(), l.Machine, z.Metadata.Name)
		}
	}
}
