package admission

import (
	"net/netip"

	"github.com/rackweft/rackweft/api"
)

// rules are admission's functions for one kind. A nil function does not apply to the kind.
type rules struct {
	kind string
	// judge judges an object that replaces current, which may be nil.
	judge func(v *Verdict, w *World, o, current api.Object)
	// keys and layers are those by which other objects' rules find it.
	keys   func(api.Object) []key
	layers func(api.Object) map[layer][]netip.Prefix
	// asks lists the Secrets that its own templates use.
	asks func(api.Object) []string
	// given says why operators may not write an object: it receives a Secret.
	given func(given, api.Object) string
	// sends says why an operator may not make the object send a Secret somewhere.
	sends func(w *World, o, current api.Object) string
	// unstated is the spec without the desired state. Without it, every change counts.
	unstated func(api.Object) any
	// claims lists what no other object may share with this one. An object of a kind without claims is judged and
	// written alone.
	claims func(api.Object) []string
	// unnamed says that no object with claims refers to one of this kind, so that its claims suffice for a
	// deletion.
	unnamed bool
}

// table lists the rules of every kind that is stored and not independent of others.
func table() []rules {
	return []rules{secretRules(), zoneRules(), subnetRules(), imageRules(), layerRules(), profileRules(), machineRules(), networkRules(), guestRules()}
}

func rulesOf(kind string) rules {
	for _, r := range table() {
		if r.kind == kind {
			return r
		}
	}
	return rules{}
}
