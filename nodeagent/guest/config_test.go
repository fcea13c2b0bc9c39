package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/overlay"
)

// configSource stands for bootd: it gives a config, or is away.
type configSource struct {
	mu    sync.Mutex
	body  io.Reader // nil while it is away
	asked []string  // Guests that were asked for
}

func (s *configSource) config(_ context.Context, guest string) (Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, guest)
	if s.body == nil {
		return Config{}, errors.New("nobody is at home")
	}
	return Config{io.NopCloser(s.body), "application/vnd.coreos.ignition+json;version=3.4.0"}, nil
}

func (s *configSource) set(body io.Reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.body = body
}

// ask is a request by the overlay's word.
func (h *host) ask(uid, method, path, token string) (answer *httptest.ResponseRecorder, aborted bool) {
	answer = httptest.NewRecorder()
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	defer func() { aborted = recover() != nil }()
	h.handler.ServeConfig(answer, r, uid)
	return answer, false
}

type brokenReader struct{}

func (brokenReader) Read(p []byte) (int, error) { return copy(p, "half"), io.ErrUnexpectedEOF }

// Who gets a Guest's config, and until when.
func TestServeConfig(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	source := new(configSource)
	var log logtest.Buffer
	h.with = func(o *Options) { o.Config, o.Log = source.config, slog.New(slog.NewTextHandler(&log, nil)) }
	h.run()
	with := bare(h)
	with.Config = api.GuestConfig{URL: "http://169.254.169.254/ignition", IgnitionVersion: "3.4.0"}
	h.want(part("web", uid1, with), part("db", uid2, bare(h)))
	h.wait("they run", func() bool {
		return h.is("guest/web", api.PartApplied, "Running")() && h.is("guest/db", api.PartApplied, "Running")()
	})
	token := h.record(uid1).Access.Token
	wants := func(what, uid, token string, code int) {
		t.Helper()
		answer, _ := h.ask(uid, http.MethodGet, "/ignition", token)
		if answer.Code != code || answer.Code == http.StatusServiceUnavailable && answer.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %s, want %d", what, answer.Code, answer.Body, code)
		}
		if code != http.StatusOK && strings.Contains(answer.Body.String(), "home") {
			t.Errorf("%s: a tenant is told of the site: %s", what, answer.Body)
		}
	}
	wants("bootd is away", uid1, token, http.StatusServiceUnavailable)
	h.wait("an event tells of it", h.saw("ConfigUnavailable"))
	source.set(brokenReader{})
	if answer, aborted := h.ask(uid1, http.MethodGet, "/ignition", token); !aborted || !h.record(uid1).Access.Fetched.IsZero() {
		t.Errorf("half a config counts for a whole one: %d %s", answer.Code, answer.Body)
	}
	source.set(strings.NewReader("{}"))
	wants("another Guest", uid2, token, http.StatusForbidden)
	h.wait("an event tells of it", h.saw("ConfigRefused"))
	wants("no Guest", "", token, http.StatusForbidden)
	wants("a Guest that nobody knows", "0", token, http.StatusServiceUnavailable)
	wants("a wrong token", uid1, "x"+token[1:], http.StatusForbidden)
	wants("no token", uid1, "", http.StatusForbidden)
	if answer, _ := h.ask(uid1, http.MethodPost, "/ignition", token); answer.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", answer.Code)
	}
	if answer, _ := h.ask(uid1, http.MethodGet, "/latest/meta-data", token); answer.Code != http.StatusNotFound {
		t.Errorf("another path: %d", answer.Code)
	}
	answer, _ := h.ask(uid1, http.MethodGet, "/ignition", token)
	if answer.Code != http.StatusOK || answer.Body.String() != "{}" || !strings.Contains(answer.Header().Get("Content-Type"), "version=3.4.0") || answer.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("the config: %d %v %s", answer.Code, answer.Header(), answer.Body)
	}
	h.wait("that is written down", func() bool { return !h.record(uid1).Access.Fetched.IsZero() })

	// The next agent goes by the record: until ten minutes after it.
	h.stop()
	wants("an agent that has not looked", "0", token, http.StatusServiceUnavailable)
	h.run()
	h.wait("it is adopted", h.is("guest/web", api.PartApplied, "Running"))
	source.set(strings.NewReader("{}"))
	wants("again", uid1, token, http.StatusOK)
	h.stop()
	r := h.record(uid1)
	r.Access.Fetched = r.Access.Fetched.Add(-accessGrace)
	if err := r.write(h.guestDir(uid1)); err != nil {
		t.Fatal(err)
	}
	h.run()
	h.wait("it is adopted", h.is("guest/web", api.PartApplied, "Running"))
	wants("ten minutes later", uid1, token, http.StatusForbidden)

	// A Guest that boots again fetches again; a start has a token of its own.
	with.Request = &api.GuestRequest{ID: "1", Verb: api.GuestReset}
	h.want(part("web", uid1, with), part("db", uid2, bare(h)))
	h.wait("its reset is noted", func() bool { return h.record(uid1).Access.Fetched.IsZero() })
	wants("after a reset", uid1, token, http.StatusOK)
	with.Request = &api.GuestRequest{ID: "2", Verb: api.GuestRestart}
	h.want(part("web", uid1, with), part("db", uid2, bare(h)))
	h.wait("it is restarted", func() bool {
		return h.is("guest/web", api.PartApplied, "Running")() && h.record(uid1).Access.Token != token
	})
	wants("the token of the run before", uid1, token, http.StatusForbidden)
	token = h.record(uid1).Access.Token
	with.State = "Stopped"
	h.want(part("web", uid1, with), part("db", uid2, bare(h)))
	h.wait("it is stopped", h.is("guest/web", api.PartApplied, "Stopped"))
	wants("a Guest that is stopped", uid1, token, http.StatusServiceUnavailable)

	if info, err := os.Stat(filepath.Join(h.guestDir(uid1), recordFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the record's mode is %v, %v", info.Mode(), err)
	}
	if strings.Contains(log.String(), token) {
		t.Error("the token is in the log")
	}
	var counted dto.Metric
	h.try(h.handler.configs.requests.WithLabelValues("refused").Write(&counted))
	if n := counted.GetCounter().GetValue(); n != 2 {
		t.Errorf("%v refusals of the last agent are counted", n)
	}
}

// network gives the host an overlay with one Network, green: 10.7.1.0/24.
func (h *host) network(config func(http.ResponseWriter, *http.Request, string)) *overlay.Overlay {
	h.t.Helper()
	value := &api.NetworkPart{UID: "green", VNI: 7201, MTU: 1400, Lease: netip.MustParsePrefix("10.7.1.0/24"), MAC: "02:00:00:00:72:01",
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}}
	alone := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}}
	return h.overlay("198.18.0.1", alone, config, nodeagent.Part{Name: "network/green", UID: "green", Digest: "1", Value: value})
}

// overlay gives the host an underlay of one link, eth0, and Networks over it.
func (h *host) overlay(address string, eth0 netlink.Link, config func(http.ResponseWriter, *http.Request, string), parts ...nodeagent.Part) *overlay.Overlay {
	h.t.Helper()
	dir := filepath.Join(h.dir, "netns")
	underlay := filepath.Join(dir, "underlay")
	h.try(namespace.Pin(underlay))
	h.t.Cleanup(func() {
		h.stop()
		h.sweep()
		pinned, _ := os.ReadDir(dir)
		for _, f := range pinned {
			_ = namespace.Unpin(filepath.Join(dir, f.Name()))
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	ns, err := netns.GetFromPath(underlay)
	h.try(err)
	defer func() { _ = ns.Close() }()
	k, err := netlink.NewHandleAt(ns)
	h.try(err)
	defer k.Close()
	h.try(k.LinkAdd(eth0))
	h.try(k.LinkSetUp(eth0))
	at, err := netlink.ParseAddr(address + "/24")
	h.try(err)
	h.try(k.AddrAdd(eth0, at))
	o := overlay.New(overlay.Options{NamespaceDir: dir, HostNamespace: underlay, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	o.ServeConfigs(config)
	o.SetUnderlay(api.Underlay{Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr(address)}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	begun := &desk{again: wait.NewSignal()}
	go func() { defer close(done); o.Run(ctx, begun) }()
	h.t.Cleanup(func() { cancel(); <-done })
	<-begun.again
	for key, s := range o.Reconcile(ctx, parts) {
		if s.State != api.PartApplied {
			h.t.Fatalf("%s is %+v", key, s)
		}
	}
	return o
}

func (h *host) try(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// A Guest goes where its pointer says, through its NIC and all filters, and gets
// its config.
func TestGuestFetchesConfig(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a Guest: takes seconds")
	}
	t.Parallel()
	h := newHost(t)
	source := new(configSource)
	o := h.network(func(w http.ResponseWriter, r *http.Request, uid string) { h.handler.ServeConfig(w, r, uid) })
	h.with = func(options *Options) { options.Network, options.Config = o, source.config }
	h.run()
	g := linux(h)
	g.Network, g.Addresses, g.MAC = "green", []netip.Addr{netip.MustParseAddr("10.7.1.8")}, "02:00:00:07:01:08"
	g.Config = api.GuestConfig{URL: "http://169.254.169.254/ignition", IgnitionVersion: "3.4.0"}
	h.want(part("web", uid1, g))
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 1") })
	if got := h.tell(uid1, "network 10.7.1.8"); got != "ok" {
		t.Fatalf("its network: %s", got)
	}
	_, err := os.Stat(vhostNet)
	if s := h.status("guest/web"); s.Guest == nil || s.Guest.Conditions.Is(conditionVHost) != (err == nil) {
		t.Errorf("%s: %v; it is seen as %+v", vhostNet, err, s.Guest)
	}
	if got := h.tell(uid1, "fetch"); !strings.HasPrefix(got, "503 5 ") {
		t.Errorf("without bootd it gets %s", got)
	}
	source.set(strings.NewReader(`{"ignition":{"version":"3.4.0"}}`))
	if got := h.tell(uid1, "fetch wrong"); !strings.HasPrefix(got, "403 ") {
		t.Errorf("with a wrong token it gets %s", got)
	}
	if got := h.tell(uid1, "fetch"); got != `200  application/vnd.coreos.ignition+json;version=3.4.0 {"ignition":{"version":"3.4.0"}}` {
		t.Errorf("it gets %s", got)
	}
	con, err := h.handler.Open(t.Context(), api.Channel{Kind: api.ChannelConsole, Guest: "web", UID: uid1})
	h.try(err)
	_, err = io.WriteString(con, "disk root\r")
	h.try(err)
	said := make([]byte, 0, 1<<16)
	for !bytes.Contains(said, []byte("@did disk root: ")) && len(said) < cap(said) {
		n, err := con.Read(said[len(said):cap(said)])
		h.try(err)
		said = said[:len(said)+n]
	}
	h.try(con.Close())
	if _, err := h.handler.Open(t.Context(), api.Channel{Kind: api.ChannelConsole, Guest: "db", UID: uid2}); err == nil {
		t.Error("a Guest that is not here has a console")
	}
	source.mu.Lock()
	defer source.mu.Unlock()
	if strings.Join(source.asked, " ") != "web web" {
		t.Errorf("bootd was asked for %q", source.asked)
	}
}
