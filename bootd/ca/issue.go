package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// skew is how long before its issue a certificate begins, because the clocks of
// bootds in one group may differ.
const skew = time.Hour

// maxCSR bounds a certificate request: RSA with 8192 bits needs 3 KiB.
const maxCSR = 16 << 10

// Roles lists the roles of people, from the most to the least privileged.
func Roles() []string { return []string{"admin", "operator", "viewer"} }

// SignHost signs the key of a host's certificate request (PEM): a client
// certificate named host:<name> with the Machine's uid, valid for ttl by
// bootd's clock. It ignores the names in the request. The key must be ECDSA
// P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits.
func (a *Authority) SignHost(csrPEM []byte, name, uid string, ttl time.Duration) ([]byte, error) {
	if err := api.ValidateName(name); err != nil {
		return nil, fmt.Errorf("sign a host's certificate: %w", err)
	}
	if !wellFormed(uid) {
		return nil, fmt.Errorf("sign a certificate for host %s: invalid uid %q", name, uid)
	}
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for host %s: %w", name, err)
	}
	cert, err := a.client(csr.PublicKey, ttl, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "host:" + name}
		c.URIs = []*url.URL{hostURI(name, uid)}
	})
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for host %s: %w", name, err)
	}
	return cert, nil
}

// IssuePerson creates a key and a client certificate named person:<name> with a
// role. bootd does not store the key.
func (a *Authority) IssuePerson(name, role string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if !wellFormed(name) {
		return nil, nil, fmt.Errorf("issue a certificate: invalid name %q: want 1 to 64 letters, digits and . _ @ -", name)
	}
	if !slices.Contains(Roles(), role) {
		return nil, nil, fmt.Errorf("issue a certificate for %s: invalid role %q: want one of %s", name, role, strings.Join(Roles(), ", "))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key for %s: %w", name, err)
	}
	certPEM, err = a.client(key.Public(), ttl, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "person:" + name, Organization: []string{role}}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key of %s: %w", name, err)
	}
	return certPEM, keyPEM, nil
}

// client signs a client certificate; name sets its subject.
func (a *Authority) client(public any, ttl time.Duration, name func(*x509.Certificate)) ([]byte, error) {
	if ttl < time.Minute {
		return nil, fmt.Errorf("a certificate for %s is too short: use a minute or more", ttl)
	}
	now := a.now().UTC()
	template := &x509.Certificate{
		NotBefore:   now.Add(-skew),
		NotAfter:    now.Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	name(template)
	return sign(template, a.cert, public, a.key)
}

// Issued reports whether the CA has signed a client's certificate, valid now.
func (a *Authority) Issued(cert *x509.Certificate) bool {
	_, err := cert.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: a.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// IssuedAt returns when a client's certificate was signed.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(skew) }

func hostURI(name, uid string) *url.URL {
	return &url.URL{Scheme: "rackweft", Host: "host", Path: "/" + name + "/" + uid}
}

// wellFormed accepts names that need no escaping in a common name and a URI.
func wellFormed(s string) bool {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`).MatchString(s)
}

func parseCSR(raw []byte) (*x509.CertificateRequest, error) {
	if len(raw) > maxCSR {
		return nil, fmt.Errorf("a certificate request of %d bytes is more than %d", len(raw), maxCSR)
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the certificate request is not one PEM block CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate request is damaged: %w", err)
	}
	// The key is checked first: verifying with a huge RSA key is expensive.
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	switch csr.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1:
		return nil, fmt.Errorf("the certificate request is signed with %s: use SHA-256 or better", csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	return csr, nil
}

func checkKey(public any) error {
	switch key := public.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("invalid ECDSA key on %s: want P-256 or P-384", key.Params().Name)
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("invalid RSA key of %d bits: want 2048 to 8192", bits)
		}
		return nil
	}
	return fmt.Errorf("invalid key of type %T: want ECDSA P-256 or P-384, Ed25519, or RSA", public)
}
