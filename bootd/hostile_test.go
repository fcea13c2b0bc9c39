package bootd_test

import (
	"fmt"
	"maps"
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
	v.untouchedIn(1)
}

// untouchedIn checks that for the BootAttempt of that number.
func (v *victim) untouchedIn(number int) {
	v.t.Helper()
	m := v.machine()
	cond := m.Status.Conditions.Get(api.CondTrust)
	if m.Status.Attempt.Number != number || cond == nil || cond.Status == api.False || v.events("SecondTaker") != 0 {
		v.t.Errorf("attempt %+v, conditions %+v", m.Status.Attempt, m.Status.Conditions)
	}
}

// attack is what an attacker on the segment does while a Machine boots.
type attack struct {
	name    string
	trust   api.TrustLevel // that the Machine requires; the Site's default when empty
	foreign bool           // it has a MAC that no Machine has, and not the victim's
	play    func(t *testing.T, v *victim, real, evil *party)
	secrets int32 // that get out

	hopeless bool // the Machine is not to become Active
}

// TestHostileNeighbour: bootd as it is run, a Machine that boots, and somebody
// else on the same segment who has the Machine's MAC, or some other. At level
// nonce nothing of a Machine gets out to whoever does not see its traffic.
func TestHostileNeighbour(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	attacks := append(forgeries(), nonceForgeries()...)
	out := newTally(t, len(attacks), map[api.TrustLevel]int32{api.TrustToken: 3, api.TrustNonce: 0, api.TrustBMC: 0})
	var all sync.WaitGroup
	for n, c := range attacks {
		v := s.victim(t, n+1, c.trust)
		all.Go(func() { // they wait most of the time: more of them at once than -parallel says
			t.Run(c.name, func(t *testing.T) { c.run(t, v, out) })
		})
	}
	all.Wait()
}

func (c attack) run(t *testing.T, v *victim, out *tally) {
	v.t = t
	v.poweredOn(1)
	mac := v.mac
	if c.foreign {
		mac = strings.Replace(v.mac, "52:54:00:01", "52:54:00:ff", 1)
	}
	real, evil := v.party(v.mac), v.party(mac)
	c.play(t, v, real, evil)
	got := evil.secrets.Load()
	if got != c.secrets {
		t.Errorf("%d configs with Secrets got out, want %d", got, c.secrets)
	}
	out.add(c.trust, got)
	if m := v.machine(); !c.hopeless && (m.Status.Phase != api.PhaseActive || real.secrets.Load() == 0) {
		t.Errorf("the Machine is %s: %+v", m.Status.Phase, m.Status.Attempt)
	}
}

// tally counts the configs with Secrets that got out, by the level that was
// required.
type tally struct {
	mu    sync.Mutex
	cases int
	out   map[api.TrustLevel]int32
}

// newTally compares the counts with what docs/security.md says when all cases of
// a test have run.
func newTally(t *testing.T, cases int, want map[api.TrustLevel]int32) *tally {
	c := &tally{out: map[api.TrustLevel]int32{}}
	t.Cleanup(func() {
		t.Logf("configs with Secrets that got out: %v", c.out)
		if c.cases == cases && !maps.Equal(c.out, want) {
			t.Errorf("configs with Secrets that got out: %v, want %v", c.out, want)
		}
	})
	return c
}

func (c *tally) add(level api.TrustLevel, n int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if level == "" {
		level = api.TrustToken
	}
	c.cases++
	c.out[level] += n
}

// forgeries are what whoever has the Machine's MAC, or another one, can do, and
// what it gets by that.
func forgeries() []attack {
	return []attack{
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
		otherAddress("other address", ""),
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
		{name: "another's script", foreign: true, play: func(t *testing.T, v *victim, real, evil *party) {
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
	}
}

// otherAddress is an attack from another address with all that the Machine was
// given: its pointer, its config's token, its join token, and at level nonce the
// value of its AssetTag.
func otherAddress(name string, level api.TrustLevel) attack {
	return attack{name: name, trust: level, foreign: true, play: func(t *testing.T, v *victim, real, evil *party) {
		var l loot
		tag := ""
		evil.lease()
		if level == api.TrustNonce {
			tag = v.bmc.AssetTag()
			evil.asks("", tag)
		}
		real.lease()
		real.script(&l, tag)
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
		evil.joinRefused(l.join)
		real.active(&l)
		v.untouched()
	}}
}
