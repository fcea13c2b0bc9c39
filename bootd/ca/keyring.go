package ca

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/rackweft/rackweft/internal/file"
)

// Errors of Open and of loading a Keyring.
var (
	ErrUnknownKey = errors.New("it is sealed with a key that this bootd does not have")
	ErrNoKey      = errors.New("there is no seal key")
	ErrTampered   = errors.New("the sealed value is damaged, or belongs to another object")
)

// CredentialName is the name of the key file among systemd's credentials.
const CredentialName = "rackweft-seal-key"

// A sealed value: version, key id, nonce, ciphertext with tag. The aad is
// bound together with version and key id.
const (
	sealVersion = 1
	idSize      = 8
	headerSize  = 1 + idSize
	minSealed   = headerSize + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	digestSize  = 12
)

// Keyring seals and opens values. The first key seals; all of them open. It is
// safe for concurrent use.
type Keyring struct {
	keys []sealKey
	// Generated: the key was generated next to the data that it protects,
	// because none was configured. With a copy of the disk every Secret can be
	// read.
	Generated bool
}

// sealKey holds the keys derived from one key, one per use.
type sealKey struct {
	raw    []byte
	id     [idSize]byte
	aead   cipher.AEAD
	digest []byte
	token  []byte
}

// LoadKeyring reads the keys from systemd's credentials (credentialsDir is
// $CREDENTIALS_DIRECTORY; "" for none), else from <stateDir>/seal.key, which is
// created at the first start. A key file has 32 bytes in base64 on each line;
// the first key seals, the others open older values. Keys in seal.key still
// open values when a credential has replaced it.
func LoadKeyring(stateDir, credentialsDir string) (*Keyring, error) {
	k, err := FindKeyring(stateDir, credentialsDir)
	if !errors.Is(err, ErrNoKey) {
		return k, err
	}
	if err := generateKey(stateDir); err != nil {
		return nil, fmt.Errorf("make a seal key: %w", err)
	}
	return FindKeyring(stateDir, credentialsDir) // of two processes that start at once, one creates it
}

// FindKeyring is LoadKeyring without creating a key: ErrNoKey when there is
// none.
func FindKeyring(stateDir, credentialsDir string) (*Keyring, error) {
	var keys [][]byte
	if credentialsDir != "" {
		given, err := readKeys(filepath.Join(credentialsDir, CredentialName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		keys = given
	}
	path := keyFile(stateDir)
	kept, err := readKeys(path)
	switch {
	case err == nil:
		if err := private(path); err != nil {
			return nil, fmt.Errorf("read the seal key: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case len(keys) == 0:
		return nil, fmt.Errorf("%w in %s", ErrNoKey, path)
	}
	k := &Keyring{Generated: len(keys) == 0}
	for _, key := range append(keys, kept...) {
		derived, err := derive(key)
		if err != nil {
			return nil, fmt.Errorf("prepare the seal key: %w", err)
		}
		k.keys = append(k.keys, derived)
	}
	return k, nil
}

func keyFile(stateDir string) string { return filepath.Join(stateDir, "seal.key") }

// CheckKeys validates the content of a key file.
func CheckKeys(content []byte) error {
	_, err := parseKeys("seal.key", content)
	return err
}

func readKeys(path string) ([][]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the seal key: %w", err)
	}
	return parseKeys(path, raw)
}

func parseKeys(path string, raw []byte) ([][]byte, error) {
	var keys [][]byte
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != chacha20poly1305.KeySize {
			return nil, fmt.Errorf("%s: invalid key %d: want 32 random bytes in base64, as from head -c 32 /dev/urandom | base64", path, len(keys)+1)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key: write 32 random bytes in base64, as from head -c 32 /dev/urandom | base64", path)
	}
	return keys, nil
}

// generateKey creates the first key.
func generateKey(stateDir string) error {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	key := make([]byte, chacha20poly1305.KeySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	err := file.Create(keyFile(stateDir), []byte(base64.StdEncoding.EncodeToString(key)+"\n"), file.Options{})
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func derive(key []byte) (sealKey, error) {
	parts := map[string][]byte{"key-id": nil, "digest": nil, "boot-token": nil, "seal": nil}
	for use := range parts {
		var err error
		if parts[use], err = hkdf.Key(sha256.New, key, nil, use, chacha20poly1305.KeySize); err != nil {
			return sealKey{}, err
		}
	}
	aead, err := chacha20poly1305.NewX(parts["seal"])
	return sealKey{raw: key, id: [idSize]byte(parts["key-id"]), aead: aead, digest: parts["digest"], token: parts["boot-token"]}, err
}

// Seal encrypts plain. Open needs the same aad.
func (k *Keyring) Seal(plain, aad []byte) ([]byte, error) {
	key := k.keys[0]
	out := make([]byte, headerSize+chacha20poly1305.NonceSizeX, minSealed+len(plain))
	out[0] = sealVersion
	copy(out[1:], key.id[:])
	nonce := out[headerSize:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return key.aead.Seal(out, nonce, plain, bind(out[:headerSize], aad)), nil
}

// Open decrypts a sealed value; ErrUnknownKey or ErrTampered when it cannot.
func (k *Keyring) Open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < minSealed || sealed[0] != sealVersion {
		return nil, ErrTampered
	}
	header, id := sealed[:headerSize], sealed[1:headerSize]
	nonce, box := sealed[headerSize:headerSize+chacha20poly1305.NonceSizeX], sealed[headerSize+chacha20poly1305.NonceSizeX:]
	for _, key := range k.keys {
		if !bytes.Equal(key.id[:], id) {
			continue
		}
		plain, err := key.aead.Open(nil, nonce, box, bind(header, aad))
		if err != nil {
			return nil, ErrTampered
		}
		return plain, nil
	}
	return nil, fmt.Errorf("%w (key id %x): add that key as a further line of the key file", ErrUnknownKey, id)
}

func bind(header, aad []byte) []byte { return append(bytes.Clone(header), aad...) }

// Digest distinguishes values. It is keyed, so that weak values cannot be
// guessed from it.
func (k *Keyring) Digest(plain []byte) string {
	h := hmac.New(sha256.New, k.keys[0].digest)
	h.Write(plain)
	return hex.EncodeToString(h.Sum(nil)[:digestSize])
}

// KeyID identifies the sealing key, for status and logs.
func (k *Keyring) KeyID() string { return hex.EncodeToString(k.keys[0].id[:]) }

// KeyIDs lists all keys, the sealing key first.
func (k *Keyring) KeyIDs() []string {
	ids := make([]string, len(k.keys))
	for i, key := range k.keys {
		ids[i] = hex.EncodeToString(key.id[:])
	}
	return ids
}

// Sealing reports whether a value is sealed with the current sealing key.
func (k *Keyring) Sealing(sealed []byte) bool {
	return len(sealed) >= minSealed && sealed[0] == sealVersion && bytes.Equal(sealed[1:headerSize], k.keys[0].id[:])
}

// Export returns the content of a key file with all keys, the sealing key
// first. It is for backups, which are encrypted.
func (k *Keyring) Export() []byte {
	var b bytes.Buffer
	seen := map[[idSize]byte]bool{}
	for _, key := range k.keys {
		if !seen[key.id] {
			b.WriteString(base64.StdEncoding.EncodeToString(key.raw) + "\n")
		}
		seen[key.id] = true
	}
	return b.Bytes()
}

// ImportKeyring writes the content of a key file into a new state directory.
func ImportKeyring(stateDir string, content []byte) error {
	path := keyFile(stateDir)
	if err := file.Create(path, content, file.Options{}); err != nil {
		return fmt.Errorf("write the seal key: %w", err)
	}
	_, err := readKeys(path)
	return err
}
