package boot

import (
	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/ca"
)

// chains are the levels at which a boot script can be given, and which its secrets inherit.
func chains() []api.TrustLevel {
	return []api.TrustLevel{api.TrustMAC, api.TrustNonce, api.TrustBMC}
}

// keys derives the secrets of BootAttempts.
type keys struct{ *ca.Tokens }

// secret is a secret of the Machine's attempt at a level.
func (k keys) secret(m *api.Machine, purpose ca.Purpose, level api.TrustLevel) string {
	return k.Tokens.Token(purpose.At(string(level)), m.Metadata.UID, m.Status.Attempt.ID)
}

// presented finds the level at which a secret of a BootAttempt was given.
func (k keys) presented(got string, purpose ca.Purpose, uid, attempt string) (level api.TrustLevel, ok bool) {
	for _, l := range chains() {
		if k.Tokens.Verify(got, purpose.At(string(l)), uid, attempt) {
			level, ok = l, true
		}
	}
	return level, ok
}

// spent reports whether a secret belongs to an attempt of the Machine that is over, and to which.
func (k keys) spent(m *api.Machine, got string, purpose ca.Purpose) (number int, ok bool) {
	old := m.Status.History
	if a := m.Status.Attempt; a != nil && !a.Open() {
		old = append([]api.BootAttempt{*a}, old...)
	}
	for _, a := range old {
		_, chained := k.presented(got, purpose, m.Metadata.UID, a.ID)
		if chained || k.Tokens.Verify(got, purpose, m.Metadata.UID, a.ID) {
			return a.Number, true
		}
	}
	return 0, false
}
