package ca

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
)

// Purpose is what a token lets its bearer do, once.
type Purpose string

// The purposes of tokens.
const (
	PurposeConfig Purpose = "config" // fetch the Machine's Ignition config
	PurposeJoin   Purpose = "join"   // join as the Machine's host
)

// Tokens derives the tokens of BootAttempts. They are nowhere stored: a bootd
// that was killed derives the same ones again.
type Tokens struct{ keys [][]byte }

// NewTokens derives tokens from a Keyring.
func NewTokens(k *Keyring) *Tokens {
	t := new(Tokens)
	for _, key := range k.keys {
		t.keys = append(t.keys, key.token)
	}
	return t
}

// Token is the one token of a purpose for one BootAttempt of one Machine.
func (t *Tokens) Token(purpose Purpose, machineUID, attemptID string) string {
	return token(t.keys[0], purpose, machineUID, attemptID)
}

// Verify reports, in constant time, whether the token is the one of this
// purpose, Machine and BootAttempt. Whether the attempt is still open is the
// caller's to know.
func (t *Tokens) Verify(got string, purpose Purpose, machineUID, attemptID string) bool {
	if machineUID == "" || attemptID == "" {
		return false
	}
	ok := false
	for _, key := range t.keys {
		// No early end: which key it was is nobody's business.
		if hmac.Equal([]byte(got), []byte(token(key, purpose, machineUID, attemptID))) {
			ok = true
		}
	}
	return ok
}

func token(key []byte, purpose Purpose, machineUID, attemptID string) string {
	h := hmac.New(sha256.New, key)
	for _, part := range []string{string(purpose), machineUID, attemptID} {
		// With its length before it, no part runs into the next.
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}
