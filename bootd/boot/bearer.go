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

// bearer finds the Machine to whose open BootAttempt the secret belongs, and the level at which the secret was
// given, or returns what is wrong with it. A refusal is final for the requesting machine, and the cache may be
// slightly behind, so it is based on the store.
func (d *Decider) bearer(ctx context.Context, name, secret string, purpose ca.Purpose) (m *api.Machine, level api.TrustLevel, reason string, err error) {
	if err := api.ValidateName(name); err != nil {
		return nil, "", "what it calls itself is no Machine's name", nil // not repeated: it may be anything, a token too
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

// fit returns the level at which a secret of the Machine's open attempt was given, or why it does not belong to
// that attempt.
func (d *Decider) fit(m *api.Machine, secret string, purpose ca.Purpose) (level api.TrustLevel, reason string) {
	if !current(m) {
		return "", "no BootAttempt is open, or its window is over: reprovision the Machine"
	}
	uid, attempt := m.Metadata.UID, m.Status.Attempt.ID
	level, ok := d.keys.presented(secret, purpose, uid, attempt)
	if !ok {
		return "", "the token is not this BootAttempt's"
	}
	return level, ""
}

// late records that a secret of an attempt that is over was used, and reports whether it was one.
func (d *Decider) late(m *api.Machine, t api.Taker, got string, purpose ca.Purpose) bool {
	number, spent := d.keys.spent(m, got, purpose)
	if spent {
		d.book.witness(m, t, "SpentSecret", "refused", fmt.Sprintf("%s (MAC %s) came for the %s with a secret of BootAttempt %d, which is over", t.Address, t.MAC, t.What, number))
	}
	return spent
}

func problem(status int, detail string) error {
	return &api.Problem{Status: status, Title: http.StatusText(status), Detail: detail}
}

// strangerText is the only answer to a caller without a valid token: the reason is for the people who may read the
// records.
func strangerText(name string) string {
	return fmt.Sprintf("the token is not valid here and now; \"weftctl explain machine %s\" tells why", name)
}
