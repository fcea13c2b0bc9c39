package guest

import (
	"context"
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

// Parts describes the parts of Guests. The controller waits for each step of one,
// and a Guest's fault is its own.
func Parts(c *store.Cache) part.Kind {
	return part.Kind{
		Name: api.PartGuest, Object: "Guest", OwnFault: true, Steps: true, Digests: true,
		Compile:  func(_ context.Context, m *api.Machine, s *part.Spec) error { return compile(c, m, s) },
		Concerns: func(ch store.Change) part.Hosts { return concerns(c, ch) },
		Keep:     func(p *api.PartStatus) { p.Guest = bounded(p.Guest) },
		Speaks: func(hostUID, name, uid string) api.Object {
			if g, ok := store.Cached[api.Guest](c, name); ok && g.Metadata.UID == uid && Has(g, hostUID) {
				return g
			}
			return nil
		},
	}
}

// compile adds the parts of the Guests that are on a host, and tombstones of those that have left it. For a Guest
// that cannot be compiled it adds neither: the host keeps it as it is.
func compile(c *store.Cache, m *api.Machine, s *part.Spec) error {
	for _, g := range store.CachedList[api.Guest](c) {
		name := api.GuestPartName(g.Metadata.Name)
		for _, p := range g.Status.Left {
			if p.HostUID == m.Metadata.UID && p.Held == "" {
				s.Bury(api.Tombstone{Part: name, UID: g.Metadata.UID}, p.Since)
			}
		}
		p, err := PartOn(c, g, m.Metadata.UID)
		if err != nil || p == nil {
			continue // the Guest's condition says so
		}
		if err := s.Put(name, p); err != nil {
			return fmt.Errorf("part %s: %w", name, err)
		}
	}
	return nil
}

// concerns finds the hosts whose parts may differ after a change: those that a Guest is on, was on, or moves to.
func concerns(c *store.Cache, ch store.Change) part.Hosts {
	var guests []api.Object
	switch ch.Kind.Name {
	case "Site":
		return part.Hosts{All: true} // the domain of Guests
	case "Guest":
		guests = []api.Object{ch.Old, ch.New}
	case "Image", "Secret": // what it boots, and the content of its shares
		guests = c.CachedReferrers(ch.Kind.Name, ch.Name)
	}
	var hosts part.Hosts
	for _, o := range guests {
		hosts.Names = append(hosts.Names, places(o)...)
	}
	return hosts
}

// maxGuestConditions is more than nodeagent sets.
const maxGuestConditions = 16

// maxGuestDisks is how many disks of a snapshot are reported.
const maxGuestDisks = 64

// bounded is a copy of a host's report about a Guest that can be stored.
func bounded(g *api.GuestObserved) *api.GuestObserved {
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
