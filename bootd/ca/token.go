package ca

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
)

// Purpose is what a token permits, once.
type Purpose string

// The purposes of tokens.
const (
	PurposeConfig Purpose = "config" // fetch the Machine's Ignition config
	PurposeJoin   Purpose = "join"   // join as the Machine's host

	PurposePointer   Purpose = "pointer"    // find the pointer: part of its URL
	PurposeConfigURL Purpose = "config-url" // find the config: part of its URL
	PurposeMedia     Purpose = "media"      // fetch the image of the Machine's virtual CD drive: part of its URL
	PurposeBoot      Purpose = "boot"       // find the boot script over TLS: part of the URL that a BMC is given
	purposeNonce     Purpose = "nonce"
)

// At is the purpose at one trust level: a secret issued at one level is invalid
// at another.
func (p Purpose) At(level string) Purpose { return p + Purpose("@"+level) }

// Tokens derives the tokens of BootAttempts. They are not stored: after a
// restart bootd derives the same ones.
type Tokens struct{ keys [][]byte }

// NewTokens derives tokens from a Keyring.
func NewTokens(k *Keyring) *Tokens {
	t := new(Tokens)
	for _, key := range k.keys {
		t.keys = append(t.keys, key.token)
	}
	return t
}

// Token returns the token of a purpose for a BootAttempt of a Machine.
func (t *Tokens) Token(purpose Purpose, machineUID, attemptID string) string {
	return token(t.keys[0], purpose, machineUID, attemptID)
}

// Verify reports, in constant time, whether a token is that of this purpose,
// Machine and BootAttempt. The caller checks whether the attempt is still open.
func (t *Tokens) Verify(got string, purpose Purpose, machineUID, attemptID string) bool {
	if machineUID == "" || attemptID == "" {
		return false
	}
	ok := false
	for _, key := range t.keys {
		// No early return, so that the time does not show which key matched.
		if hmac.Equal([]byte(got), []byte(token(key, purpose, machineUID, attemptID))) {
			ok = true
		}
	}
	return ok
}

// NonceLength is the length of a nonce, the longest that an AssetTag may be.
const NonceLength = 32

// Nonce returns the value of one BootAttempt that a BMC writes to the system's
// AssetTag: NonceLength capital letters and digits.
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
		// The length in front keeps the parts apart.
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	return h.Sum(nil)
}
