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

// Encrypter encrypts what this host carries for other hosts of its Zone.
type Encrypter interface {
	// Encrypt makes the encryption what the underlay asks for, with the host's
	// key; an underlay without an Encryption takes it away. After an error what
	// should be encrypted must not go out at all.
	Encrypt(ctx context.Context, key *ecdh.PrivateKey, u api.Underlay) error
}

// wireGuardKey reads the host's WireGuard key; one that is not there, or
// damaged, is made anew. There is a key even when the error says that it could
// not be kept: the other hosts are told of each new one.
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
		err = errors.Join(err, fmt.Errorf("keep the host's WireGuard key: %w", kept))
	}
	return key, err
}

// newWireGuardKey makes a key as WireGuard shows it: its bits are set before
// it is used (RFC 7748 §5), not when.
func newWireGuardKey() (*ecdh.PrivateKey, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make a WireGuard key: %w", err)
	}
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return ecdh.X25519().NewPrivateKey(b)
}

// parseWireGuardKey takes the one spelling that wg(8) prints. It never repeats
// the text in its error.
func parseWireGuardKey(text string) (*ecdh.PrivateKey, error) {
	text = strings.TrimSuffix(text, "\n")
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != 32 || b[0]&7 != 0 || b[31]&192 != 64 || base64.StdEncoding.EncodeToString(b) != text {
		return nil, errors.New("the host's WireGuard key is damaged: a new one is made")
	}
	return ecdh.X25519().NewPrivateKey(b)
}

// encryption is the host's side of the underlay's.
type encryption struct {
	encrypter Encrypter        // nil where this build has none
	key       *ecdh.PrivateKey // set before the workers run
	version   string
}

// encrypt is what the base part's handler has done to the underlay.
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

// publicKey is what the host reports.
func publicKey(key *ecdh.PrivateKey) string {
	if key == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
}
