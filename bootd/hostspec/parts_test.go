package hostspec

import (
	"slices"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
)

// partsOf lists the kinds of parts as bootd does. Without zones there are no bgp
// parts.
func partsOf(index *network.Index, zones *zone.Parts) func(*store.Cache) []part.Kind {
	return func(c *store.Cache) []part.Kind {
		if zones == nil {
			return []part.Kind{network.Parts{Cache: c, Index: index}.Kind(), guest.Parts(c)}
		}
		return []part.Kind{network.Parts{Cache: c, Index: index, Keys: zones.Keys}.Kind(), guest.Parts(c), zones.With(c).Kind()}
	}
}

// TestOthersConcernNoHost makes an object of each kind, to which no other refers:
// of a kind that says nothing of hosts it concerns none.
func TestOthersConcernNoHost(t *testing.T) {
	b := testsite.Open(t)
	parts := (&Compiler{Cache: b.Cache, Parts: partsOf(nil, &zone.Parts{Cache: b.Cache})}).parts()
	concerning := []string{"Site", "Zone", "Subnet", "Machine", "Network", "Guest"}
	for _, k := range api.Kinds() {
		h := parts.concerns(store.Change{Kind: k, Name: "x", New: k.New()})
		some := h.All || len(h.Zones)+len(h.Names) > 0
		if want := slices.Contains(concerning, k.Name); some != want {
			t.Errorf("a new %s concerns hosts: %+v", k.Name, h)
		}
	}
}
