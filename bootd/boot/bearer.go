package boot

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
)

// bearer finds the Machine of whose open BootAttempt the secret is, and the level at which it was given, or says
// what is wrong with it. A refusal is final for the machine, and the cache may lag behind, so a refusal is based
// on the store.
func (d *Decider) bearer(ctx context.Context, name, secret string, purpose ca.Purpose) (m *api.Machine, level api.TrustLevel, reason string, err error) {
	if err := api.ValidateName(name); err != nil {
		return nil, "", "the name that it gives is not a valid Machine name", nil // not quoted: it may be anything, even a token
	}
	if m, ok := store.Cached[api.Machine](d.cache, name); ok {
		if level, reason := d.fit(m, secret, purpose); reason == "" {
			return m, level, "", nil
		}
	}
	m, err = store.Get[api.Machine](ctx, d.store, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", fmt.Sprintf("no Machine is called %q", name), nil
	}
	if err != nil {
		return nil, "", "", fmt.Errorf("read Machine %s: %w", name, err)
	}
	level, reason = d.fit(m, secret, purpose)
	return m, level, reason, nil
}

// fit is the level at which a secret of the Machine's open attempt was given, or the reason why it is not that
// attempt's.
func (d *Decider) fit(m *api.Machine, secret string, purpose ca.Purpose) (level api.TrustLevel, reason string) {
	if !current(m) {
		return "", "no BootAttempt is open, or its window is over: reprovision the Machine"
	}
	uid, attempt := m.Metadata.UID, m.Status.Attempt.ID
	level, ok := d.keys.presented(secret, purpose, uid, attempt)
	if !ok {
		return "", "the token does not belong to this BootAttempt"
	}
	return level, ""
}

// late records the use of a secret of a finished attempt, and reports whether it was one.
func (d *Decider) late(m *api.Machine, t api.Taker, got string, purpose ca.Purpose) bool {
	number, spent := d.keys.spent(m, got, purpose)
	if spent {
		d.book.witness(m, t, "SpentSecret", "refused", fmt.Sprintf("%s (MAC %s) requested the %s with a secret of BootAttempt %d, which is over", t.Address, t.MAC, t.What, number))
	}
	return spent
}

func problem(status int, detail string) error {
	return &api.Problem{Status: status, Title: http.StatusText(status), Detail: detail}
}

// strangerText is the whole answer to a caller without a valid token: the reason is only for people who may read
// the records.
func strangerText(name string) string {
	return fmt.Sprintf("the token is not valid; \"weftctl explain machine %s\" says why", name)
}
