package nodeagent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/rackweft/rackweft/internal/file"
)

// identity is a host's key and certificate. It is one file, replaced as a whole, so
// that both always belong together.
type identity struct {
	Machine     string    `json:"machine"`
	UID         string    `json:"uid"`
	AttemptID   string    `json:"attemptID"` // the BootAttempt it joined in
	Key         string    `json:"key"`
	Certificate string    `json:"certificate"`
	CA          string    `json:"ca,omitzero"`
	API         []string  `json:"api,omitempty"`
	Issued      time.Time `json:"issued"` // bootd's clock when it issued the certificate
}

// loadIdentity returns nil without an error when the host has not joined.
func loadIdentity(path string) (*identity, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's identity: %w", err)
	}
	id := new(identity)
	if err := json.Unmarshal(raw, id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if _, err := id.pair(); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return id, nil
}

func (id *identity) save(path string) error {
	raw, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the host's identity: %w", err)
	}
	if err := file.Replace(path, raw, file.Options{}); err != nil {
		return fmt.Errorf("store the host's identity: %w", err)
	}
	return nil
}

// pair returns the client certificate; an error means that key and certificate do
// not belong together.
func (id *identity) pair() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(id.Certificate), []byte(id.Key))
	if err != nil {
		return nil, err
	}
	return &pair, nil
}

// renewAt is the time at which a third of the certificate's life is left, by
// bootd's clock.
func (id *identity) renewAt() (time.Time, error) {
	certs, err := parseCertificates(id.Certificate)
	if err != nil {
		return time.Time{}, err
	}
	life := certs[0].NotAfter.Sub(id.Issued)
	return id.Issued.Add(life / 3 * 2), nil
}

// pendingKey is the key of a join in progress. It is stored before the join is sent:
// bootd treats the same public key within one BootAttempt as the same join, so the
// join can be repeated after a crash.
type pendingKey struct {
	AttemptID string `json:"attemptID"`
	Key       string `json:"key"`
}

// joinKey returns the key of this BootAttempt's join. If there is none, it creates
// and stores one.
func joinKey(path, attemptID string) (string, error) {
	var pending pendingKey
	raw, err := os.ReadFile(path)
	if err == nil && json.Unmarshal(raw, &pending) == nil && pending.AttemptID == attemptID {
		if _, err := parseKey(pending.Key); err == nil {
			return pending.Key, nil
		}
	}
	key, err := newKey()
	if err != nil {
		return "", err
	}
	raw, err = json.Marshal(pendingKey{AttemptID: attemptID, Key: key})
	if err != nil {
		return "", fmt.Errorf("encode the join key: %w", err)
	}
	if err := file.Replace(path, raw, file.Options{}); err != nil {
		return "", fmt.Errorf("store the join key: %w", err)
	}
	return key, nil
}

func newKey() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("create a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encode a key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

func parseKey(text string) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("not a PEM key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("invalid key of type %T: want an ECDSA key", key)
	}
	return ec, nil
}

// signingRequest returns a PEM CSR; bootd chooses the names.
func signingRequest(key, machine string) (string, error) {
	ec, err := parseKey(key)
	if err != nil {
		return "", fmt.Errorf("read the host's key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "host:" + machine}}, ec)
	if err != nil {
		return "", fmt.Errorf("create a certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}
