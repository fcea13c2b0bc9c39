package machine

import (
	"slices"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// TestNextHeld: a Machine that is done has the one looked at that its limit has held longest.
func TestNextHeld(t *testing.T) {
	b := newBench(t)
	hold := func(name, rack, reason string, since time.Duration) {
		b.create(&api.Machine{Base: named(name), Spec: api.MachineSpec{Zone: "yellow", Profile: "worker", Location: api.Location{Rack: rack}}})
		b.mutate(name, func(m *api.Machine) {
			m.Status.Conditions.Set(time.Now().Add(-since), api.CondHeld, api.True, reason, "")
		})
	}
	hold("a", "r1", limitPerRack, time.Second)
	hold("b", "r1", limitPerRack, time.Minute)
	hold("c", "r2", limitPerRack, time.Hour)
	hold("d", "r2", limitTotal, time.Second)
	hold("e", "r3", limitTotal, time.Minute)
	hold("f", "r1", "Paused", time.Hour)
	b.sync()

	at := func(change func(*api.Machine)) *api.Machine {
		m := &api.Machine{Base: named("m"), Spec: api.MachineSpec{Location: api.Location{Rack: "r1"}}}
		change(m)
		return m
	}
	open := func(m *api.Machine) {
		openAttempt(m, time.Now(), action{reason: "test", stage: api.StageRequested}, time.Hour)
	}
	done := func(m *api.Machine) { open(m); succeed(m, time.Now()) }
	switching := func(m *api.Machine) {
		m.Status.Requests = []api.Request{{Verb: api.VerbPower, State: api.RequestRunning}}
	}
	idle := func(*api.Machine) {}
	for _, c := range []struct {
		name     string
		was, is  func(*api.Machine)
		expected []string
	}{
		{"a BootAttempt ends", open, done, []string{"b", "e", "m"}},
		{"a power verb ends", switching, idle, []string{"b", "e", "m"}},
		{"a BootAttempt begins", idle, open, []string{"m"}},
		{"a BootAttempt continues", open, open, []string{"m"}},
		{"nothing was under way", done, done, []string{"m"}},
	} {
		due := b.c.due(store.Change{Kind: api.KindOf(new(api.Machine)), Name: "m", Old: at(c.was), New: at(c.is)})
		if !slices.Equal(due, c.expected) {
			t.Errorf("%s: due are %q, want %q", c.name, due, c.expected)
		}
	}
	if due := b.c.due(store.Change{Kind: api.KindOf(new(api.Machine)), Name: "m", Old: at(open)}); !slices.Equal(due, []string{"b", "e", "m"}) {
		t.Errorf("deleted while it boots: due are %q", due)
	}
}
