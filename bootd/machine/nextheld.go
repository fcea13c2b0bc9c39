package machine

import (
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Reasons of a Machine that a limit of the Site holds.
const (
	limitTotal   = "LimitTotal"
	limitPerRack = "LimitPerRack"
)

// nextHeld names the Machines to look at when a change frees a place under the Site's limits: the one that each limit has
// held longest. All are looked at every so often as well: this keeps no place free until then, and the order fair.
func (c *Controller) nextHeld(ch store.Change) []string {
	was, ok := ch.Old.(*api.Machine)
	if !ok || !inMotion(was) {
		return nil
	}
	if is, ok := ch.New.(*api.Machine); ok && inMotion(is) {
		return nil
	}
	longest := map[string]*api.Machine{}
	for _, m := range store.CachedList[api.Machine](c.Cache) {
		held := m.Status.Conditions.Get(api.CondHeld)
		if held == nil || held.Reason != limitTotal && (held.Reason != limitPerRack || m.Spec.Location.Rack != was.Spec.Location.Rack) {
			continue
		}
		if first := longest[held.Reason]; first == nil || held.Time.Before(first.Status.Conditions.Get(api.CondHeld).Time) {
			longest[held.Reason] = m
		}
	}
	var names []string
	for _, reason := range slices.Sorted(maps.Keys(longest)) {
		names = append(names, longest[reason].Metadata.Name)
	}
	return names
}

// inMotion reports whether the Machine counts under a limit.
func inMotion(m *api.Machine) bool { return m.Status.Attempt.Open() || powerInMotion(m) }
