package admission

import (
	"fmt"
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// maxReferrers limits how many are named.
const maxReferrers = 5

// Referrers names the other objects that refer to one. A discovered Machine does not count.
func (w *World) Referrers(k api.Kind, name string) []string {
	w.mu.RLock()
	defer w.mu.RUnlock()
	all := found{}.with(w, referrer+k.Name, name)
	delete(all, id{k.Name, name})
	maps.DeleteFunc(all, func(at id, _ struct{}) bool { return w.objects[at].Meta().Labels[api.DiscoveredLabel] != "" })
	var who []string
	for _, at := range slices.SortedFunc(maps.Keys(all), compareIDs)[:min(len(all), maxReferrers)] {
		references := api.References(w.objects[at])
		i := slices.IndexFunc(references, func(r api.Reference) bool { return r.Kind == k.Name && r.Name == name })
		who = append(who, fmt.Sprintf("%s %s (%s)", at.kind, at.name, references[i].Pointer))
	}
	if more := len(all) - len(who); more > 0 {
		who = append(who, fmt.Sprintf("%d more", more))
	}
	return who
}
