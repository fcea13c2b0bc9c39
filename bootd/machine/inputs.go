package machine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// inputs are the versions of the objects that a BootAttempt of the Machine depends on: the Machine itself, its Profile
// with its Image and Layers, and the Secrets of its BMC and of the Layers.
func inputs(c *store.Cache, m *api.Machine) []string {
	list := []string{inputOf(m)}
	var layers []string
	if p, ok := store.Cached[api.Profile](c, m.Spec.Profile); ok {
		list, layers = append(list, inputOf(p)), p.Spec.Layers
		if img, ok := store.Cached[api.Image](c, p.Spec.Image); ok {
			list = append(list, inputOf(img))
		}
	}
	for _, name := range layers {
		if l, ok := store.Cached[api.Layer](c, name); ok {
			list = append(list, inputOf(l))
		}
	}
	for _, s := range store.CachedList[api.Secret](c) {
		if m.Spec.BMC != nil && m.Spec.BMC.Credentials == s.Metadata.Name || forLayers(s, layers) {
			list = append(list, inputOf(s))
		}
	}
	return list
}

// forLayers reports whether a Secret may be used by one of the Layers.
func forLayers(s *api.Secret, layers []string) bool {
	return slices.ContainsFunc(layers, func(l string) bool { return s.Permits(api.UseLayer(l)) == nil })
}

// inputOf identifies one version of an object: an object of the same name that is created later has another UID.
func inputOf(o api.Object) string {
	m := o.Meta()
	return fmt.Sprintf("%s %s %.8s %d", api.KindOf(o).Name, m.Name, m.UID, m.Generation)
}

// changed names what an attempt depended on and is another one now, empty when nothing is. An attempt of which the
// inputs are not recorded is compared by the Machine's own generation.
func changed(a *api.BootAttempt, m *api.Machine, now []string) string {
	if len(a.Inputs) == 0 {
		if a.Generation == m.Metadata.Generation {
			return ""
		}
		return "Machine " + m.Metadata.Name + " was changed"
	}
	for _, i := range now {
		if !slices.Contains(a.Inputs, i) {
			what := strings.Fields(i)
			return what[0] + " " + what[1] + " was changed"
		}
	}
	return ""
}
