package httpboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

type fakeDecider struct {
	mu     sync.Mutex
	script Script
	err    error
	client Client
	ask    PointerRequest
	asked  chan struct{} // if there is one, Pointer sends to it, and waits to receive
	sent   []bool
}

func (d *fakeDecider) set(s Script, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.script, d.err = s, err
}

func (d *fakeDecider) last() Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.client
}

func (d *fakeDecider) lastPointer() (PointerRequest, []bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ask, slices.Clone(d.sent)
}

func (d *fakeDecider) Script(_ context.Context, c Client) (Script, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.client = c
	if errors.Is(d.err, http.ErrAbortHandler) {
		panic(d.err) // net/http cuts the connection
	}
	return d.script, d.err
}

func (d *fakeDecider) Pointer(_ context.Context, r PointerRequest) (Pointer, error) {
	if d.asked != nil {
		d.asked <- struct{}{}
		<-d.asked
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ask = r
	return Pointer{Config: []byte(`{"ignition":{"version":"3.5.0"}}`), Sent: func(arrived bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.sent = append(d.sent, arrived)
	}}, d.err
}

// fakeAssets are files in a directory.
type fakeAssets struct{ dir string }

func (a *fakeAssets) put(content []byte) string {
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(a.dir, digest), content, 0o600); err != nil {
		panic(err)
	}
	return digest
}

func (a *fakeAssets) Asset(_ context.Context, digest string) (Asset, error) {
	f, err := os.Open(filepath.Join(a.dir, digest))
	if err != nil {
		return Asset{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return Asset{}, errors.Join(err, f.Close())
	}
	return Asset{Content: f, Size: st.Size(), ModTime: st.ModTime()}, nil
}

// bench is a server on a free port of loopback and all that it told.
type bench struct {
	*Server
	assets    *fakeAssets
	base      string
	transfers chan Transfer
	progress  chan Transfer
}

func start(t *testing.T, cfg Config) *bench {
	t.Helper()
	b := &bench{assets: &fakeAssets{dir: t.TempDir()}, transfers: make(chan Transfer, 100), progress: make(chan Transfer, 100)}
	cfg.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	cfg.Assets = b.assets
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg.Observe = func(tr Transfer) { b.transfers <- tr }
	cfg.Progress = func(tr Transfer) { b.progress <- tr }
	if cfg.Decider == nil {
		cfg.Decider = &fakeDecider{}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Server = s
	waittest.Serve(t, s.Run, s.Ready())
	b.base = "http://" + s.Addr().String()
	return b
}

func (b *bench) transfer(t *testing.T) Transfer {
	t.Helper()
	select {
	case tr := <-b.transfers:
		return tr
	case <-time.After(30 * time.Second):
		t.Fatal("no transfer was observed")
		panic("unreachable")
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func curl(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	out, err := command.Output(exec.CommandContext(t.Context(), path, append([]string{"-sS", "--max-time", "60"}, args...)...))
	if err != nil {
		t.Fatalf("curl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestBlobByCurl(t *testing.T) {
	b := start(t, Config{})
	content := random(3<<20 + 17)
	digest := b.assets.put(content)
	url := b.base + "/blobs/sha256/" + digest[7:]
	out := filepath.Join(t.TempDir(), "out")

	head := curl(t, "-I", url)
	for _, want := range []string{"200 OK", fmt.Sprintf("Content-Length: %d", len(content)), `Etag: "` + digest + `"`, "Accept-Ranges: bytes"} {
		if !strings.Contains(head, want) {
			t.Errorf("HEAD lacks %q:\n%s", want, head)
		}
	}

	curl(t, "-o", out, url)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("GET: %d bytes, %v", len(got), err)
	}
	tr := b.transfer(t)
	if !tr.Whole() || tr.Digest != digest || tr.Sent != int64(len(content)) || tr.Peer.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("observed %+v", tr)
	}

	if got := curl(t, "-r", "100-299", url); got != string(content[100:300]) {
		t.Errorf("range: %d bytes", len(got))
	}
	if tr := b.transfer(t); tr.Whole() || tr.Offset != 100 || tr.Total != 200 || tr.Sent != 200 || tr.Err != nil {
		t.Errorf("observed %+v", tr)
	}

	if err := os.WriteFile(out, content[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	curl(t, "-C", "-", "-o", out, url)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("resume: %d bytes, %v", len(got), err)
	}
	if tr := b.transfer(t); !tr.Whole() || tr.Offset != 1<<20 {
		t.Errorf("observed %+v", tr)
	}

	if got := curl(t, "-o", os.DevNull, "-w", "%{http_code}", "-H", `If-None-Match: "`+digest+`"`, url); got != "304" {
		t.Errorf("If-None-Match: %s", got)
	}
	for _, bad := range []string{strings.Repeat("0", 64), strings.Repeat("A", 64), "x"} {
		if got := curl(t, "-o", os.DevNull, "-w", "%{http_code}", b.base+"/blobs/sha256/"+bad); got != "404" {
			t.Errorf("blob %s: %s", bad, got)
		}
	}
	if got := curl(t, "-X", "PUT", "-o", os.DevNull, "-w", "%{http_code}", url); got != "405" {
		t.Errorf("PUT: %s", got)
	}
}

func TestScriptStatus(t *testing.T) {
	d := &fakeDecider{}
	b := start(t, Config{Decider: d})
	const ask = "/ipxe/script?mac=52-54-00-01-07-00&uuid=rubbish"
	cases := map[string]struct {
		path   string
		script Script
		err    error
		status int
		body   string
		header map[string]string
	}{
		"served":             {ask, Script{Title: "hello"}, nil, 200, "echo rackweft: hello\n", nil},
		"held":               {ask, Script{}, &Hold{Reason: "not registered", RetryAfter: 1500 * time.Millisecond}, 503, "held: not registered\n", map[string]string{"Retry-After": "2"}},
		"held, wrapped":      {ask, Script{}, fmt.Errorf("decide: %w", &Hold{Reason: "x"}), 503, "held: x\n", map[string]string{"Retry-After": "5"}},
		"held, as script":    {ask + "&held=script", Script{}, &Hold{Reason: "not registered"}, 200, "echo rackweft: held: not registered\n", nil},
		"failed, as script":  {ask + "&held=script", Script{}, errors.New("x"), 200, "echo rackweft: bootd cannot decide now; its log says why\n", nil},
		"refused, as script": {ask + "&held=script", Script{}, &Refusal{Reason: "retired"}, 200, "echo rackweft: refused: retired\n", nil},
		"refused":            {ask, Script{}, &Refusal{Reason: "retired"}, 403, "refused: retired\n", nil},
		"refused, 404":       {ask, Script{}, &Refusal{Status: 404, Reason: "who?"}, 404, "refused: who?\n", nil},
		"refused, no 4xx":    {ask, Script{}, &Refusal{Status: 200, Reason: "x"}, 403, "refused: x\n", nil},
		"failed":             {ask, Script{}, errors.New("password of the store: hunter2"), 503, "bootd cannot decide now; its log says why\n", map[string]string{"Retry-After": "5"}},
		"bad script":         {ask, Script{Kernel: "a b"}, nil, 503, "bootd cannot decide now; its log says why\n", nil},
		"bad MAC":            {"/ipxe/script?mac=x", Script{}, nil, 400, `invalid MAC address "x"`, nil},
		"bad MAC length":     {"/ipxe/script?mac=52-54-00-01-07-00-00-00", Script{}, nil, 400, "invalid MAC address", nil},
		"first stage":        {"/boot.ipxe", Script{}, errors.New("all is down"), 200, "#!ipxe\n", nil},
		"health":             {"/healthz", Script{}, errors.New("all is down"), 200, "ok\n", nil},
		"nothing":            {"/a/b", Script{}, nil, 404, "", nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d.set(c.script, c.err)
			resp, err := http.Get(b.base + c.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.status || !strings.Contains(string(body), c.body) {
				t.Fatalf("%s, %v\n%s", resp.Status, err, body)
			}
			if resp.ContentLength != int64(len(body)) || len(resp.TransferEncoding) > 0 || resp.Close {
				t.Errorf("length %d of %d, transfer encoding %v, close %v", resp.ContentLength, len(body), resp.TransferEncoding, resp.Close)
			}
			for k, v := range c.header {
				if resp.Header.Get(k) != v {
					t.Errorf("%s: %q, want %q", k, resp.Header.Get(k), v)
				}
			}
		})
	}
	if c := d.last(); c.MAC.String() != "52:54:00:01:07:00" || c.Addr != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("client %+v", c)
	}
}

func TestPointer(t *testing.T) {
	d := &fakeDecider{}
	b := start(t, Config{Decider: d})
	const path = "/ignition/pointer/r1u07/aKey-_"
	got := curl(t, "-i", "-H", "Accept: application/vnd.coreos.ignition+json;version=3.5.0, */*;q=0.1", b.base+path)
	if !strings.Contains(got, "Content-Type: application/json") || !strings.Contains(got, `"version":"3.5.0"`) {
		t.Error(got)
	}
	first, _ := d.lastPointer()
	if first.Machine != "r1u07" || first.Key != "aKey-_" || first.Peer != netip.MustParseAddr("127.0.0.1") || !strings.HasPrefix(first.Accept, "application/vnd.coreos") || first.Conn == "" {
		t.Errorf("asked %+v", first)
	}
	curl(t, b.base+path)
	second, sent := d.lastPointer()
	if second.Conn == first.Conn {
		t.Error("two connections have one name")
	}
	if !slices.Equal(sent, []bool{true, true}) {
		t.Errorf("arrived: %v", sent)
	}
	if got := curl(t, "--head", b.base+path); !strings.Contains(got, "405 ") {
		t.Errorf("HEAD: %s", got)
	}
	if _, after := d.lastPointer(); len(after) != 2 {
		t.Error("a HEAD takes the pointer")
	}
	for _, none := range []string{"/ignition/pointer", "/ignition/pointer/52-54-00-01-07-00", "/ignition/pointer?mac=52:54:00:01:07:00"} {
		if got := curl(t, "-i", b.base+none); !strings.Contains(got, "404 ") {
			t.Errorf("%s: %s", none, got)
		}
	}
	d.set(Script{}, &Hold{Reason: "no BootAttempt"})
	if got := curl(t, "-i", b.base+path+"?held=script"); !strings.Contains(got, "503 ") || !strings.Contains(got, "Retry-After: 5") {
		t.Errorf("held: %s", got)
	}
}

func TestFiles(t *testing.T) {
	b := start(t, Config{Files: fstest.MapFS{"snponly.efi": {Data: []byte("MZ")}, "sub/x.kpxe": {Data: []byte("x")}}})
	for path, want := range map[string]string{"/ipxe/snponly.efi": "MZ", "/snponly.efi": "MZ", "/ipxe/sub/x.kpxe": "x"} {
		if got := curl(t, b.base+path); got != want {
			t.Errorf("%s: %q", path, got)
		}
		if tr := b.transfer(t); !tr.Whole() || tr.File == "" {
			t.Errorf("%s: observed %+v", path, tr)
		}
	}
	// As OVMF does: no port in Host, HEAD first, one connection.
	got := curl(t, "-I", "-H", "Host: 127.0.0.1", "-A", "UefiHttpBoot/1.0", b.base+"/ipxe/snponly.efi")
	if !strings.Contains(got, "Content-Type: application/efi") || !strings.Contains(got, "Content-Length: 2") {
		t.Errorf("HEAD: %s", got)
	}
	for _, path := range []string{"/ipxe/none", "/ipxe/sub", "/ipxe/", "/ipxe/..%2f..%2fetc/passwd", "/none"} {
		if got := curl(t, "--path-as-is", "-o", os.DevNull, "-w", "%{http_code}", b.base+path); got != "404" {
			t.Errorf("%s: %s", path, got)
		}
	}
}

// TestNoEmptyHeaders reads raw bytes, for OVMF locks up over an empty header value (edk2#7443).
func TestNoEmptyHeaders(t *testing.T) {
	b := start(t, Config{Files: fstest.MapFS{"x.efi": {Data: []byte("MZ")}}})
	digest := b.assets.put([]byte("kernel"))
	for _, path := range []string{"/boot.ipxe", "/ipxe/x.efi", "/ipxe/none", "/ipxe/script", "/ignition/pointer/r1u07/key", "/blobs/sha256/" + digest[7:], "/healthz", "/a/b/c"} {
		for _, method := range []string{"HEAD", "GET", "POST"} {
			resp := curl(t, "-i", "-X", method, "--http1.1", "-H", "Connection: close", "--head", b.base+path)
			head, _, _ := strings.Cut(resp, "\r\n\r\n")
			if !strings.Contains(head, "Content-Length: ") {
				t.Errorf("%s %s has no Content-Length:\n%s", method, path, head)
			}
			for _, line := range strings.Split(head, "\r\n")[1:] {
				if _, value, _ := strings.Cut(line, ":"); strings.TrimSpace(value) == "" {
					t.Errorf("%s %s: %q", method, path, line)
				}
			}
		}
	}
}

// readerFrom stands for net/http's response, and sees what it is given.
type readerFrom struct {
	*httptest.ResponseRecorder
	t      *testing.T
	chunks int
}

func (w *readerFrom) SetWriteDeadline(time.Time) error { return nil }

func (w *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		w.t.Fatalf("sendfile is lost: %T", src)
	}
	if _, ok := limited.R.(*os.File); !ok {
		w.t.Fatalf("sendfile is lost: LimitedReader over %T", limited.R)
	}
	w.chunks++
	return io.Copy(w.ResponseRecorder, src)
}

// TestSendfile shows that net/http is given an *os.File in the one form that it uses sendfile(2) for.
func TestSendfile(t *testing.T) {
	assets := &fakeAssets{dir: t.TempDir()}
	content := random(2*chunk + 5)
	digest := assets.put(content)
	s, err := New(Config{Decider: &fakeDecider{}, Assets: assets})
	if err != nil {
		t.Fatal(err)
	}
	w := &readerFrom{ResponseRecorder: httptest.NewRecorder(), t: t}
	s.routes().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/blobs/sha256/"+digest[7:], nil))
	if w.chunks != 3 || !bytes.Equal(w.Body.Bytes(), content) {
		t.Errorf("%d chunks, %d bytes", w.chunks, w.Body.Len())
	}
}

// TestSlowReader: a client that takes nothing is dropped; one that takes a little at a time is not.
func TestSlowReader(t *testing.T) {
	b := start(t, Config{WriteTimeout: 500 * time.Millisecond})
	digest := b.assets.put(make([]byte, 32<<20))
	request := "GET /blobs/sha256/" + digest[7:] + " HTTP/1.1\r\nHost: x\r\n\r\n"
	dial := func() *net.TCPConn {
		t.Helper()
		conn, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(b.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		return conn
	}

	dial() // reads nothing
	if tr := b.transfer(t); tr.Err == nil || tr.Whole() || tr.Sent == 0 {
		t.Errorf("stalled: observed %+v", tr)
	}

	slow := dial()
	buf := make([]byte, 2<<20)
	begin := time.Now()
	for total := 0; total < 32<<20; total += len(buf) {
		if _, err := io.ReadFull(slow, buf); err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if tr := b.transfer(t); !tr.Whole() {
		t.Errorf("slow: observed %+v after %s", tr, time.Since(begin))
	}
	select {
	case tr := <-b.progress:
		if tr.Sent == 0 || tr.Sent > tr.Total || tr.Err != nil {
			t.Errorf("progress %+v", tr)
		}
	default:
		t.Error("no progress was reported")
	}
}

func TestAbortedTransferIsObserved(t *testing.T) {
	b := start(t, Config{})
	digest := b.assets.put(make([]byte, 64<<20))
	resp, err := http.Get(b.base + "/blobs/sha256/" + digest[7:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if tr := b.transfer(t); tr.Err == nil || tr.Whole() || tr.Sent < 1<<20 {
		t.Errorf("observed %+v", tr)
	}
}

func TestConnectionLimit(t *testing.T) {
	b := start(t, Config{MaxConnsPerPeer: 2})
	open := func() *net.TCPConn {
		conn, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(b.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	healthy := func(conn net.Conn) bool {
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			return false
		}
		_, err := conn.Read(make([]byte, 4096))
		return err == nil
	}
	first, second, third := open(), open(), open()
	defer second.Close()
	defer third.Close()
	if !healthy(first) || !healthy(second) || healthy(third) {
		t.Fatal("two connections must work, and the third be closed")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		again := open()
		ok := healthy(again)
		_ = again.Close()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatal("a closed connection still counts")
		}
	}
}

func TestHeadersAreBounded(t *testing.T) {
	b := start(t, Config{})
	if got := curl(t, "-o", os.DevNull, "-w", "%{http_code}", "-H", "X: "+strings.Repeat("x", 64<<10), b.base+"/healthz"); got != "431" {
		t.Errorf("64 KiB of headers: %s", got)
	}
}

func TestBusyPortIsExplained(t *testing.T) {
	b := start(t, Config{})
	second, err := New(Config{Decider: &fakeDecider{}, Assets: b.assets, Listen: b.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "ss -ltnp") {
		t.Fatalf("Run: %v", err)
	}
}

func TestMetricsLeaveTheRegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		s, err := New(Config{Decider: &fakeDecider{}, Assets: &fakeAssets{}, Listen: netip.MustParseAddrPort("127.0.0.1:0"), Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-s.Ready(); cancel() }()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImpossibleNames: what no file can be called is not there, and nothing to
// complain of.
func TestImpossibleNames(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.efi"), []byte("MZ"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, Config{Files: os.DirFS(dir)})
	for _, path := range []string{"/" + strings.Repeat("0", 256), "/ipxe/" + strings.Repeat("a/", 2100) + "b", "/ipxe/x.efi/y"} {
		if got := curl(t, "-o", os.DevNull, "-w", "%{http_code}", b.base+path); got != "404" {
			t.Errorf("%.20s… of %d bytes: %s", path, len(path), got)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("/ipxe/script?mac=52:54:00:01:07:00&uuid=x")
	f.Add("/ignition/pointer/r1u07/aKey-_")
	f.Add("/blobs/sha256/..%2f..%2fetc%2fpasswd")
	f.Add("/ipxe/%00")
	s, err := New(Config{Decider: &fakeDecider{}, Assets: &fakeAssets{dir: f.TempDir()}, Files: os.DirFS(f.TempDir())})
	if err != nil {
		f.Fatal(err)
	}
	routes := s.routes()
	f.Fuzz(func(t *testing.T, target string) {
		r, err := http.NewRequest(http.MethodGet, "http://x"+target, nil)
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		r.RemoteAddr = "198.18.0.101:1024"
		w := httptest.NewRecorder()
		routes.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%q: %d %s", target, w.Code, w.Body)
		}
	})
}

// TestPointerToNobody: the client is gone before anything was sent to it, as one
// that waited in vain for an answer.
func TestPointerToNobody(t *testing.T) {
	d := &fakeDecider{asked: make(chan struct{})}
	b := start(t, Config{Decider: d})
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /ignition/pointer/r1u07/aKey HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-d.asked
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil { // a reset
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // on the loopback; later it is just as well
	d.asked <- struct{}{}
	for range 1000 {
		if _, sent := d.lastPointer(); len(sent) > 0 {
			if sent[0] {
				t.Error("what went to nobody has arrived")
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("nobody was told how it ended")
}
