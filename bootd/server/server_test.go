package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/blob"
	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/guest"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/journal"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/recovery"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/internal/logtest"
)

// rig is a Server on a real store, with everything around it.
type rig struct {
	t         testing.TB
	dir       string
	store     *store.Store
	cache     *store.Cache
	blobs     *blob.Store
	authority *ca.Authority
	events    *journal.Journal[api.Event]
	decisions *journal.Journal[api.Decision]
	decider   *fakeDecider
	consoles  chan net.Conn // the Machine's ends
	lines     []api.ConsoleLine
	logs      *logtest.Buffer
	server    *Server
	base      string // https URL
	socket    string
	stop      func() // ends Run and waits for it

	mu     sync.Mutex
	audits []api.AuditRecord
	bodies bytes.Buffer // everything that was answered to do
}

// fakeDecider lets in one token.
type fakeDecider struct {
	medium  boot.Medium
	token   string
	arrived atomic.Int32
	fetched atomic.Int32
}

func (d *fakeDecider) ConfigFor(_ context.Context, r boot.ConfigRequest) (boot.HostConfig, error) {
	switch {
	case r.Machine == "broken":
		return boot.HostConfig{}, errors.New("the inner parts of bootd")
	case r.Token != d.token || r.Key != "key" || r.Conn == "":
		return boot.HostConfig{}, &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "the token is not this BootAttempt's"}
	}
	body := fmt.Appendf(nil, "%s %s %s", r.Machine, r.Peer, r.Accept)
	return boot.HostConfig{Body: body, ContentType: "application/vnd.coreos.ignition+json", Sent: func(arrived bool) {
		if arrived {
			d.arrived.Add(1)
		}
	}}, nil
}

func (d *fakeDecider) SecureScript(_ context.Context, _, key string, _ netip.Addr) (string, error) {
	if key != "key" {
		return "", problem(http.StatusForbidden, "no")
	}
	return "#!ipxe\n", nil
}

func (d *fakeDecider) SecureLoader(_ context.Context, _, key, file string, _ netip.Addr) error {
	if key != "key" || file == "another.efi" {
		return problem(http.StatusForbidden, "no")
	}
	return nil
}

func (d *fakeDecider) FetchedLoader(context.Context, netip.Addr, string) { d.fetched.Add(1) }

func (d *fakeDecider) SecureBlob(_ context.Context, _, key string, _ netip.Addr, _ api.SHA256) error {
	if key != "key" {
		return problem(http.StatusForbidden, "no")
	}
	return nil
}

func (d *fakeDecider) Medium(_ context.Context, _, key string, _ netip.Addr) (boot.Medium, error) {
	if key != "key" {
		return boot.Medium{}, problem(http.StatusForbidden, "no")
	}
	return d.medium, nil
}

func (d *fakeDecider) SecurePointer(_ context.Context, r httpboot.PointerRequest) (httpboot.Pointer, error) {
	if r.Key != "key" {
		return httpboot.Pointer{}, problem(http.StatusForbidden, "no")
	}
	return httpboot.Pointer{Config: []byte("a pointer"), ContentType: "application/json", Sent: func(bool) {}}, nil
}

func (d *fakeDecider) Join(_ context.Context, token string, peer netip.Addr, r api.JoinRequest) (*api.JoinResponse, error) {
	if token != d.token {
		return nil, &api.Problem{Status: http.StatusForbidden, Title: "Join refused", Detail: "the token is not this BootAttempt's"}
	}
	return &api.JoinResponse{Machine: r.Machine, AttemptID: peer.String()}, nil
}

func (d *fakeDecider) Origins(*api.Machine) ([]api.Origin, []string, error) {
	return []api.Origin{{Path: "/etc/motd", Layer: "site"}}, []string{"a warning"}, nil
}

type recorder struct{}

func (recorder) Event(api.Object, api.EventType, string, string) {}

const (
	viewerToken   = "viewer-token"
	operatorToken = "operator-token"
)

// sessionKey is every BGP session's.
const sessionKey = "session-key"

// newRig starts a Server on a port and a socket of its own.
func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), logs: new(logtest.Buffer), decider: &fakeDecider{token: "boot-token"}, consoles: make(chan net.Conn, 1)}
	log := slog.New(slog.NewTextHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	keys, err := ca.LoadKeyring(r.dir, "")
	must(t, err)
	r.store, err = store.Open(ctx, store.Config{Dir: filepath.Join(r.dir, "store")}, keys, log)
	must(t, err)
	r.cache = store.NewCache(r.store, log)
	wg.Go(func() { _ = r.cache.Run(ctx) })
	r.blobs, err = blob.Open(filepath.Join(r.dir, "blobs"), blob.Options{})
	must(t, err)
	r.authority, err = ca.Open(r.dir)
	must(t, err)
	_, err = r.authority.EnsureServer([]string{"localhost"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	must(t, err)
	r.events, err = journal.Open[api.Event](r.dir, "events", journal.Options{})
	must(t, err)
	r.decisions, err = journal.Open[api.Decision](r.dir, "decisions", journal.Options{})
	must(t, err)
	audits, err := journal.Open[api.AuditRecord](r.dir, "audit", journal.Options{})
	must(t, err)
	r.socket = filepath.Join(r.dir, "bootd.sock")
	networks := network.NewIndex(r.store, log)
	wg.Go(func() { _ = networks.Run(ctx) })
	zones := &zone.Parts{Cache: r.cache, Keys: &zone.Keys{Key: func(one, other string) string { return sessionKey }}}
	compiler := &hostspec.Compiler{Cache: r.cache, Parts: func(c *store.Cache) []part.Kind {
		return []part.Kind{network.Parts{Cache: c, Keys: zones.Keys}.Kind(), guest.Parts(c), zones.With(c).Kind()}
	}}
	hub := &hostspec.Hub{Store: r.store, Cache: r.cache, Compiler: compiler, Record: recorder{}, Log: log}
	wg.Go(func() { _ = hub.Run(ctx) })
	metrics := prometheus.NewRegistry()
	conf := Config{
		Listen: "127.0.0.1:0", Socket: r.socket, TLS: r.authority.ServerTLS(),
		Tokens: []Token{{"vera", "viewer", testsite.Digest(viewerToken)}, {"otto", "operator", testsite.Digest(operatorToken)}},
		Store:  r.store, Cache: r.cache, Blobs: r.blobs, Loaders: fstest.MapFS{"ipxe.efi": {Data: []byte("a loader")}, "grubx64.efi": {Data: []byte("GRUB")}}, Compiler: compiler, Networks: networks, Decider: r.decider,
		Hub: hub, Zones: &zone.Views{Cache: r.cache, Parts: zones, Sessions: hub.BGP},
		Events: r.events, Decisions: r.decisions, AuditLog: audits,
		Recovery: &recovery.Keeper{Store: r.store, Cache: r.cache, Event: func(api.Object, api.EventType, string, string) {}, Log: log},
		Sensors: func(machine string) (api.Sensors, bool) {
			high := 42.0
			return api.Sensors{Read: time.Now(), Readings: []api.SensorReading{{Name: "Inlet", Kind: "temperature", Unit: "Cel", Value: 21, Health: "OK", HighCritical: &high}}}, machine == "r1u01"
		},
		ConsoleLines: func(m *api.Machine, n int) []api.ConsoleLine {
			return r.lines[max(0, len(r.lines)-n):]
		},
		Console: func(context.Context, *api.Machine) (io.ReadWriteCloser, error) {
			near, far := net.Pipe()
			r.consoles <- far
			return near, nil
		},
		Present: hardware.Present,
		Audit: func(a api.AuditRecord) {
			must(r.t, audits.Append(context.Background(), a))
			r.mu.Lock()
			defer r.mu.Unlock()
			r.audits = append(r.audits, a)
		},
		Metrics: metrics, Registerer: metrics, Log: log,
	}
	for _, f := range change {
		f(&conf)
	}
	r.server, err = New(conf)
	must(t, err)
	ran := make(chan error, 1)
	wg.Go(func() { ran <- r.server.Run(ctx) })
	select {
	case <-r.server.Listening():
	case err := <-ran:
		t.Fatal(err)
	}
	r.base = "https://" + r.server.Addr().String()
	r.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(func() {
		r.stop()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		must(t, errors.Join(r.events.Close(), r.decisions.Close(), audits.Close(), r.blobs.Close(), r.store.Close()))
	})
	<-r.cache.Synced()
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// root is a client on the unix socket.
func (r *rig) root() *api.Client {
	c, err := api.NewClient(api.ClientConfig{Server: "unix://" + r.socket})
	must(r.t, err)
	return c
}

func (r *rig) caFile() string {
	path := filepath.Join(r.dir, "site-ca.pem")
	must(r.t, os.WriteFile(path, r.authority.CertPEM(), 0o600))
	return path
}

// bearer is a client with a token over TLS.
func (r *rig) bearer(token string) *api.Client {
	c, err := api.NewClient(api.ClientConfig{Server: r.base, CAFile: r.caFile(), Token: token})
	must(r.t, err)
	return c
}

// person is a client with a certificate.
func (r *rig) person(name, role string) *api.Client {
	cert, key, err := r.authority.IssuePerson(name, role, time.Hour)
	must(r.t, err)
	base := filepath.Join(r.dir, name)
	must(r.t, os.WriteFile(base+".crt", cert, 0o600))
	must(r.t, os.WriteFile(base+".key", key, 0o600))
	c, err := api.NewClient(api.ClientConfig{Server: r.base, CAFile: r.caFile(), CertFile: base + ".crt", KeyFile: base + ".key"})
	must(r.t, err)
	return c
}

// do sends raw bytes over the unix socket.
func (r *rig) do(method, path, body string) (int, http.Header, string) {
	r.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
	req, err := http.NewRequest(method, "http://bootd"+path, strings.NewReader(body))
	must(r.t, err)
	return r.send(client, req)
}

func (r *rig) send(client *http.Client, req *http.Request) (int, http.Header, string) {
	r.t.Helper()
	resp, err := client.Do(req)
	must(r.t, err)
	raw, err := io.ReadAll(resp.Body)
	must(r.t, errors.Join(err, resp.Body.Close()))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bodies.Write(raw)
	return resp.StatusCode, resp.Header, string(raw)
}

func (r *rig) auditsOf(path string) []api.AuditRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.audits), func(a api.AuditRecord) bool { return a.Path != path })
}

func kindOf(t testing.TB, word string) api.Kind {
	k, err := api.LookupKind(word)
	must(t, err)
	return k
}

func put(t testing.TB, c *api.Client, objects ...api.Object) {
	t.Helper()
	for _, o := range objects {
		if _, err := c.Put(t.Context(), o, false); err != nil {
			t.Fatalf("put %s %s: %v", api.KindOf(o).Name, o.Meta().Name, err)
		}
	}
}

// wantStatus checks that err is a problem of that status that says all words.
func wantStatus(t testing.TB, err error, status int, words ...string) {
	t.Helper()
	if !api.IsStatus(err, status) {
		t.Errorf("got %v, want status %d", err, status)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is missing in: %v", w, err)
		}
	}
}

func TestObjects(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for name, c := range map[string]*api.Client{"unix": r.root(), "tls": r.person("anna", "admin")} {
		t.Run(name, func(t *testing.T) {
			m := testsite.NewMachine("r1-"+name, api.MAC(fmt.Sprintf("52:54:00:00:00:%02x", len(name))))
			m.Metadata.Labels = map[string]string{"tier": "a"}
			m.Status.Phase = api.PhaseActive // not the client's to say
			o, err := c.Put(ctx, m, true)
			must(t, err)
			if o.Meta().UID != "" {
				t.Error("a dry run has made a uid")
			}
			_, err = c.Get(ctx, machineKind(), m.Metadata.Name)
			wantStatus(t, err, http.StatusNotFound, m.Metadata.Name)

			o, err = c.Put(ctx, m, false)
			must(t, err)
			first := o.(*api.Machine)
			if first.Metadata.UID == "" || first.Metadata.Generation != 1 || first.Status.Phase != "" {
				t.Errorf("created: %+v", first)
			}
			same, err := c.Put(ctx, m, false)
			must(t, err)
			if same.Meta().ResourceVersion != first.Metadata.ResourceVersion {
				t.Error("the same file twice was written twice")
			}
			first.Spec.State = api.StateOff
			second, err := c.Put(ctx, first, false)
			must(t, err)
			if second.Meta().Generation != 2 || second.Meta().UID != first.Metadata.UID {
				t.Errorf("replaced: %+v", second.Meta())
			}
			_, err = c.Put(ctx, first, false)
			wantStatus(t, err, http.StatusConflict, second.Meta().ResourceVersion)
			var p *api.Problem
			if errors.As(err, &p) && p.ResourceVersion != second.Meta().ResourceVersion {
				t.Errorf("the conflict names resourceVersion %q", p.ResourceVersion)
			}
			list, rv, err := c.List(ctx, machineKind())
			must(t, err)
			if rv == "" || !slices.ContainsFunc(list, func(o api.Object) bool { return o.Meta().Name == m.Metadata.Name }) {
				t.Errorf("list: %v at %q", list, rv)
			}
			must(t, c.Delete(ctx, machineKind(), m.Metadata.Name))
			wantStatus(t, c.Delete(ctx, machineKind(), m.Metadata.Name), http.StatusNotFound)
			if got := r.auditsOf("/v1/machines/" + m.Metadata.Name); len(got) != 3 {
				t.Errorf("%d changes were audited: %+v", len(got), got)
			} else if d := got[1].Diff; len(d) != 1 || d[0].Pointer != "/spec/state" || d[0].Old != "Active" || d[0].New != "Off" {
				t.Errorf("the diff of the change: %+v", d)
			}
		})
	}
}

func TestRawRequests(t *testing.T) {
	r := newRig(t)
	put(t, r.root(), testsite.NewMachine("r1", "52:54:00:00:00:01"))
	const good = `{"spec":{"links":[{"name":"eth0","mac":"52:54:00:00:00:09"}]}}`
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		words                    []string
	}{
		{"name from the path", "PUT", "/v1/machines/r9", good, 201, []string{`"name":"r9"`}},
		{"unknown field", "PUT", "/v1/machines/r1", `{"spec":{"zome":"x"}}`, 400, []string{`"/spec/zome"`, "want one of"}},
		{"cut short", "PUT", "/v1/machines/r1", `{"spec":`, 400, []string{"not JSON"}},
		{"other name", "PUT", "/v1/machines/r1", `{"metadata":{"name":"r2"}}`, 422, []string{`"/metadata/name"`}},
		{"other kind", "PUT", "/v1/machines/r1", `{"kind":"Zone","spec":{"links":[]}}`, 422, []string{`"/kind"`}},
		{"not valid", "PUT", "/v1/machines/r1", `{"spec":{"links":[]}}`, 422, []string{`"/spec/links"`, "at least one link"}},
		{"create what exists", "POST", "/v1/machines", `{"metadata":{"name":"r1"},"spec":{"links":[{"name":"eth0","mac":"52:54:00:00:00:01"}]}}`, 409, []string{"exists already"}},
		{"create", "POST", "/v1/machines", `{"metadata":{"name":"r3"},"spec":{"links":[{"name":"eth0","mac":"52:54:00:00:00:03"}]}}`, 201, []string{`"uid"`}},
		{"mistyped dry run", "PUT", "/v1/machines/r1?dryRun=ture", good, 400, []string{"ture"}},
		{"deleted meanwhile", "PUT", "/v1/machines/r8", `{"metadata":{"resourceVersion":"7"},"spec":{"links":[{"name":"eth0","mac":"52:54:00:00:00:08"}]}}`, 409, []string{"deleted"}},
		{"stale delete", "DELETE", "/v1/machines/r1?resourceVersion=1", "", 409, []string{`"resourceVersion":`}},
		{"status alone", "GET", "/v1/machines/r1/status", "", 200, []string{"{}"}},
		{"a HostSpec is read only", "PUT", "/v1/hostspecs/r1", `{}`, 405, []string{"compiled", "GET"}},
		{"HostSpec", "GET", "/v1/hostspecs/r1", "", 200, []string{`"base"`}},
		{"HostSpecs", "GET", "/v1/hostspecs", "", 200, []string{`"HostSpecList"`}},
		{"no such path", "GET", "/v1/servers", "", 404, []string{"/openapi.json"}},
		{"no such method", "PATCH", "/v1/machines/r1", "", 405, []string{"PUT"}},
		{"bad watch", "GET", "/v1/machines?watch=true&resourceVersion=x", "", 400, nil},
		{"too large", "PUT", "/v1/layers/big", `{"spec":{"butane":"` + strings.Repeat("a", maxObject) + `"}}`, 413, nil},
		{"missing references", "PUT", "/v1/profiles/p", `{"spec":{"image":"none"}}`, 201, nil},
		{"health", "GET", "/healthz", "", 200, []string{"ok"}},
		{"ready", "GET", "/readyz", "", 200, []string{"ok"}},
		{"metrics", "GET", "/metrics", "", 200, []string{"rackweft_api_requests_total"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, header, body := r.do(c.method, c.path, c.body)
			if status != c.status {
				t.Errorf("status %d, want %d: %s", status, c.status, body)
			}
			if status >= 400 && header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("an error of type %q", header.Get("Content-Type"))
			}
			for _, w := range c.words {
				if !strings.Contains(body, w) {
					t.Errorf("%q is missing in: %s", w, body)
				}
			}
			if c.name == "missing references" && !strings.Contains(header.Get("Warning"), "does not exist yet") {
				t.Errorf("Warning: %q", header.Get("Warning"))
			}
		})
	}
}

// TestRoles asks as everybody; a 404 or a 400 shows that the door was open.
func TestRoles(t *testing.T) {
	r := newRig(t)
	admin, image := r.root(), new(api.Image)
	image.Metadata.Name, image.Spec.Version = "debian", "1"
	image.Spec.Files = map[string]api.ImageFile{"kernel": {SHA256: testsite.Digest("kernel")}}
	image.SetDefaults()
	put(t, admin, testsite.NewMachine("r1", "52:54:00:00:00:01"), testsite.NewMachine("r2", "52:54:00:00:00:02"), image)
	clients := map[string]*api.Client{
		"viewer": r.person("vic", "viewer"), "operator": r.person("oli", "operator"), "admin": r.person("ada", "admin"),
		"vera": r.bearer(viewerToken), "otto": r.bearer(operatorToken), "nobody": r.bearer(""), "root": admin,
		"host": r.hostClient("r1"),
	}
	everybody := []string{"viewer", "operator", "admin", "vera", "otto", "root"}
	operators, admins := []string{"operator", "admin", "otto", "root"}, []string{"admin", "root"}
	for _, c := range []struct {
		method, path string
		open         []string
	}{
		{"GET", "/v1/machines", everybody},
		{"GET", "/v1/secrets", everybody},
		{"GET", "/v1/machines/r1", everybody},
		{"GET", "/v1/machines/r1/explain", everybody},
		{"GET", "/v1/events", everybody},
		{"GET", "/v1/decisions", everybody},
		{"GET", "/metrics", everybody},
		{"GET", "/v1/audit", admins},
		{"PUT", "/v1/machines/r1", operators},
		{"DELETE", "/v1/profiles/none", operators},
		{"POST", "/v1/machines/r1/power", operators},
		{"GET", "/v1/machines/r1/console/log", operators},
		{"GET", "/v1/machines/r1/console", operators},
		{"GET", "/v1/machines/r1/bmc", operators},
		{"POST", "/v1/machines/r1/bmc/trust", operators},
		{"PUT", "/v1/sites/site", admins},
		{"PUT", "/v1/secrets/x", admins},
		{"DELETE", "/v1/zones/x", admins},
		{"DELETE", "/v1/subnets/x", admins},
		{"GET", "/v1/hostspecs/r1", append(everybody, "host")},
		{"GET", "/v1/hostspecs/r2", everybody},
		{"GET", "/v1/blobs/sha256:" + string(testsite.Digest("kernel")), append(everybody, "host")},
		{"GET", "/v1/blobs/sha256:" + string(testsite.Digest("other")), everybody},
		{"DELETE", "/v1/blobs/sha256:" + string(testsite.Digest("other")), operators},
		{"POST", "/v1/hosts/r2/stream", nil},
		{"POST", "/v1/hosts/r2/channels/x", nil},
		{"GET", "/v1/guests/web/console", operators},
		{"GET", "/healthz", append(everybody, "host", "nobody")},
		{"GET", "/openapi.json", append(everybody, "host", "nobody")},
	} {
		for name, client := range clients {
			resp, err := client.Do(t.Context(), c.method, c.path, nil)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			closed := api.IsStatus(err, http.StatusUnauthorized) || api.IsStatus(err, http.StatusForbidden)
			if want := slices.Contains(c.open, name); want == closed {
				t.Errorf("%s %s as %s: %v", c.method, c.path, name, err)
			}
			if closed && name != "host" && len(c.open) > 0 && !strings.Contains(err.Error(), "role") {
				t.Errorf("%s %s as %s does not say which role is needed: %v", c.method, c.path, name, err)
			}
			if got, want := api.IsStatus(err, http.StatusUnauthorized), name == "nobody" && closed; got != want {
				t.Errorf("%s %s as %s: %v", c.method, c.path, name, err)
			}
		}
	}
	// A certificate that a later join has replaced opens nothing.
	_, err := store.Mutate(t.Context(), r.store, "r1", func(m *api.Machine) error { m.Status.HostKey = "another"; return nil })
	must(t, err)
	_, err = clients["host"].Get(t.Context(), kindOf(t, "hostspec"), "r1")
	wantStatus(t, err, http.StatusForbidden, "revoked")
}

func TestFailedLoginsAreSlowedDown(t *testing.T) {
	r := newRig(t)
	c := r.bearer("wrong")
	var err error
	for range 30 {
		if _, _, err = c.List(t.Context(), machineKind()); api.IsStatus(err, http.StatusTooManyRequests) {
			break
		}
		wantStatus(t, err, http.StatusUnauthorized)
	}
	wantStatus(t, err, http.StatusTooManyRequests, "127.0.0.1")
	if _, _, err := r.person("ada", "admin").List(t.Context(), machineKind()); err != nil {
		t.Errorf("a certificate is held up by somebody else's wrong tokens: %v", err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	r := newRig(t)
	const value, other = "correct-horse", "battery-staple"
	body := func(v string) string {
		return `{"spec":{"data":{"username":"admin-` + v + `","password":"` + v + `"}}}`
	}
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"PUT", "/v1/secrets/bmc?dryRun=true", body(value), 200},
		{"PUT", "/v1/secrets/bmc", body(value), 201},
		{"PUT", "/v1/secrets/bmc", body(value), 200},
		{"PUT", "/v1/secrets/bmc?dryRun=true", body(other), 200},
		{"PUT", "/v1/secrets/bmc", body(other), 200},
		{"PUT", "/v1/secrets/bmc", `{"spec":{}}`, 422},
		{"GET", "/v1/secrets/bmc", "", 200},
		{"GET", "/v1/secrets/bmc/status", "", 200},
		{"GET", "/v1/secrets", "", 200},
		{"GET", "/v1/audit", "", 200},
	} {
		if status, _, answer := r.do(c.method, c.path, c.body); status != c.status {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, answer)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := r.root().Watch(ctx, kindOf(t, "secret"), func(e api.WatchEvent) error {
		if e.Type == api.Synced {
			cancel()
			return nil
		}
		if len(e.Object.(*api.Secret).Spec.Data) > 0 {
			t.Error("a watch shows the values")
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	plain, err := store.OpenSecret(t.Context(), r.store, "bmc", api.UseBMC("https://198.18.0.7"))
	must(t, err)
	if plain["password"] != other {
		t.Errorf("stored: %q", plain)
	}
	must(t, r.root().Delete(t.Context(), kindOf(t, "secret"), "bmc"))
	audits := r.auditsOf("/v1/secrets/bmc")
	if len(audits) != 3 || len(audits[1].Diff) != 2 || audits[1].Diff[0].Pointer != "/spec/data/password" || audits[1].Diff[0].New != masked {
		t.Errorf("the audit: %+v", audits)
	}
	raw, err := json.Marshal(audits)
	must(t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range []string{r.bodies.String(), string(raw), r.logs.String()} {
		if strings.Contains(text, value) || strings.Contains(text, other) {
			t.Errorf("a value shows in: %s", text)
		}
	}
}

// TestOneMACOneMachine lets many Machines claim one MAC at once.
func TestOneMACOneMachine(t *testing.T) {
	r := newRig(t)
	c := r.root()
	var wg sync.WaitGroup
	won := make(chan string, 16)
	for i := range 16 {
		wg.Go(func() {
			name := fmt.Sprintf("r%d", i)
			_, err := c.Put(t.Context(), testsite.NewMachine(name, "52:54:00:00:00:01"), false)
			if err == nil {
				won <- name
				return
			}
			wantStatus(t, err, http.StatusUnprocessableEntity, "MAC 52:54:00:00:00:01 is in use by Machine r", "/spec/links/0/mac")
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d Machines have the MAC", len(won))
	}
	must(t, c.Delete(t.Context(), machineKind(), <-won))
	put(t, c, testsite.NewMachine("next", "52:54:00:00:00:01")) // admission has seen the deletion
}

func TestTakeover(t *testing.T) {
	r := newRig(t)
	discover := func(name string, mac api.MAC) {
		m := testsite.NewMachine(name, mac)
		m.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true"}
		m.Status.Phase, m.Status.LastSeen = api.PhaseDiscovered, time.Now().UTC()
		must(t, r.store.Create(t.Context(), m))
		must(t, r.cache.WaitRevision(t.Context(), revision(t, m)))
	}
	discover("discovered-1", "52:54:00:00:00:01")
	discover("discovered-2", "52:54:00:00:00:02")
	c := r.root()
	if _, err := c.Put(t.Context(), testsite.NewMachine("r1", "52:54:00:00:00:01"), true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), machineKind(), "discovered-1"); err != nil {
		t.Errorf("after a dry run: %v", err)
	}
	put(t, c, testsite.NewMachine("r1", "52:54:00:00:00:01"))
	_, err := c.Get(t.Context(), machineKind(), "discovered-1")
	wantStatus(t, err, http.StatusNotFound)

	same := testsite.NewMachine("discovered-2", "52:54:00:00:00:02")
	same.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true", "rack": "r1"}
	put(t, c, same)
	m, err := api.Get[api.Machine](t.Context(), c, "discovered-2")
	must(t, err)
	if m.Status.Phase != "" || m.Metadata.Labels[api.DiscoveredLabel] != "" || m.Metadata.Labels["rack"] != "r1" {
		t.Errorf("taken over under its own name: %+v", m)
	}
}

func revision(t testing.TB, o api.Object) int64 {
	n, err := revisionOf(o.Meta().ResourceVersion)
	must(t, err)
	return n
}

func TestDeleteWhatIsReferredTo(t *testing.T) {
	r := newRig(t)
	c := r.root()
	put(t, c, testsite.Objects()...)
	for _, x := range []struct{ kind, name, words string }{
		{"Zone", "yellow", "Subnet prod (/spec/zone), Machine r1 (/spec/zone), Network net1 (/spec/zone)"},
		{"Image", "debian", "Profile worker (/spec/image)"},
		{"Layer", "site", "Profile worker (/spec/layers/0)"},
		{"Profile", "worker", "Machine r1 (/spec/profile)"},
		{"Subnet", "prod", "Machine r1 (/spec/links/1/subnet)"},
		{"Secret", "bmc", "Machine r1 (/spec/bmc/credentials)"},
	} {
		wantStatus(t, c.Delete(t.Context(), kindOf(t, x.kind), x.name), http.StatusConflict, x.words)
	}
	for _, kind := range []string{"Machine r1", "Network net1", "Profile worker", "Subnet prod", "Zone yellow", "Image debian", "Layer site", "Secret bmc"} {
		k, name, _ := strings.Cut(kind, " ")
		if err := c.Delete(t.Context(), kindOf(t, k), name); err != nil {
			t.Errorf("delete %s: %v", kind, err)
		}
	}
}

func TestVerbs(t *testing.T) {
	r := newRig(t)
	c := r.root()
	m := testsite.NewMachine("r1", "52:54:00:00:00:01")
	m.Spec.BMC = &api.BMC{Address: "https://198.18.0.7", Credentials: "bmc"}
	put(t, c, m)
	ask, err := c.Verb(t.Context(), "r1", api.Request{Verb: api.VerbPower, Argument: "off"})
	must(t, err)
	if ask.ID == "" || ask.State != api.RequestPending || ask.By != "root" {
		t.Errorf("asked: %+v", ask)
	}
	again, err := c.Verb(t.Context(), "r1", api.Request{ID: ask.ID, Verb: api.VerbPower, Argument: "off"})
	must(t, err)
	got, err := api.Get[api.Machine](t.Context(), c, "r1")
	must(t, err)
	if again.ID != ask.ID || len(got.Status.Requests) != 1 {
		t.Errorf("a repeated id is another request: %+v", got.Status.Requests)
	}
	_, err = c.Verb(t.Context(), "r1", api.Request{Verb: api.VerbPower, Argument: "sideways"})
	wantStatus(t, err, http.StatusUnprocessableEntity, "sideways")
	_, err = c.Verb(t.Context(), "r2", api.Request{Verb: api.VerbInspect})
	wantStatus(t, err, http.StatusNotFound, "r2")
	if n := len(r.auditsOf("/v1/machines/r1/power")); n != 1 {
		t.Errorf("%d power requests were audited", n)
	}
}

func TestBootCalls(t *testing.T) {
	r := newRig(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.authority.Pool()}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	call := func(method, path, token, body string) (int, string) {
		req, err := http.NewRequest(method, r.base+path, strings.NewReader(body))
		must(t, err)
		req.Header.Set("Accept", "application/vnd.coreos.ignition+json;version=3.6.0")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		status, _, answer := r.send(client, req)
		return status, answer
	}
	for _, c := range []struct {
		method, path, token, body string
		status                    int
		words                     string
	}{
		{"GET", "/v1/ignition/r1/key", "boot-token", "", 200, "r1 127.0.0.1 application/vnd.coreos.ignition+json;version=3.6.0"},
		{"GET", "/v1/ignition/r1/key", "wrong", "", 403, "not this BootAttempt's"},
		{"GET", "/v1/ignition/r1/key", "", "", 401, "bearer"},
		{"GET", "/v1/ignition/broken/key", "boot-token", "", 503, "its log says why"},
		{"HEAD", "/v1/ignition/r1/key", "boot-token", "", 405, ""},
		{"GET", "/v1/boot/r1/key", "", "", 200, "#!ipxe"},
		{"GET", "/v1/boot/r1/other", "", "", 403, "no"},
		{"GET", "/v1/boot/r1/key/autoexec.ipxe", "", "", 200, "#!ipxe"},
		{"GET", "/v1/boot/r1/other/autoexec.ipxe", "", "", 403, "no"},
		{"GET", "/v1/boot/r1/key/ipxe.efi", "", "", 200, "a loader"},
		{"HEAD", "/v1/boot/r1/key/ipxe.efi", "", "", 200, ""},
		{"GET", "/v1/boot/r1/other/ipxe.efi", "", "", 403, "no"},
		{"GET", "/v1/boot/r1/key/another.efi", "", "", 403, "no"},
		{"GET", "/v1/boot/r1/key/missing.efi", "", "", 404, "no boot loader"},
		{"GET", "/v1/boot/r1/key/..", "", "", 404, ""},
		{"GET", "/v1/boot/r1/other/blobs/sha256:" + strings.Repeat("a", 64), "", "", 403, "no"},
		{"GET", "/v1/boot/r1/key/blobs/sha256:" + strings.Repeat("a", 64), "", "", 404, ""},
		{"GET", "/v1/pointer/r1/key", "", "", 200, "a pointer"},
		{"GET", "/v1/pointer/r1/other", "", "", 403, "no"},
		{"HEAD", "/v1/pointer/r1/key", "", "", 405, ""},
		{"GET", "/v1/ignition/r1/other", "boot-token", "", 403, ""},
		{"POST", "/v1/join", "boot-token", `{"machine":"r1","csr":"x","time":"1980-01-01T00:00:00Z"}`, 200, `"attemptID":"127.0.0.1"`},
		{"POST", "/v1/join", "wrong", `{"machine":"r1","csr":"x","time":"1980-01-01T00:00:00Z"}`, 403, "Join refused"},
		{"POST", "/v1/join", "boot-token", `{"machine":"r1","pony":1}`, 400, "/pony"},
		{"POST", "/v1/join", "boot-token", `{"csr":"` + strings.Repeat("a", maxBoot) + `"}`, 413, ""},
	} {
		if status, answer := call(c.method, c.path, c.token, c.body); status != c.status || !strings.Contains(answer, c.words) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, answer)
		}
	}
	if n := r.decider.arrived.Load(); n != 1 {
		t.Errorf("%d configs arrived", n)
	}
	for range 200 {
		if status, _ := call("GET", "/v1/ignition/r1/key", "wrong", ""); status == http.StatusServiceUnavailable {
			return // and not a 4xx, at which Ignition gives up
		}
	}
	t.Error("200 wrong tokens in a row were all looked at")
}

func TestExplain(t *testing.T) {
	r := newRig(t)
	c := r.root()
	m := testsite.NewMachine("r1", "52:54:00:00:00:01", "52:54:00:00:00:02")
	m.Spec.Profile = "worker"
	put(t, c, m)
	for i := range 60 {
		must(t, r.decisions.Append(t.Context(), api.Decision{MAC: "52:54:00:00:00:02", Question: "dhcp", Answer: fmt.Sprint(i), Reason: "x"}))
	}
	must(t, r.decisions.Append(t.Context(), api.Decision{MAC: "52:54:00:00:00:09", Question: "dhcp", Answer: "an address", Reason: "it is unknown"}))
	must(t, r.events.Append(t.Context(), api.Event{Kind: "Machine", Name: "r1", Reason: "Seen"}))
	must(t, r.events.Append(t.Context(), api.Event{Kind: "Machine", Name: "r2", Reason: "Seen"}))
	for _, who := range []string{"r1", "52:54:00:00:00:01", "52-54-00-00-00-02"} {
		x, err := c.Explain(t.Context(), who)
		must(t, err)
		if x.Machine == nil || len(x.Decisions) != explainDecisions || x.Decisions[49].Answer != "59" || len(x.Events) != 1 || len(x.Origins) != 1 {
			t.Errorf("%s: %d decisions, %d events, %d origins", who, len(x.Decisions), len(x.Events), len(x.Origins))
		}
		if text := strings.Join(x.Summary, "\n"); !strings.Contains(text, "r1 is Registered") || !strings.Contains(text, "no BMC") {
			t.Errorf("summary: %s", text)
		}
	}
	x, err := c.Explain(t.Context(), "52:54:00:00:00:09")
	must(t, err)
	if x.Machine != nil || len(x.Decisions) != 1 || !strings.Contains(strings.Join(x.Summary, " "), "it is unknown") {
		t.Errorf("of an unknown MAC: %+v", x)
	}
	_, err = c.Explain(t.Context(), "r7")
	wantStatus(t, err, http.StatusNotFound, "r7")
}

func TestEvents(t *testing.T) {
	r := newRig(t)
	c := r.bearer(viewerToken)
	for _, name := range []string{"r1", "r2", "r1"} {
		must(t, r.events.Append(t.Context(), api.Event{Kind: "Machine", Name: name}))
	}
	n := 0
	must(t, c.Events(t.Context(), "machine", "r1", false, func(api.Event) error { n++; return nil }))
	if n != 2 {
		t.Errorf("%d events of r1", n)
	}
	enough := errors.New("enough")
	seen := []string{}
	err := c.Events(t.Context(), "", "", true, func(e api.Event) error {
		seen = append(seen, e.Name)
		if len(seen) == 3 {
			must(t, r.events.Append(t.Context(), api.Event{Kind: "Machine", Name: "new"}))
		}
		if len(seen) == 4 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || seen[3] != "new" {
		t.Errorf("followed: %v, %v", seen, err)
	}
	wantStatus(t, c.Events(t.Context(), "pony", "", false, nil), http.StatusBadRequest, "pony")
}

func TestSummary(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	open := func(stage api.Stage, left time.Duration) *api.BootAttempt {
		return &api.BootAttempt{Number: 3, Reason: "reprovision asked for by anna", Stage: stage, Started: now.Add(-time.Minute), Deadline: now.Add(left)}
	}
	for _, c := range []struct {
		name   string
		change func(*api.Machine)
		site   api.SiteSpec
		words  []string
	}{
		{"discovered", func(m *api.Machine) {
			m.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true"}
			m.Status.LastSeen = now.Add(-90 * time.Second)
		}, api.SiteSpec{}, []string{"This Machine is not registered", "52:54:00:00:00:01", "1m30s ago", "Apply a Machine"}},
		{"under way", func(m *api.Machine) {
			m.Status.BMC.Console = "ssh"
			m.Status.Phase, m.Status.Attempt = api.PhaseProvisioning, open(api.StagePointer, time.Hour)
		}, api.SiteSpec{}, []string{"r1 is Provisioning", "BootAttempt 3", "waits for Ignition to fetch its config over TLS, for another 1h0m0s", "weftctl console r1"}},
		{"overdue", func(m *api.Machine) {
			m.Status.Phase, m.Status.Attempt = api.PhaseProvisioning, open(api.StageKernel, -time.Second)
		}, api.SiteSpec{}, []string{"window is over"}},
		{"failed", func(m *api.Machine) {
			m.Status.Phase, m.Status.Attempt = api.PhaseFailed, open(api.StageDHCP, 0)
			m.Status.Attempt.Result, m.Status.Attempt.Message = api.ResultFailed, "no boot loader"
		}, api.SiteSpec{}, []string{"failed after stage DHCP: no boot loader", "weftctl machine reprovision r1"}},
		{"active", func(m *api.Machine) {
			m.Status.Phase, m.Status.Attempt = api.PhaseActive, open(api.StageApplied, 0)
			m.Status.Attempt.Result, m.Status.Attempt.Finished = api.ResultActive, now
		}, api.SiteSpec{}, []string{"r1 is Active", "reached Active in 1m0s"}},
		{"held", func(m *api.Machine) {
			m.Status.Conditions.Set(now, api.CondHeld, api.True, "Limit", "8 of rack r1 are provisioning")
			m.Status.Conditions.Set(now, api.CondBMC, api.False, "Password", "the BMC refuses the password")
			m.Status.Requests = []api.Request{{Verb: api.VerbPower, Argument: "on", By: "anna", State: api.RequestPending, Time: now}}
		}, api.SiteSpec{Paused: true}, []string{"8 of rack r1", "refuses the password", "power on, requested by anna", "The Site is paused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := testsite.NewMachine("r1", "52:54:00:00:00:01")
			m.Spec.Profile, m.Spec.BMC = "worker", &api.BMC{Address: "https://198.18.0.7"}
			c.change(m)
			text := strings.Join(summarize(m, c.site, now), "\n")
			for _, w := range c.words {
				if !strings.Contains(text, w) {
					t.Errorf("%q is missing in:\n%s", w, text)
				}
			}
		})
	}
}

func TestUnencryptedHTTP2OnTheSocket(t *testing.T) {
	r := newRig(t)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://bootd/v1/audit")
	must(t, err)
	must(t, resp.Body.Close())
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("%s %s", resp.Proto, resp.Status)
	}
}
