package admission

import "github.com/rackweft/rackweft/api"

func shelfRules() rules {
	return rules{
		kind:  "Shelf",
		judge: func(v *Verdict, w *World, o, _ api.Object) { v.shelf(w, o.(*api.Shelf)) },
	}
}

// shelf keeps a Zone to one Shelf.
func (v *Verdict) shelf(w *World, s *api.Shelf) {
	for _, other := range referrersOf[*api.Shelf](w, "Zone", s.Spec.Zone) {
		if other.Metadata.Name != s.Metadata.Name {
			v.fail("/spec/zone", "Zone %s has Shelf %s already", s.Spec.Zone, other.Metadata.Name)
		}
	}
}
