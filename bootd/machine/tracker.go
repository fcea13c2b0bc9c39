package machine

import (
	"context"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
)

// Tracker records what the boot servers see of a Machine. It may be used on
// every bootd, leader or not.
type Tracker struct {
	Store *store.Store
	Cache *store.Cache
}

// Window is how long a BootAttempt may go without progress.
func Window(c *store.Cache) time.Duration { return window(site.Spec(c)) }

func window(s api.SiteSpec) time.Duration { return s.AttemptWindow.Or(30 * time.Minute) }

// Reached records that the Machine's open BootAttempt has come to a stage. It
// costs a write only the first time.
func (t *Tracker) Reached(ctx context.Context, name, attempt string, stage api.Stage, also ...func(*api.Machine)) error {
	m, ok := store.Cached[api.Machine](t.Cache, name)
	if !ok || !m.Status.Attempt.Open() || m.Status.Attempt.ID != attempt {
		return nil
	}
	if _, before := reachedAt(m.Status.Attempt, stage); before {
		return nil
	}
	_, err := store.Mutate(ctx, t.Store, name, func(m *api.Machine) error {
		if !Advance(m, attempt, stage, time.Now(), Window(t.Cache)) {
			return store.ErrUnchanged
		}
		for _, f := range also {
			f(m)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record stage %s of %s: %w", stage, name, err)
	}
	return nil
}

// bootAskedEvery bounds how often an unanswered boot is written down.
const bootAskedEvery = 10 * time.Second

// Covers reports whether the Machine's BootAttempt covers a boot that asks for
// its script now. Until Ignition has its pointer no token has left, so a boot
// that starts over is the same BootAttempt; after that it is another boot.
func Covers(m *api.Machine, now time.Time) bool {
	a := m.Status.Attempt
	return a.Open() && now.Before(a.Deadline) && !a.Reached(api.StagePointer)
}

// BootAsked records that the Machine network-boots and that its BootAttempt,
// as seen by the caller, does not cover it: the controller decides whether to
// open another. The caller's view may be old. An attempt that was opened since
// must not take the boot that it was opened for as a reset.
func (t *Tracker) BootAsked(ctx context.Context, seen *api.Machine) error {
	name := seen.Metadata.Name
	m, ok := store.Cached[api.Machine](t.Cache, name)
	if !ok || time.Since(m.Status.BootAsked) < bootAskedEvery {
		return nil
	}
	_, err := store.Mutate(ctx, t.Store, name, func(fresh *api.Machine) error {
		now := time.Now()
		switch {
		case fresh.Metadata.UID != seen.Metadata.UID, attemptID(fresh) != attemptID(seen), Covers(fresh, now):
			return store.ErrUnchanged
		case now.Sub(fresh.Status.BootAsked) < bootAskedEvery:
			return store.ErrUnchanged
		}
		fresh.Status.BootAsked = now.UTC()
		return nil
	})
	if err != nil {
		return fmt.Errorf("record that %s asked for a boot: %w", name, err)
	}
	return nil
}
