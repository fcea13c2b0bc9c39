package admission

import (
	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/ignition"
)

// What Machines boot is judged by the Secrets that it receives.

func profileRules() rules {
	return rules{
		kind: "Profile",
		judge: func(v *Verdict, w *World, o, _ api.Object) {
			p := o.(*api.Profile)
			v.bootStops(w, p.Spec.Layers, names(referrersOf[*api.Machine](w, "Profile", p.Metadata.Name)))
		},
		given:    func(g given, o api.Object) string { return g.profile(o.(*api.Profile)) },
		unstated: func(o api.Object) any { return o.(*api.Profile).Spec },
		claims:   nothing,
	}
}

func layerRules() rules {
	return rules{
		kind:  "Layer",
		judge: func(v *Verdict, w *World, o, _ api.Object) { v.layerStops(w, o.(*api.Layer)) },
		asks:  func(o api.Object) []string { return ignition.SecretsOf(o.(*api.Layer).Spec.Butane) },
		given: func(g given, o api.Object) string {
			if why := g.layer(o.Meta().Name); why != "" {
				return why
			}
			return g.configs("Layer", o.Meta().Name)
		},
		unstated: func(o api.Object) any { return o.(*api.Layer).Spec },
		claims:   nothing,
	}
}

func imageRules() rules {
	return rules{
		kind:     "Image",
		given:    func(g given, o api.Object) string { return g.configs("Image", o.Meta().Name) },
		unstated: func(o api.Object) any { return o.(*api.Image).Spec },
		claims:   nothing,
	}
}
