package nodeagent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// newClient makes an HTTP/2 client that trusts bootd at base by the site's CA
// alone: neither the system's roots nor a proxy have a say.
func newClient(base string, roots []*x509.Certificate, own *tls.Certificate, dial time.Duration) (*http.Client, error) {
	host, err := apiHost(base)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: host,
		// The default verification asks the host's clock. VerifyConnection
		// replaces it; it runs for every connection, resumed ones too.
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

// verifyServer accepts a chain that leads to one of the roots and is valid for
// host at any one instant. The clock of a new machine may be decades off, and
// after a reboot without bootd it may be so again: the host judges no time by
// it. A chain is valid at some instant exactly when it is so at the latest
// NotBefore among its certificates, so those are the instants to try.
func verifyServer(chain, roots []*x509.Certificate, host string) error {
	if len(chain) == 0 {
		return errors.New("bootd showed no certificate")
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool()}
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
	return fmt.Errorf("%s is not the bootd of this site (the CA in nodeagent.yaml decides): %w", host, first)
}
