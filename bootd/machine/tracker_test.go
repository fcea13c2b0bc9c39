package machine

import (
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// TestBootAskedOnAnOldView: a boot asks for its script and is answered out of a
// cache that does not have the attempt yet that was opened for it.
func TestBootAskedOnAnOldView(t *testing.T) {
	for _, c := range []struct {
		name  string
		seen  func(*bench) *api.Machine
		now   func(*api.Machine)
		noted bool
	}{
		{name: "the first attempt was opened since", seen: func(b *bench) *api.Machine { m := b.get("r1u01"); m.Status.Attempt = nil; return m }},
		{name: "another attempt was opened since", seen: func(b *bench) *api.Machine {
			m := b.get("r1u01")
			m.Status.Attempt.ID, m.Status.Attempt.Result = "earlier", api.ResultFailed
			return m
		}},
		{name: "another attempt has its pointer already", seen: func(b *bench) *api.Machine { m := b.get("r1u01"); m.Status.Attempt = nil; return m },
			now: func(m *api.Machine) { Advance(m, m.Status.Attempt.ID, api.StagePointer, time.Now(), time.Hour) }},
		{name: "the attempt is as it was seen, before its pointer"},
		{name: "the attempt is as it was seen, past its pointer", noted: true,
			now: func(m *api.Machine) { Advance(m, m.Status.Attempt.ID, api.StagePointer, time.Now(), time.Hour) }},
		{name: "the window is over", noted: true,
			now: func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.machine("r1u01", 1)
			b.steps("r1u01", false)
			if c.now != nil {
				b.mutate("r1u01", c.now)
			}
			seen := b.get("r1u01")
			if c.seen != nil {
				seen = c.seen(b)
			}
			b.sync()
			tracker := &Tracker{Store: b.store, Cache: b.cache}
			if err := tracker.BootAsked(t.Context(), seen); err != nil {
				t.Fatal(err)
			}
			if noted := !b.get("r1u01").Status.BootAsked.IsZero(); noted != c.noted {
				t.Errorf("noted = %v", noted)
			}
		})
	}
}

// TestBootAskedBeforeThePointerOpensNothing: the note of an earlier bootd, which
// did not look, does not end a boot that is being served.
func TestBootAskedBeforeThePointerOpensNothing(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.advance("r1u01", api.StageDHCP, api.StageScript)
	b.mutate("r1u01", func(m *api.Machine) { m.Status.BootAsked = time.Now() })
	if m := b.steps("r1u01", false); m.Status.Attempt.Number != 1 || !m.Status.Attempt.Open() {
		t.Errorf("attempt %+v, history %+v", m.Status.Attempt, m.Status.History)
	}
}

// act does what is decided on the Machine as it was.
func (b *bench) act(old *api.Machine, decide func(judge) action) error {
	f := b.c.facts(old)
	_, err := b.c.act(b.t.Context(), f, decide(judge{f, time.Now()}))
	return err
}

// TestDecisionsOnAnOldView: what was decided on an older Machine is not written
// over what happened since.
func TestDecisionsOnAnOldView(t *testing.T) {
	for _, c := range []struct {
		name  string
		since func(*api.Machine)
		act   func(*bench, *api.Machine) error
	}{
		{"overdue, but a stage was reached", func(m *api.Machine) {
			Advance(m, m.Status.Attempt.ID, api.StageDHCP, time.Now(), time.Hour)
		}, func(b *bench, old *api.Machine) error { return b.act(old, judge.expire) }},
		{"overdue, but another attempt is open", func(m *api.Machine) {
			openAttempt(m, time.Now(), action{reason: "test", stage: api.StagePowerOn}, time.Hour)
		}, func(b *bench, old *api.Machine) error { return b.act(old, judge.expire) }},
		{"Maintenance, but Active again", func(m *api.Machine) { m.Spec.State = api.StateActive },
			func(b *bench, old *api.Machine) error {
				old.Spec.State = api.StateMaintenance
				return b.act(old, judge.maintain)
			}},
		{"Off, but Active again", func(m *api.Machine) { m.Spec.State = api.StateActive },
			func(b *bench, old *api.Machine) error {
				old.Spec.State = api.StateOff
				return b.act(old, judge.turnOff)
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.machine("r1u01", 1)
			b.steps("r1u01", false)
			b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) })
			old := b.get("r1u01")
			b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(time.Hour) })
			b.mutate("r1u01", c.since)
			if err := c.act(b, old); err != nil {
				t.Fatal(err)
			}
			if m := b.get("r1u01"); !m.Status.Attempt.Open() || m.Status.Phase != api.PhaseProvisioning {
				t.Errorf("phase %s, attempt %+v", m.Status.Phase, m.Status.Attempt)
			}
			for _, e := range b.events.list {
				if strings.HasPrefix(e, "BootFailed") {
					t.Errorf("an event says %s", e)
				}
			}
		})
	}
}
