package machine

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// Required is the trust level that the Machine's boots must reach now.
func Required(c *store.Cache, m *api.Machine) trust.Requirement {
	p, _ := store.Cached[api.Profile](c, m.Spec.Profile)
	return trust.Required(site.Spec(c), p, m)
}

// wantNonce notes in a new attempt that its nonce has to be written to the
// AssetTag.
func wantNonce(m *api.Machine, now time.Time) {
	n := &api.Nonce{State: api.NoncePending, Time: now.UTC()}
	if m.Spec.BMC == nil {
		n.State, n.Message = api.NonceFailed, "the Machine has no BMC in its spec"
	}
	m.Status.Attempt.Nonce = n
}

// Trusted writes what a request of the Machine's attempt has proved; it never
// lowers it.
func Trusted(m *api.Machine, v trust.Verdict) {
	a := m.Status.Attempt
	if a.Trust == "" || v.Reached.AtLeast(a.Trust) {
		a.Trust, a.TrustWhy = v.Reached, v.Why
	}
	if a.Nonce != nil && v.Reached == api.TrustNonce && a.Nonce.State == api.NonceWritten {
		a.Nonce.State, a.Nonce.Time = api.NonceProved, time.Now().UTC()
	}
}

// addTaker keeps the first takers of the attempt.
func addTaker(a *api.BootAttempt, t api.Taker) {
	if len(a.Takers) < api.MaxTakers {
		a.Takers = append(a.Takers, t)
	}
}

// taken returns who took something in the attempt first, nil for none.
func taken(a *api.BootAttempt, what string) *api.Taker {
	for i, t := range a.Takers {
		if t.What == what && !t.Second {
			return &a.Takers[i]
		}
	}
	return nil
}

// Taken reports whether any client has taken something in the Machine's attempt.
func Taken(m *api.Machine, what string) bool {
	return m.Status.Attempt != nil && taken(m.Status.Attempt, what) != nil
}

// Take records who took the pointer or the config of the Machine's attempt. When
// another has taken it before, there are two that use the Machine's MAC and
// address, and the attempt fails; second tells.
func Take(m *api.Machine, attempt string, t api.Taker) (second bool) {
	a := m.Status.Attempt
	if a == nil || a.ID != attempt {
		return false
	}
	if taken(a, t.What) != nil {
		SecondTaker(m, attempt, t)
		return true
	}
	addTaker(a, t)
	return false
}

// SecondTaker records that a client came for what another has taken in the
// attempt, and fails the attempt: it is unknown which of the two is the
// Machine. Whatever was given in it is worthless from now on.
func SecondTaker(m *api.Machine, attempt string, t api.Taker) {
	a := m.Status.Attempt
	if a == nil || a.ID != attempt {
		return
	}
	message := SecondText(a, t)
	t.Second = true
	addTaker(a, t)
	m.Status.Conditions.Set(t.Time, api.CondTrust, api.False, string(api.CauseSecondTaker), message)
	if a.Open() {
		a.Cause = api.CauseSecondTaker
		Fail(m, t.Time, message)
	}
}

// SecondText says who came second for what.
func SecondText(a *api.BootAttempt, t api.Taker) string {
	const verdict = "; one of them is not this Machine, so all that the attempt gave is revoked"
	if t.What == "script" {
		first := taken(a, "pointer")
		if first == nil {
			first = &api.Taker{}
		}
		return fmt.Sprintf("%s took the pointer of BootAttempt %d, and now %s asks for a boot script, although no reset is known since then%s", who(*first), a.Number, who(t), verdict)
	}
	text := fmt.Sprintf("two came for the %s of BootAttempt %d: ", t.What, a.Number)
	if first := taken(a, t.What); first != nil {
		text += fmt.Sprintf("%s at %s, then ", who(*first), first.Time.UTC().Format(time.TimeOnly))
	}
	return text + who(t) + verdict
}

func who(t api.Taker) string {
	switch {
	case !t.Address.IsValid():
		return "something with its MAC"
	case t.MAC == "":
		return t.Address.String()
	}
	return fmt.Sprintf("%s (MAC %s)", t.Address, t.MAC)
}

// retries is how many attempts may follow one that failed.
func retries(site api.SiteSpec, a *api.BootAttempt) int {
	if a.Cause != api.CauseSecondTaker {
		return api.MaxRetries
	}
	if site.Trust.Retries == nil {
		return api.DefaultTrustRetries
	}
	return *site.Trust.Retries
}

// remedy is what a person does when too many attempts in a row had two takers.
func remedy(m *api.Machine) string {
	return fmt.Sprintf("bootd opens no further BootAttempt by itself: find what else uses its MAC (the addresses are in \"weftctl explain machine %[1]s\"; look for the port on the switch), "+
		"or require trust level address, nonce or bmc (spec.trust.minimum), then weftctl machine reprovision %[1]s", m.Metadata.Name)
}

// bootAskedPatience is how long something may ask for boots while there is a host that
// holds its stream, before that is more than a host that was just reset and
// whose stream has not been missed yet.
const bootAskedPatience = 2 * time.Minute

// bootAsked is the reason of the condition meanwhile.
const bootAsked = "BootAsked"

// asks reports whether the Machine's condition says that something asks for a
// boot, which it may have stopped to do.
func asks(m *api.Machine) bool {
	c := m.Status.Conditions.Get(api.CondTrust)
	return c != nil && c.Reason == bootAsked
}

// askedNoMore takes that back.
func askedNoMore(m *api.Machine, now time.Time) {
	if a := m.Status.Attempt; asks(m) && a != nil {
		m.Status.Conditions.Set(now, api.CondTrust, api.True, "Reached", fmt.Sprintf("trust level %s: %s", a.Trust, a.TrustWhy))
	}
}
