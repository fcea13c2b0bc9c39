package admission

import (
	"net/netip"

	"github.com/rackweft/rackweft/api"
)

// rules are what admission knows of one kind. A nil function does not apply to
// the kind.
type rules struct {
	kind string
	// judge judges an object that is to replace current, which may be nil.
	judge func(v *Verdict, w *World, o, current api.Object)
	// keys and layers are those by which the rules of other objects find it.
	keys   func(api.Object) []key
	layers func(api.Object) map[layer][]netip.Prefix
	// asks lists the Secrets that its own templates ask for.
	asks func(api.Object) []string
	// given says why an object is not for operators: it is given a Secret.
	given func(given, api.Object) string
	// sends says why an operator may not have the object send a Secret somewhere.
	sends func(w *World, o, current api.Object) string
	// unstated is all of the spec but the state that it should have. Without it,
	// every change counts.
	unstated func(api.Object) any
	// claims lists what no other object may have together with this one. An object
	// without is judged and written alone.
	claims func(api.Object) []string
	// unnamed says that no object with claims names one of this kind, so that it is
	// deleted by its claims, too.
	unnamed bool
}

// table lists the rules of every kind that is stored.
func table() []rules {
	return []rules{{kind: "Site"}, secretRules(), zoneRules(), subnetRules(), imageRules(), layerRules(), profileRules(), machineRules(), networkRules(), guestRules()}
}

func rulesOf(kind string) rules {
	for _, r := range table() {
		if r.kind == kind {
			return r
		}
	}
	return rules{}
}
