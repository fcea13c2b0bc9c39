package admission

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func TestShelf(t *testing.T) {
	w := NewWorld()
	shelf := func(name string) *api.Shelf {
		s := new(api.Shelf)
		s.SetDefaults()
		s.Metadata.Name, s.Spec.Zone = name, "yellow"
		return s
	}
	v := Judge(w, shelf("a"), nil)
	if len(v.Errors) != 0 || len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], `Zone "yellow" does not exist yet`) {
		t.Errorf("%+v", v)
	}
	w.Set("Shelf", "a", shelf("a"))
	if v := Judge(w, shelf("b"), nil); len(v.Errors) != 1 {
		t.Errorf("%+v", v)
	}
	zone, err := api.LookupKind("Zone")
	if err != nil {
		t.Fatal(err)
	}
	if who := w.Referrers(zone, "yellow"); len(who) != 1 {
		t.Errorf("%q refer to the Zone", who)
	}
	if _, apart := Claims(shelf("a")); apart {
		t.Error("it is written beside others, and its rules do not say so")
	}
}
