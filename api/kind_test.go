package api

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestKindsAreDescribed(t *testing.T) {
	for _, k := range Kinds() {
		o := k.New()
		if KindOf(o).Name != k.Name {
			t.Errorf("the Kind of a new %s is %s", k.Name, KindOf(o).Name)
		}
		if k.Computed {
			continue
		}
		if k.Writer != RoleOperator && k.Writer != RoleAdmin {
			t.Errorf("kind %s: who may write it is %q", k.Name, k.Writer)
		}
		status := reflect.ValueOf(o).Elem().FieldByName("Status")
		if !status.IsValid() || !reflect.ValueOf(o).Elem().FieldByName("Spec").IsValid() {
			t.Fatalf("kind %s has no spec or no status", k.Name)
		}
		conditions := status.FieldByName("Conditions")
		if conditions.IsValid() != (k.Conditions != nil) {
			t.Errorf("kind %s: its status has conditions: %t, and its Kind says so: %t", k.Name, conditions.IsValid(), k.Conditions != nil)
			continue
		}
		if k.Conditions != nil && conditions.Addr().Interface() != any(k.Conditions(o)) {
			t.Errorf("kind %s: its conditions are not those of its status", k.Name)
		}
	}
}

// TestReferencesAreListed finds the fields of each spec that are called as a
// kind is, and wants each among the references.
func TestReferencesAreListed(t *testing.T) {
	others := []string{
		"Guest /spec/machine",                                                                      // QEMU's
		"Secret /spec/uses/layers/0", "Secret /spec/uses/guests/0", "Secret /spec/uses/networks/0", // may name what never comes
	}
	seen := 0
	for _, k := range Kinds() {
		if k.Computed {
			continue
		}
		o := k.New()
		var named []string
		nameKinds(reflect.ValueOf(o).Elem().FieldByName("Spec"), []any{"spec"}, &named)
		references := References(o)
		for _, pointer := range named {
			seen++
			listed := slices.ContainsFunc(references, func(r Reference) bool { return r.Pointer == pointer && r.Name == "x" })
			if !listed && !slices.Contains(others, k.Name+" "+pointer) {
				t.Errorf("kind %s: %s names another object and is not among its references", k.Name, pointer)
			}
		}
	}
	if seen < 15 {
		t.Errorf("only %d fields name objects: the walk does not see the specs", seen)
	}
}

// nameKinds fills every struct, and lists the fields that name a kind.
func nameKinds(v reflect.Value, at []any, found *[]string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		nameKinds(v.Elem(), at, found)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		nameKinds(v.Index(0), append(slices.Clone(at), 0), found)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				nameKinds(v.Field(i), append(slices.Clone(at), name), found)
			}
		}
	case reflect.String:
		word, _ := at[len(at)-1].(string)
		if word == "" {
			word, _ = at[len(at)-2].(string)
		}
		if _, err := LookupKind(word); err == nil {
			v.SetString("x")
			*found = append(*found, Pointer(at...))
		}
	}
}

func TestPartKinds(t *testing.T) {
	for _, k := range PartKinds() {
		name := k.Name
		if k.Named {
			name += "/x"
		}
		found, object, err := PartKindOf(name)
		if err != nil || found.Name != k.Name || (object != "") != k.Named {
			t.Errorf("%s is of kind %q, object %q: %v", name, found.Name, object, err)
		}
		if k.Mask == nil && hasKeys(reflect.TypeOf(k.New())) {
			t.Errorf("part %s has a password, which people would be shown: it needs a mask", k.Name)
		}
	}
	for _, name := range []string{"", "/", "network", "network/", "network/a/b", "base/x", "bgp/x", "guests/x"} {
		if _, _, err := PartKindOf(name); err == nil {
			t.Errorf("a part may be called %q", name)
		}
	}
}

// hasKeys finds a field that is called password.
func hasKeys(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return hasKeys(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == "password" || f.IsExported() && hasKeys(f.Type) {
				return true
			}
		}
	}
	return false
}
