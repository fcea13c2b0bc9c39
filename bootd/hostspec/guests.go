package hostspec

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

// guests adds the parts of the Guests that are on a host, and tombstones of
// those that have left it. A Guest that cannot be compiled leaves neither: the
// host keeps it as it is.
func (c *Compiler) guests(m *api.Machine, s *hostSpec) error {
	for _, g := range store.CachedList[api.Guest](c.Cache) {
		name := api.GuestPartName(g.Metadata.Name)
		for _, p := range g.Status.Left {
			if p.HostUID == m.Metadata.UID && p.Held == "" {
				s.bury(api.Tombstone{Part: name, UID: g.Metadata.UID}, p.Since)
			}
		}
		part, err := guest.PartOn(c.Cache, g, m.Metadata.UID)
		if err != nil || part == nil {
			continue // the Guest's condition says so
		}
		raw, err := api.EncodePart(part)
		if err != nil {
			return fmt.Errorf("compile part %s of %s: %w", name, m.Metadata.Name, err)
		}
		s.parts[name] = whole(raw)
	}
	return nil
}

// guestChanged marks the streams of the hosts that a Guest is on, was, or goes to.
func (h *Hub) guestChanged(c store.Change) {
	for _, o := range []api.Object{c.Old, c.New} {
		g, ok := o.(*api.Guest)
		if !ok {
			continue
		}
		places := append([]api.GuestPlace{{Host: g.Status.Host}}, g.Status.Left...)
		if move := g.Status.Move; move != nil && move.Target != nil {
			places = append(places, *move.Target)
		}
		for _, p := range places {
			if s := h.streams[p.Host]; s != nil {
				s.mark()
			}
		}
	}
}

// maxGuestConditions is more than nodeagent knows.
const maxGuestConditions = 16

// maxGuestDisks is how many disks of a snapshot are told of.
const maxGuestDisks = 64

// boundedGuest is a copy of what a host sees of a Guest that is fit to be stored.
func boundedGuest(g *api.GuestObserved) *api.GuestObserved {
	if g == nil {
		return nil
	}
	next := *g
	next.State, next.Accelerator, next.Request = api.GuestState(text.Clip(string(g.State), 16)), text.Clip(g.Accelerator, 16), text.Clip(g.Request, 64)
	if t := g.Transfer; t != nil {
		next.Transfer = &api.GuestTransferred{ID: text.Clip(t.ID, 64), State: text.Clip(t.State, 16), Message: text.Clip(t.Message, 256)}
	}
	next.Conditions = nil
	for _, c := range g.Conditions[:min(len(g.Conditions), maxGuestConditions)] {
		next.Conditions = append(next.Conditions, api.Condition{Type: text.Clip(c.Type, 64), Status: api.ConditionStatus(text.Clip(string(c.Status), 16)),
			Reason: text.Clip(c.Reason, 64), Message: text.Clip(c.Message, 256), Time: c.Time})
	}
	if r := g.Result; r != nil {
		next.Result = &api.GuestResult{ID: text.Clip(r.ID, 64), Verb: text.Clip(r.Verb, 32), Failed: r.Failed, Message: text.Clip(r.Message, 256), Time: r.Time}
	}
	next.Snapshots = nil
	for _, s := range g.Snapshots[:min(len(g.Snapshots), api.MaxSnapshots)] {
		bounded := api.GuestSnapshot{Name: text.Clip(s.Name, 64), Time: s.Time, Consistency: api.Consistency(text.Clip(string(s.Consistency), 16)), Broken: s.Broken}
		for _, d := range s.Disks[:min(len(s.Disks), maxGuestDisks)] {
			bounded.Disks = append(bounded.Disks, text.Clip(d, api.MaxDiskName))
		}
		next.Snapshots = append(next.Snapshots, bounded)
	}
	return &next
}
