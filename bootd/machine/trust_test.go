package machine

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

func taker(what string) api.Taker {
	return api.Taker{What: what, Address: netip.MustParseAddr("198.18.0.100"), MAC: "52:54:00:01:01:00", Time: time.Now().UTC()}
}

func (b *bench) site(change func(*api.Site)) {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.store, "site", func(s *api.Site) error { change(s); return nil }); err != nil {
		b.t.Fatal(err)
	}
}

// TestSecondTakersAreRetried: each attempt is followed by another, with a reset,
// as often as the Site says; then a person is told what to do.
func TestSecondTakersAreRetried(t *testing.T) {
	for _, most := range []int{0, 1, 3} {
		b := newBench(t)
		b.site(func(s *api.Site) { s.Spec.Trust.Retries = &most })
		b.machine("r1u01", 1)
		seen := map[string]bool{}
		for n := range most + 1 {
			b.bmc.lastReset = time.Now().Add(-time.Hour)
			m := b.steps("r1u01", false)
			if !m.Status.Attempt.Open() || m.Status.Attempt.Retry != n || seen[m.Status.Attempt.ID] {
				t.Fatalf("%d retries allowed, after %d: %+v", most, n, m.Status.Attempt)
			}
			seen[m.Status.Attempt.ID] = true
			b.mutate("r1u01", func(m *api.Machine) {
				for range 2 {
					Take(m, m.Status.Attempt.ID, taker("config"))
				}
				m.Status.Attempt.Finished = time.Now().Add(-time.Hour)
			})
		}
		if resets := len(b.bmc.did) / 2; resets != most+1 {
			t.Errorf("%d retries allowed: the BMC was told %v", most, b.bmc.did)
		}
		m := b.steps("r1u01", false)
		cond := m.Status.Conditions.Get(api.CondTrust)
		if m.Status.Phase != api.PhaseFailed || m.Status.Attempt.Open() || cond.Reason != "TooManySecondTakers" || !strings.Contains(cond.Message, "weftctl machine reprovision r1u01") {
			t.Errorf("%d retries allowed: phase %s, condition %+v", most, m.Status.Phase, cond)
		}
		told := 0
		for _, e := range b.events.list {
			if strings.HasPrefix(e, "TooManySecondTakers") {
				told++
			}
		}
		if told != 1 {
			t.Errorf("told %d times: %v", told, b.events.list)
		}
	}
}

func TestTake(t *testing.T) {
	m := new(api.Machine)
	openAttempt(m, time.Now(), action{reason: "test", stage: api.StagePowerOn}, time.Hour)
	id := m.Status.Attempt.ID
	if Take(m, "another", taker("pointer")) || len(m.Status.Attempt.Takers) != 0 {
		t.Error("a taker of another attempt counts")
	}
	if Take(m, id, taker("pointer")) || Take(m, id, taker("config")) || Take(m, id, taker("join")) || !m.Status.Attempt.Open() {
		t.Errorf("first takers fail it: %+v", m.Status.Attempt)
	}
	m.Status.HostKey = "key"
	if !Take(m, id, taker("pointer")) || m.Status.Attempt.Open() || m.Status.HostKey != "" {
		t.Errorf("a second taker does not: %+v", m.Status.Attempt)
	}
	for range 100 {
		Take(m, id, taker("pointer"))
	}
	if n := len(m.Status.Attempt.Takers); n != api.MaxTakers {
		t.Errorf("%d takers are kept", n)
	}
	m.Status.Attempt.Result = api.ResultActive
	SecondTaker(m, id, taker("config"))
	if m.Status.Attempt.Result != api.ResultActive {
		t.Error("an attempt that is over fails")
	}
}

// TestTwoBoot: the pointer was taken, and something asks for a boot script.
func TestTwoBoot(t *testing.T) {
	reset, old := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	for _, c := range []struct {
		name   string
		policy api.UnsolicitedBoot
		reset  time.Time
		noBMC  bool
		fails  bool
		opens  bool
	}{
		{name: "it was reset", policy: api.BootConfirm, reset: reset, opens: true},
		{name: "it was not reset", policy: api.BootConfirm, reset: old, fails: true},
		{name: "its BMC tells nothing", policy: api.BootConfirm, fails: true},
		{name: "it has no BMC", policy: api.BootConfirm, noBMC: true, fails: true},
		{name: "boots of its own are refused", policy: api.BootRefuse, reset: reset, fails: true},
		{name: "boots of its own are allowed", policy: api.BootAllow, opens: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.machine("r1u01", 1)
			b.steps("r1u01", false)
			b.advance("r1u01", api.StageDHCP, api.StageScript, api.StagePointer, api.StageConfig, api.StageJoined)
			b.bmc.lastReset = c.reset
			b.mutate("r1u01", func(m *api.Machine) {
				m.Spec.Boot.Unsolicited, m.Status.HostKey, m.Status.BootAsked = c.policy, "key", time.Now()
				if c.noBMC {
					m.Spec.BMC = nil
				}
			})
			b.sync()
			var m *api.Machine
			for range 2 {
				m = b.step("r1u01")
			}
			first := m.Status.Attempt
			if c.opens {
				if !first.Open() || first.Number != 2 {
					t.Errorf("attempt %+v", first)
				}
				return
			}
			cond := m.Status.Conditions.Get(api.CondTrust)
			if failed := first.Result == api.ResultFailed && first.Cause == api.CauseSecondTaker && m.Status.HostKey == ""; failed != c.fails || cond == nil || cond.Reason != "SecondTaker" {
				t.Errorf("attempt %+v, condition %+v", first, cond)
			}
		})
	}
}

// TestNonceIsWanted: by the strictest of Site, Profile and Machine, and never
// without a reset, at which alone the firmware reads the AssetTag.
func TestNonceIsWanted(t *testing.T) {
	for _, c := range []struct {
		name                   string
		site, profile, machine api.TrustLevel
		noBMC                  bool
		want                   api.NonceState
	}{
		{name: "not asked for"},
		{name: "Site", site: api.TrustNonce, want: api.NonceWritten},
		{name: "Profile", profile: api.TrustNonce, want: api.NonceWritten},
		{name: "Machine", machine: api.TrustNonce, want: api.NonceWritten},
		{name: "more is asked for", site: api.TrustNonce, machine: api.TrustBMC},
		{name: "no BMC", machine: api.TrustNonce, noBMC: true, want: api.NonceFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			if c.site != "" {
				b.site(func(s *api.Site) { s.Spec.Trust.Minimum = c.site })
			}
			if _, err := store.Mutate(t.Context(), b.store, "worker", func(p *api.Profile) error { p.Spec.Trust.Minimum = c.profile; return nil }); err != nil {
				t.Fatal(err)
			}
			b.machine("r1u01", 1)
			b.mutate("r1u01", func(m *api.Machine) {
				m.Spec.Trust.Minimum, m.Spec.Boot.Unsolicited, m.Status.BootAsked = c.machine, api.BootAllow, time.Now()
				if c.noBMC {
					m.Spec.BMC = nil
				}
			})
			for range 5 {
				b.step("r1u01")
			}
			a := b.get("r1u01").Status.Attempt
			if a == nil {
				t.Fatal("no attempt")
			}
			if c.want == "" && a.Nonce != nil || c.want != "" && (a.Nonce == nil || a.Nonce.State != c.want) {
				t.Errorf("nonce %+v, want %s", a.Nonce, c.want)
			}
		})
	}
}

// TestAskedBesideHost: an Active Machine's host holds its stream, and something
// asks for boots with its MAC. A host that was just reset does so too, for a
// moment.
func TestAskedBesideHost(t *testing.T) {
	b := newBench(t)
	b.machine("r1u01", 1)
	b.steps("r1u01", false)
	b.advance("r1u01", api.StageJoined)
	b.applied("r1u01")
	b.steps("r1u01", false)
	ask := func(when time.Time) *api.Condition {
		b.mutate("r1u01", func(m *api.Machine) { m.Status.BootAsked = when })
		m := b.steps("r1u01", false)
		if m.Status.Phase != api.PhaseActive || m.Status.Attempt.Number != 1 || m.Status.Attempt.Result != api.ResultActive {
			t.Errorf("the host is stopped by it: %+v", m.Status.Attempt)
		}
		return m.Status.Conditions.Get(api.CondTrust)
	}
	if c := ask(time.Now()); c.Status != api.Unknown || c.Reason != bootAsked {
		t.Errorf("at once: %+v", c)
	}
	if c := ask(b.get("r1u01").Status.Attempt.Finished); c.Status != api.True || c.Reason != "Reached" {
		t.Errorf("when it has stopped: %+v", c)
	}
	ask(time.Now())
	b.mutate("r1u01", func(m *api.Machine) {
		m.Status.Conditions.Get(api.CondTrust).Time = time.Now().Add(-bootAskedPatience)
	})
	for range 2 {
		if c := ask(time.Now()); c.Status != api.False || c.Reason != "BootAskedBesideHost" || !strings.Contains(c.Message, "one of the two is not this Machine") {
			t.Errorf("after minutes: %+v", c)
		}
	}
	said := 0
	for _, e := range b.events.list {
		if strings.HasPrefix(e, "BootAskedBesideHost") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times: %v", said, b.events.list)
	}
}

// TestOverdueForTrust: an attempt that went no further because of its trust level
// fails with that for a reason.
func TestOverdueForTrust(t *testing.T) {
	const held = "trust level nonce is required (by the Site), and this boot has reached mac: it did not send the value"
	for _, c := range []struct {
		name     string
		stage    api.Stage
		required api.TrustLevel
		held     string
		want     string
	}{
		{"asked and held", api.StageLoader, api.TrustNonce, held, "no progress for 30m0s after stage Loader: " + held},
		{"asked over plain HTTP", api.StageLoader, api.TrustBMC, held, "no progress for 30m0s after stage Loader: " + held},
		{"nothing came over TLS", api.StageDHCP, api.TrustBMC, "", "trust level bmc is required (by the Site), and nothing presented the boot URL of this BootAttempt over TLS"},
		{"switched off", api.StagePowerOn, api.TrustBMC, "", "none of its MACs"},
		{"no loader", api.StageDHCP, api.TrustToken, "", "fetched no boot loader"},
		{"past the script", api.StageInitrd, api.TrustBMC, "", "Ignition never asked for its pointer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := new(api.Machine)
			openAttempt(m, time.Now(), action{reason: "test", stage: c.stage}, 30*time.Minute)
			if c.held != "" {
				m.Status.Conditions.Set(time.Now(), api.CondTrust, api.False, "LevelNotReached", c.held)
			}
			if text := overdue(m, trust.Requirement{Level: c.required, Of: "the Site"}); !strings.Contains(text, c.want) {
				t.Errorf("it says %q, want %q", text, c.want)
			}
		})
	}
}
