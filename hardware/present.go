package hardware

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/rackweft/rackweft/internal/text"
)

const (
	presentTimeout = 20 * time.Second // of a TLS handshake: a BMC's processor may need seconds for it
	nameLimit      = 256              // bytes of a name in a certificate
)

// Presented is what a BMC shows to anyone who connects, before a credential is sent.
type Presented struct {
	Certificate Certificate
	HostKey     *HostKey // nil: no SSH server answers
}

// Certificate is the leaf that a BMC's web server presents.
type Certificate struct {
	Fingerprint         string // sha256:<hex of its DER's SHA-256>
	Subject, Issuer     string // one line each, cut to nameLimit
	NotBefore, NotAfter time.Time
	Key                 string // kind and bits: RSA 2048
}

// Present looks at a BMC without a credential: it ends the TLS handshake when it has the certificate, and the SSH key
// exchange when it has the host key, one after the other. The SSH server is that of the same host at port 22, or else at 2200,
// where OpenBMC has the consoles. ErrUnreachable: no TLS server answers.
func Present(ctx context.Context, address string) (Presented, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return Presented{}, fmt.Errorf("invalid BMC address %q: want https://host or https://host:port", address)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return present(ctx, net.JoinHostPort(u.Hostname(), port), net.JoinHostPort(u.Hostname(), "22"), net.JoinHostPort(u.Hostname(), "2200"))
}

func present(ctx context.Context, web string, shells ...string) (Presented, error) {
	leaf, err := certificate(ctx, web)
	if err != nil {
		return Presented{}, fmt.Errorf("look at the certificate of %s: %w: %w: check its address, its power and the management network", web, ErrUnreachable, err)
	}
	seen := Presented{Certificate: leaf}
	for _, shell := range shells {
		if seen.HostKey == nil {
			seen.HostKey = hostKey(ctx, shell)
		}
	}
	return seen, nil
}

// ClientTLS is how the web server of a BMC is spoken to. verify is all that judges its certificate: names, dates and chains
// of BMC certificates are junk. Key exchange by RSA is accepted again, since iLO 4 and Supermicro X10 know no other; the
// peer is pinned.
func ClientTLS(verify func(tls.ConnectionState) error) *tls.Config {
	suites := []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA}
	for _, suite := range tls.CipherSuites() {
		suites = append(suites, suite.ID)
	}
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection is the verification
		VerifyConnection:   verify,
		CipherSuites:       suites,
	}
}

// FingerprintOf is a certificate's fingerprint as an Endpoint has it.
func FingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// errSeen ends a handshake that has shown what was asked for.
var errSeen = errors.New("seen")

func certificate(ctx context.Context, address string) (Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, presentTimeout)
	defer cancel()
	var leaf *x509.Certificate
	dialer := &tls.Dialer{Config: ClientTLS(func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) > 0 {
			leaf = state.PeerCertificates[0]
		}
		return errSeen
	})}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close()
	}
	if leaf == nil {
		return Certificate{}, err
	}
	return certificateOf(leaf), nil
}

func certificateOf(leaf *x509.Certificate) Certificate {
	return Certificate{
		Fingerprint: FingerprintOf(leaf), Subject: name(leaf.Subject.String()), Issuer: name(leaf.Issuer.String()),
		NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(), Key: keyOf(leaf),
	}
}

// keyOf names a certificate's key as openssl and ssh-keygen do: by its kind and bits.
func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ECDSA %d", key.Curve.Params().BitSize)
	}
	return c.PublicKeyAlgorithm.String()
}

// name is a name that a BMC's certificate claims, made harmless.
func name(s string) string { return text.Clip(s, nameLimit) }
