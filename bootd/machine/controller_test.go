package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

func TestFromOffToActive(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			b := newBench(t)
			b.machine("r1u01", 1)
			m := b.steps("r1u01", killed)
			if m.Status.Phase != api.PhaseProvisioning || m.Status.Attempt.Stage != api.StagePowerOn {
				t.Fatalf("phase %s, attempt %+v", m.Status.Phase, m.Status.Attempt)
			}
			if want := []string{"boot pxe", "on"}; !slices.Equal(b.bmc.did, want) {
				t.Errorf("the BMC was told %v, want %v", b.bmc.did, want)
			}
			if m.Status.Inventory == nil || m.Status.Inventory.Serial != "S1" || m.Status.BMC.Fingerprint == "" {
				t.Errorf("not inspected: %+v", m.Status)
			}
			b.advance("r1u01", api.StageDHCP, api.StageScript, api.StageKernel, api.StagePointer, api.StageConfig, api.StageJoined)
			b.applied("r1u01")
			m = b.steps("r1u01", killed)
			if m.Status.Phase != api.PhaseActive || m.Status.Attempt.Result != api.ResultActive {
				t.Fatalf("phase %s, attempt %+v", m.Status.Phase, m.Status.Attempt)
			}
			if len(b.bmc.did) != 2 {
				t.Errorf("the BMC was told more than once: %v", b.bmc.did)
			}
		})
	}
}

// TestKilledBetweenPowerAndWrite: the power command was sent, and bootd died
// before it wrote that down.
func TestKilledBetweenPowerAndWrite(t *testing.T) {
	for name, r := range map[string]struct {
		before hardware.PowerState
		tells  bool
	}{"on": {before: hardware.PowerOff}, "reset": {before: hardware.PowerOn, tells: true}, "reset of one that tells nothing": {before: hardware.PowerOn}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.machine("r1u01", 1)
			b.bmc.power = r.before
			if r.tells {
				b.bmc.lastReset = time.Now().Add(-time.Hour)
			}
			b.steps("r1u01", false)
			if !r.tells {
				b.bmc.lastReset = time.Time{}
			}
			b.mutate("r1u01", func(m *api.Machine) {
				m.Status.Attempt.Stage = api.StageRequested
				m.Status.Attempt.Stages = m.Status.Attempt.Stages[:1]
			})
			b.restart()
			m := b.steps("r1u01", false)
			if m.Status.Attempt.Stage != api.StagePowerOn || len(b.bmc.did) != 2 {
				t.Errorf("stage %s; the BMC was told %v", m.Status.Attempt.Stage, b.bmc.did)
			}
		})
	}
}

// TestFirstResetOfAnAttempt is sent whatever the BMC reports: an HPE server that finds no disk waits at the end of POST.
func TestFirstResetOfAnAttempt(t *testing.T) {
	for _, post := range []string{"InPostDiscoveryComplete", "InPost", "FinishedPost", ""} {
		b := newBench(t)
		b.bmc.power, b.bmc.post = hardware.PowerOn, post
		if post == "" {
			b.bmc.lastReset = time.Now().Add(time.Hour) // its clock moved
		}
		b.machine("r1u01", 1)
		if m := b.steps("r1u01", false); m.Status.Attempt.Stage != api.StagePowerOn || !slices.Equal(b.bmc.did, []string{"boot pxe", "reset"}) {
			t.Errorf("POST state %q: stage %s; the BMC was told %v", post, m.Status.Attempt.Stage, b.bmc.did)
		}
	}
}

// TestResetThatDoesNothing is sent once, and is known at once.
func TestResetThatDoesNothing(t *testing.T) {
	for name, r := range map[string]struct {
		err     error
		retries bool
	}{
		"nothing happens":       {fmt.Errorf("%w: the BMC's words", hardware.ErrNotSeen), true},
		"its task does not end": {fmt.Errorf("%w: %w: the BMC's words", hardware.ErrUnfinished, hardware.ErrNotSeen), false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.bmc.power, b.bmc.lastReset, b.bmc.resetErr = hardware.PowerOn, time.Now().Add(-time.Hour), r.err
			b.machine("r1u01", 1)
			m := b.steps("r1u01", false)
			if c := m.Status.Conditions.Get(api.CondProvision); c == nil || c.Reason != "NotSeen" || !strings.Contains(c.Message, "the BMC's words") {
				t.Errorf("conditions %+v", m.Status.Conditions)
			}
			b.restart()
			m = b.steps("r1u01", false)
			if n := len(b.bmc.did); n != 2 || m.Status.Attempt.Stage != api.StageRequested || m.Status.Attempt.Command.Problem == "" {
				t.Errorf("the BMC was told %v; attempt %+v", b.bmc.did, m.Status.Attempt)
			}
			b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) })
			m = b.steps("r1u01", false)
			if !strings.Contains(m.Status.Attempt.Message, "the BMC's words") {
				t.Errorf("it failed with %q", m.Status.Attempt.Message)
			}
			b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Finished = time.Now().Add(-time.Hour) })
			if b.steps("r1u01", false); (len(b.bmc.did) == 4) != r.retries {
				t.Errorf("after the attempt the BMC was told %v", b.bmc.did)
			}
		})
	}
}

// TestClockThatMoved: the BMC's clock is set after the reset, or is hours off; a changed value is a reset, the same value is not.
func TestClockThatMoved(t *testing.T) {
	b := newBench(t)
	b.active("r1u01", 1)
	b.bmc.lastReset = time.Now().Add(-7 * time.Hour) // its clock was set since
	b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Reset = nil })
	if m := b.steps("r1u01", false); m.Status.Phase != api.PhaseActive || m.Status.Attempt.Reset == nil {
		t.Fatalf("phase %s, attempt %+v", m.Status.Phase, m.Status.Attempt)
	}
	ask := func() *api.Machine {
		b.mutate("r1u01", func(m *api.Machine) {
			m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "Silent", "")
			m.Status.BootAsked = time.Now().Add(time.Second).UTC()
		})
		return b.steps("r1u01", false)
	}
	if m := ask(); m.Status.Attempt.Number != 1 || m.Status.Conditions.Get(api.CondHeld) == nil {
		t.Fatalf("a stranger's boot is served: attempt %+v", m.Status.Attempt)
	}
	b.bmc.lastReset = time.Now().Add(-6 * time.Hour)
	if m := ask(); m.Status.Attempt.Number != 2 {
		t.Errorf("a reset is taken for forged: %+v", m.Status.Conditions.Get(api.CondHeld))
	}
}

func TestWrongPasswordIsTriedOnce(t *testing.T) {
	b := newBench(t)
	b.bmc.dialErr = fmt.Errorf("login: %w", hardware.ErrUnauthorized)
	b.machine("r1u01", 1)
	for range 10 {
		b.step("r1u01")
	}
	m := b.get("r1u01")
	if c := m.Status.Conditions.Get(api.CondBMC); c == nil || c.Reason != "Unauthorized" {
		t.Fatalf("conditions %+v", m.Status.Conditions)
	}
	if b.bmc.dials != 1 {
		t.Errorf("%d logins with a wrong password", b.bmc.dials)
	}
	_, err := store.Mutate(t.Context(), b.store, "bmc", func(s *api.Secret) error {
		s.Spec.Data = map[string]string{"username": "admin", "password": "secret-2"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.bmc.dialErr = nil
	m = b.steps("r1u01", false)
	if m.Status.Phase != api.PhaseProvisioning || b.bmc.endpoint.Password != "secret-2" {
		t.Errorf("phase %s after the password was mended", m.Status.Phase)
	}
}

// TestPasswordMendedDuringTheCall: the error of a call counts for what the call was made with.
func TestPasswordMendedDuringTheCall(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	use := b.c.Use
	b.c.Use = func(context.Context, hardware.Endpoint, string, func(context.Context, BMC) error) error {
		b.c.Use = use
		_, err := store.Mutate(t.Context(), b.store, "bmc", func(s *api.Secret) error {
			s.Spec.Data = map[string]string{"username": "admin", "password": "secret-2"}
			return nil
		})
		if err != nil {
			return err
		}
		s, err := store.Get[api.Secret](t.Context(), b.store, "bmc")
		if err != nil {
			return err
		}
		if err := b.cache.WaitRevision(t.Context(), store.RevisionOf(s)); err != nil {
			return err
		}
		return fmt.Errorf("login: %w", hardware.ErrUnauthorized)
	}
	if m := b.steps("r1u01", false); m.Status.Phase != api.PhaseProvisioning || b.bmc.endpoint.Password != "secret-2" {
		t.Errorf("phase %s, the last password %q", m.Status.Phase, b.bmc.endpoint.Password)
	}
}

func TestCertificateIsPinnedAtFirstContact(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	if b.bmc.endpoint.Fingerprint != b.bmc.Fingerprint() {
		t.Errorf("the second contact pins %q", b.bmc.endpoint.Fingerprint)
	}
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.BMC.Address = "https://198.18.1.99" })
	_, _ = b.request("r1u01", api.Request{ID: "1", Verb: api.VerbIdentify, Argument: "on"})
	b.steps("r1u01", false)
	if b.bmc.endpoint.Fingerprint != "" {
		t.Errorf("another address is held to the old pin %q", b.bmc.endpoint.Fingerprint)
	}
}

func TestBrakes(t *testing.T) {
	b := newBench(t)
	_, err := store.Mutate(t.Context(), b.store, "site", func(s *api.Site) error { s.Spec.Limits.Provisioning.PerRack = 1; return nil })
	if err != nil {
		t.Fatal(err)
	}
	b.machine("r1u01", 1)
	b.machine("r1u02", 2)
	b.steps("r1u01", false)
	m := b.steps("r1u02", false)
	if h := m.Status.Conditions.Get(api.CondHeld); m.Status.Attempt != nil || h == nil || h.Reason != "LimitPerRack" {
		t.Fatalf("the second machine of the rack is not held: %+v", m.Status)
	}
	b.advance("r1u01", api.StageJoined)
	b.applied("r1u01")
	b.steps("r1u01", false)
	if m = b.steps("r1u02", false); !m.Status.Attempt.Open() {
		t.Errorf("it is held still: %+v", m.Status.Conditions)
	}
	if m.Status.Conditions.Get(api.CondHeld) != nil {
		t.Errorf("Held stays though nothing holds it")
	}
}

func TestPowerBrake(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.machine("r1u02", 2)
	b.steps("r1u01", false)
	b.steps("r1u02", false)
	_, err := store.Mutate(t.Context(), b.store, "site", func(s *api.Site) error { s.Spec.Limits.Power.PerRack = 1; return nil })
	if err != nil {
		t.Fatal(err)
	}
	b.mutate("r1u01", func(m *api.Machine) { m.Status.Conditions.Set(time.Now(), condShuttingDown, api.True, "Asked", "") })
	b.bmc.did = nil
	if _, err := b.request("r1u02", api.Request{ID: "x", Verb: api.VerbPower, Argument: "reset"}); err != nil {
		t.Fatal(err)
	}
	m := b.steps("r1u02", false)
	if h := m.Status.Conditions.Get(api.CondHeld); len(b.bmc.did) != 0 || h == nil || h.Reason != "LimitPerRack" || m.Status.Requests[0].State != api.RequestPending {
		t.Fatalf("BMC told %v, held %+v, request %+v", b.bmc.did, h, m.Status.Requests[0])
	}
	b.mutate("r1u01", func(m *api.Machine) { m.Status.Conditions.Remove(condShuttingDown) })
	m = b.steps("r1u02", false)
	if !slices.Equal(b.bmc.did, []string{"reset"}) || m.Status.Requests[0].State != api.RequestDone {
		t.Errorf("BMC told %v, request %+v", b.bmc.did, m.Status.Requests[0])
	}
}

// TestBrakesUnderTheLock: what was decided before another opened a BootAttempt, or began to change its power, is
// judged again.
func TestBrakesUnderTheLock(t *testing.T) {
	b := newBench(t)
	b.site(func(s *api.Site) { s.Spec.Limits.Provisioning.PerRack, s.Spec.Limits.Power.PerRack = 1, 1 })
	names := []string{"r1u01", "r1u02"}
	for i, name := range names {
		b.machine(name, i+1)
		for b.get(name).Status.Phase != api.PhaseAvailable {
			b.step(name)
		}
	}
	b.sync()
	var decided []facts
	for _, name := range names {
		f := b.c.facts(b.get(name))
		if a := decide(f, time.Now()); a.do != doOpen {
			t.Fatalf("%s is to %q", name, a.do)
		}
		decided = append(decided, f)
	}
	for _, f := range decided {
		if _, err := b.c.act(t.Context(), f, action{do: doOpen, reason: "the test", stage: api.StageRequested}); err != nil {
			t.Fatal(err)
		}
	}
	m := b.get("r1u02")
	if h := m.Status.Conditions.Get(api.CondHeld); h == nil || h.Reason != "LimitPerRack" || m.Status.Attempt != nil || !b.get("r1u01").Status.Attempt.Open() {
		t.Errorf("held %+v, attempt %+v", h, m.Status.Attempt)
	}

	for _, name := range names {
		b.mutate(name, func(m *api.Machine) { m.Status.Conditions.Remove(api.CondHeld) })
		if _, err := b.request(name, api.Request{ID: "x", Verb: api.VerbPower, Argument: "on"}); err != nil {
			t.Fatal(err)
		}
	}
	b.sync()
	second := b.c.facts(b.get("r1u02"))
	use := b.c.Use
	b.c.Use = func(ctx context.Context, e hardware.Endpoint, what string, call func(context.Context, BMC) error) error { // while the first is under way
		b.c.Use = use
		_, err := b.c.act(t.Context(), second, action{do: doAsk, ask: askRequest, request: pending(second.machine)})
		return errors.Join(err, use(ctx, e, what, call))
	}
	if _, err := b.c.step(t.Context(), b.get("r1u01")); err != nil {
		t.Fatal(err)
	}
	m = b.get("r1u02")
	if h := m.Status.Conditions.Get(api.CondHeld); h == nil || h.Reason != "LimitPerRack" || m.Status.Requests[0].State != api.RequestPending {
		t.Errorf("held %+v, request %+v", h, m.Status.Requests[0])
	}
}

// TestMendedBMCIsNoticed: also on an Active Machine, which needs its BMC for nothing.
func TestMendedBMCIsNoticed(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.advance("r1u01", api.StageJoined)
	b.applied("r1u01")
	b.steps("r1u01", false)
	b.bmc.dialErr = fmt.Errorf("login: %w", hardware.ErrUnauthorized)
	if _, err := b.request("r1u01", api.Request{ID: "x", Verb: api.VerbInspect}); err != nil {
		t.Fatal(err)
	}
	if m := b.steps("r1u01", false); m.Status.Conditions.Is(api.CondBMC) || m.Status.Phase != api.PhaseActive {
		t.Fatalf("phase %s, conditions %+v", m.Status.Phase, m.Status.Conditions)
	}
	dials := b.bmc.dials
	b.steps("r1u01", false)
	if b.bmc.dials != dials {
		t.Errorf("the refused password was tried %d times more", b.bmc.dials-dials)
	}
	b.bmc.dialErr = nil
	_, err := store.Mutate(t.Context(), b.store, "bmc", func(s *api.Secret) error {
		s.Spec.Data = map[string]string{"username": "admin", "password": "secret-2"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if m := b.steps("r1u01", false); !m.Status.Conditions.Is(api.CondBMC) {
		t.Errorf("conditions %+v", m.Status.Conditions)
	}
}

// TestInspectTellsWhatCameOfIt: the request ends when the inventory was read, or with the BMC's own words.
func TestInspectTellsWhatCameOfIt(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.bmc.dialErr = fmt.Errorf("login: %w", hardware.ErrUnauthorized)
	if _, err := b.request("r1u01", api.Request{ID: "x", Verb: api.VerbInspect}); err != nil {
		t.Fatal(err)
	}
	r := b.steps("r1u01", false).Status.Requests[0]
	if r.State != api.RequestFailed || !strings.Contains(r.Message, "refuses the credentials") {
		t.Errorf("%+v", r)
	}
}

func TestPausedTouchesNothing(t *testing.T) {
	b := newBench(t)
	_, err := store.Mutate(t.Context(), b.store, "site", func(s *api.Site) error { s.Spec.Paused = true; return nil })
	if err != nil {
		t.Fatal(err)
	}
	b.machine("r1u01", 1)
	m := b.steps("r1u01", false)
	if len(b.bmc.did) != 0 || m.Status.Attempt != nil || m.Status.Phase != api.PhaseAvailable {
		t.Errorf("phase %s, BMC told %v", m.Status.Phase, b.bmc.did)
	}
}

func TestUnsolicitedBoot(t *testing.T) {
	for _, c := range []struct {
		name      string
		policy    api.UnsolicitedBoot
		reset     func(before time.Time) time.Time
		connected bool
		opens     bool
		held      string
	}{
		{"reset after Active", api.BootConfirm, func(a time.Time) time.Time { return time.Now() }, false, true, ""},
		{"no reset since Active", api.BootConfirm, func(before time.Time) time.Time { return before }, false, false, "UnsolicitedBootForged"},
		{"the BMC tells no time", api.BootConfirm, func(time.Time) time.Time { return time.Time{} }, false, false, "UnsolicitedBootUnconfirmed"},
		{"a live agent holds its stream", api.BootConfirm, func(time.Time) time.Time { return time.Now() }, true, false, ""},
		{"refused by policy", api.BootRefuse, func(time.Time) time.Time { return time.Now() }, false, false, "UnsolicitedBootRefused"},
		{"allowed by policy", api.BootAllow, func(a time.Time) time.Time { return time.Time{} }, false, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.machine("r1u01", 1)
			b.mutate("r1u01", func(m *api.Machine) { m.Spec.Boot.Unsolicited = c.policy })
			b.steps("r1u01", false)
			b.advance("r1u01", api.StageJoined)
			b.applied("r1u01")
			before := time.Now().Add(-time.Hour)
			b.bmc.lastReset = before
			first := b.steps("r1u01", false).Status.Attempt
			b.bmc.did = nil
			b.bmc.lastReset = c.reset(before)
			if c.connected {
				b.mutate("r1u01", func(m *api.Machine) { m.Status.BootAsked = time.Now() })
			} else {
				b.disconnected("r1u01")
			}
			m := b.steps("r1u01", false)
			if opened := m.Status.Attempt.ID != first.ID; opened != c.opens {
				t.Fatalf("opened = %v, conditions %+v", opened, m.Status.Conditions)
			}
			if c.opens && (m.Status.Attempt.Stage != api.StagePowerOn || len(b.bmc.did) != 0) {
				t.Errorf("a machine that boots already was told %v", b.bmc.did)
			}
			if h := m.Status.Conditions.Get(api.CondHeld); c.held != "" && (h == nil || h.Reason != c.held) {
				t.Errorf("held %+v, want %s", h, c.held)
			}
		})
	}
}

// A Machine without a BMC begins with the boot that it asks for, where that is allowed.
func TestFirstBootWithoutBMC(t *testing.T) {
	for policy, opens := range map[api.UnsolicitedBoot]bool{api.BootAllow: true, api.BootConfirm: false, api.BootRefuse: false} {
		b := newBench(t)
		b.machine("r1u01", 1)
		b.mutate("r1u01", func(m *api.Machine) { m.Spec.BMC, m.Spec.Boot.Unsolicited = nil, policy })
		if m := b.steps("r1u01", false); m.Status.Attempt != nil || m.Status.Conditions.Get(api.CondHeld).Reason != "NoBMC" {
			t.Errorf("%s: before it asks: %+v", policy, m.Status.Attempt)
		}
		b.mutate("r1u01", func(m *api.Machine) { m.Status.BootAsked = time.Now() })
		if a := b.steps("r1u01", false).Status.Attempt; (a != nil) != opens || opens && a.Stage != api.StagePowerOn {
			t.Errorf("%s: when it asks: %+v", policy, a)
		}
	}
}

func TestExpiryRetriesThenFails(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	for want := 0; ; want++ {
		m := b.steps("r1u01", false)
		if !m.Status.Attempt.Open() {
			break
		}
		if m.Status.Attempt.Retry != want {
			t.Fatalf("retry %d, want %d", m.Status.Attempt.Retry, want)
		}
		b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) })
		b.step("r1u01")
		b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Finished = time.Now().Add(-time.Hour) })
	}
	m := b.get("r1u01")
	if m.Status.Phase != api.PhaseFailed || m.Status.Attempt.Retry != api.MaxRetries || !strings.Contains(m.Status.Attempt.Message, "DHCP") {
		t.Errorf("phase %s, attempt %+v", m.Status.Phase, m.Status.Attempt)
	}
	if len(m.Status.History) != api.MaxRetries {
		t.Errorf("%d attempts in the history", len(m.Status.History))
	}
	if _, err := b.request("r1u01", api.Request{ID: "again", Verb: api.VerbReprovision, By: "root"}); err != nil {
		t.Fatal(err)
	}
	if m = b.steps("r1u01", false); !m.Status.Attempt.Open() || m.Status.Attempt.Retry != 0 {
		t.Errorf("reprovision did not open an attempt: %+v", m.Status.Attempt)
	}
	if r := m.Status.Requests[0]; r.State != api.RequestDone {
		t.Errorf("the request is %+v", r)
	}
}

// TestRetriesBeginAgain: a Machine that failed for the last time is booted again when what it boots with is another, and
// when a person takes it out of Maintenance. Maintenance in mid-boot is no failure.
func TestRetriesBeginAgain(t *testing.T) {
	b := newBench(t)
	b.create(&api.Layer{Base: named("base"), Spec: api.LayerSpec{Butane: "variant: flatcar\nversion: 1.1.0\n"}})
	b.create(&api.Secret{Base: named("registry"), Spec: api.SecretSpec{Data: map[string]string{"key": "1"}, Uses: &api.SecretUses{Layers: []string{"base"}}}})
	alter(b, "worker", func(p *api.Profile) { p.Spec.Layers = []string{"base"} })
	b.machine("r1u01", 1)
	fail := func() {
		t.Helper()
		b.steps("r1u01", false)
		b.mutate("r1u01", func(m *api.Machine) {
			m.Status.Attempt.Retry, m.Status.Attempt.Deadline = api.MaxRetries, time.Now().Add(-time.Second)
		})
		if m := b.steps("r1u01", false); m.Status.Phase != api.PhaseFailed || m.Status.Attempt.Result != api.ResultFailed {
			t.Fatalf("%s, attempt %+v", m.Status.Phase, m.Status.Attempt)
		}
	}
	changes := []struct {
		reason string
		change func()
	}{
		{"Machine r1u01", func() { alter(b, "r1u01", func(m *api.Machine) { m.Spec.Location.Unit = 2 }) }},
		{"Profile worker", func() { alter(b, "worker", func(p *api.Profile) { p.Spec.KernelArguments = []string{"quiet"} }) }},
		{"Image img", func() { alter(b, "img", func(i *api.Image) { i.Spec.Version = "2" }) }},
		{"Layer base", func() { alter(b, "base", func(l *api.Layer) { l.Spec.Butane += "# corrected\n" }) }},
		{"Secret registry", func() { alter(b, "registry", func(s *api.Secret) { s.Spec.Data = map[string]string{"key": "2"} }) }},
		{"Secret bmc", func() {
			alter(b, "bmc", func(s *api.Secret) { s.Spec.Data = map[string]string{"username": "admin", "password": "secret-2"} })
		}},
	}
	for _, c := range changes {
		fail()
		c.change()
		m := b.steps("r1u01", false)
		if a := m.Status.Attempt; !a.Open() || a.Retry != 0 || !strings.HasPrefix(a.Reason, c.reason+" was changed after: ") {
			t.Errorf("%s: attempt %+v", c.reason, a)
		}
	}
	alter(b, "r1u01", func(m *api.Machine) { m.Spec.State = api.StateMaintenance })
	if a := b.steps("r1u01", false).Status.Attempt; a.Result != api.ResultAborted {
		t.Errorf("Maintenance in mid-boot: %+v", a)
	}
	alter(b, "r1u01", func(m *api.Machine) { m.Spec.State = api.StateActive })
	m := b.steps("r1u01", false)
	if a := m.Status.Attempt; !a.Open() || a.Retry != 0 || m.Status.Phase != api.PhaseProvisioning {
		t.Errorf("back from Maintenance: %s, attempt %+v", m.Status.Phase, a)
	}
	fail()
	alter(b, "r1u01", func(m *api.Machine) { m.Spec.State = api.StateMaintenance })
	b.steps("r1u01", false)
	alter(b, "r1u01", func(m *api.Machine) { m.Spec.State = api.StateActive })
	if a := b.steps("r1u01", false).Status.Attempt; !a.Open() || a.Retry != 0 {
		t.Errorf("back from Maintenance after the last failure: %+v", a)
	}
}

// TestSuperseded: an attempt in which the Machine was reset has failed; one in place of which another is asked for has not.
func TestSuperseded(t *testing.T) {
	for retry, want := range map[int]api.AttemptResult{0: api.ResultAborted, 1: api.ResultFailed} {
		f := given(attempt(api.StageConfig))
		f.writeOpen(action{do: doOpen, reason: "the test", retry: retry, stage: api.StageRequested}, f.machine, noon)
		if old := f.machine.Status.History[0]; old.Result != want || old.Message != "superseded: the test" {
			t.Errorf("retry %d: the attempt before is %s (%s), want %s", retry, old.Result, old.Message, want)
		}
	}
}

// TestReprovisionOpensOneAttempt: also when bootd is killed between every two steps, or right after the
// attempt was opened.
func TestReprovisionOpensOneAttempt(t *testing.T) {
	for _, killed := range []bool{false, true} {
		b := newBench(t)
		b.machine("r1u01", 1)
		b.steps("r1u01", false)
		b.advance("r1u01", api.StageJoined)
		b.applied("r1u01")
		b.steps("r1u01", false)
		if _, err := b.request("r1u01", api.Request{ID: "x", Verb: api.VerbReprovision, By: "root"}); err != nil {
			t.Fatal(err)
		}
		b.step("r1u01")
		b.mutate("r1u01", func(m *api.Machine) { m.Status.Requests[0].State = api.RequestRunning })
		m := b.steps("r1u01", killed)
		if m.Status.Attempt.Number != 2 || m.Status.Requests[0].State != api.RequestDone {
			t.Errorf("killed=%v: BootAttempt %d, request %+v", killed, m.Status.Attempt.Number, m.Status.Requests[0])
		}
	}
}

// TestReprovisionOnAnOldView: a request is not Done when no BootAttempt was opened for it, as another was opened since
// the Machine was looked at.
func TestReprovisionOnAnOldView(t *testing.T) {
	b := newBench(t)
	b.active("r1u01", 1)
	if _, err := b.request("r1u01", api.Request{ID: "x", Verb: api.VerbReprovision, By: "root"}); err != nil {
		t.Fatal(err)
	}
	b.sync()
	old := b.get("r1u01")
	b.mutate("r1u01", func(m *api.Machine) {
		openAttempt(m, time.Now(), action{reason: "test", stage: api.StagePowerOn}, time.Hour)
	})
	if _, err := b.c.step(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if m := b.get("r1u01"); m.Status.Requests[0].State != api.RequestRunning || m.Status.Attempt.Number != 2 {
		t.Errorf("BootAttempt %d, request %+v", m.Status.Attempt.Number, m.Status.Requests[0])
	}
	if m := b.steps("r1u01", false); m.Status.Requests[0].State != api.RequestDone || m.Status.Attempt.Request != "x" {
		t.Errorf("BootAttempt %+v, request %+v", m.Status.Attempt, m.Status.Requests[0])
	}
}

// TestRequestUnderARunningLoop: with the loop running, a pass must not act on a Machine as it was before the
// loop's own last write.
func TestRequestUnderARunningLoop(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.advance("r1u01", api.StageJoined)
	b.applied("r1u01")
	b.steps("r1u01", false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.c.Control().Run(ctx) }()
	for i := range 20 {
		id := fmt.Sprint(i)
		if _, err := b.request("r1u01", api.Request{ID: id, Verb: api.VerbReprovision, By: "root"}); err != nil {
			t.Fatal(err)
		}
		for {
			m := b.get("r1u01")
			if r := m.Status.Requests[len(m.Status.Requests)-1]; r.ID == id && r.State == api.RequestDone {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	<-done
	if n := b.get("r1u01").Status.Attempt.Number; n != 21 {
		t.Errorf("20 requests made BootAttempt %d, want 21", n)
	}
}

func TestOffAndBack(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateOff })
	var m *api.Machine
	for range 6 {
		m = b.step("r1u01")
	}
	if m.Status.Phase != api.PhaseAvailable || m.Status.Power != "Off" || m.Status.Attempt != nil {
		t.Fatalf("phase %s, power %s, attempt %+v", m.Status.Phase, m.Status.Power, m.Status.Attempt)
	}
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.State = api.StateActive })
	if m = b.steps("r1u01", false); !m.Status.Attempt.Open() {
		t.Errorf("phase %s", m.Status.Phase)
	}
}

func TestMissingReferenceIsNamed(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.mutate("r1u01", func(m *api.Machine) { m.Spec.Profile = "storage" })
	m := b.steps("r1u01", false)
	if c := m.Status.Conditions.Get(api.CondReferences); c == nil || c.Status != api.False || !strings.Contains(c.Message, `"storage"`) {
		t.Errorf("%+v", c)
	}
	if b.bmc.dials != 0 {
		t.Errorf("the BMC was dialled for a Machine that cannot boot")
	}
}

func TestRequestsAreServedOnce(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.bmc.did = nil
	for range 2 {
		if _, err := b.request("r1u01", api.Request{ID: "x", Verb: api.VerbPower, Argument: "reset"}); err != nil {
			t.Fatal(err)
		}
		b.steps("r1u01", false)
	}
	if !slices.Equal(b.bmc.did, []string{"reset"}) {
		t.Errorf("the BMC was told %v", b.bmc.did)
	}
	if _, err := AddRequest(b.get("r1u01"), api.Request{ID: "y", Verb: api.VerbPower, Argument: "sideways"}); err == nil {
		t.Error("power sideways was taken")
	}
}
