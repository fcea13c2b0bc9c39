package api

import (
	"fmt"
	"slices"
)

// Role is a user's role; each role includes those before it.
type Role string

// Roles of users.
const (
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// Kind describes one kind to programs that handle all of them.
type Kind struct {
	Name        string   // Machine
	Doc         string   // one sentence that says what it is
	Plural      string   // machines
	Short       []string // short names for the command line
	Computed    bool     // compiled from other objects, never stored or written
	Writer      Role     // minimum role to write it: what a whole Site depends on requires admin
	Independent bool     // no other object matters to whether one may be written
	New         func() Object
	// Columns are the columns of a table of its objects, in addition to names
	// and ages.
	Columns func() []Column
	// References lists the objects that an object refers to; nil for a kind
	// without references.
	References func(Object) []Reference
	// Conditions returns the conditions in its status; nil for a kind without
	// any.
	Conditions func(Object) *Conditions
	// Part is the part of a HostSpec that hosts receive of it; without a name where
	// no host acts upon its objects.
	Part PartKind

	is func(Object) bool // of this kind
}

// Kinds lists every kind in an order in which they can be applied: a kind comes
// after those that it refers to.
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
	return Kind{}, fmt.Errorf("unknown kind %q", word)
}

// LookupKinds finds several kinds.
func LookupKinds(words ...string) ([]Kind, error) {
	list := make([]Kind, len(words))
	for i, word := range words {
		k, err := LookupKind(word)
		if err != nil {
			return nil, err
		}
		list[i] = k
	}
	return list, nil
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

// ConditionsOf returns the conditions of an object; nil for a kind without any.
func ConditionsOf(o Object) Conditions {
	if conditions := KindOf(o).Conditions; conditions != nil {
		return *conditions(o)
	}
	return nil
}
