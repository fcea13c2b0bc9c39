package redfish

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"sync"

	"github.com/rackweft/rackweft/hardware"
)

// pin is the certificate that is expected. Handshakes may run beside a request, hence the lock.
type pin struct {
	address string
	mu      sync.Mutex
	want    string // as configured, or as learned from the first handshake
	seen    string
}

// tls judges the leaf's fingerprint and nothing else: names, dates and chains of BMC certificates are junk.
// Key exchange by RSA is let in again, since iLO 4 and Supermicro X10 know no other; the peer is pinned.
func (p *pin) tls() *tls.Config {
	suites := []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA}
	for _, suite := range tls.CipherSuites() {
		suites = append(suites, suite.ID)
	}
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection is the verification
		VerifyConnection:   p.verify,
		CipherSuites:       suites,
	}
}

func (p *pin) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("BMC presents no certificate")
	}
	sum := sha256.Sum256(state.PeerCertificates[0].Raw)
	got := "sha256:" + hex.EncodeToString(sum[:])
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.want != "" && p.want != got {
		return &hardware.CertificateMismatchError{Address: p.address, Want: p.want, Got: got}
	}
	p.want, p.seen = got, got
	return nil
}

func (p *pin) presented() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}
