package bmc

import (
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
	"net"
	"os"
	"path/filepath"
	"time"
)

// loadCertificate reads bmc.crt and bmc.key in dir, or creates them.
func loadCertificate(dir string, address net.IP) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "bmc.crt"), filepath.Join(dir, "bmc.key"))
	if errors.Is(err, fs.ErrNotExist) {
		return makeCertificate(dir, address)
	}
	if err != nil {
		return nil, err
	}
	return &pair, nil
}

// makeCertificate writes a new self-signed pair. It is valid from 1970 to 9999,
// because the clocks of a BMC and of its client cannot be trusted before the
// machine has joined.
func makeCertificate(dir string, address net.IP) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"rackweft lab"}, CommonName: address.String()},
		NotBefore:             time.Unix(0, 0).UTC(),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IPAddresses:           []net.IP{address},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	// The key first: a certificate whose key is missing would not load at the next start.
	if err := os.WriteFile(filepath.Join(dir, "bmc.key"), keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "bmc.crt"), certPEM, 0o644); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	return &pair, nil
}

func (s *Server) tlsCertificate() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.certificate
}

// Fingerprint returns the value for a client to pin: "sha256:" and the hex
// digest of the certificate's DER bytes.
func (s *Server) Fingerprint() string {
	sum := sha256.Sum256(s.tlsCertificate().Certificate[0])
	return "sha256:" + hex.EncodeToString(sum[:])
}
