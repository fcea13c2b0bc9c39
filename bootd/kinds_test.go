package bootd

import (
	"slices"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/zone"
)

func TestKinds(t *testing.T) {
	for _, k := range (&daemon{}).kinds() {
		if kind, err := api.LookupKind(k.name); err != nil || kind.Name != k.name || kind.Computed {
			t.Errorf("%q is no kind of stored objects", k.name)
		}
		if k.control == nil && k.parts == nil {
			t.Errorf("nothing is done about kind %s: leave it out", k.name)
		}
	}
}

func TestEveryKindOfPartIsMade(t *testing.T) {
	made := []string{api.PartBase} // by hostspec.Compiler
	for _, k := range (&daemon{zones: &zone.Parts{Keys: new(zone.Keys)}}).parts(nil) {
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
			t.Errorf("no part %s is made: add it to kinds()", k.Name)
		}
	}
}
