package ca

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// SessionKeys derives the TCP MD5 key (RFC 2385) of every pair of BGP peers
// from one key of the Site. The derived keys are not stored. The Site's key is
// stored, sealed: if it were derived from the seal key, a new seal key would
// drop every session at once.
type SessionKeys struct{ site []byte }

const sessionKeySize = 32

// sessionAAD binds the sealed key to its use.
const sessionAAD = "site/bgp-session-key"

// NewSessionKey creates the Site's key, sealed.
func NewSessionKey(k *Keyring) ([]byte, error) {
	key := make([]byte, sessionKeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make the Site's key for BGP sessions: %w", err)
	}
	return k.Seal(key, []byte(sessionAAD))
}

// OpenSessionKeys opens the result of NewSessionKey. When it was sealed with an
// older key, again is the same value sealed with the current one: the old seal
// key can be removed once that is stored.
func OpenSessionKeys(k *Keyring, sealed []byte) (keys *SessionKeys, again []byte, err error) {
	plain, err := k.Open(sealed, []byte(sessionAAD))
	if err != nil {
		return nil, nil, fmt.Errorf("open the Site's key for BGP sessions: %w", err)
	}
	if !k.Sealing(sealed) {
		again, err = k.Seal(plain, []byte(sessionAAD))
	}
	return &SessionKeys{plain}, again, err
}

// Key returns the key of two Machines, by their uids in any order: 43 letters,
// digits, dashes and underscores.
func (s *SessionKeys) Key(one, other string) string {
	h := hmac.New(sha256.New, s.site)
	for _, uid := range []string{min(one, other), max(one, other)} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(uid))))
		h.Write([]byte(uid))
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}
