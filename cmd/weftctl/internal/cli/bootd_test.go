package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// bootd is as much of bootd's API as weftctl's tests need, in memory, on a unix socket.
type bootd struct {
	t      *testing.T
	socket string

	mu         sync.Mutex
	objects    map[string]api.Object // by plural/name
	blobs      map[string][]byte     // by digest
	revision   int
	changed    chan struct{} // closed at the next change
	events     []api.Event
	requests   []string // METHOD path, in order
	refuse     map[string]*api.Problem
	warnings   map[string][]string // by plural/name
	explain    *api.Explanation
	consoleLog api.ConsoleLog
	sensors    api.Sensors
	peers      *api.NetworkPeers
	path       func(from, to string) *api.NetworkPath
	console    func(*bufio.ReadWriter)
	exec       func(api.GuestExec) api.GuestExecResult
	export     func(http.ResponseWriter)
	bgp        map[string]any // answers, by path and query
	usage      func(host string) (api.Usage, bool)
	putting    func(key string) (answered func()) // plural/name
	recovery   api.RecoveryStatus
	serving    func(machine string, r *api.Request) // what becomes of a verb; done at once unless it says otherwise
	losing     func(*http.Request) bool             // whether the answer is lost
	bmcs       map[string]*api.BMCPresented         // by Machine; others do not answer
	trusts     map[string]api.BMCTrustRequest       // by Machine
}

// finishes changes the last request of a Machine, and the Machine.
func (b *bootd) finishes(name string, change func(m *api.Machine, r *api.Request)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := *b.objects["machines/"+name].(*api.Machine)
	next.Status.Requests = slices.Clone(next.Status.Requests)
	next.Status.Conditions = slices.Clone(next.Status.Conditions)
	change(&next, &next.Status.Requests[len(next.Status.Requests)-1])
	b.keep(&next)
}

func newBootd(t *testing.T) *bootd {
	t.Helper()
	dir, err := os.MkdirTemp("", "w") // t.TempDir is too long for a unix address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &bootd{t: t, socket: filepath.Join(dir, "s"), objects: map[string]api.Object{}, blobs: map[string][]byte{}, revision: 10,
		changed: make(chan struct{}), refuse: map[string]*api.Problem{}, warnings: map[string][]string{}}
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: b.routes(), BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	t.Cleanup(func() { cancel(); _ = server.Close(); <-served })
	return b
}

func (b *bootd) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/events", b.listEvents)
	mux.HandleFunc("GET /v1/machines/{name}/explain", func(w http.ResponseWriter, r *http.Request) {
		if b.explain == nil {
			b.problem(w, &api.Problem{Status: 404, Title: "Not Found"})
			return
		}
		b.json(w, b.explain)
	})
	mux.HandleFunc("GET /v1/networks/{name}/peers", func(w http.ResponseWriter, _ *http.Request) { b.json(w, b.peers) })
	mux.HandleFunc("GET /v1/networks/{name}/explain", func(w http.ResponseWriter, r *http.Request) {
		b.json(w, b.path(r.URL.Query().Get("from"), r.URL.Query().Get("to")))
	})
	mux.HandleFunc("GET /v1/machines/{name}/console", b.openConsole)
	mux.HandleFunc("GET /v1/machines/{name}/console/log", func(w http.ResponseWriter, _ *http.Request) { b.json(w, b.consoleLog) })
	mux.HandleFunc("GET /v1/machines/{name}/sensors", func(w http.ResponseWriter, _ *http.Request) { b.json(w, b.sensors) })
	mux.HandleFunc("GET /v1/guests/{name}/console", b.openConsole)
	mux.HandleFunc("POST /v1/guests/{name}/exec", b.guestExec)
	mux.HandleFunc("POST /v1/guests/{name}/vnc", func(w http.ResponseWriter, r *http.Request) {
		b.json(w, &api.VNCTicket{Ticket: "T1", Path: "/v1/guests/" + r.PathValue("name") + "/vnc?ticket=T1"})
	})
	mux.HandleFunc("GET /v1/guests/{name}/vnc", b.openConsole)
	mux.HandleFunc("GET /v1/zones/{name}/bgp/{what}", func(w http.ResponseWriter, r *http.Request) {
		if v, ok := b.bgp[r.URL.RequestURI()]; ok {
			b.json(w, v)
			return
		}
		b.problem(w, &api.Problem{Status: 404, Title: "Not Found", Detail: r.URL.RequestURI()})
	})
	mux.HandleFunc("GET /v1/usage", b.serveUsage)
	mux.HandleFunc("GET /v1/recovery", func(w http.ResponseWriter, _ *http.Request) { b.json(w, b.recovery) })
	mux.HandleFunc("POST /v1/recovery/", func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.requests[len(b.requests)-1] += strings.TrimSuffix("?"+r.URL.RawQuery, "?")
		b.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/machines/{name}/bmc", b.presented)
	mux.HandleFunc("POST /v1/machines/{name}/bmc/trust", b.trust)
	mux.HandleFunc("POST /v1/machines/{name}/{verb}", b.verb)
	mux.HandleFunc("POST /v1/guests/{name}/export", func(w http.ResponseWriter, _ *http.Request) { b.export(w) })
	mux.HandleFunc("POST /v1/guests/{name}/{verb}", b.guestVerb)
	mux.HandleFunc("GET /v1/blobs/{digest}", b.blob) // HEAD too
	mux.HandleFunc("PUT /v1/blobs/{digest}", b.blob)
	mux.HandleFunc("GET /v1/{plural}", b.list)
	mux.HandleFunc("GET /v1/{plural}/{name}", func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		o, ok := b.objects[r.PathValue("plural")+"/"+r.PathValue("name")]
		if !ok {
			b.problem(w, &api.Problem{Status: 404, Title: "Not Found", Detail: "there is none"})
			return
		}
		b.json(w, o)
	})
	mux.HandleFunc("PUT /v1/{plural}/{name}", b.put)
	mux.HandleFunc("DELETE /v1/{plural}/{name}", func(w http.ResponseWriter, r *http.Request) { b.remove(w, r) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.requests = append(b.requests, r.Method+" "+r.URL.Path)
		p := b.refuse[r.Method+" "+r.URL.Path]
		b.mu.Unlock()
		if p != nil {
			b.problem(w, p)
			return
		}
		if b.losing != nil && b.losing(r) {
			mux.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		mux.ServeHTTP(w, r)
	})
}

func (b *bootd) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		b.t.Errorf("encode: %v", err)
	}
}

func (b *bootd) problem(w http.ResponseWriter, p *api.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// store puts an object as it is; what watches sees it.
func (b *bootd) store(o api.Object) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o.SetDefaults()
	b.keep(o)
}

func (b *bootd) keep(o api.Object) {
	b.revision++
	o.Meta().ResourceVersion = strconv.Itoa(b.revision)
	b.objects[api.KindOf(o).Plural+"/"+o.Meta().Name] = o
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *bootd) drop(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, key)
	b.revision++
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *bootd) put(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	o, err := api.DecodeObject(raw)
	if err != nil {
		b.problem(w, &api.Problem{Status: 400, Title: "Bad Request", Detail: err.Error()})
		return
	}
	key := r.PathValue("plural") + "/" + r.PathValue("name")
	if b.putting != nil {
		defer b.putting(key)()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.warnings[key] {
		w.Header().Add("Warning", "299 rackweft "+strconv.QuoteToASCII(text))
	}
	current, dry := b.objects[key], r.URL.Query().Get("dryRun") == "true"
	if v := o.Meta().ResourceVersion; v != "" && (current == nil || current.Meta().ResourceVersion != v) {
		b.problem(w, &api.Problem{Status: 409, Title: "Conflict", Detail: "it is no longer current"})
		return
	}
	if current == nil {
		o.Meta().UID = "uid-" + key
	} else {
		*o.Meta() = *current.Meta()
		if given, err := api.DecodeObject(raw); err == nil {
			o.Meta().Labels, o.Meta().Annotations = given.Meta().Labels, given.Meta().Annotations
		}
	}
	same := current != nil && sameWish(current, o)
	if secret, ok := o.(*api.Secret); ok {
		same = hideValues(secret, current)
	}
	outcome := api.OutcomeConfigured
	switch _, secret := o.(*api.Secret); {
	case current == nil:
		outcome = api.OutcomeCreated
	case same && !(dry && secret):
		outcome = api.OutcomeUnchanged
	}
	if !dry && !same {
		b.keep(o)
	}
	w.Header().Set(api.OutcomeHeader, outcome)
	b.json(w, o)
}

// sameWish relies on equal objects being encoded to equal bytes.
func sameWish(x, y api.Object) bool {
	one, err := wishOf(x)
	if err != nil {
		return false
	}
	other, err := wishOf(y)
	return err == nil && bytes.Equal(one.Spec, other.Spec) && bytes.Equal(one.Labels, other.Labels) && bytes.Equal(one.Annotations, other.Annotations)
}

// guestVerb keeps what was asked for as an annotation.
func (b *bootd) guestVerb(w http.ResponseWriter, r *http.Request) {
	var a api.GuestAction
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
		b.t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.objects["guests/"+r.PathValue("name")].(*api.Guest)
	if !ok {
		b.problem(w, &api.Problem{Status: 404, Title: "Not Found", Detail: "there is none"})
		return
	}
	g.Metadata.Annotations = map[string]string{"asked": fmt.Sprint(r.PathValue("verb"), " ", a.To+a.Mode, " ", a.LoseDisks, " ", a.ID != "")}
	if a.Snapshot != "" {
		g.Status.Result = &api.GuestResult{ID: a.ID, Message: r.PathValue("verb") + " of " + a.Snapshot, Failed: a.Snapshot == "bad"}
	}
	b.keep(g)
	b.json(w, g)
}

func (b *bootd) guestExec(w http.ResponseWriter, r *http.Request) {
	var e api.GuestExec
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
		b.t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.json(w, b.exec(e))
}

// hideValues seals a Secret and reports whether it holds what it held.
func hideValues(s *api.Secret, current api.Object) bool {
	s.Status.Digests = map[string]string{}
	for k, v := range s.Spec.Data {
		s.Status.Digests[k] = fmt.Sprintf("%x", sha256.Sum256([]byte(v)))
	}
	s.Spec.Data = nil
	old, ok := current.(*api.Secret)
	return ok && maps.Equal(old.Status.Digests, s.Status.Digests)
}

func (b *bootd) remove(w http.ResponseWriter, r *http.Request) {
	key := r.PathValue("plural") + "/" + r.PathValue("name")
	b.mu.Lock()
	_, ok := b.objects[key]
	b.mu.Unlock()
	if !ok {
		b.problem(w, &api.Problem{Status: 404, Title: "Not Found", Detail: "there is none"})
		return
	}
	b.drop(key)
	w.WriteHeader(http.StatusNoContent)
}

func (b *bootd) list(w http.ResponseWriter, r *http.Request) {
	plural := r.PathValue("plural")
	if r.URL.Query().Get("watch") == "true" {
		b.watch(w, r, plural)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := api.List{Items: []json.RawMessage{}}
	for _, o := range b.of(plural) {
		raw, _ := api.Encode(o)
		l.Items = append(l.Items, raw)
	}
	b.json(w, l)
}

func (b *bootd) of(plural string) []api.Object {
	var list []api.Object
	for _, key := range slices.Sorted(maps.Keys(b.objects)) {
		if strings.HasPrefix(key, plural+"/") {
			list = append(list, b.objects[key])
		}
	}
	return list
}

// watch sends what stands, then every object whose revision has moved, and what is gone.
func (b *bootd) watch(w http.ResponseWriter, r *http.Request, plural string) {
	sent := map[string]api.Object{}
	send := func(typ api.WatchType, o api.Object) {
		f := api.WatchFrame{Type: typ, ResourceVersion: strconv.Itoa(b.revision)}
		if o != nil {
			f.Object, _ = api.Encode(o)
		}
		_ = json.NewEncoder(w).Encode(f)
	}
	for first := true; ; first = false {
		b.mu.Lock()
		there := map[string]bool{}
		for _, o := range b.of(plural) {
			name := o.Meta().Name
			there[name] = true
			if old := sent[name]; old == nil || old.Meta().ResourceVersion != o.Meta().ResourceVersion {
				send(api.Modified, o)
			}
			sent[name] = o
		}
		for name, o := range sent {
			if !there[name] {
				send(api.Deleted, o)
				delete(sent, name)
			}
		}
		if first {
			send(api.Synced, nil)
		}
		changed := b.changed
		b.mu.Unlock()
		_ = http.NewResponseController(w).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (b *bootd) blob(w http.ResponseWriter, r *http.Request) {
	digest := r.PathValue("digest")
	b.mu.Lock()
	_, held := b.blobs[digest]
	b.mu.Unlock()
	switch {
	case r.Method == http.MethodHead && !held:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPut:
		raw, err := io.ReadAll(r.Body)
		sum := sha256.Sum256(raw)
		if err != nil || "sha256:"+hex.EncodeToString(sum[:]) != digest {
			b.problem(w, &api.Problem{Status: 422, Title: "Unprocessable Content", Detail: "the digest is another"})
			return
		}
		b.mu.Lock()
		b.blobs[digest] = raw
		b.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	}
}

func (b *bootd) listEvents(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for _, e := range b.events {
		if (q.Get("kind") == "" || q.Get("kind") == e.Kind) && (q.Get("name") == "" || q.Get("name") == e.Name) {
			_ = json.NewEncoder(w).Encode(e)
		}
	}
	if q.Get("follow") == "true" {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

func (b *bootd) verb(w http.ResponseWriter, r *http.Request) {
	var request api.Request
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || request.ID == "" {
		b.t.Errorf("verb: %v, id %q", err, request.ID)
	}
	key := "machines/" + r.PathValue("name")
	b.mu.Lock()
	defer b.mu.Unlock()
	m, ok := b.objects[key].(*api.Machine)
	if !ok {
		b.problem(w, &api.Problem{Status: 404, Title: "Not Found", Detail: "Machine " + strconv.Quote(r.PathValue("name")) + " does not exist"})
		return
	}
	for _, old := range m.Status.Requests {
		if old.ID == request.ID {
			w.WriteHeader(http.StatusAccepted)
			b.json(w, old)
			return
		}
	}
	request.State, request.Time = api.RequestDone, time.Now()
	if b.serving != nil {
		b.serving(m.Metadata.Name, &request)
	}
	next := *m // what watches has the old one
	next.Status.Requests = append(slices.Clone(m.Status.Requests), request)
	b.keep(&next)
	w.WriteHeader(http.StatusAccepted)
	b.json(w, request)
}

func (b *bootd) presented(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.bmcs[r.PathValue("name")]
	if p == nil {
		b.problem(w, &api.Problem{Status: 502, Title: "Bad Gateway", Detail: "BMC does not answer"})
		return
	}
	b.json(w, p)
}

func (b *bootd) trust(w http.ResponseWriter, r *http.Request) {
	var t api.BMCTrustRequest
	if err := json.NewDecoder(r.Body).Decode(&t); err != nil {
		b.t.Errorf("trust: %v", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	name := r.PathValue("name")
	if b.bmcs[name].Certificate.Fingerprint != t.Certificate {
		b.problem(w, &api.Problem{Status: 409, Title: "Conflict", Detail: "it presents another one by now"})
		return
	}
	b.trusts[name] = t
	b.json(w, api.BMCPins{Certificate: t.Certificate, HostKey: t.HostKey, By: "oli", Time: time.Now()})
}

func (b *bootd) openConsole(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		b.t.Errorf("hijack: %v", err)
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + r.Header.Get("Upgrade") + "\r\n\r\n")
	_ = rw.Flush()
	b.console(rw)
}

// sent are the requests of a method, in order.
func (b *bootd) sent(method string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []string
	for _, r := range b.requests {
		if path, ok := strings.CutPrefix(r, method+" "); ok {
			list = append(list, path)
		}
	}
	return list
}

// result is what one run of weftctl came to.
type result struct {
	code     int
	out, err string
}

// run runs weftctl against b in directory dir, with standard input.
func (b *bootd) run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return runWith(t, t.Context(), map[string]string{"RACKWEFT_SERVER": "unix://" + b.socket}, stdin, args...)
}

func runWith(t *testing.T, ctx context.Context, env map[string]string, stdin string, args ...string) result {
	t.Helper()
	var out, err bytes.Buffer
	code := Run(ctx, Process{Version: "v0", Args: args, Env: func(k string) string { return env[k] }, In: strings.NewReader(stdin), Out: &out, Err: &err})
	return result{code, out.String(), err.String()}
}

// want compares a run with what it should have come to; parts must be in standard error.
func (r result) want(t *testing.T, code int, out string, parts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	if r.out != out {
		t.Errorf("printed\n%swant\n%s", r.out, out)
	}
	for _, part := range parts {
		if !strings.Contains(r.err, part) {
			t.Errorf("standard error lacks %q", part)
		}
	}
	if t.Failed() {
		t.Logf("standard error:\n%s", r.err)
	}
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
