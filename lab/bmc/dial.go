package bmc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
)

// DialFunc connects from the BMC's own address, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// client makes requests of the BMC itself. Without verify it trusts any
// certificate, as BMCs do; with it only those that are signed by the given CAs.
func (d DialFunc) client(verify bool, cas []*x509.Certificate) *http.Client {
	pool := x509.NewCertPool()
	for _, one := range cas {
		pool.AddCert(one)
	}
	return &http.Client{Transport: &http.Transport{
		DialContext:     d,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: !verify, RootCAs: pool},
	}}
}
