package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/rackweft/rackweft/internal/file"
)

// Authority is the Site's CA. It is safe for concurrent use.
type Authority struct {
	dir    string
	now    func() time.Time
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	pem    []byte
	pool   *x509.CertPool
	server atomic.Pointer[tls.Certificate]
}

// ErrNoCA means that a state directory has no CA.
var ErrNoCA = errors.New("there is no CA")

// Find loads the CA from <stateDir>/ca; ErrNoCA when there is none.
func Find(stateDir string) (*Authority, error) {
	a := &Authority{dir: filepath.Join(stateDir, "ca"), now: time.Now}
	fresh, err := isFresh(a.dir)
	if err == nil && fresh {
		err = fmt.Errorf("%w in %s", ErrNoCA, a.dir)
	}
	if err == nil {
		err = a.load()
	}
	if err != nil {
		return nil, fmt.Errorf("open the site's CA: %w", err)
	}
	return a, nil
}

// Fingerprint identifies the CA: the digest of its certificate.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Open loads the CA from <stateDir>/ca, or creates it when the directory does
// not exist. An incomplete or damaged CA is an error: a new CA would lock out
// every host that trusts the old one.
func Open(stateDir string) (*Authority, error) {
	a, err := Find(stateDir)
	if !errors.Is(err, ErrNoCA) {
		return a, err
	}
	dir := filepath.Join(stateDir, "ca")
	if err := place(dir, fill); err != nil {
		return nil, fmt.Errorf("make the site's CA in %s: %w", dir, err)
	}
	return Find(stateDir)
}

func isFresh(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return err == nil && len(entries) == 0, err
}

// place fills a temporary directory and renames it, so that there is never an
// incomplete CA. Of two processes that start at once, one creates it.
func place(dir string, fill func(dir string) error) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(parent, "ca.new-")
	if err != nil {
		return err
	}
	if err := fill(fresh); err != nil {
		if empty, there := isFresh(dir); there == nil && !empty {
			return os.RemoveAll(fresh) // the other process was faster, and removed this one
		}
		return errors.Join(err, os.RemoveAll(fresh))
	}
	if err := os.Rename(fresh, dir); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return os.RemoveAll(fresh) // the other process was faster
		}
		return errors.Join(err, os.RemoveAll(fresh))
	}
	// Directories left by interrupted starts contain keys.
	left, err := filepath.Glob(filepath.Join(parent, "ca.new-*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return file.SyncDir(parent)
}

// fill writes a new CA into a directory.
func fill(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	certPEM, err := selfSign(key)
	if err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"ca.crt": certPEM, "ca.key": keyPEM} {
		if err := file.Replace(filepath.Join(dir, name), content, file.Options{}); err != nil {
			return err
		}
	}
	return nil
}

func selfSign(key *ecdsa.PrivateKey) ([]byte, error) {
	mark := make([]byte, 4)
	if _, err := rand.Read(mark); err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		// The mark distinguishes the CAs of two Sites in other tools.
		Subject:               pkix.Name{CommonName: "rackweft site CA " + hex.EncodeToString(mark)},
		NotBefore:             beginning(),
		NotAfter:              end(),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return sign(template, template, key.Public(), key)
}

// beginning and end are the longest validity that RFC 5280 can express with a
// beginning that every system accepts.
func beginning() time.Time { return time.Unix(0, 0).UTC() }
func end() time.Time       { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

// sign issues a certificate with a random serial number.
func sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (a *Authority) load() error {
	certPEM, err := a.read("ca.crt")
	if err != nil {
		return err
	}
	keyPEM, err := a.read("ca.key")
	if err != nil {
		return err
	}
	if err := private(filepath.Join(a.dir, "ca.key")); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("%s is damaged, or ca.key is not the key of ca.crt: %w", a.dir, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return fmt.Errorf("%s holds no CA with an ECDSA key", a.dir)
	}
	a.key, a.cert, a.pem = key, pair.Leaf, certPEM
	a.pool = x509.NewCertPool()
	a.pool.AddCert(a.cert)
	return nil
}

func (a *Authority) read(name string) ([]byte, error) {
	path := filepath.Join(a.dir, name)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing", path)
	}
	return raw, err
}

// CertPEM returns the CA's certificate, for clients that must trust bootd.
func (a *Authority) CertPEM() []byte { return bytes.Clone(a.pem) }

// Certificate returns the CA's certificate, for BMCs that enroll it. It is not to be changed.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pool returns a pool with the CA's certificate.
func (a *Authority) Pool() *x509.CertPool { return a.pool.Clone() }

// Export returns the CA's certificate and key, in PEM, for backups, which are
// encrypted.
func Export(stateDir string) (cert, key []byte, err error) {
	a := &Authority{dir: filepath.Join(stateDir, "ca"), now: time.Now}
	if err := a.load(); err != nil {
		return nil, nil, fmt.Errorf("read the site's CA: %w", err)
	}
	if key, err = a.read("ca.key"); err != nil {
		return nil, nil, fmt.Errorf("read the site's CA: %w", err)
	}
	return a.CertPEM(), key, nil
}

// Import creates the CA of a new state directory from Export's result,
// completely or not at all.
func Import(stateDir string, cert, key []byte) error {
	dir := filepath.Join(stateDir, "ca")
	fresh, err := isFresh(dir)
	if err != nil {
		return fmt.Errorf("restore the site's CA: %w", err)
	}
	if !fresh {
		return fmt.Errorf("restore the site's CA: %s holds one", dir)
	}
	err = place(dir, func(dir string) error {
		return errors.Join(file.Create(filepath.Join(dir, "ca.crt"), cert, file.Options{}), file.Create(filepath.Join(dir, "ca.key"), key, file.Options{}))
	})
	if err != nil {
		return fmt.Errorf("restore the site's CA: %w", err)
	}
	return (&Authority{dir: dir, now: time.Now}).load()
}

// CheckPair validates a CA's certificate and key.
func CheckPair(cert, key []byte) error {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("the site's CA: %w", err)
	}
	if !pair.Leaf.IsCA {
		return errors.New("the site's CA: its certificate is not that of a CA")
	}
	return nil
}
