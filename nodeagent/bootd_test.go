package nodeagent

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/systemd"
)

const (
	testMachine = "r1u07"
	testUID     = "0b0e6b62-1111-4222-8333-444455556666"
	testAttempt = "attempt-1"
	testToken   = "token-of-attempt-1"
)

func year(y int) time.Time { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC) }

// site is a CA.
type site struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
	now  func() time.Time // the site's clock
}

func newSite(t testing.TB, from, to time.Time) *site {
	t.Helper()
	s := &site{t: t, key: mustKey(t), now: time.Now}
	s.cert = s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "site"}, NotBefore: from, NotAfter: to, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, &s.key.PublicKey)
	s.pem = toPEM(s.cert)
	return s
}

func mustKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func toPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func (s *site) sign(template *x509.Certificate, public any) *x509.Certificate {
	s.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		s.t.Fatal(err)
	}
	template.SerialNumber = serial
	parent := s.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

func (s *site) server(from, to time.Time) tls.Certificate {
	key := mustKey(s.t)
	cert := s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "bootd"}, NotBefore: from, NotAfter: to,
		DNSNames: []string{"bootd.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, &key.PublicKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (s *site) host(csr string, life time.Duration) string {
	block, _ := pem.Decode([]byte(csr))
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || req.CheckSignature() != nil {
		s.t.Errorf("a bad CSR: %v", err)
		return ""
	}
	return toPEM(s.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "host:" + testMachine},
		NotBefore: s.now().Add(-time.Hour), NotAfter: s.now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, req.PublicKey))
}

// fakeBootd speaks bootd's side of the host protocol, and breaks it on demand.
type fakeBootd struct {
	t    testing.TB
	site *site
	http *httptest.Server
	addr string

	mu         sync.Mutex
	life       time.Duration
	joins      int
	keys       map[string]bool // public keys that asked to join
	joinFault  func(n int, w http.ResponseWriter) bool
	joinAnswer func(r *api.JoinResponse)
	stream     func(n int, s *fakeStream) bool // true: the stream is dealt with
	streams    int
	channel    http.HandlerFunc // of channels; set before start
	renewals   int
	epoch      int64
	revision   int64
	parts      map[string]api.Part
	tombstones []api.Tombstone
	news       chan struct{} // closed when parts change
	hellos     []api.Hello
	events     []api.Event
	statuses   int
	status     api.HostStatus
	usages     []api.HostUsage
	clients    map[string]bool // client certificates seen, by serial
}

func newFakeBootd(t testing.TB) *fakeBootd {
	t.Helper()
	b := &fakeBootd{t: t, site: newSite(t, year(1970), year(9999)), life: time.Hour, epoch: 1, revision: 10,
		keys: map[string]bool{}, clients: map[string]bool{}, news: make(chan struct{}),
		parts: map[string]api.Part{"base": api.Part(`{"uid":"` + testUID + `"}`)}}
	b.addr = "127.0.0.1:0"
	return b
}

func (b *fakeBootd) start(l net.Listener) *fakeBootd {
	b.t.Helper()
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", b.addr); err != nil {
			b.t.Fatal(err)
		}
	}
	b.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", b.serveJoin)
	mux.HandleFunc("POST /v1/hosts/"+testMachine+"/stream", b.serveStream)
	if b.channel != nil {
		mux.HandleFunc("POST /v1/hosts/"+testMachine+"/channels/{id}", b.channel)
	}
	mux.HandleFunc("GET /v1/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 || r.PathValue("digest") != "sha256:abc" {
			http.Error(w, `{"title":"Not Found","status":404,"detail":"no such blob"}`, http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte("octets"))
	})
	pool := x509.NewCertPool()
	pool.AddCert(b.site.cert)
	b.http = httptest.NewUnstartedServer(mux)
	_ = b.http.Listener.Close()
	b.http.Listener = l
	b.http.EnableHTTP2 = true
	b.http.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	b.http.TLS = &tls.Config{Certificates: []tls.Certificate{b.site.server(b.site.cert.NotBefore, b.site.cert.NotAfter)}, Time: b.site.now,
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	b.http.StartTLS()
	b.t.Cleanup(b.stop)
	return b
}

func (b *fakeBootd) stop() {
	if b.http == nil {
		return
	}
	b.http.CloseClientConnections()
	b.http.Close()
	b.http = nil
}

func (b *fakeBootd) url() string { return "https://" + b.addr }

func (b *fakeBootd) serveJoin(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joins++
	if b.joinFault != nil && b.joinFault(b.joins, w) {
		return
	}
	var req api.JoinRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.Machine != testMachine || req.BootID == "" {
		b.t.Errorf("join request %+v: %v", req, err)
	}
	if r.Header.Get("Authorization") != "Bearer "+testToken {
		refuseJoin(w, http.StatusUnauthorized, "the token is not known")
		return
	}
	block, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		b.t.Error(err)
		return
	}
	b.keys[string(csr.RawSubjectPublicKeyInfo)] = true
	if len(b.keys) > 1 {
		refuseJoin(w, http.StatusForbidden, "a second join in this BootAttempt")
		return
	}
	answer := api.JoinResponse{Machine: testMachine, UID: testUID, AttemptID: testAttempt, CA: b.site.pem,
		Certificate: b.site.host(req.CSR, b.life), API: []string{b.url()}, Time: b.site.now()}
	if b.joinAnswer != nil {
		b.joinAnswer(&answer)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func refuseJoin(w http.ResponseWriter, status int, detail string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Title: http.StatusText(status), Detail: detail})
}

type fakeStream struct {
	w     http.ResponseWriter
	flush *http.ResponseController
	mu    sync.Mutex
	hello api.Hello
	req   *http.Request
}

func (s *fakeStream) raw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.w.Write([]byte(text))
	_ = s.flush.Flush()
}

func (s *fakeStream) send(f api.ServerFrame) {
	raw, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	s.raw(string(raw) + "\n")
}

func (b *fakeBootd) serveStream(w http.ResponseWriter, r *http.Request) {
	if len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName != "host:"+testMachine {
		refuseJoin(w, http.StatusUnauthorized, "no client certificate of this host")
		return
	}
	s := &fakeStream{w: w, flush: http.NewResponseController(w), req: r}
	w.WriteHeader(http.StatusOK)
	_ = s.flush.Flush()
	in := bufio.NewScanner(r.Body)
	in.Buffer(nil, 1<<20)
	var f api.HostFrame
	if !in.Scan() || json.Unmarshal(in.Bytes(), &f) != nil || f.Hello == nil {
		if r.Context().Err() == nil && in.Err() == nil {
			b.t.Errorf("the first frame is %q, not a hello", in.Text())
		}
		return
	}
	s.hello = *f.Hello
	b.mu.Lock()
	b.streams++
	n, script := b.streams, b.stream
	b.hellos = append(b.hellos, s.hello)
	b.clients[r.TLS.PeerCertificates[0].SerialNumber.String()] = true
	b.mu.Unlock()
	if script != nil && script(n, s) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.feed(s)
	}()
	for in.Scan() {
		b.take(s, in.Bytes())
	}
	<-done
}

// feed sends what the host lacks, at once and after each change.
func (b *fakeBootd) feed(s *fakeStream) {
	sent := maps.Clone(s.hello.Digests)
	if sent == nil {
		sent = map[string]string{}
	}
	for {
		b.mu.Lock()
		news := b.news
		var frames []api.ServerFrame
		for name, p := range b.parts {
			if d := api.PartDigest(p); sent[name] != d {
				sent[name] = d
				frames = append(frames, api.ServerFrame{Part: &api.PartUpdate{Name: name, Digest: d, Value: p}})
			}
		}
		for name := range sent {
			if _, ok := b.parts[name]; !ok {
				delete(sent, name)
				frames = append(frames, api.ServerFrame{Gone: name})
			}
		}
		frames = append(frames, api.ServerFrame{Tombstones: b.tombstones},
			api.ServerFrame{Bookmark: &api.Bookmark{Epoch: b.epoch, Revision: b.revision}})
		b.mu.Unlock()
		for _, f := range frames {
			s.send(f)
		}
		select {
		case <-news:
		case <-s.req.Context().Done():
			return
		}
	}
}

func (b *fakeBootd) take(s *fakeStream, line []byte) {
	var f api.HostFrame
	if json.Unmarshal(line, &f) != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case f.Status != nil:
		b.status = *f.Status
		b.statuses++
	case f.Event != nil:
		b.events = append(b.events, *f.Event)
	case f.Usage != nil:
		b.usages = append(b.usages, *f.Usage)
	case f.Ping != nil:
		s.send(api.ServerFrame{Pong: &api.Ping{Time: time.Now()}})
	case f.Renew != "":
		block, _ := pem.Decode([]byte(f.Renew))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || !b.keys[string(csr.RawSubjectPublicKeyInfo)] {
			b.t.Errorf("the renewal is over another key than the join (%v)", err)
			return
		}
		b.renewals++
		s.send(api.ServerFrame{Certificate: b.site.host(f.Renew, b.life)})
	}
}

// change applies a change of the HostSpec and tells the streams.
func (b *fakeBootd) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revision++
	f()
	close(b.news)
	b.news = make(chan struct{})
}

// with runs f under the lock and returns what it says.
func (b *fakeBootd) with(f func() bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f()
}

// waitFor fails the test when f does not come true.
func (b *fakeBootd) waitFor(what string, f func() bool) {
	b.t.Helper()
	if waittest.Soon(30*time.Second, func() bool { return b.with(f) }) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	raw, _ := json.MarshalIndent(b.status, "", " ")
	b.t.Fatalf("never came true: %s\njoins %d, streams %d, last status %s", what, b.joins, b.streams, raw)
}

// host is one machine's directories and configuration.
type host struct {
	config             api.AgentConfig
	dir, state, run    string
	configPath, tokens string
}

func newHost(t testing.TB, b *fakeBootd) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{dir: dir, state: filepath.Join(dir, "state"), run: filepath.Join(dir, "run"),
		configPath: filepath.Join(dir, "nodeagent.yaml"), tokens: filepath.Join(dir, "join-token")}
	h.config = api.AgentConfig{Machine: testMachine, UID: testUID, API: []string{b.url()}, CA: b.site.pem,
		AttemptID: testAttempt, JoinTokenFile: h.tokens}
	raw, err := json.Marshal(h.config) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	writeTest(t, h.configPath, string(raw))
	writeTest(t, h.tokens, testToken+"\n")
	return h
}

func writeTest(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// logBuffer collects an agent's log.
type logBuffer struct{ logtest.Buffer }

// waitFor fails the test when the log never says s.
func (l *logBuffer) waitFor(t testing.TB, s string) {
	t.Helper()
	if !waittest.Soon(30*time.Second, func() bool { return l.has(s) }) {
		t.Fatalf("the log never says %q", s)
	}
}

func (l *logBuffer) has(s string) bool { return strings.Contains(l.String(), s) }

// runAgent runs an agent in this process, with short times, until the test
// ends or stop is called.
func runAgent(t testing.TB, h *host, handlers ...Handler) (log *logBuffer, stop func()) {
	t.Helper()
	return runAgentWith(t, h, func(*Options) {}, handlers...)
}

func runAgentWith(t testing.TB, h *host, change func(*Options), handlers ...Handler) (log *logBuffer, stop func()) {
	t.Helper()
	_, log, stop = startAgent(t, h, change, handlers...)
	return log, stop
}

func startAgent(t testing.TB, h *host, change func(*Options), handlers ...Handler) (a *Agent, log *logBuffer, stop func()) {
	t.Helper()
	log = new(logBuffer)
	logger := slog.New(slog.NewTextHandler(log, nil))
	o := Options{Config: h.config, StateDir: h.state, RunDir: h.run, Version: "test", Log: logger, Notify: systemd.NewNotifier(logger)}
	change(&o)
	a, err := New(o)
	if err == nil {
		err = a.Use(handlers...)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.timing = timing{dial: 2 * time.Second, silence: 2 * time.Second, ping: 100 * time.Millisecond,
		minBackoff: 10 * time.Millisecond, maxBackoff: 100 * time.Millisecond, refused: 100 * time.Millisecond,
		resync: 300 * time.Millisecond, settle: 10 * time.Millisecond}
	ctx, cancel := newContext(t)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("the agent ends with %v", err)
			}
			if t.Failed() {
				t.Logf("log of the agent:\n%s", log)
			}
		})
	}
	t.Cleanup(stop)
	return a, log, stop
}
