package ca

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const uid = "0d4a1c5e-8f5b-4a1e-9f0e-2b7b6c1d3e4f"

func openCA(t testing.TB, dir string) *Authority {
	t.Helper()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "person:root"}, DNSNames: []string{"bootd"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func parse(t testing.TB, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatalf("no PEM: %s", certPEM)
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestOpenMakesOneCAAndKeepsIt(t *testing.T) {
	dir := t.TempDir()
	a := openCA(t, dir)
	b := openCA(t, dir)
	if string(a.CertPEM()) != string(b.CertPEM()) {
		t.Error("the second start has another CA")
	}
	for _, name := range []string{"ca.crt", "ca.key"} {
		info, err := os.Stat(filepath.Join(dir, "ca", name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if other := openCA(t, t.TempDir()); other.cert.Subject.CommonName == a.cert.Subject.CommonName {
		t.Error("two Sites' CAs have one name")
	}
}

func TestOpenRefusesHalfACA(t *testing.T) {
	for _, c := range []struct {
		name, words string
		damage      func(t *testing.T, dir string) error
	}{
		{"key missing", "ca.key is missing", func(t *testing.T, d string) error { return os.Remove(d + "/ca.key") }},
		{"certificate missing", "ca.crt is missing", func(t *testing.T, d string) error { return os.Remove(d + "/ca.crt") }},
		{"only bootd's certificate", "ca.crt is missing", func(t *testing.T, d string) error {
			return errors.Join(os.Remove(d+"/ca.crt"), os.Remove(d+"/ca.key"), os.WriteFile(d+"/server.pem", nil, 0o600))
		}},
		{"key of another CA", "ca.key is not the key of ca.crt", func(t *testing.T, d string) error {
			other := t.TempDir()
			openCA(t, other)
			return os.Rename(other+"/ca/ca.key", d+"/ca.key")
		}},
		{"damaged", "damaged", func(t *testing.T, d string) error { return os.WriteFile(d+"/ca.crt", []byte("x"), 0o600) }},
		{"readable key", "mode 0640", func(t *testing.T, d string) error { return os.Chmod(d+"/ca.key", 0o640) }},
		{"no CA at all", "holds no CA", func(t *testing.T, d string) error {
			a := openCA(t, filepath.Dir(d))
			cert, key, err := a.IssuePerson("mallory", "admin", time.Hour)
			return errors.Join(err, os.WriteFile(d+"/ca.crt", cert, 0o600), os.WriteFile(d+"/ca.key", key, 0o600))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			openCA(t, dir)
			if err := c.damage(t, filepath.Join(dir, "ca")); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadDir(filepath.Join(dir, "ca"))
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want …%s…", err, c.words)
			}
			after, _ := os.ReadDir(filepath.Join(dir, "ca"))
			if len(before) != len(after) {
				t.Error("files were made")
			}
		})
	}
}

func TestOpenAfterAnInterruptedFirstStart(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "ca.new-123")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "ca.crt"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	openCA(t, dir)
	if _, err := os.Stat(left); err == nil {
		t.Error("what was left over is still there")
	}
}

// TestStartsAtOnce has several bootds make what a first start makes: those that
// go on must agree, whichever was first.
func TestStartsAtOnce(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	var wg sync.WaitGroup
	certs, keys := map[string]bool{}, map[string]bool{}
	for range 8 {
		wg.Go(func() {
			a, err := Open(dir)
			k, keyErr := LoadKeyring(dir, "")
			mu.Lock()
			defer mu.Unlock()
			if err == nil { // it may be disturbed, but never have a CA of its own
				certs[string(a.CertPEM())] = true
			}
			if keyErr != nil {
				t.Error(keyErr)
				return
			}
			keys[k.KeyID()] = true
		})
	}
	wg.Wait()
	certs[string(openCA(t, dir).CertPEM())] = true
	if len(certs) != 1 || len(keys) != 1 {
		t.Errorf("%d CAs, %d keys", len(certs), len(keys))
	}
	if left, _ := filepath.Glob(dir + "/*.new*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestRequestKeyIsTheCertificates(t *testing.T) {
	a := openCA(t, t.TempDir())
	csr := newCSR(t, newKey(t))
	certPEM, err := a.SignHost(csr, "r1u07", uid, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key, err := RequestKey(csr)
	if err != nil || key != CertificateKey(parse(t, certPEM)) {
		t.Errorf("%s %v", key, err)
	}
	if other, err := RequestKey(newCSR(t, newKey(t))); err != nil || other == key {
		t.Errorf("another key is %s, %v", other, err)
	}
	if _, err := RequestKey(a.CertPEM()); err == nil {
		t.Error("a certificate is taken for a request")
	}
}

func TestServerCertificate(t *testing.T) {
	dir := t.TempDir()
	a := openCA(t, dir)
	names, addrs := []string{"boot.dc1.example", "boot"}, []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("::1")}
	ensure := func(a *Authority, names []string, addrs []netip.Addr, want bool) {
		t.Helper()
		if issued, err := a.EnsureServer(names, addrs); err != nil || issued != want {
			t.Errorf("issued %v, %v; want %v", issued, err, want)
		}
	}
	ensure(a, names, addrs, true)
	first := a.server.Load().Leaf
	ensure(a, []string{names[1], names[0], names[1]}, []netip.Addr{addrs[1], addrs[0], netip.MustParseAddr("::ffff:198.18.0.1")}, false)
	ensure(openCA(t, dir), names, addrs, false)
	ensure(a, names, addrs[:1], true)
	if err := os.WriteFile(filepath.Join(dir, "ca", "server.pem"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(a, names, addrs, true)

	foreign := openCA(t, t.TempDir())
	ensure(foreign, names, addrs, true)
	raw, err := os.ReadFile(filepath.Join(foreign.dir, "server.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca", "server.pem"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(a, names, addrs, true)

	for _, year := range []int{1970, 1980, 2026, 2049, 2051, 9999} {
		now := time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC)
		for _, name := range []string{"boot", "198.18.0.1", "::1"} {
			if _, err := first.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: now, DNSName: name}); err != nil {
				t.Errorf("%s in %d: %v", name, year, err)
			}
		}
	}
	if _, err := first.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: "198.18.0.2"}); err == nil {
		t.Error("verified for another address")
	}
	if _, err := first.Verify(x509.VerifyOptions{Roots: foreign.Pool(), DNSName: "boot"}); err == nil {
		t.Error("verified with a foreign CA")
	}
}

func TestSignHostChecksTheRequest(t *testing.T) {
	a := openCA(t, t.TempDir())
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := newCSR(t, newKey(t))
	forged := append([]byte{}, good...)
	block, _ := pem.Decode(forged)
	block.Bytes[len(block.Bytes)-1] ^= 1
	forged = pem.EncodeToMemory(block)

	for _, c := range []struct {
		name, words string
		csr         []byte
	}{
		{"P-256", "", good},
		{"P-384", "", newCSR(t, p384)},
		{"Ed25519", "", newCSR(t, ed)},
		{"RSA 2048", "", newCSR(t, rsa2048)},
		{"P-521", "want P-256 or P-384", newCSR(t, p521)},
		{"P-224", "want P-256 or P-384", newCSR(t, p224)},
		{"RSA 1024", "RSA key of 1024 bits", rsa1024CSR(t)},
		{"forged", "not signed by its own key", forged},
		{"empty", "not one PEM block", nil},
		{"two", "not one PEM block", append(append([]byte{}, good...), good...)},
		{"a certificate", "not one PEM block", a.CertPEM()},
		{"garbage", "is damaged", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")})},
		{"huge", "bytes is more than", append(good, make([]byte, maxCSR)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			certPEM, err := a.SignHost(c.csr, "r1u07", uid, time.Hour)
			if c.words != "" {
				if err == nil || !strings.Contains(err.Error(), c.words) {
					t.Errorf("got %v, want …%s…", err, c.words)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert := parse(t, certPEM)
			if len(cert.DNSNames) != 0 || cert.Subject.CommonName != "host:r1u07" || cert.URIs[0].String() != "rackweft://host/r1u07/"+uid {
				t.Errorf("signed %v %v %v", cert.Subject, cert.DNSNames, cert.URIs)
			}
			if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || cert.IsCA {
				t.Errorf("usage %v, CA %v", cert.ExtKeyUsage, cert.IsCA)
			}
			if d := time.Since(cert.NotBefore); d < 59*time.Minute || d > 61*time.Minute {
				t.Errorf("it begins %s ago", d)
			}
		})
	}
	for _, c := range []struct{ name, uid string }{{"R1", uid}, {"", uid}, {"r1u07", ""}, {"r1u07", "a/b"}, {"a/../b", uid}} {
		if _, err := a.SignHost(good, c.name, c.uid, time.Hour); err == nil {
			t.Errorf("signed for %q, uid %q", c.name, c.uid)
		}
	}
	if _, err := a.SignHost(good, "r1u07", uid, 0); err == nil {
		t.Error("signed for no time at all")
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkKey(x25519.PublicKey()); err == nil {
		t.Error("took an X25519 key")
	}
}

// rsa1024CSR is a request with a key that Go by itself no longer makes.
func rsa1024CSR(t *testing.T) []byte {
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return newCSR(t, key)
}

func TestIssuePersonRefuses(t *testing.T) {
	a := openCA(t, t.TempDir())
	for _, c := range []struct {
		name, role, words string
		ttl               time.Duration
	}{
		{"ann", "root", "admin, operator, viewer", time.Hour},
		{"", "admin", "invalid name", time.Hour},
		{"ann\nadmin", "admin", "invalid name", time.Hour},
		{"ann", "admin", "too short", time.Second},
	} {
		if _, _, err := a.IssuePerson(c.name, c.role, c.ttl); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%q %q: got %v, want …%s…", c.name, c.role, err, c.words)
		}
	}
}

// handshake connects a client to ServerTLS and returns what each side saw.
func handshake(t *testing.T, a *Authority, client *tls.Config) (server tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		conn := tls.Server(raw, a.ServerTLS())
		defer func() { _ = conn.Close() }()
		if serverErr = conn.Handshake(); serverErr == nil {
			server = conn.ConnectionState()
			_, serverErr = conn.Write([]byte("x"))
		}
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err != nil {
		clientErr = err
	} else {
		// TLS 1.3: the server's verdict on the certificate comes with the first read.
		_, clientErr = io.ReadFull(conn, make([]byte, 1))
		_ = conn.Close()
	}
	<-done
	return server, serverErr, clientErr
}

func pair(t *testing.T, cert []byte, key crypto.Signer) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{parse(t, cert).Raw}, PrivateKey: key}
}

func TestIdentifyOverTLS(t *testing.T) {
	a, foreign := openCA(t, t.TempDir()), openCA(t, t.TempDir())
	for _, ca := range []*Authority{a, foreign} {
		if _, err := ca.EnsureServer(nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}); err != nil {
			t.Fatal(err)
		}
	}
	key := newKey(t)
	host, err := a.SignHost(newCSR(t, key), "r1u07", uid, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := foreign.SignHost(newCSR(t, key), "r1u07", uid, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	personPEM, personKey, err := a.IssuePerson("ann@example.org", "operator", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	person, err := tls.X509KeyPair(personPEM, personKey)
	if err != nil {
		t.Fatal(err)
	}
	a.now = func() time.Time { return time.Now().Add(-48 * time.Hour) }
	expired, err := a.SignHost(newCSR(t, key), "r1u07", uid, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a.now = time.Now

	for _, c := range []struct {
		name    string
		certs   []tls.Certificate
		want    Identity
		refused bool
	}{
		{name: "host", certs: []tls.Certificate{pair(t, host, key)}, want: Identity{Kind: Host, Name: "r1u07", UID: uid}},
		{name: "person", certs: []tls.Certificate{person}, want: Identity{Kind: Person, Name: "ann@example.org", Role: "operator"}},
		{name: "nobody"},
		{name: "foreign CA", certs: []tls.Certificate{pair(t, stranger, key)}, refused: true},
		{name: "expired", certs: []tls.Certificate{pair(t, expired, key)}, refused: true},
		{name: "bootd's own certificate", certs: []tls.Certificate{*a.server.Load()}, refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			// A client whose clock says 1980, as a new machine's does. It sends
			// its certificate whichever CAs the server names.
			conf := &tls.Config{RootCAs: a.Pool(), Time: func() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }}
			if c.certs != nil {
				conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.certs[0], nil }
			}
			state, serverErr, clientErr := handshake(t, a, conf)
			if c.refused {
				if serverErr == nil || clientErr == nil {
					t.Errorf("taken: %v, %v", serverErr, clientErr)
				}
				return
			}
			if serverErr != nil || clientErr != nil {
				t.Fatal(serverErr, clientErr)
			}
			id, err := Identify(state)
			if c.certs == nil {
				if !errors.Is(err, ErrNoCertificate) {
					t.Errorf("anonymous: %v", err)
				}
				return
			}
			if id.Serial == "" {
				t.Error("no serial number")
			}
			id.Serial = ""
			if err != nil || id != c.want {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
	t.Run("the client refuses a foreign bootd", func(t *testing.T) {
		if _, _, err := handshake(t, foreign, &tls.Config{RootCAs: a.Pool()}); err == nil {
			t.Error("taken")
		}
	})
	t.Run("TLS 1.2 shows no certificate", func(t *testing.T) {
		state, serverErr, clientErr := handshake(t, a, &tls.Config{RootCAs: a.Pool(), MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{person}})
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if _, err := Identify(state); state.Version != tls.VersionTLS12 || !errors.Is(err, ErrNoCertificate) {
			t.Errorf("version %x: %v", state.Version, err)
		}
	})
	t.Run("weak TLS is refused", func(t *testing.T) {
		for what, c := range map[string]*tls.Config{
			"TLS 1.1":            {RootCAs: a.Pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
			"CBC":                {RootCAs: a.Pool(), MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
			"no forward secrecy": {RootCAs: a.Pool(), MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		} {
			if _, _, err := handshake(t, a, c); err == nil {
				t.Errorf("%s: taken", what)
			}
		}
	})
	t.Run("not verified", func(t *testing.T) {
		if _, err := Identify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{parse(t, host)}}); err == nil {
			t.Error("taken")
		}
	})
	t.Run("before EnsureServer", func(t *testing.T) {
		if _, _, err := handshake(t, openCA(t, t.TempDir()), &tls.Config{RootCAs: a.Pool()}); err == nil {
			t.Error("taken")
		}
	})
}

func TestIdentityOfOddCertificates(t *testing.T) {
	a := openCA(t, t.TempDir())
	link := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for name, fill := range map[string]func(*x509.Certificate){
		"no kind":  func(c *x509.Certificate) { c.Subject.CommonName = "r1u07" },
		"odd kind": func(c *x509.Certificate) { c.Subject.CommonName = "bootd:x" },
		"no uid":   func(c *x509.Certificate) { c.Subject.CommonName = "host:a" },
		"another host": func(c *x509.Certificate) {
			c.Subject.CommonName = "host:a"
			c.URIs = []*url.URL{link("rackweft://host/b/" + uid)}
		},
		"empty uid": func(c *x509.Certificate) {
			c.Subject.CommonName = "host:a"
			c.URIs = []*url.URL{link("rackweft://host/a/")}
		},
		"another URI": func(c *x509.Certificate) {
			c.Subject.CommonName = "host:a"
			c.URIs = []*url.URL{link("https://host/a/" + uid)}
		},
		"with a query": func(c *x509.Certificate) {
			c.Subject.CommonName = "host:a"
			c.URIs = []*url.URL{link("rackweft://host/a/" + uid + "?x")}
		},
		"no role": func(c *x509.Certificate) { c.Subject.CommonName = "person:a" },
		"odd role": func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "person:a", Organization: []string{"root"}}
		},
		"several roles": func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "person:a", Organization: []string{"viewer", "admin"}}
		},
	} {
		certPEM, err := a.client(newKey(t).Public(), time.Hour, fill)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := IdentityOf(parse(t, certPEM)); err == nil {
			t.Errorf("%s is taken for %+v", name, id)
		}
	}
}

func FuzzSignHost(f *testing.F) {
	a := openCA(f, f.TempDir())
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for _, csr := range [][]byte{newCSR(f, newKey(f)), newCSR(f, ed)} {
		block, _ := pem.Decode(csr)
		f.Add(block.Bytes, true)
		f.Add(csr, false)
	}
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"), false)
	f.Fuzz(func(t *testing.T, csr []byte, der bool) {
		if der {
			csr = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})
		}
		certPEM, err := a.SignHost(csr, "r1u07", uid, time.Hour)
		if err != nil {
			return
		}
		cert := parse(t, certPEM)
		if id, err := IdentityOf(cert); err != nil || id.Name != "r1u07" || id.UID != uid || cert.IsCA {
			t.Errorf("signed %+v, %v", id, err)
		}
	})
}
