package bootd_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// failedBySecond waits until the attempt of that number has failed because two
// came, which is said everywhere, and until the next is open and powered on.
func (v *victim) failedBySecond(number int) {
	v.t.Helper()
	m := v.wait(fmt.Sprintf("BootAttempt %d failed", number), func(m *api.Machine) bool {
		a := m.Status.Attempt
		return a != nil && a.Number == number && a.Result == api.ResultFailed
	})
	cond := m.Status.Conditions.Get(api.CondTrust)
	if m.Status.Attempt.Cause != api.CauseSecondTaker || m.Status.HostKey != "" || cond == nil || cond.Status != api.False || cond.Reason != "SecondTaker" {
		v.t.Errorf("attempt %+v, condition %+v", m.Status.Attempt, cond)
	}
	if v.events("SecondTaker") == 0 {
		v.t.Error("no event says so")
	}
	x, err := v.c.Explain(v.t.Context(), v.name)
	if err != nil {
		v.t.Fatal(err)
	}
	if text := strings.Join(x.Summary, "\n"); !strings.Contains(text, "one of them is not this Machine") {
		v.t.Errorf("explain says\n%s", text)
	}
	resets := len(v.bmc.Booted())
	v.poweredOn(number + 1)
	if len(v.bmc.Booted()) <= resets {
		v.t.Error("the machine was not reset")
	}
}

// untouched checks that nobody else's doing is seen on the Machine.
func (v *victim) untouched() {
	v.t.Helper()
	m := v.machine()
	cond := m.Status.Conditions.Get(api.CondTrust)
	if m.Status.Attempt.Number != 1 || cond == nil || cond.Status == api.False || v.events("SecondTaker") != 0 {
		v.t.Errorf("attempt %+v, conditions %+v", m.Status.Attempt, m.Status.Conditions)
	}
}

// TestHostileNeighbour: bootd as it is run, a Machine that boots, and somebody
// else on the same segment who has the Machine's MAC, or some other.
func TestHostileNeighbour(t *testing.T) {
	s := newSite(t)
	const other = "52:54:00:ff:00:01"
	for n, c := range []struct {
		name    string
		trust   api.TrustLevel
		evil    string // MAC; the victim's when empty
		play    func(t *testing.T, v *victim, real, evil *party)
		secrets int32 // that get out

		hopeless bool // the Machine is not to become Active
	}{
		{name: "early", secrets: 1, play: func(t *testing.T, v *victim, real, evil *party) {
			var l loot
			evil.lease()
			evil.script(&l, "")
			evil.fetchPointer(&l)
			evil.fetchConfig(&l)
			cert, _ := evil.join(&l)
			if cert == nil {
				t.Fatal("it is given no certificate: then this test shows nothing")
			}
			real.lease()
			if status := real.script(new(loot), ""); status != http.StatusServiceUnavailable {
				t.Errorf("the Machine's script: %d", status)
			}
			v.failedBySecond(1)
			if why := <-evil.serve(cert, v.machine()); !strings.Contains(why, "revoked") && !strings.Contains(why, "403") {
				t.Errorf("its certificate: %s", why)
			}
			real.boot()
		}},
		{name: "between", secrets: 1, play: func(t *testing.T, v *victim, real, evil *party) {
			var l, stolen loot
			real.lease()
			real.script(&l, "")
			evil.lease()
			evil.script(&stolen, "")
			evil.fetchPointer(&stolen)
			evil.fetchConfig(&stolen)
			real.lease()
			if status := real.fetchPointer(&l); status != http.StatusServiceUnavailable {
				t.Errorf("the Machine's pointer: %d", status)
			}
			v.failedBySecond(1)
			if cert, status := evil.join(&stolen); cert != nil || status != http.StatusForbidden {
				t.Errorf("it joins with what it has: %d", status)
			}
			real.boot()
		}},
		{name: "late", play: func(t *testing.T, v *victim, real, evil *party) {
			real.boot()
			evil.lease()
			for range 3 {
				if status := evil.script(new(loot), ""); status != http.StatusServiceUnavailable {
					t.Errorf("the script: %d", status)
				}
			}
			for _, at := range []string{v.mac, strings.ReplaceAll(v.mac, ":", "-"), v.name, v.name + "/key"} {
				if status, _ := evil.do("GET", "http://198.18.0.1:8080/ignition/pointer/"+at, "", ""); status != http.StatusForbidden && status != http.StatusNotFound {
					t.Errorf("the pointer at %s: %d", at, status)
				}
			}
			v.wait("that something asks for a boot is said", func(m *api.Machine) bool {
				cond := m.Status.Conditions.Get(api.CondTrust)
				return cond != nil && cond.Reason == "BootAsked"
			})
			v.untouched()
		}},
		{name: "replay", play: func(t *testing.T, v *victim, real, evil *party) {
			var l loot
			real.lease()
			real.script(&l, "")
			real.fetchPointer(&l)
			seen := l // on the wire: the pointer is plain HTTP
			evil.lease()
			if status := evil.fetchPointer(&seen); status != http.StatusServiceUnavailable {
				t.Errorf("the pointer again: %d", status)
			}
			v.failedBySecond(1)
			if status := evil.fetchConfig(&l); status != http.StatusForbidden {
				t.Errorf("the config of an attempt that is over: %d", status)
			}
			if v.events("SpentSecret") == 0 {
				t.Error("no event says so")
			}
			real.boot()
		}},
		{name: "other address", evil: other, play: func(t *testing.T, v *victim, real, evil *party) {
			var l loot
			real.lease()
			real.script(&l, "")
			evil.lease()
			stolen := l
			if status := evil.fetchPointer(&stolen); status != http.StatusServiceUnavailable {
				t.Errorf("the pointer: %d", status)
			}
			real.fetchPointer(&l)
			if status := evil.fetchConfig(&l); status != http.StatusForbidden {
				t.Errorf("the config: %d", status)
			}
			if status := real.fetchConfig(&l); status != http.StatusOK {
				t.Fatalf("the Machine's own config: %d", status)
			}
			if cert, status := evil.join(&l); cert != nil || status != http.StatusForbidden {
				t.Errorf("the join: %d", status)
			}
			real.active(&l)
			v.untouched()
		}},
		{name: "second join", play: func(t *testing.T, v *victim, real, evil *party) {
			var l loot
			real.lease()
			real.script(&l, "")
			real.fetchPointer(&l)
			real.fetchConfig(&l)
			cert, _ := real.join(&l)
			evil.lease()
			if cert, status := evil.join(&l); cert != nil || status != http.StatusForbidden {
				t.Errorf("the second join: %d", status)
			}
			real.lease()
			v.failedBySecond(1)
			if why := <-real.serve(cert, v.machine()); !strings.Contains(why, "revoked") && !strings.Contains(why, "403") {
				t.Errorf("the first certificate: %s", why)
			}
			real.boot()
		}},
		{name: "twenty at once", secrets: 1, play: func(t *testing.T, v *victim, real, evil *party) {
			var l loot
			evil.lease()
			evil.script(&l, "")
			evil.fetchPointer(&l)
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() { evil.do("GET", l.config, l.token, "") })
			}
			all.Wait()
			if seen := v.events("SecondTaker") + v.events("SpentSecret") + v.events("TwoAtOnce"); seen != 19 {
				t.Errorf("%d of 19 were written down", seen)
			}
			v.failedBySecond(1)
			real.boot()
		}},
		{name: "early, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			evil.lease()
			for _, asset := range []string{"", "guessed", strings.Repeat("A", 32)} {
				var l loot
				if status := evil.script(&l, asset); status != http.StatusServiceUnavailable || l.pointer != "" {
					t.Errorf("the script with tag %q: %d", asset, status)
				}
			}
			m := v.machine()
			if cond := m.Status.Conditions.Get(api.CondTrust); cond == nil || cond.Reason != "LevelNotReached" || v.events("LevelNotReached") == 0 {
				t.Errorf("condition %+v", cond)
			}
			real.boot()
			v.untouched()
			if a := v.machine().Status.Attempt; a.Trust != api.TrustNonce {
				t.Errorf("the Machine has reached %s: %s", a.Trust, a.TrustWhy)
			}
		}},
		{name: "between, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			var l, stolen loot
			real.lease()
			real.script(&l, v.bmc.AssetTag())
			evil.lease()
			for _, asset := range []string{"", "guessed"} {
				if status := evil.script(&stolen, asset); status != http.StatusServiceUnavailable || stolen.pointer != "" {
					t.Errorf("the script with tag %q: %d", asset, status)
				}
			}
			for _, at := range []string{v.mac, v.name + "/key"} {
				if status, _ := evil.do("GET", "http://198.18.0.1:8080/ignition/pointer/"+at, "", ""); status != http.StatusForbidden && status != http.StatusNotFound {
					t.Errorf("the pointer at %s: %d", at, status)
				}
			}
			real.lease()
			real.goOn(&l)
			v.untouched()
		}},
		{name: "a level that nothing reaches", trust: api.TrustBMC, hopeless: true, play: func(t *testing.T, v *victim, real, evil *party) {
			for _, p := range []*party{evil, real} {
				p.lease()
				if status := p.script(new(loot), ""); status != http.StatusServiceUnavailable {
					t.Errorf("the script: %d", status)
				}
			}
			m := v.machine()
			if cond := m.Status.Conditions.Get(api.CondTrust); !m.Status.Attempt.Open() || cond == nil || !strings.Contains(cond.Message, "trust level bmc is required (by Machine "+v.name+")") {
				t.Errorf("attempt %+v, condition %+v", m.Status.Attempt, cond)
			}
		}},
		{name: "another's script", evil: other, play: func(t *testing.T, v *victim, real, evil *party) {
			evil.lease()
			before := v.machine()
			for range 5 {
				if status := evil.script(new(loot), ""); status != http.StatusServiceUnavailable {
					t.Errorf("the script: %d", status)
				}
			}
			if now := v.machine(); now.Metadata.ResourceVersion != before.Metadata.ResourceVersion {
				t.Errorf("it changed the Machine: %+v", now.Status)
			}
			real.boot()
			v.untouched()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := s.victim(t, n+1, c.trust)
			mac := c.evil
			if mac == "" {
				mac = v.mac
			}
			real, evil := v.party(v.mac), v.party(mac)
			c.play(t, v, real, evil)
			if got := evil.secrets.Load(); got != c.secrets {
				t.Errorf("%d configs with Secrets got out, want %d", got, c.secrets)
			}
			if m := v.machine(); !c.hopeless && (m.Status.Phase != api.PhaseActive || real.secrets.Load() == 0) {
				t.Errorf("the Machine is %s: %+v", m.Status.Phase, m.Status.Attempt)
			}
		})
	}
}
