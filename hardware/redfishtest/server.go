package redfishtest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Server is a BMC that listens on the loopback.
type Server struct {
	*BMC
	URL         string
	Fingerprint string // of its certificate: sha256:<hex>
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
	s.Config.ConnState = b.connState(s.Config.ConnState)
	s.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // HTTP/1.1 only, as in the field
	s.StartTLS()
	tb.Cleanup(func() {
		cancel()
		s.Close()
	})
	sum := sha256.Sum256(s.Certificate().Raw)
	return &Server{BMC: b, URL: s.URL, Fingerprint: "sha256:" + hex.EncodeToString(sum[:])}
}

// connState closes connections that are idle, where the BMC is one that does.
func (b *BMC) connState(then func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(c net.Conn, state http.ConnState) {
		if then != nil {
			then(c, state)
		}
		if state == http.StateIdle && b.has(DropsKeepAlive) {
			_ = c.Close() // without a word
		}
	}
}
