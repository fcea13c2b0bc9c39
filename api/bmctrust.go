package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// BMCPins are what a Machine's BMC is expected to show, and who says so.
type BMCPins struct {
	Certificate Fingerprint `json:"certificate,omitzero" doc:"SHA-256 of the certificate that is pinned; empty when none is."`
	HostKey     HostKey     `json:"hostKey,omitzero" doc:"SHA-256 of the SSH host key that is pinned; empty when none is."`
	By          string      `json:"by,omitzero" doc:"Who pinned the certificate: a person, spec, or first contact."`
	Time        time.Time   `json:"time,omitzero" doc:"When a person has trusted it."`
}

// Who pinned a certificate, when it was no person.
const (
	PinnedBySpec         = "spec"
	PinnedByFirstContact = "first contact"
)

// BMCPins returns what the Machine's BMC is held to: the spec's pins, else what
// was learned from its present address.
func (m *Machine) BMCPins() BMCPins {
	b := m.Spec.BMC
	if b == nil {
		return BMCPins{}
	}
	var p BMCPins
	if s := m.Status.BMC; s.LearnedFrom == b.Address {
		p = BMCPins{Certificate: Fingerprint(s.Fingerprint), HostKey: s.HostKey, By: s.TrustedBy, Time: s.Trusted}
	}
	if p.Certificate != "" && p.By == "" {
		p.By = PinnedByFirstContact
	}
	if pin := b.TLS.Fingerprint; pin != "" {
		if pin != p.Certificate || p.Time.IsZero() {
			p.By, p.Time = PinnedBySpec, time.Time{}
		}
		p.Certificate = pin
	}
	if b.SSH.HostKey != "" {
		p.HostKey = b.SSH.HostKey
	}
	return p
}

// TrustBMC pins what a person has trusted; a pin in the spec is replaced. Without
// a host key the one that is pinned stays.
func (m *Machine) TrustBMC(t BMCTrustRequest, by string, now time.Time) {
	b, s := m.Spec.BMC, m.bmcStatus()
	s.Fingerprint = string(t.Certificate)
	if b.TLS.Fingerprint != "" {
		b.TLS.Fingerprint = t.Certificate
	}
	if t.HostKey != "" {
		s.HostKey = t.HostKey
	}
	if t.HostKey != "" && b.SSH.HostKey != "" {
		b.SSH.HostKey = t.HostKey
	}
	s.TrustedBy, s.Trusted = by, now.UTC()
}

// LearnBMC records that the BMC has answered at an address, and pins the
// certificate and the host key (empty: not seen) that it showed. A pin that was
// made meanwhile stays.
func (m *Machine) LearnBMC(address string, certificate Fingerprint, key HostKey, now time.Time) {
	b := m.Spec.BMC
	if b == nil || b.Address != address {
		return
	}
	s := m.bmcStatus()
	if old := Fingerprint(s.Fingerprint); certificate != "" && certificate != old && (old == "" || certificate == b.TLS.Fingerprint) {
		s.Fingerprint, s.TrustedBy, s.Trusted = string(certificate), "", time.Time{}
	}
	if key != "" && (s.HostKey == "" || key == b.SSH.HostKey) {
		s.HostKey = key
	}
	s.LastContact = now.UTC()
}

// bmcStatus is the status of the BMC at its present address: of another one
// nothing is kept.
func (m *Machine) bmcStatus() *BMCStatus {
	if m.Status.BMC.LearnedFrom != m.Spec.BMC.Address {
		m.Status.BMC = BMCStatus{LearnedFrom: m.Spec.BMC.Address}
	}
	return &m.Status.BMC
}

// BMCTrustRequest is what a person trusts. Address is the BMC that was looked
// at.
type BMCTrustRequest struct {
	Address     string      `json:"address" doc:"Address of the BMC that was looked at: refused when the Machine has another one by now."`
	Certificate Fingerprint `json:"certificate" doc:"SHA-256 of the certificate to pin: refused when the BMC presents another one."`
	HostKey     HostKey     `json:"hostKey,omitzero" doc:"SHA-256 of the SSH host key to pin: refused when the BMC presents another one. Default: the pinned one stays."`
}

// BMCPresented is what a Machine's BMC shows to anyone who connects, before a
// credential is sent, and what is pinned.
type BMCPresented struct {
	Address     string         `json:"address" doc:"Address of the BMC."`
	Certificate BMCCertificate `json:"certificate" doc:"The certificate of its web server."`
	HostKey     *BMCHostKey    `json:"hostKey,omitempty" doc:"The host key of its SSH server; missing when it has none that answers."`
	Pinned      BMCPins        `json:"pinned,omitzero" doc:"What it is held to now."`
}

// BMCCertificate is a certificate as its BMC presents it.
type BMCCertificate struct {
	Fingerprint Fingerprint `json:"fingerprint" doc:"SHA-256 of the certificate."`
	Subject     string      `json:"subject,omitzero" doc:"Whose it claims to be."`
	Issuer      string      `json:"issuer,omitzero" doc:"Who has signed it."`
	NotBefore   time.Time   `json:"notBefore" doc:"Begin of its validity."`
	NotAfter    time.Time   `json:"notAfter" doc:"End of its validity."`
	Key         string      `json:"key,omitzero" doc:"Kind and bits of its key, such as RSA 2048."`
}

// BMCHostKey is an SSH host key as its BMC presents it.
type BMCHostKey struct {
	Type        string  `json:"type" doc:"Such as ssh-ed25519."`
	Fingerprint HostKey `json:"fingerprint" doc:"SHA-256 of the key, as ssh-keygen -l prints it."`
}

// PresentedBMC asks bootd to look at a Machine's BMC.
func (c *Client) PresentedBMC(ctx context.Context, machine string) (*BMCPresented, error) {
	out := new(BMCPresented)
	if err := c.call(ctx, http.MethodGet, "/v1/machines/"+url.PathEscape(machine)+"/bmc", nil, out); err != nil {
		return nil, err
	}
	return out, nil
}

// TrustBMC pins what a person has trusted, and returns what is pinned then.
func (c *Client) TrustBMC(ctx context.Context, machine string, t BMCTrustRequest) (*BMCPins, error) {
	out := new(BMCPins)
	if err := c.call(ctx, http.MethodPost, "/v1/machines/"+url.PathEscape(machine)+"/bmc/trust", t, out); err != nil {
		return nil, err
	}
	return out, nil
}
