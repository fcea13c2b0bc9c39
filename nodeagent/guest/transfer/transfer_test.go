package transfer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// site signs hosts' certificates as bootd's CA does.
type site struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newSite(t testing.TB) *site {
	s := &site{t: t, key: newKey(t)}
	s.cert = s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "site CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}, s.key)
	return s
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (s *site) sign(c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	s.t.Helper()
	c.SerialNumber, c.NotBefore = big.NewInt(1), time.Unix(1, 0)
	parent := s.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

// host makes a host's credentials, of a certificate that is over by now: no clock
// is asked.
func (s *site) host(name, uid string) (Credentials, api.HostIdentity) {
	key := newKey(s.t)
	cert := s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "host:" + name}, NotAfter: time.Now().Add(-time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "rackweft", Host: "host", Path: "/" + name + "/" + uid}}}, key)
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return func(context.Context) (nodeagent.Credentials, error) {
		return nodeagent.Credentials{Roots: []*x509.Certificate{s.cert},
			Certificate: tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}}, nil
	}, api.HostIdentity{Host: name, UID: uid, Key: hex.EncodeToString(sum[:])}
}

// listen serves at an address of this test's, on the port of moves.
func listen(t *testing.T, own Credentials, serve func(context.Context, *Conn, Request)) (at netip.Addr, refused chan error) {
	t.Helper()
	sum := sha256.Sum256([]byte(t.Name()))
	at = netip.AddrFrom4([4]byte{127, sum[0], sum[1], sum[2] | 2})
	l, err := net.Listen("tcp", netip.AddrPortFrom(at, api.MovePort).String())
	if err != nil {
		t.Fatal(err)
	}
	refused = make(chan error, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, l, own, func(_ net.Addr, err error) { refused <- err }, serve)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return at, refused
}

func TestOnlyTheHostsOfTheMove(t *testing.T) {
	s := newSite(t)
	target, targetIs := s.host("r1u02", "uid-2")
	source, sourceIs := s.host("r1u01", "uid-1")
	another, anotherIs := s.host("r1u03", "uid-3")
	renamed, _ := s.host("r1u01", "uid-1") // of that name and uid, with a key that never joined
	stranger, _ := newSite(t).host("r1u01", "uid-1")
	at, refused := listen(t, target, func(_ context.Context, c *Conn, r Request) {
		err := Expect(sourceIs, c.Peer)
		if r.ID != "move-1" {
			err = errors.New("no such move")
		}
		_ = c.Reply(Answer{Received: true}, err)
	})
	c, a, err := Dial(t.Context(), source, at, targetIs, Request{ID: "move-1", Kind: Ready})
	if err != nil || !a.Received {
		t.Fatalf("%+v, %v", a, err)
	}
	_ = c.Close()
	for name, try := range map[string]struct {
		own   Credentials
		peer  api.HostIdentity
		id    string
		words string
	}{
		"another host":             {another, targetIs, "move-1", "not host r1u01"},
		"another key":              {renamed, targetIs, "move-1", "another key"},
		"another move":             {source, targetIs, "move-2", "no such move"},
		"another target":           {source, anotherIs, "move-1", "not host r1u03"},
		"a target that has left":   {source, api.HostIdentity{Host: "r1u02", UID: "uid-2"}, "move-1", "not host r1u02"},
		"a host of another site":   {stranger, targetIs, "move-1", ""},
		"a target without address": {source, targetIs, "", "no address"},
	} {
		t.Run(name, func(t *testing.T) {
			to := at
			if try.id == "" {
				to = netip.Addr{}
			}
			_, _, err := Dial(t.Context(), try.own, to, try.peer, Request{ID: try.id, Kind: Ready})
			if err == nil || !strings.Contains(err.Error(), try.words) {
				t.Errorf("got %v, want …%s…", err, try.words)
			}
		})
	}
	raw, err := net.Dial("tcp", netip.AddrPortFrom(at, api.MovePort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	anonymous := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
	if err := anonymous.Handshake(); err == nil {
		_, _ = anonymous.Write([]byte("{}\n"))
		if _, err := anonymous.Read(make([]byte, 1)); err == nil {
			t.Error("a client without a certificate is answered")
		}
	}
	for len(refused) > 0 {
		t.Log(<-refused)
	}
}

// tree makes a directory with a file of holes.
func tree(t testing.TB) (dir string, files []string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "disks"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "disks", "root.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	content := bytes.Repeat([]byte("rackweft"), 100_000)
	for _, at := range []int64{0, 8 << 20, 64<<20 - int64(len(content))} {
		if _, err := f.WriteAt(content, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(256 << 20); err != nil { // ends in a hole
		t.Fatal(err)
	}
	for name, content := range map[string]string{"OVMF_VARS_4M.fd": "variables", "empty": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return dir, []string{"disks/root.qcow2", "OVMF_VARS_4M.fd", "empty"}
}

func TestTree(t *testing.T) {
	from, files := tree(t)
	room, err := Room(from, files)
	if err != nil || room > 16<<20 {
		t.Fatalf("it takes %d bytes, %v", room, err)
	}
	var wire bytes.Buffer
	var sent, got int64
	if err := Send(t.Context(), &wire, from, files, func(n int64) { sent = n }); err != nil {
		t.Fatal(err)
	}
	if wire.Len() > 16<<20 {
		t.Errorf("%d bytes go over for %d", wire.Len(), room)
	}
	to := t.TempDir()
	root, err := os.OpenRoot(to)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	whole := wire.Bytes()
	if err := Receive(bytes.NewReader(whole), root, func(n int64) { got = n }); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		a, errA := os.ReadFile(filepath.Join(from, name))
		b, errB := os.ReadFile(filepath.Join(to, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: %d bytes became %d: %v %v", name, len(a), len(b), errA, errB)
		}
		i, err := os.Stat(filepath.Join(to, name))
		was, errWas := os.Stat(filepath.Join(from, name))
		if err != nil || errWas != nil || i.Mode() != was.Mode() {
			t.Errorf("%s: mode %v, %v %v", name, i.Mode(), err, errWas)
		}
	}
	if now, err := Room(to, files); err != nil || now > room+1<<20 {
		t.Errorf("it took %d bytes and takes %d, %v", room, now, err)
	}
	if sent != got || sent == 0 {
		t.Errorf("%d bytes were sent, %d received", sent, got)
	}
	for _, cut := range []int{0, 1, 40, 1000, len(whole) / 2, len(whole) - 1} {
		root, err := os.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if Receive(bytes.NewReader(whole[:cut]), root, func(int64) {}) == nil {
			t.Errorf("a tree that is cut off after %d bytes is taken", cut)
		}
		_ = root.Close()
	}
}

// stuck is a network that takes nothing.
type stuck struct{ ctx context.Context }

func (s stuck) Write([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }

func TestSendEndsWithItsContext(t *testing.T) {
	from, files := tree(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Send(ctx, stuck{ctx}, from, files, func(int64) {}); err == nil {
		t.Error("it has ended without an error")
	}
	cancel()
	if err := Send(ctx, io.Discard, from, files, func(int64) {}); err == nil {
		t.Error("it begins although it is over")
	}
}

func FuzzReceive(f *testing.F) {
	from, files := tree(f)
	small := filepath.Join(from, "empty")
	_ = os.WriteFile(small, []byte("x"), 0o600)
	var wire bytes.Buffer
	if err := Send(f.Context(), &wire, from, files[1:], func(int64) {}); err != nil {
		f.Fatal(err)
	}
	f.Add(wire.Bytes())
	f.Add([]byte("{\"path\":\"../x\",\"size\":1}\n"))
	f.Add([]byte("{\"path\":\"a/b\",\"size\":4}\n\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x02xy\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00{\"end\":true}\n"))
	f.Add([]byte("{\"path\":\"a\",\"size\":4}\n\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x02xy"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		outer := t.TempDir()
		inner := filepath.Join(outer, "in")
		if err := os.Mkdir(inner, 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(inner)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		_ = Receive(bytes.NewReader(raw), root, func(int64) {})
		if entries, err := os.ReadDir(outer); err != nil || len(entries) != 1 {
			t.Errorf("beside its directory there is %v, %v", entries, err)
		}
	})
}
