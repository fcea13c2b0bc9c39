package redfish

import (
	"crypto/tls"
	"errors"
	"sync"

	"github.com/rackweft/rackweft/hardware"
)

// pin is the certificate that is expected. Handshakes may run during a request, hence the lock.
type pin struct {
	address string
	only    bool // refuse what is not pinned
	mu      sync.Mutex
	want    string // as configured, or as learned from the first handshake
	seen    string
}

// tls judges the leaf's fingerprint and nothing else.
func (p *pin) tls() *tls.Config { return hardware.ClientTLS(p.verify) }

func (p *pin) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("BMC presents no certificate")
	}
	got := hardware.FingerprintOf(state.PeerCertificates[0])
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.want == "" && p.only {
		return &hardware.UntrustedError{Address: p.address, What: "certificate", Got: got}
	}
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

// expected is what the BMC has presented, or has to where it was not asked for anything yet; empty when it is not known.
func (p *pin) expected() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want
}
