package boot

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// attempts records the progress of open BootAttempts, and hands out what only one client of an attempt may receive.
type attempts struct {
	store   *store.Store
	cache   *store.Cache
	tracker *machine.Tracker
	peers   *peers
	book    *book
	takes   *takes
	log     *slog.Logger
}

// reached records a stage of the Machine's open attempt.
func (as *attempts) reached(ctx context.Context, m *api.Machine, stage api.Stage, also ...func(*api.Machine)) {
	if m == nil || !m.Status.Attempt.Open() {
		return
	}
	if err := as.tracker.Reached(ctx, m.Metadata.Name, m.Status.Attempt.ID, stage, also...); err != nil {
		as.log.Warn("record a stage", "machine", m.Metadata.Name, "stage", stage, "error", err)
	}
}

// proved returns the trust level that a request of the Machine's boot has proved, and whether it suffices. chain is
// the level that the request shows by itself.
func (as *attempts) proved(m *api.Machine, peer netip.Addr, step trust.Step, chain api.TrustLevel) trust.Verdict {
	e := trust.Evidence{Step: step, Chain: chain, Nonce: m.Status.Attempt.Nonce}
	e.Port, e.Elsewhere = trust.AtPort(m, m.Status.Attempt, peer)
	return trust.Judge(e, machine.Required(as.cache, m))
}

// notReached sets the condition that says why a boot is held.
func (as *attempts) notReached(ctx context.Context, m *api.Machine, v trust.Verdict) {
	attempt, news := m.Status.Attempt.ID, false
	after, err := store.Mutate(ctx, as.store, m.Metadata.Name, func(fresh *api.Machine) error {
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
		as.log.Warn("record that a trust level is not reached", "machine", m.Metadata.Name, "error", err)
	case news:
		as.book.recorder.Event(after, api.Warning, "LevelNotReached", v.Missing)
	}
}

// compiled sets the condition that says why the config cannot be compiled, or that it compiles again.
func (as *attempts) compiled(ctx context.Context, m *api.Machine, fault error) {
	old := m.Status.Conditions.Get(machine.CondConfig)
	if fault == nil && (old == nil || old.Status == api.True) {
		return
	}
	status, reason, message := api.True, "Compiled", "its config compiles"
	if fault != nil {
		status, reason, message = api.False, "CompileFailed", fault.Error()
	}
	_, err := store.Mutate(ctx, as.store, m.Metadata.Name, func(fresh *api.Machine) error {
		if fresh.Metadata.UID != m.Metadata.UID || !fresh.Status.Conditions.Set(time.Now(), machine.CondConfig, status, reason, message) {
			return store.ErrUnchanged
		}
		return nil
	})
	if err != nil {
		as.log.Warn("record whether a config compiles", "machine", m.Metadata.Name, "error", err)
	}
}

// seenAt records at which port an address was leased to the Machine in its open attempt.
func (as *attempts) seenAt(ctx context.Context, m *api.Machine, address netip.Addr, p *api.BootPort) {
	if !m.Status.Attempt.Open() || !movesPort(m, address, p) {
		return
	}
	attempt := m.Status.Attempt.ID
	_, err := store.Mutate(ctx, as.store, m.Metadata.Name, func(fresh *api.Machine) error {
		if a := fresh.Status.Attempt; !a.Open() || a.ID != attempt || !movesPort(fresh, address, p) {
			return store.ErrUnchanged
		}
		fresh.Status.Attempt.Port = p
		return nil
	})
	if err != nil {
		as.log.Warn("record at which port an address was leased", "machine", m.Metadata.Name, "error", err)
	}
}

// movesPort reports whether a lease changes the recorded port. A client that uses the Machine's MAC elsewhere, for
// another address, does not replace the record of the address that was leased at the planned port.
func movesPort(m *api.Machine, address netip.Addr, p *api.BootPort) bool {
	old := m.Status.Attempt.Port
	switch {
	case old == nil:
		return p != nil
	case old.Address == address:
		return p == nil || p.Relay != old.Relay || p.CircuitID != old.CircuitID || p.RemoteID != old.RemoteID
	case p == nil:
		return false
	}
	was, _ := trust.AtPort(m, m.Status.Attempt, old.Address)
	is, _ := trust.AtPort(m, &api.BootAttempt{Port: p}, address)
	return is || !was
}

// giving is a response for one client.
type giving struct {
	what    string
	stage   api.Stage // reached when it has arrived
	peer    netip.Addr
	conn    string
	verdict trust.Verdict
}

// give gives a client its turn at a response that one client may have, or returns why it gets nothing, which is
// then recorded. sent must be called when the response was written.
func (as *attempts) give(ctx context.Context, m *api.Machine, g giving) (sent func(arrived bool), why string) {
	t := as.peers.taker(g.what, g.peer)
	key := takeKey{m.Status.Attempt.ID, g.what}
	is := as.takes.begin(ctx, key, g.conn)
	if is == busy {
		why = fmt.Sprintf("another connection is fetching the %s at this moment", g.what)
		as.book.witness(m, t, "TwoAtOnce", "held (503)", fmt.Sprintf("%s (MAC %s) came for the %s while another connection was fetching it", t.Address, t.MAC, g.what))
		return nil, why
	}
	if is == second {
		return nil, as.second(ctx, m, t)
	}
	if is == yours {
		before, err := as.takenBefore(ctx, m, g.what)
		if err != nil || before {
			as.takes.end(key, before)
		}
		if err != nil {
			return nil, err.Error()
		}
		if before {
			return nil, as.second(ctx, m, t)
		}
	}
	return func(arrived bool) {
		if arrived && is == yours {
			as.took(ctx, m, t, g.stage, g.verdict)
		}
		if !arrived {
			as.book.witness(m, t, "BrokeOff", "broke off", fmt.Sprintf("nothing of the %s arrived at %s (MAC %s), so it may be fetched again", t.What, t.Address, t.MAC))
		}
		as.takes.end(key, arrived)
	}, ""
}

// takenBefore reports whether, according to the store, another client has received part of the Machine's attempt:
// the cache may be slightly behind.
func (as *attempts) takenBefore(ctx context.Context, m *api.Machine, what string) (bool, error) {
	fresh, err := store.Get[api.Machine](ctx, as.store, m.Metadata.Name)
	if err != nil {
		return false, fmt.Errorf("read Machine %s: %w", m.Metadata.Name, err)
	}
	a := fresh.Status.Attempt
	if !a.Open() || a.ID != m.Status.Attempt.ID {
		return false, fmt.Errorf("the BootAttempt of Machine %s has ended", m.Metadata.Name)
	}
	return machine.Taken(fresh, what) || a.Reached(api.StageJoined), nil
}

// took records that a client has received its response, and what it has proved by that. If another bootd has given
// the same to another client, there is a second taker.
func (as *attempts) took(ctx context.Context, m *api.Machine, t api.Taker, stage api.Stage, v trust.Verdict) {
	ctx = context.WithoutCancel(ctx) // it may have disconnected: it has what it wanted
	attempt, second := m.Status.Attempt.ID, false
	after, err := store.Mutate(ctx, as.store, m.Metadata.Name, func(fresh *api.Machine) error {
		second = false
		if fresh.Metadata.UID != m.Metadata.UID || fresh.Status.Attempt == nil || fresh.Status.Attempt.ID != attempt {
			return store.ErrUnchanged
		}
		if second = machine.Take(fresh, attempt, t); second {
			return nil
		}
		machine.Advance(fresh, attempt, stage, time.Now(), machine.Window(as.cache))
		machine.Trusted(fresh, v)
		if c := fresh.Status.Conditions.Get(api.CondTrust); c != nil && c.Reason == "LevelNotReached" {
			fresh.Status.Conditions.Set(time.Now(), api.CondTrust, api.True, "Reached", fmt.Sprintf("trust level %s: %s", v.Reached, v.Why))
		}
		return nil
	})
	switch {
	case err != nil:
		as.log.Error("record who took what a boot gives", "machine", m.Metadata.Name, "what", t.What, "peer", t.Address, "error", err)
	case second:
		as.book.witness(after, t, "SecondTaker", "given by two bootds", machine.SecondText(after.Status.Attempt, t))
	}
}

// second records that a client requested what another has received, and fails the attempt.
func (as *attempts) second(ctx context.Context, m *api.Machine, t api.Taker) string {
	attempt := m.Status.Attempt
	text := machine.SecondText(attempt, t)
	after, err := store.Mutate(context.WithoutCancel(ctx), as.store, m.Metadata.Name, func(fresh *api.Machine) error {
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
		as.log.Error("record a second taker", "machine", m.Metadata.Name, "what", t.What, "peer", t.Address, "error", err)
		after = m
	}
	as.book.witness(after, t, "SecondTaker", "refused", text)
	return text
}

// current reports whether the attempt is open and within its window.
func current(m *api.Machine) bool {
	return m.Status.Attempt.Open() && time.Now().Before(m.Status.Attempt.Deadline)
}
