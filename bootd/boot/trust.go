package boot

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// chains are the levels at which a boot script can be given, and that its
// secrets hand on.
func chains() []api.TrustLevel {
	return []api.TrustLevel{api.TrustMAC, api.TrustNonce, api.TrustBMC}
}

// secret is a secret of the Machine's attempt at a level.
func (d *Decider) secret(m *api.Machine, purpose ca.Purpose, level api.TrustLevel) string {
	return d.Tokens.Token(purpose.At(string(level)), m.Metadata.UID, m.Status.Attempt.ID)
}

// presented finds the level at which a secret of a BootAttempt was given.
func (d *Decider) presented(got string, purpose ca.Purpose, uid, attempt string) (level api.TrustLevel, ok bool) {
	for _, l := range chains() {
		if d.Tokens.Verify(got, purpose.At(string(l)), uid, attempt) {
			level, ok = l, true
		}
	}
	return level, ok
}

// spent reports whether a secret is one of an attempt of the Machine that is
// over, and of which.
func (d *Decider) spent(m *api.Machine, got string, purpose ca.Purpose) (number int, ok bool) {
	old := m.Status.History
	if a := m.Status.Attempt; a != nil && !a.Open() {
		old = append([]api.BootAttempt{*a}, old...)
	}
	for _, a := range old {
		_, chained := d.presented(got, purpose, m.Metadata.UID, a.ID)
		if chained || d.Tokens.Verify(got, purpose, m.Metadata.UID, a.ID) {
			return a.Number, true
		}
	}
	return 0, false
}

// proved says what a request of the Machine's boot has proved, and whether that
// is enough. chain is the level that the request shows by itself.
func (d *Decider) proved(m *api.Machine, peer netip.Addr, step trust.Step, chain api.TrustLevel) trust.Verdict {
	e := trust.Evidence{Step: step, Chain: chain, Nonce: m.Status.Attempt.Nonce}
	e.Port, e.Elsewhere = trust.AtPort(m, m.Status.Attempt, peer)
	return trust.Judge(e, machine.Required(d.Cache, m))
}

// notReached writes into a condition why a boot is held.
func (d *Decider) notReached(ctx context.Context, m *api.Machine, v trust.Verdict) {
	attempt, news := m.Status.Attempt.ID, false
	after, err := store.Mutate(ctx, d.Store, m.Metadata.Name, func(fresh *api.Machine) error {
		a := fresh.Status.Attempt
		if !a.Open() || a.ID != attempt {
			return store.ErrUnchanged
		}
		old := fresh.Status.Conditions.Get(api.CondTrust)
		news = old == nil || old.Reason != "LevelNotReached"
		if !fresh.Status.Conditions.Set(time.Now(), api.CondTrust, api.False, "LevelNotReached", v.Missing) {
			return store.ErrUnchanged
		}
		return nil
	})
	switch {
	case err != nil:
		d.Log.Warn("record that a trust level is not reached", "machine", m.Metadata.Name, "error", err)
	case news:
		d.Record.Event(after, api.Warning, "LevelNotReached", v.Missing)
	}
}

// taker describes who asks for something.
func (d *Decider) taker(what string, peer netip.Addr) api.Taker {
	t := api.Taker{What: what, Address: peer, Time: time.Now().UTC()}
	if h, err := d.holder(peer); err == nil {
		t.MAC = h.mac
	}
	return t
}

// took records that a client has what it was given, and what it has proved by
// that. Should another bootd have given the same to somebody else, there is a
// second taker.
func (d *Decider) took(ctx context.Context, m *api.Machine, t api.Taker, stage api.Stage, v trust.Verdict) {
	ctx = context.WithoutCancel(ctx) // it may have hung up by now: it has what it wanted
	attempt, second := m.Status.Attempt.ID, false
	after, err := store.Mutate(ctx, d.Store, m.Metadata.Name, func(fresh *api.Machine) error {
		second = false
		if fresh.Metadata.UID != m.Metadata.UID || fresh.Status.Attempt == nil || fresh.Status.Attempt.ID != attempt {
			return store.ErrUnchanged
		}
		if second = machine.Take(fresh, attempt, t); second {
			return nil
		}
		machine.Advance(fresh, attempt, stage, time.Now(), machine.Window(d.Cache))
		machine.Trusted(fresh, v)
		if c := fresh.Status.Conditions.Get(api.CondTrust); c != nil && c.Reason == "LevelNotReached" {
			fresh.Status.Conditions.Set(time.Now(), api.CondTrust, api.True, "Reached", fmt.Sprintf("trust level %s: %s", v.Reached, v.Why))
		}
		return nil
	})
	switch {
	case err != nil:
		d.Log.Error("record who took what a boot gives", "machine", m.Metadata.Name, "what", t.What, "peer", t.Address, "error", err)
	case second:
		d.witness(after, t, "SecondTaker", "given by two bootds", machine.SecondText(after.Status.Attempt, t))
	}
}

// second records that somebody came for what another has taken, and fails the
// attempt.
func (d *Decider) second(ctx context.Context, m *api.Machine, t api.Taker) string {
	attempt := m.Status.Attempt
	text := machine.SecondText(attempt, t)
	after, err := store.Mutate(context.WithoutCancel(ctx), d.Store, m.Metadata.Name, func(fresh *api.Machine) error {
		if fresh.Metadata.UID != m.Metadata.UID {
			return store.ErrUnchanged
		}
		if a := fresh.Status.Attempt; a != nil && a.ID == attempt.ID {
			text = machine.SecondText(a, t)
		}
		machine.SecondTaker(fresh, attempt.ID, t)
		return nil
	})
	if err != nil {
		d.Log.Error("record a second taker", "machine", m.Metadata.Name, "what", t.What, "peer", t.Address, "error", err)
		after = m
	}
	d.witness(after, t, "SecondTaker", "refused", text)
	return text
}

// witness writes down what somebody did who cannot be the Machine, every time:
// it is bounded, but repetitions are not left out.
func (d *Decider) witness(m *api.Machine, t api.Taker, reason, answer, text string) {
	d.metrics.seconds.WithLabelValues(t.What).Inc()
	if !d.ledger.witness(m.Metadata.Name) {
		d.metrics.unrecorded.WithLabelValues("taker").Inc()
		return
	}
	x := api.Decision{Machine: m.Metadata.Name, MAC: t.MAC, Peer: t.Address.String(), Question: t.What, Answer: answer, Reason: text}
	if m.Status.Attempt != nil {
		x.Attempt = m.Status.Attempt.ID
	}
	d.Record.Decision(x)
	d.Record.Event(m, api.Warning, reason, text)
}

// late records that a secret of an attempt that is over was used, and reports
// whether it was one.
func (d *Decider) late(m *api.Machine, t api.Taker, got string, purpose ca.Purpose) bool {
	number, spent := d.spent(m, got, purpose)
	if spent {
		d.witness(m, t, "SpentSecret", "refused", fmt.Sprintf("%s (MAC %s) came for the %s with a secret of BootAttempt %d, which is over", t.Address, t.MAC, t.What, number))
	}
	return spent
}
