package api

import (
	"fmt"
	"slices"
)

// Kind describes one kind to programs that handle all of them.
type Kind struct {
	Name     string   // Machine
	Plural   string   // machines
	Short    []string // what a person may type instead
	Computed bool     // compiled from other objects, never stored or written
	New      func() Object

	is func(Object) bool // of this kind
}

// Kinds lists every kind in an order in which they can be applied: what is
// referred to comes before what refers to it.
func Kinds() []Kind {
	return []Kind{
		{Name: "Site", Plural: "sites", New: func() Object { return new(Site) }, is: is[*Site]},
		{Name: "Secret", Plural: "secrets", New: func() Object { return new(Secret) }, is: is[*Secret]},
		{Name: "Zone", Plural: "zones", Short: []string{"z"}, New: func() Object { return new(Zone) }, is: is[*Zone]},
		{Name: "Subnet", Plural: "subnets", Short: []string{"sn"}, New: func() Object { return new(Subnet) }, is: is[*Subnet]},
		{Name: "Image", Plural: "images", Short: []string{"img"}, New: func() Object { return new(Image) }, is: is[*Image]},
		{Name: "Layer", Plural: "layers", New: func() Object { return new(Layer) }, is: is[*Layer]},
		{Name: "Profile", Plural: "profiles", Short: []string{"prof"}, New: func() Object { return new(Profile) }, is: is[*Profile]},
		{Name: "Machine", Plural: "machines", Short: []string{"m"}, New: func() Object { return new(Machine) }, is: is[*Machine]},
		{Name: "Network", Plural: "networks", Short: []string{"net"}, New: func() Object { return new(Network) }, is: is[*Network]},
		{Name: "Guest", Plural: "guests", Short: []string{"g"}, New: func() Object { return new(Guest) }, is: is[*Guest]},
		{Name: "HostSpec", Plural: "hostspecs", Short: []string{"hs"}, Computed: true, New: func() Object { return new(HostSpec) }, is: is[*HostSpec]},
	}
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
