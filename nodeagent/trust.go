package nodeagent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// newClient creates an HTTP/2 client that trusts bootd at base by the site's CA
// alone: it uses neither the system's roots nor a proxy.
func newClient(base string, roots []*x509.Certificate, own *tls.Certificate, dial time.Duration) (*http.Client, error) {
	host, err := apiHost(base)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: host,
		// The default verification uses the host's clock. VerifyConnection replaces
		// it; it runs for every connection, resumed ones too.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return verifyServer(s.PeerCertificates, roots, host)
		},
	}
	if own != nil {
		conf.Certificates = []tls.Certificate{*own}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true) // HTTP/1 cannot stream both ways at once
	return &http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dial}).DialContext,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 2 * dial,
		Protocols:           protocols,
	}}, nil
}

// verifyServer accepts a chain to one of the roots that is valid for host at some
// instant.
func verifyServer(chain, roots []*x509.Certificate, host string) error {
	if len(chain) == 0 {
		return errors.New("bootd presented no certificate")
	}
	if err := verifyChain(chain, roots, x509.VerifyOptions{DNSName: host}); err != nil {
		return fmt.Errorf("%s is not the bootd of this site (the CA in nodeagent.yaml decides): %w", host, err)
	}
	return nil
}

// verifyChain does not use the clock: that of a new machine may be decades off, and
// again after a reboot without bootd. A chain is valid at some instant exactly if it
// is valid at the latest NotBefore of its certificates, so those instants are tried.
func verifyChain(chain, roots []*x509.Certificate, opts x509.VerifyOptions) error {
	opts.Roots, opts.Intermediates = x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	var first error
	for _, c := range append(chain[:len(chain):len(chain)], roots...) {
		opts.CurrentTime = c.NotBefore
		_, err := chain[0].Verify(opts)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// Credentials authenticate a host to others.
type Credentials struct {
	Certificate tls.Certificate
	Roots       []*x509.Certificate // of the site's CA
}

// Credentials returns the host's own, or an error if it has not joined yet.
func (a *Agent) Credentials(ctx context.Context) (Credentials, error) {
	var id *identity
	if err := a.do(ctx, func() {
		if a.id != nil {
			own := *a.id
			id = &own
		}
	}); err != nil {
		return Credentials{}, err
	}
	if id == nil {
		return Credentials{}, errors.New("the host has not joined yet: it has no certificate")
	}
	return id.credentials(a.config.CA)
}

// credentials trust the CA of the configuration and that of the join.
func (id *identity) credentials(ca string) (Credentials, error) {
	roots, err := parseCertificates(ca + "\n" + id.CA)
	if err != nil {
		return Credentials{}, fmt.Errorf("the site's CA: %w", err)
	}
	own, err := id.pair()
	if err != nil {
		return Credentials{}, fmt.Errorf("the host's certificate: %w", err)
	}
	return Credentials{Certificate: *own, Roots: roots}, nil
}

// HostOf returns the host of the site that a certificate belongs to. The
// certificate's key is the one that bootd has on record for the host.
func (c Credentials) HostOf(chain []*x509.Certificate) (api.HostIdentity, error) {
	if len(chain) == 0 {
		return api.HostIdentity{}, errors.New("the other side presented no certificate")
	}
	if err := verifyChain(chain, c.Roots, x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return api.HostIdentity{}, fmt.Errorf("the other side is not a host of this site: %w", err)
	}
	leaf := chain[0]
	name, isHost := strings.CutPrefix(leaf.Subject.CommonName, "host:")
	if !isHost || len(leaf.URIs) != 1 {
		return api.HostIdentity{}, fmt.Errorf("the other side is %q, not a host", leaf.Subject.CommonName)
	}
	u := leaf.URIs[0]
	uid, named := strings.CutPrefix(u.Path, "/"+name+"/")
	if u.Scheme != "rackweft" || u.Host != "host" || !named {
		return api.HostIdentity{}, fmt.Errorf("the certificate of %q names another host: %s", leaf.Subject.CommonName, u)
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return api.HostIdentity{Host: name, UID: uid, Key: hex.EncodeToString(sum[:])}, nil
}
