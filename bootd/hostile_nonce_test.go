package bootd_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// asks asks for the script with each value as AssetTag, and gets it with none; if
// it did, it would go on to the config.
func (p *party) asks(tags ...string) {
	p.v.t.Helper()
	for _, tag := range tags {
		var l loot
		if status := p.script(&l, tag); status != http.StatusServiceUnavailable || l.pointer != "" {
			p.v.t.Errorf("the script with tag %q: %d", tag, status)
		}
		if l.pointer != "" && p.fetchPointer(&l) == http.StatusOK {
			p.fetchConfig(&l)
		}
	}
}

// joinRefused joins with each value as token, and is refused.
func (p *party) joinRefused(tokens ...string) {
	p.v.t.Helper()
	for _, token := range tokens {
		if cert, status := p.join(&loot{join: token}); cert != nil || status != http.StatusForbidden {
			p.v.t.Errorf("the join with token %q: %d", token, status)
		}
	}
}

// nonceForgeries are the forgeries of a MAC against a Machine that requires its
// nonce: whoever does not see the Machine's traffic guesses, or has what an
// earlier BootAttempt has left.
func nonceForgeries() []attack {
	return []attack{
		{name: "early, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			evil.lease()
			evil.asks("", "guessed", strings.Repeat("A", 32))
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
			var l loot
			real.lease()
			real.script(&l, v.bmc.AssetTag())
			evil.lease()
			evil.asks("", "guessed")
			for _, at := range []string{v.mac, v.name + "/key"} {
				if status, _ := evil.do("GET", "http://198.18.0.1:8080/ignition/pointer/"+at, "", ""); status != http.StatusForbidden && status != http.StatusNotFound {
					t.Errorf("the pointer at %s: %d", at, status)
				}
			}
			real.lease()
			real.goOn(&l)
			v.untouched()
		}},
		{name: "late, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			spent := v.bmc.AssetTag()
			real.boot()
			evil.lease()
			evil.asks("", "guessed", spent, v.bmc.AssetTag())
			v.wait("that something asks for a boot is said", func(m *api.Machine) bool {
				cond := m.Status.Conditions.Get(api.CondTrust)
				return cond != nil && cond.Reason == "BootAsked"
			})
			v.untouched()
		}},
		{name: "replay, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			var old loot
			spent := v.bmc.AssetTag()
			real.lease()
			real.script(&old, spent)
			real.fetchPointer(&old)
			real.fetchConfig(&old)
			if _, err := v.c.Verb(t.Context(), v.name, api.Request{ID: rand.Text(), Verb: api.VerbReprovision}); err != nil {
				t.Fatal(err)
			}
			v.poweredOn(2)
			evil.lease()
			evil.asks(spent)
			again := old
			if status := evil.fetchPointer(&again); status != http.StatusServiceUnavailable {
				t.Errorf("the pointer of an attempt that is over: %d", status)
			}
			if status := evil.fetchConfig(&old); status != http.StatusForbidden {
				t.Errorf("the config of an attempt that is over: %d", status)
			}
			evil.joinRefused(old.join)
			if n := v.events("SpentSecret"); n != 3 {
				t.Errorf("%d of 3 spent secrets are written down", n)
			}
			real.boot()
			v.untouchedIn(2)
		}},
		otherAddress("other address, with all that the Machine was given, and the nonce is required", api.TrustNonce),
		{name: "second join, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			var l loot
			tag := v.bmc.AssetTag()
			real.lease()
			real.script(&l, tag)
			real.fetchPointer(&l)
			real.fetchConfig(&l)
			evil.lease()
			evil.joinRefused("guessed", tag, strings.Repeat("A", 43))
			real.lease()
			real.active(&l)
			evil.lease()
			evil.joinRefused("guessed", strings.Repeat("A", 43))
			v.untouched()
		}},
		{name: "twenty at once, and the nonce is required", trust: api.TrustNonce, play: func(t *testing.T, v *victim, real, evil *party) {
			evil.lease()
			var all sync.WaitGroup
			for i := range 20 {
				all.Go(func() {
					evil.asks(fmt.Sprintf("GUESS%027d", i))
					at := fmt.Sprintf("http://198.18.0.1:8080/ignition/pointer/%s/%043d", v.name, i)
					if status, _ := evil.do("GET", at, "", ""); status != http.StatusForbidden {
						t.Errorf("the pointer at %s: %d", at, status)
					}
				})
			}
			all.Wait()
			real.boot()
			v.untouched()
		}},
		{name: "another's script, by a Machine that has proved itself, and the nonce is required", trust: api.TrustNonce, foreign: true, play: func(t *testing.T, v *victim, real, evil *party) {
			other := v.victim(t, 0x80, api.TrustNonce)
			other.poweredOn(1)
			host := other.party(other.mac)
			host.lease()
			before := v.machine()
			for _, tag := range []string{other.bmc.AssetTag(), v.bmc.AssetTag()} {
				if status, text := host.do("GET", "http://198.18.0.1:8080/ipxe/script?mac="+v.mac+"&asset="+tag, "", ""); status != http.StatusServiceUnavailable || strings.Contains(text, "ignition.config.url") {
					t.Errorf("the other's script: %d", status)
				}
			}
			if now := v.machine(); now.Metadata.ResourceVersion != before.Metadata.ResourceVersion {
				t.Errorf("it changed the Machine: %+v", now.Status)
			}
			host.asks(v.bmc.AssetTag()) // its own script with the other's nonce
			host.boot()
			real.boot()
			v.untouched()
			other.untouched()
		}},
	}
}
