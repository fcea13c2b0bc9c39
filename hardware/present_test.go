package hardware

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
)

// selfSigned is a certificate as a BMC makes it, with a name that a terminal must not be shown.
func selfSigned(t testing.TB, commonName string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestPresentedWithoutACredential(t *testing.T) {
	const name = "bmc\x1b[31m\nr1u07"
	var requests atomic.Int32
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	web.TLS = &tls.Config{Certificates: []tls.Certificate{selfSigned(t, name)}}
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // the handshakes are ended halfway
	web.StartTLS()
	t.Cleanup(web.Close)
	ssh := serveShell(t, 2, byPassword)

	// The first port is not an SSH server's.
	got, err := present(t.Context(), web.Listener.Addr().String(), web.Listener.Addr().String(), ssh.address)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(web.TLS.Certificates[0].Certificate[0])
	c := got.Certificate
	if c.Fingerprint != FingerprintOf(leaf) || c.Key != "ECDSA 256" || c.NotBefore.Year() != 1980 || c.NotAfter.Year() != 2031 {
		t.Errorf("it presents %+v", c)
	}
	if !strings.Contains(c.Subject, "bmc") || strings.ContainsFunc(c.Subject+c.Issuer, unicode.IsControl) {
		t.Errorf("subject %q, issuer %q", c.Subject, c.Issuer)
	}
	if got.HostKey == nil || got.HostKey.Fingerprint != ssh.hostKey {
		t.Errorf("host key %v, want %s", got.HostKey, ssh.hostKey)
	}
	if n := requests.Load(); n > 0 || len(ssh.passwords()) > 0 {
		t.Errorf("%d requests and the passwords %q were sent", n, ssh.passwords())
	}
}

func TestPresentSaysWhatDoesNotAnswer(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for _, address := range []string{closed.Addr().String(), plain.Listener.Addr().String()} {
		if got, err := present(t.Context(), address, address); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s presents %+v (%v)", address, got, err)
		}
	}
	for _, address := range []string{"http://192.0.2.1", "192.0.2.1", "https://", "https://[::1", ""} {
		if _, err := Present(t.Context(), address); err == nil || errors.Is(err, ErrUnreachable) {
			t.Errorf("address %q: %v", address, err)
		}
	}
}

// Whatever a certificate claims is one harmless line.
func FuzzCertificateOf(f *testing.F) {
	f.Add(selfSigned(f, "bmc\x1b[2J\u202e").Certificate[0])
	f.Add(selfSigned(f, strings.Repeat("é", 400)).Certificate[0])
	f.Fuzz(func(t *testing.T, der []byte) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		c := certificateOf(leaf)
		for _, s := range []string{c.Subject, c.Issuer, c.Key} {
			if strings.ContainsFunc(s, unicode.IsControl) || len(s) > nameLimit+len("…") {
				t.Errorf("%d bytes: %q", len(s), s)
			}
		}
	})
}
