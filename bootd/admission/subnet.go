package admission

import (
	"net/netip"

	"github.com/rackweft/rackweft/api"
)

func subnetRules() rules {
	return rules{
		kind:  "Subnet",
		judge: func(v *Verdict, w *World, o, _ api.Object) { v.subnet(w, o.(*api.Subnet)) },
		keys: func(o api.Object) []key {
			if s := o.(*api.Subnet); s.Spec.Purpose == api.Provisioning && s.Spec.Interface != "" {
				return []key{{byInterface, s.Spec.Interface}}
			}
			return nil
		},
		layers: func(o api.Object) map[layer][]netip.Prefix {
			return map[layer][]netip.Prefix{{what: subnetPrefixes}: o.(*api.Subnet).Spec.Prefixes}
		},
	}
}

func (v *Verdict) subnet(w *World, s *api.Subnet) {
	rivals := found{}.over(w, layer{what: subnetPrefixes}, s.Spec.Prefixes...).with(w, byInterface, s.Spec.Interface)
	for _, other := range sorted[*api.Subnet](w, rivals) {
		if other.Metadata.Name == s.Metadata.Name {
			continue
		}
		for i, p := range s.Spec.Prefixes {
			for _, q := range other.Spec.Prefixes {
				if p.Overlaps(q) {
					v.fail(api.Pointer("spec", "prefixes", i), "%s overlaps %s of Subnet %s", p, q, other.Metadata.Name)
				}
			}
		}
		if s.Spec.Interface != "" && s.Spec.Interface == other.Spec.Interface && s.Spec.Purpose == api.Provisioning && other.Spec.Purpose == api.Provisioning {
			v.fail("/spec/interface", "Subnet %s is already a provisioning Subnet on %s: an interface serves one", other.Metadata.Name, s.Spec.Interface)
		}
	}
	v.linked(w, s)
	v.apart(w, s)
	v.routed(w, s)
	v.keepsOff(w, s.Spec.Prefixes, "/spec/prefixes", func(announced) bool { return true })
}

// linked refuses a change of a Subnet that Machines on it contradict.
func (v *Verdict) linked(w *World, s *api.Subnet) {
	for _, m := range referrersOf[*api.Machine](w, "Subnet", s.Metadata.Name) {
		for i, l := range m.Spec.Links {
			if l.Subnet != s.Metadata.Name {
				continue
			}
			if s.Spec.Purpose == api.Production && s.Spec.Zone != m.Spec.Zone {
				v.fail("/spec/zone", "Machine %s, which links to this Subnet, is in %s", m.Metadata.Name, zoneText(m.Spec.Zone))
			}
			for j, a := range l.Addresses {
				if _, inside := s.Prefix(a); !inside {
					v.fail("/spec/prefixes", "%s of Machine %s (%s) is in none of them", a, m.Metadata.Name, api.Pointer("spec", "links", i, "addresses", j))
				}
			}
		}
	}
}
