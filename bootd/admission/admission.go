package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// World is what stands when an object is judged. Its objects are shared and not
// changed.
type World struct {
	machines []*api.Machine
	subnets  []*api.Subnet
	zones    []*api.Zone
	networks []*api.Network
	objects  map[string][]api.Object // every kind's, by the kind's name
}

// Now is the World that the cache has.
func Now(cache *store.Cache) World {
	w := World{
		machines: store.CachedList[api.Machine](cache),
		subnets:  store.CachedList[api.Subnet](cache),
		zones:    store.CachedList[api.Zone](cache),
		networks: store.CachedList[api.Network](cache),
		objects:  map[string][]api.Object{},
	}
	for _, k := range api.Kinds() {
		w.objects[k.Name], _ = cache.CachedObjects(k)
	}
	return w
}

func (w World) has(kind, name string) bool {
	return slices.ContainsFunc(w.objects[kind], func(o api.Object) bool { return o.Meta().Name == name })
}

func (w World) subnet(name string) *api.Subnet {
	i := slices.IndexFunc(w.subnets, func(s *api.Subnet) bool { return s.Metadata.Name == name })
	if i < 0 {
		return nil
	}
	return w.subnets[i]
}

// Verdict is what admission says of an object.
type Verdict struct {
	Errors   api.FieldErrors
	Warnings []string // it may be stored, but does not do what it should yet
	Takeover []string // discovered Machines that it replaces
}

func (v *Verdict) fail(pointer, format string, args ...any) {
	v.Errors = append(v.Errors, api.FieldError{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
}

// Judge judges an object that is valid by itself by all the others. current is
// the one that it replaces, or nil.
func Judge(w World, o, current api.Object) Verdict {
	v := new(Verdict)
	switch o := o.(type) {
	case *api.Machine:
		v.machine(w, o)
	case *api.Subnet:
		v.subnet(w, o)
	case *api.Zone:
		v.zone(w, o)
	case *api.Network:
		v.network(w, o, current)
	case *api.Guest:
		v.guest(o, current)
	case *api.Secret:
		v.secret(w, o, current)
	}
	for _, r := range references(o) {
		if !w.has(r.kind, r.name) && !(r.kind == api.KindOf(o).Name && r.name == o.Meta().Name) {
			v.Warnings = append(v.Warnings, fmt.Sprintf("%s: %s %q does not exist yet", r.pointer, r.kind, r.name))
		}
	}
	return *v
}

func zoneText(name string) string {
	if name == "" {
		return "no Zone (set spec.zone)"
	}
	return "Zone " + name
}

func prefixes(list []netip.Prefix) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
