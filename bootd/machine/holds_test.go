package machine

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// TestHolds: what a BMC refused holds back that question alone, a lost login all of the BMC's Machines, and its silence
// neither a person nor fencing.
func TestHolds(t *testing.T) {
	asks := func(machine string, a action) call {
		return call{machine: machine, bmc: "https://198.18.1.1 bmc", key: machine + " 1", login: "1", action: a}
	}
	boot, health, fence := action{ask: askBoot}, action{ask: askHealth}, action{ask: askFence}
	light := action{ask: askRequest, request: &api.Request{Verb: api.VerbIdentify, Argument: "on"}}
	reset := action{ask: askRequest, request: &api.Request{Verb: api.VerbPower, Argument: "reset"}}
	inspect := action{ask: askInventory, request: &api.Request{Verb: api.VerbInspect}}
	corrected := asks("a", boot)
	corrected.key, corrected.login = "a 2", "2"
	for name, r := range map[string]struct {
		failed  action
		entered bool
		err     error
		held    []call
		free    []call
	}{
		"unsupported":           {light, true, hardware.ErrUnsupported, nil, []call{asks("a", light), asks("a", reset), asks("a", inspect), asks("a", boot), asks("a", fence), asks("b", boot)}},
		"forbidden":             {boot, true, hardware.ErrForbidden, []call{asks("a", boot)}, []call{asks("a", reset), asks("a", health), asks("a", fence), asks("b", boot), corrected}},
		"no system":             {boot, false, fmt.Errorf("no system"), []call{asks("a", boot), asks("a", health)}, []call{asks("a", fence), asks("b", boot), corrected}},
		"silent":                {health, false, hardware.ErrUnreachable, []call{asks("a", boot), asks("b", boot)}, []call{asks("a", fence), asks("a", reset), corrected}},
		"silent when it fenced": {fence, false, hardware.ErrUnreachable, []call{asks("a", fence), asks("b", boot)}, []call{asks("b", fence), asks("a", light)}},
		"wrong password": {light, false, hardware.ErrUnauthorized,
			[]call{asks("a", boot), asks("a", fence), asks("a", light), asks("b", boot)}, []call{corrected}},
		"password change":     {boot, false, hardware.ErrPasswordChange, []call{asks("a", light), asks("b", fence)}, []call{corrected}},
		"another certificate": {boot, false, &hardware.CertificateMismatchError{}, []call{asks("a", light), asks("b", fence)}, []call{corrected}},
	} {
		t.Run(name, func(t *testing.T) {
			h := &holds{}
			h.reset()
			h.fail(asks("a", r.failed), r.entered, r.err)
			for _, c := range r.held {
				if left, why := h.of(c).left(time.Now()); left <= 0 || why == "" {
					t.Errorf("%s of %s is not held", c.action.doing(), c.machine)
				}
			}
			for _, c := range r.free {
				if left, why := h.of(c).left(time.Now()); left > 0 {
					t.Errorf("%s of %s is held: %s", c.action.doing(), c.machine, why)
				}
			}
		})
	}
}

func (b *bench) ask(name string, verb api.Verb, argument string) {
	b.mutate(name, func(m *api.Machine) {
		r := api.Request{ID: fmt.Sprint(verb, argument, len(m.Status.Requests)), Verb: verb, Argument: argument, By: "root"}
		if _, err := AddRequest(m, r); err != nil {
			b.t.Error(err)
		}
	})
}

// TestLoginOfTwoMachines: a wrong password is tried once for all systems of a BMC, and each Machine says so.
func TestLoginOfTwoMachines(t *testing.T) {
	b := newBench(t)
	b.bmc.dialErr = fmt.Errorf("log in: %w", hardware.ErrUnauthorized)
	for n, name := range []string{"r1u01", "r1u02"} {
		b.create(&api.Machine{Base: named(name), Spec: api.MachineSpec{
			Zone: "yellow", Profile: "worker",
			Links: []api.Link{{Name: "pxe0", MAC: api.MAC(fmt.Sprintf("52:54:00:01:%02x:00", n))}},
			BMC:   &api.BMC{Address: "https://198.18.1.1", System: fmt.Sprint(n), Credentials: "bmc"},
		}})
	}
	for range 5 {
		b.step("r1u01")
		b.step("r1u02")
	}
	if b.bmc.dials != 1 {
		t.Errorf("%d logins with a wrong password", b.bmc.dials)
	}
	for _, name := range []string{"r1u01", "r1u02"} {
		if c := b.get(name).Status.Conditions.Get(api.CondBMC); c == nil || c.Status != api.False || c.Reason != "Unauthorized" {
			t.Errorf("%s: BMCReachable %+v", name, c)
		}
	}
}

// TestRefusedWish: the BMC has no light, and does all the rest.
func TestRefusedWish(t *testing.T) {
	b := newBench(t)
	b.active("r1u01", 1)
	b.bmc.lightErr = &hardware.UnsupportedError{Verb: "switch the locator light", Err: fmt.Errorf("it has none")}
	b.ask("r1u01", api.VerbIdentify, "on")
	b.steps("r1u01", false)
	b.ask("r1u01", api.VerbPower, "reset")
	m := b.steps("r1u01", false)
	light, reset := m.Status.Requests[0], m.Status.Requests[1]
	if light.State != api.RequestFailed || !strings.Contains(light.Message, "it has none") || reset.State != api.RequestDone || !slices.Contains(b.bmc.did, "reset") {
		t.Errorf("requests %+v, the BMC was told %v", m.Status.Requests, b.bmc.did)
	}
	if !m.Status.Conditions.Is(api.CondBMC) {
		t.Errorf("conditions %+v", m.Status.Conditions)
	}
}

// TestRefusedBoot: a BMC that does not let the account boot the server answers, and says so; a corrected spec tries again.
func TestRefusedBoot(t *testing.T) {
	b := newBench(t)
	b.bmc.bootErr = fmt.Errorf("%w: the BMC's words", hardware.ErrForbidden)
	b.machine("r1u01", 1)
	m := b.steps("r1u01", false)
	if c := m.Status.Conditions.Get(api.CondObeys); c == nil || c.Reason != "Forbidden" || !strings.Contains(c.Message, "the BMC's words") || !m.Status.Conditions.Is(api.CondBMC) {
		t.Errorf("conditions %+v", m.Status.Conditions)
	}
	b.mutate("r1u01", func(m *api.Machine) { m.Status.Attempt.Deadline = time.Now().Add(-time.Second) })
	if m = b.steps("r1u01", false); !strings.Contains(m.Status.Attempt.Message, "the BMC's words") {
		t.Errorf("it failed with %q", m.Status.Attempt.Message)
	}
	b.bmc.bootErr = nil
	b.mutate("r1u01", func(m *api.Machine) {
		m.Status.Attempt.Finished = time.Now().Add(-time.Hour)
		m.Spec.Boot.Firmware = "uefi"
	})
	if m = b.steps("r1u01", false); m.Status.Attempt.Stage != api.StagePowerOn || m.Status.Conditions.Get(api.CondObeys) != nil {
		t.Errorf("attempt %+v, conditions %+v", m.Status.Attempt, m.Status.Conditions)
	}
}

// TestBootAsFarAsTheBMCCan: what no BMC of that kind can be told is left to the firmware, and does not block the boot.
func TestBootAsFarAsTheBMCCan(t *testing.T) {
	for name, r := range map[string]struct {
		err  error
		told []string
	}{
		"no override":   {fmt.Errorf("%w: %w", hardware.ErrUnsupported, hardware.ErrNoOverride), []string{"boot pxe uefi", "on"}},
		"mode not told": {fmt.Errorf("%w: %w", hardware.ErrUnsupported, hardware.ErrModeUntold), []string{"boot pxe uefi", "boot pxe", "on"}},
		"no such mode":  {hardware.ErrUnsupported, []string{"boot pxe uefi"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.bmc.bootErr = r.err
			b.machine("r1u01", 1)
			b.mutate("r1u01", func(m *api.Machine) { m.Spec.Boot.Firmware = "uefi" })
			m := b.steps("r1u01", false)
			if !slices.Equal(b.bmc.did, r.told) || m.Status.Attempt.Reached(api.StagePowerOn) != (len(r.told) > 1) {
				t.Errorf("the BMC was told %v, want %v; stage %s", b.bmc.did, r.told, m.Status.Attempt.Stage)
			}
		})
	}
}

// TestPasswordToBeChanged is a condition of its own, which says what to do; the new password is tried at once.
func TestPasswordToBeChanged(t *testing.T) {
	b := newBench(t)
	b.bmc.dialErr = fmt.Errorf("log in: %w: the BMC's words", hardware.ErrPasswordChange)
	b.machine("r1u01", 1)
	for range 5 {
		b.step("r1u01")
	}
	m := b.get("r1u01")
	c := m.Status.Conditions.Get(api.CondPassword)
	if c == nil || c.Status != api.True || !strings.Contains(c.Message, "the BMC's words") || !strings.Contains(c.Message, "write it into Secret bmc") || b.bmc.dials != 1 {
		t.Fatalf("%d logins, conditions %+v", b.bmc.dials, m.Status.Conditions)
	}
	_, err := store.Mutate(t.Context(), b.store, "bmc", func(s *api.Secret) error {
		s.Spec.Data = map[string]string{"username": "admin", "password": "secret-2"}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.bmc.dialErr = nil
	if m = b.steps("r1u01", false); m.Status.Conditions.Get(api.CondPassword) != nil || m.Status.Phase != api.PhaseProvisioning {
		t.Errorf("phase %s, conditions %+v", m.Status.Phase, m.Status.Conditions)
	}
}
