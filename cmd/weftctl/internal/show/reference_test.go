package show

import (
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

var update = flag.Bool("update", false, "write docs/reference.md")

const referencePage = "../../../../docs/reference.md"

func TestReferenceIsCurrent(t *testing.T) {
	want := Reference()
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/reference.md is not what the types say: run make reference")
	}
}

// Every field says what it means, and every optional field of a spec what holds
// without it.
func TestEveryFieldIsDocumented(t *testing.T) {
	fields := 0
	var walk func(typ reflect.Type, path string, above map[reflect.Type]bool)
	walk = func(typ reflect.Type, path string, above map[reflect.Type]bool) {
		if above[typ] {
			return
		}
		above[typ] = true
		defer delete(above, typ)
		for _, f := range structFields(typ) {
			d, here := describe(f), path+"."+jsonName(f)
			fields++
			if d.Doc == "" {
				t.Errorf("%s has no doc tag (%s.%s)", here, typ.Name(), f.Name)
			}
			leaf := len(structFields(inner(f.Type))) == 0
			if strings.Contains(here, ".spec.") && leaf && optional(f) && !strings.Contains(d.Doc, "Default: ") {
				t.Errorf("%s is optional and does not say its default (%s.%s): %q", here, typ.Name(), f.Name, d.Doc)
			}
			walk(inner(f.Type), here, above)
		}
	}
	for _, k := range api.Kinds() {
		if k.Doc == "" {
			t.Errorf("%s has no Doc", k.Name)
		}
		walk(reflect.TypeOf(k.New()).Elem(), k.Plural, map[reflect.Type]bool{})
	}
	if fields < 500 {
		t.Errorf("only %d fields were found", fields)
	}
}
