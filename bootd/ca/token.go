package ca

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
)

// Purpose is what a token lets its bearer do, once.
type Purpose string

// The purposes of tokens.
const (
	PurposeConfig Purpose = "config" // fetch the Machine's Ignition config
	PurposeJoin   Purpose = "join"   // join as the Machine's host

	PurposePointer   Purpose = "pointer"    // find the pointer: part of its URL
	PurposeConfigURL Purpose = "config-url" // find the config: part of its URL
	PurposeBoot      Purpose = "boot"       // find the boot script over TLS: part of the URL that a BMC is given
	purposeNonce     Purpose = "nonce"
)

// At is the purpose at one trust level: a secret that was given at one level is
// none at another.
func (p Purpose) At(level string) Purpose { return p + Purpose("@"+level) }

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

// NonceLength is the length of a nonce: as long as an AssetTag may be.
const NonceLength = 32

// Nonce is the value of one BootAttempt of one Machine that its BMC writes to
// the system's AssetTag: NonceLength capital letters and digits.
func (t *Tokens) Nonce(machineUID, attemptID string) string {
	return nonce(t.keys[0], machineUID, attemptID)
}

// VerifyNonce reports, in constant time, whether the value is the BootAttempt's
// nonce.
func (t *Tokens) VerifyNonce(got, machineUID, attemptID string) bool {
	if machineUID == "" || attemptID == "" {
		return false
	}
	ok := false
	for _, key := range t.keys {
		if hmac.Equal([]byte(got), []byte(nonce(key, machineUID, attemptID))) {
			ok = true
		}
	}
	return ok
}

func nonce(key []byte, machineUID, attemptID string) string {
	return base32.StdEncoding.EncodeToString(sum(key, purposeNonce, machineUID, attemptID)[:20]) // 20 bytes make 32 characters
}

func token(key []byte, purpose Purpose, machineUID, attemptID string) string {
	return base64.RawURLEncoding.EncodeToString(sum(key, purpose, machineUID, attemptID))
}

func sum(key []byte, purpose Purpose, machineUID, attemptID string) []byte {
	h := hmac.New(sha256.New, key)
	for _, part := range []string{string(purpose), machineUID, attemptID} {
		// With its length before it, no part runs into the next.
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	return h.Sum(nil)
}
