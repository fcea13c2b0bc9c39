package nodeagent

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
)

// Encrypter encrypts the traffic of this host's Networks to other hosts of its
// Zone.
type Encrypter interface {
	// Encrypt configures encryption as the underlay says, with the host's key; an
	// underlay without an Encryption removes it. After an error, traffic that should
	// be encrypted must not be sent at all.
	Encrypt(ctx context.Context, key *ecdh.PrivateKey, u api.Underlay) error
}

// wireGuardKey reads the host's WireGuard key, and creates a new one if it is
// missing or damaged. It returns a key even with an error that it could not be
// stored: other hosts receive each new key.
func wireGuardKey(path string) (*ecdh.PrivateKey, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		var key *ecdh.PrivateKey
		if key, err = parseWireGuardKey(string(raw)); err == nil {
			return key, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	key, made := newWireGuardKey()
	if made != nil {
		return nil, errors.Join(err, made)
	}
	text := base64.StdEncoding.EncodeToString(key.Bytes()) + "\n"
	if kept := file.Replace(path, []byte(text), file.Options{}); kept != nil {
		err = errors.Join(err, fmt.Errorf("store the host's WireGuard key: %w", kept))
	}
	return key, err
}

// newWireGuardKey creates a key in the form that WireGuard shows: clamped (RFC 7748
// §5) when it is created, not when it is used.
func newWireGuardKey() (*ecdh.PrivateKey, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make a WireGuard key: %w", err)
	}
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return ecdh.X25519().NewPrivateKey(b)
}

// parseWireGuardKey accepts only the spelling that wg(8) prints. Its error never
// contains the text.
func parseWireGuardKey(text string) (*ecdh.PrivateKey, error) {
	text = strings.TrimSuffix(text, "\n")
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != 32 || b[0]&7 != 0 || b[31]&192 != 64 || base64.StdEncoding.EncodeToString(b) != text {
		return nil, errors.New("the host's WireGuard key is damaged: creating a new one")
	}
	return ecdh.X25519().NewPrivateKey(b)
}

// encryption is the host's side of the underlay's encryption.
type encryption struct {
	encrypter Encrypter        // nil if this agent has none
	key       *ecdh.PrivateKey // set before the workers run
	version   string
}

// encrypt configures the underlay's encryption for the base part's handler.
func (e *encryption) encrypt(ctx context.Context, u api.Underlay) error {
	switch {
	case e.encrypter == nil && u.Encryption == nil:
		return nil
	case e.encrypter == nil:
		return fmt.Errorf("nodeagent %s cannot encrypt the underlay", e.version)
	case e.key == nil:
		return errors.New("the host has no WireGuard key: see the log of nodeagent")
	}
	return e.encrypter.Encrypt(ctx, e.key, u)
}

// publicKey is the key that the host reports.
func publicKey(key *ecdh.PrivateKey) string {
	if key == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}
