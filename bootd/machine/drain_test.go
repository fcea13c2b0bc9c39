package machine

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfish"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

// active makes a Machine Active, its host connected.
func (b *bench) active(name string, unit int) *api.Machine {
	b.t.Helper()
	b.machine(name, unit)
	b.steps(name, false)
	b.advance(name, api.StageJoined)
	b.applied(name)
	m := b.steps(name, false)
	if m.Status.Phase != api.PhaseActive {
		b.t.Fatalf("phase %s", m.Status.Phase)
	}
	b.bmc.did, b.bmc.lastReset = nil, time.Now().Add(-time.Hour)
	return m
}

// guest puts a Guest on a Machine.
func (b *bench) guest(name string, m *api.Machine, disks ...api.Disk) {
	b.t.Helper()
	b.create(&api.Guest{Base: named(name), Spec: api.GuestSpec{Network: "blue", Image: "img", CPUs: 1, Memory: api.Bytes(1 << 30), Disks: disks},
		Status: api.GuestStatus{Host: m.Metadata.Name, HostUID: m.Metadata.UID}})
}

func (b *bench) leaves(name string) {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.store, name, func(g *api.Guest) error { g.Status.Host, g.Status.HostUID = "", ""; return nil }); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) happened(reason string) bool {
	return slices.ContainsFunc(b.events.list, func(e string) bool { return strings.HasPrefix(e, reason+":") })
}

func TestGuestsLeaveBeforeThePowerGoes(t *testing.T) {
	for _, c := range []struct {
		name string
		ask  func(b *bench)
		did  string // of the BMC, when they have left
	}{
		{"off", func(b *bench) { b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateOff }) }, "shutdown"},
		{"reprovision", func(b *bench) {
			b.mutate("r1u01", func(m *api.Machine) {
				if _, err := AddRequest(m, api.Request{ID: "x", Verb: api.VerbReprovision}); err != nil {
					t.Error(err)
				}
			})
		}, "reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			m := b.active("r1u01", 1)
			b.guest("web", m)
			b.guest("data", m, api.Disk{Name: "data", Size: api.Bytes(1 << 30), Retain: true}) // is copied first
			c.ask(b)
			m = b.steps("r1u01", true)
			cond := m.Status.Conditions.Get(api.CondDrained)
			if len(b.bmc.did) > 0 || m.Status.Phase != api.PhaseDraining || cond == nil || !strings.Contains(cond.Message, "data, web") {
				t.Fatalf("phase %s, %+v, the BMC was asked to %v", m.Status.Phase, cond, b.bmc.did)
			}
			b.leaves("web")
			b.leaves("data")
			if m = b.steps("r1u01", true); !slices.Contains(b.bmc.did, c.did) || m.Status.Conditions.Get(api.CondDrained) != nil {
				t.Errorf("the BMC was asked to %v, want %s; %+v", b.bmc.did, c.did, m.Status.Conditions)
			}
		})
	}
}

func TestDrainEndsByItsDeadline(t *testing.T) {
	b := newBench(t)
	b.guest("web", b.active("r1u01", 1))
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateOff })
	b.steps("r1u01", false)
	b.mutate("r1u01", func(m *api.Machine) {
		m.Status.Conditions.Get(api.CondDrained).Time = time.Now().Add(-16 * time.Minute)
	})
	b.steps("r1u01", false)
	if !slices.Contains(b.bmc.did, "shutdown") || !b.happened("DrainDeadline") {
		t.Errorf("the BMC was asked to %v; events %v", b.bmc.did, b.events.list)
	}
}

func TestDrainIsCalledOff(t *testing.T) {
	b := newBench(t)
	b.guest("web", b.active("r1u01", 1))
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateOff })
	b.steps("r1u01", false)
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateActive })
	if m := b.steps("r1u01", false); m.Status.Phase != api.PhaseActive || len(b.bmc.did) > 0 || m.Status.Conditions.Get(api.CondDrained) != nil {
		t.Errorf("phase %s, %+v; the BMC was asked to %v", m.Status.Phase, m.Status.Conditions, b.bmc.did)
	}
}

func TestLostHostIsFenced(t *testing.T) {
	b := newBench(t)
	b.guest("web", b.active("r1u01", 1))
	silent := func(since time.Duration) {
		b.mutate("r1u01", func(m *api.Machine) {
			m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "Disconnected", "")
			m.Status.Conditions.Get(api.CondConnected).Time = time.Now().Add(-since)
		})
	}
	silent(time.Hour)
	b.steps("r1u01", false)
	if slices.Contains(b.bmc.did, "off") {
		t.Fatal("it is switched off without a policy that says so")
	}
	_, err := store.Mutate(t.Context(), b.store, "site", func(s *api.Site) error { s.Spec.Guests.FenceAfter = api.Duration(5 * time.Minute); return nil })
	if err != nil {
		t.Fatal(err)
	}
	silent(4 * time.Minute)
	b.steps("r1u01", false)
	if slices.Contains(b.bmc.did, "off") {
		t.Fatal("it is switched off too early")
	}
	silent(6 * time.Minute)
	m := b.steps("r1u01", true)
	if !m.Status.Conditions.Is(api.CondFenced) || b.bmc.power != hardware.PowerOff || !b.happened("Fenced") {
		t.Fatalf("%+v; the BMC was asked to %v", m.Status.Conditions, b.bmc.did)
	}
	number := m.Status.Attempt.Number
	if m = b.steps("r1u01", true); m.Status.Attempt.Number != number {
		t.Error("it is booted again before its Guests have left")
	}
	b.leaves("web")
	if m = b.steps("r1u01", true); m.Status.Attempt.Number != number+1 || m.Status.Conditions.Get(api.CondFenced) != nil {
		t.Errorf("it is not booted anew: %+v", m.Status)
	}
}

// TestFencedByRedfish: the lab's own BMC switches a lost host off; one that does not
// let bootd in leaves its Guests where they are.
func TestFencedByRedfish(t *testing.T) {
	b := newBench(t)
	b.guest("web", b.active("r1u01", 1))
	server := bmctest.Start(t)
	if err := server.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.c.Use = func(ctx context.Context, e hardware.Endpoint, _ string, call func(context.Context, BMC) error) error {
		bmc, err := redfish.Dial(ctx, e, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return errors.Join(call(ctx, bmc), bmc.Close(ctx))
	}
	if _, err := store.Mutate(t.Context(), b.store, "site", func(s *api.Site) error { s.Spec.Guests.FenceAfter = api.Duration(5 * time.Minute); return nil }); err != nil {
		t.Fatal(err)
	}
	credentials := func(password string) {
		t.Helper()
		if _, err := store.Mutate(t.Context(), b.store, "bmc", func(s *api.Secret) error {
			s.Spec.Data = map[string]string{"username": bmctest.Username, "password": password}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	credentials("wrong")
	b.mutate("r1u01", func(m *api.Machine) {
		m.Spec.BMC.Address, m.Spec.BMC.TLS.Fingerprint = server.URL, api.Fingerprint(server.BMC.Fingerprint())
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "Disconnected", "")
		m.Status.Conditions.Get(api.CondConnected).Time = time.Now().Add(-time.Hour)
	})
	if m := b.steps("r1u01", false); m.Status.Conditions.Is(api.CondFenced) || server.Power() != bmc.On {
		t.Fatalf("fenced without a way in: %+v", m.Status.Conditions)
	}
	credentials(bmctest.Password)
	if m := b.steps("r1u01", false); !m.Status.Conditions.Is(api.CondFenced) || server.Power() != bmc.Off {
		t.Fatalf("the server is %s: %+v", server.Power(), m.Status.Conditions)
	}
}

// TestGuestsHaveTheirTime: a host is forced off only when its Guests could shut down.
func TestGuestsHaveTheirTime(t *testing.T) {
	b := newBench(t)
	b.bmc.ignoresButton = true
	b.guest("web", b.active("r1u01", 1))
	b.mutate("r1u01", func(m *api.Machine) {
		m.Spec.State = api.StateOff
		m.Status.Conditions.Set(time.Now(), api.CondDrained, api.False, drainDeadline, "")
	})
	b.steps("r1u01", false)
	asked := func(ago time.Duration) {
		b.mutate("r1u01", func(m *api.Machine) { m.Status.Conditions.Get(condShuttingDown).Time = time.Now().Add(-ago) })
		b.steps("r1u01", false)
	}
	asked(3 * time.Minute)
	if slices.Contains(b.bmc.did, "off") {
		t.Errorf("its power was cut: %v", b.bmc.did)
	}
	asked(5 * time.Minute)
	if !slices.Contains(b.bmc.did, "off") {
		t.Errorf("it was never forced off: %v", b.bmc.did)
	}
}

// TestGuestsLeftBehind: Guests that did not leave in time are shut down before their host is provisioned anew.
func TestGuestsLeftBehind(t *testing.T) {
	b := newBench(t)
	b.guest("web", b.active("r1u01", 1))
	b.mutate("r1u01", func(m *api.Machine) {
		if _, err := AddRequest(m, api.Request{ID: "x", Verb: api.VerbReprovision}); err != nil {
			t.Error(err)
		}
		m.Status.Conditions.Set(time.Now(), api.CondDrained, api.False, drainDeadline, "")
	})
	b.steps("r1u01", true)
	if shutdown, on := slices.Index(b.bmc.did, "shutdown"), slices.Index(b.bmc.did, "on"); shutdown < 0 || on < shutdown || slices.Contains(b.bmc.did, "reset") {
		t.Errorf("the BMC was asked to %v", b.bmc.did)
	}
}
