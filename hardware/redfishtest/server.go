package redfishtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// Server is a BMC that listens on the loopback.
type Server struct {
	*BMC
	URL         string
	Fingerprint string // of its certificate: sha256:<hex>
	certificate atomic.Pointer[tls.Certificate]
}

// NewCertificate replaces the certificate, as a factory reset does. Open connections keep the old one.
func (s *Server) NewCertificate(tb testing.TB) {
	tb.Helper()
	certificate, err := Certificate()
	if err != nil {
		tb.Fatal(err)
	}
	sum := sha256.Sum256(certificate.Certificate[0])
	s.Fingerprint = "sha256:" + hex.EncodeToString(sum[:])
	s.certificate.Store(&certificate)
}

// tls has each handshake show the certificate of that moment.
func (s *Server) tls(*tls.ClientHelloInfo) (*tls.Config, error) {
	return &tls.Config{Certificates: []tls.Certificate{*s.certificate.Load()}}, nil
}

// Start serves a BMC over HTTPS until the test ends.
func Start(tb testing.TB, tree Tree, traits ...Trait) *Server {
	tb.Helper()
	b, err := New(tree, traits...)
	if err != nil {
		tb.Fatal(err)
	}
	base, cancel := context.WithCancel(context.Background())
	s := httptest.NewUnstartedServer(b)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Config.BaseContext = func(net.Listener) context.Context { return base }
	s.Config.ConnContext = withConn
	s.Config.ConnState = b.connState(s.Config.ConnState)
	s.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // HTTP/1.1 only, as in the field
	server := &Server{BMC: b}
	server.NewCertificate(tb)
	s.TLS = &tls.Config{GetConfigForClient: server.tls}
	s.StartTLS()
	tb.Cleanup(func() {
		cancel()
		s.Close()
	})
	server.URL = s.URL
	return server
}

// Certificate makes a certificate, as a BMC does at its first start.
func Certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the key of a BMC: %w", err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(math.MaxInt64))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the certificate of a BMC: %w", err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "bmc"}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make the certificate of a BMC: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// connKey has a request's context hold its connection.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connState closes connections that are idle, where the BMC is one that does. What has come in already is not read.
func (b *BMC) connState(then func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(c net.Conn, state http.ConnState) {
		if then != nil {
			then(c, state)
		}
		switch {
		case state == http.StateIdle && b.has(DropsKeepAlive):
			b.dropped.Store(c, true)
			_ = c.Close() // without a word
		case state == http.StateClosed:
			b.dropped.Delete(c)
		}
	}
}

// unread says whether a request came in on a connection that the BMC had closed.
func (b *BMC) unread(r *http.Request) bool {
	_, dropped := b.dropped.Load(r.Context().Value(connKey{}))
	return dropped
}
