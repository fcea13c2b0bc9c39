package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// IdentityKind is a kind of client.
type IdentityKind string

// The kinds of client.
const (
	Host   IdentityKind = "host"
	Person IdentityKind = "person"
)

// Identity is a client as authenticated by its certificate.
type Identity struct {
	Kind IdentityKind
	Name string
	UID  string // a host's Machine
	Role string // a person's
	// Serial is the certificate's serial number in hexadecimal, to revoke it by.
	Serial string
}

// ErrNoCertificate means that the client has shown no certificate.
var ErrNoCertificate = errors.New("the client has shown no certificate")

// Identify returns the client of a connection that ServerTLS has accepted;
// ErrNoCertificate when it is anonymous.
func Identify(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, ErrNoCertificate
	}
	if len(state.VerifiedChains) == 0 {
		return Identity{}, errors.New("the client's certificate was not verified")
	}
	return IdentityOf(state.PeerCertificates[0])
}

// IdentityOf returns the client that a certificate was issued to. It does not
// verify the certificate.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	id := Identity{Serial: cert.SerialNumber.Text(16)}
	kind, name, _ := strings.Cut(cert.Subject.CommonName, ":")
	id.Kind, id.Name = IdentityKind(kind), name
	switch id.Kind {
	case Host:
		if len(cert.URIs) != 1 {
			return Identity{}, fmt.Errorf("the certificate of %q has %d URIs instead of one", cert.Subject.CommonName, len(cert.URIs))
		}
		id.UID = cert.URIs[0].Path[strings.LastIndexByte(cert.URIs[0].Path, '/')+1:]
		if *cert.URIs[0] != *hostURI(name, id.UID) || !wellFormed(id.UID) {
			return Identity{}, fmt.Errorf("the certificate of %q names %s, which is another", cert.Subject.CommonName, cert.URIs[0])
		}
		return id, nil
	case Person:
		if len(cert.Subject.Organization) != 1 || !slices.Contains(Roles(), cert.Subject.Organization[0]) {
			return Identity{}, fmt.Errorf("the certificate of %q has no known role: %q", cert.Subject.CommonName, cert.Subject.Organization)
		}
		id.Role = cert.Subject.Organization[0]
		return id, nil
	}
	return Identity{}, fmt.Errorf("a certificate for %q names neither a host nor a person", cert.Subject.CommonName)
}
