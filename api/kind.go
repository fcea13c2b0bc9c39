package api

import (
	"fmt"
	"slices"
)

// Role is what a person may do; each role includes those before it.
type Role string

// The roles of people.
const (
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// Kind describes one kind to programs that handle all of them.
type Kind struct {
	Name     string   // Machine
	Doc      string   // one sentence that says what it is
	Plural   string   // machines
	Short    []string // what a person may type instead
	Computed bool     // compiled from other objects, never stored or written
	Writer   Role     // who may write it: what a whole Site depends on is the admin's
	New      func() Object
	// Columns are those of a table of its objects, beside their names and ages.
	Columns func() []Column
	// References lists the objects that one names; nil for a kind that names none.
	References func(Object) []Reference
	// Conditions are those of its status; nil for a kind without.
	Conditions func(Object) *Conditions

	is func(Object) bool // of this kind
}

// Kinds lists every kind in an order in which they can be applied: what is
// referred to comes before what refers to it.
func Kinds() []Kind {
	return []Kind{siteKind(), secretKind(), zoneKind(), subnetKind(), imageKind(), layerKind(), profileKind(), machineKind(), networkKind(), guestKind(),
		hostSpecKind()}
}

// LookupKind finds a kind by its name, plural, singular or short name.
func LookupKind(word string) (Kind, error) {
	for _, k := range Kinds() {
		if word == k.Name || word == k.Plural || word == singular(k) || slices.Contains(k.Short, word) {
			return k, nil
		}
	}
	return Kind{}, fmt.Errorf("no kind is called %q", word)
}

// KindOf returns the kind of an object by its Go type, so that it works before
// TypeMeta is set.
func KindOf(o Object) Kind {
	for _, k := range Kinds() {
		if k.is(o) {
			return k
		}
	}
	panic(fmt.Sprintf("api: %T is not a kind", o))
}

func is[P Object](o Object) bool { _, ok := o.(P); return ok }

// ConditionsOf are the conditions of an object; nil for a kind without.
func ConditionsOf(o Object) Conditions {
	if conditions := KindOf(o).Conditions; conditions != nil {
		return *conditions(o)
	}
	return nil
}
