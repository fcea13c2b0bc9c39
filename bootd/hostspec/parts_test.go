package hostspec

import (
	"slices"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
)

func TestEveryKindOfPartIsMade(t *testing.T) {
	var made []string
	for _, k := range new(Compiler).parts() {
		made = append(made, k.Name)
		if k.Compile == nil || k.Concerns == nil {
			t.Errorf("part %s: it is not said how it is compiled, or whom a change concerns", k.Name)
		}
		i := slices.IndexFunc(api.PartKinds(), func(a api.PartKind) bool { return a.Name == k.Name })
		if i < 0 {
			t.Errorf("part %s is none of api.PartKinds", k.Name)
			continue
		}
		if named := api.PartKinds()[i].Named; named != (k.Object != "") {
			t.Errorf("part %s is named for an object: %t, and the object's kind is %q", k.Name, named, k.Object)
		}
		if _, err := api.LookupKind(k.Object); k.Object != "" && err != nil {
			t.Errorf("part %s: %v", k.Name, err)
		}
	}
	for _, k := range api.PartKinds() {
		if !slices.Contains(made, k.Name) {
			t.Errorf("no part %s is made: add it to parts()", k.Name)
		}
	}
}

// TestOthersConcernNoHost makes an object of each kind, to which no other refers:
// of a kind that says nothing of hosts it concerns none.
func TestOthersConcernNoHost(t *testing.T) {
	b := testsite.Open(t)
	parts := (&Compiler{Cache: b.Cache, Zones: &zone.Parts{Cache: b.Cache}}).parts()
	concerning := []string{"Site", "Zone", "Subnet", "Machine", "Network", "Guest"}
	for _, k := range api.Kinds() {
		h := parts.concerns(store.Change{Kind: k, Name: "x", New: k.New()})
		some := h.All || len(h.Zones)+len(h.Names) > 0
		if want := slices.Contains(concerning, k.Name); some != want {
			t.Errorf("a new %s concerns hosts: %+v", k.Name, h)
		}
	}
}
