// Go listens for MPTCP, which knows no MD5 keys.
//
//go:debug multipathtcp=0
package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/nodeagent"
)

// speakerEnvironment makes the test's binary a speaker: with its directory.
const speakerEnvironment = "RACKWEFT_TEST_SPEAKER"

func TestMain(m *testing.M) {
	dir := os.Getenv(speakerEnvironment)
	if dir == "" {
		os.Exit(m.Run())
	}
	err := bgp.Run(context.Background(), bgp.Options{Part: filepath.Join(dir, "part"), Socket: filepath.Join(dir, "socket"),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Notify: silent{}})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type silent struct{}

func (silent) Ready()                                {}
func (silent) Status(string)                         {}
func (silent) Watchdog(context.Context, func() bool) {}

// unit stands in for systemd.
type unit struct {
	t       *testing.T
	dir     string
	process *exec.Cmd
	starts  int
}

func (u *unit) start(context.Context) error {
	if u.process != nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	u.starts++
	u.process = exec.Command(self)
	u.process.Env = append(os.Environ(), speakerEnvironment+"="+u.dir)
	return u.process.Start() // in the namespace of this thread
}

func (u *unit) stop(context.Context) error {
	if u.process == nil {
		return nil
	}
	err := u.process.Process.Kill()
	_ = u.process.Wait()
	u.process = nil
	return err
}

func newBench(t *testing.T) (*Speaker, *unit) {
	nstest.Enter(t)
	u := &unit{t: t, dir: t.TempDir()}
	t.Cleanup(func() { _ = u.stop(context.Background()) })
	ip(t, "addr add 198.18.9.1/24 dev lo")
	return New(Options{Part: filepath.Join(u.dir, "part"), Socket: filepath.Join(u.dir, "socket"),
		Start: u.start, Stop: u.stop, Log: slog.New(slog.DiscardHandler)}), u
}

func ip(t *testing.T, line string) string {
	t.Helper()
	return nstest.Run(t, "ip", strings.Fields(line)...)
}

func part() *api.BGPPart {
	return &api.BGPPart{Zone: "yellow", ASN: 64601, RouterID: netip.MustParseAddr("198.18.9.1"), Role: api.BGPReflector, Community: "64601:1:1",
		Listen: []netip.Addr{netip.MustParseAddr("198.18.9.1")}, NextHops: []netip.Addr{netip.MustParseAddr("198.18.9.1")},
		Originate: []netip.Prefix{netip.MustParsePrefix("198.19.1.0/24")}, Aggregates: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")},
		Neighbors: []api.BGPNeighbor{{Name: "c1", Address: netip.MustParseAddr("198.18.9.2"), ASN: 64601, Role: api.BGPClient, Passive: true, Password: "secret"}}}
}

// settle reconciles until the part is more than Pending, as the agent does: on a
// busy machine the speaker takes longer than one look waits for it.
func settle(t *testing.T, s *Speaker, value *api.BGPPart) api.PartStatus {
	t.Helper()
	var got api.PartStatus
	waittest.Soon(time.Minute, func() bool {
		got = s.Reconcile(t.Context(), []nodeagent.Part{{Name: "bgp", UID: "u", Value: value}})["bgp"]
		return got.State != api.PartPending
	})
	return got
}

func TestReconcile(t *testing.T) {
	s, u := newBench(t)
	ctx := t.Context()
	reconcile := func(value *api.BGPPart) api.PartStatus {
		t.Helper()
		return settle(t, s, value)
	}
	if got := reconcile(part()); got.State != api.PartApplied || !strings.Contains(got.Message, "0 of 1 sessions up") {
		t.Fatalf("a new part: %+v", got)
	}
	if info, err := os.Stat(filepath.Join(u.dir, "part")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the part's file, which has keys in it: %v, %v", info, err)
	}
	// A new agent finds the speaker running.
	s = New(s.options)
	changed := part()
	changed.Neighbors[0].MaxPrefixes = 99
	changed.Loopbacks = []netip.Addr{netip.MustParseAddr("198.19.1.1")}
	if got := reconcile(changed); got.State != api.PartApplied || u.starts != 1 {
		t.Errorf("a changed part: %+v after %d starts", got, u.starts)
	}
	if got := ip(t, "addr show dev lo"); !strings.Contains(got, "198.19.1.1/32") {
		t.Errorf("lo lacks the loopback:\n%s", got)
	}
	wrong := part()
	wrong.Community = "none"
	if got := reconcile(wrong); got.State != api.PartFailed || !strings.Contains(got.Message, "community") {
		t.Errorf("a wrong part: %+v", got)
	}
	if got := reconcile(part()); got.State != api.PartApplied {
		t.Errorf("after a wrong part: %+v", got)
	}
	// Absence changes nothing.
	if got := s.Reconcile(ctx, nil); len(got) != 0 || u.process == nil {
		t.Errorf("without the part: %v", got)
	}
	if got := ip(t, "route show proto 217"); !strings.Contains(got, "blackhole 198.19.0.0/16") {
		t.Errorf("the kernel has %q", got)
	}
	_ = u.stop(ctx) // it died
	if got := reconcile(part()); got.State != api.PartApplied || u.starts != 2 {
		t.Errorf("after its death: %+v, %d starts", got, u.starts)
	}
	if got := reconcile(changed); got.State != api.PartApplied {
		t.Errorf("a changed part: %+v", got)
	}
	removed := nodeagent.Part{Name: "bgp", UID: "u", Want: nodeagent.Removed}
	if got := s.Reconcile(ctx, []nodeagent.Part{removed, {Name: "bgp", UID: "v", Value: changed}}); u.process == nil || got["bgp@u"].State != api.PartApplied {
		t.Errorf("a part's successor: %+v", got)
	}
	if got := s.Reconcile(ctx, []nodeagent.Part{removed})[removed.Key()]; got.State != api.PartApplied || u.process != nil {
		t.Errorf("a tombstone: %+v", got)
	}
	if got := ip(t, "route show proto 217"); got != "" {
		t.Errorf("routes are left: %q", got)
	}
	if got := ip(t, "addr show dev lo"); strings.Contains(got, "198.19.1.1") || !strings.Contains(got, "198.18.9.1/24") {
		t.Errorf("lo has\n%s", got)
	}
	if _, err := os.Stat(filepath.Join(u.dir, "part")); err == nil {
		t.Error("the part's file is left")
	}
	if got := s.Reconcile(ctx, []nodeagent.Part{removed})[removed.Key()]; got.State != api.PartApplied {
		t.Errorf("a tombstone once more: %+v", got)
	}
}

func TestStartFails(t *testing.T) {
	s, _ := newBench(t)
	s.options.Start = func(context.Context) error { return errors.New("no such unit") }
	got := s.Reconcile(t.Context(), []nodeagent.Part{{Name: "bgp", Value: part()}})["bgp"]
	if got.State != api.PartPending || !strings.Contains(got.Message, "start the speaker: no such unit") {
		t.Errorf("%+v", got)
	}
}

// listener is the agent.
type listener struct {
	mu     sync.Mutex
	told   []api.BGPStatus
	events []api.Event
}

func (l *listener) Changed()          {}
func (l *listener) Event(e api.Event) { l.events = append(l.events, e) }

func (l *listener) BGP(s api.BGPStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, s)
}

func TestReport(t *testing.T) {
	s, _ := newBench(t)
	if got := settle(t, s, part()); got.State != api.PartApplied {
		t.Fatalf("%+v", got)
	}
	l := &listener{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx, l) }()
	deadline := time.Now().Add(time.Minute)
	for told := 0; told == 0 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		l.mu.Lock()
		told = len(l.told)
		l.mu.Unlock()
	}
	cancel()
	<-done
	if len(l.told) == 0 {
		t.Fatal("nothing is reported")
	}
	got := l.told[0]
	if got.Role != api.BGPReflector || len(got.Sessions) != 1 || got.Sessions[0].Peer != "c1" || got.Sessions[0].State == api.BGPEstablished || len(got.Routes) != 2 {
		t.Errorf("reported %+v", got)
	}
}

// TestAudit: a peer that says the same twice is compared with what it was told.
func TestAudit(t *testing.T) {
	s, _ := newBench(t)
	p := part()
	p.GracefulRestart = api.Duration(2 * time.Second) // half of which it waits for c1
	if got := settle(t, s, p); got.State != api.PartApplied {
		t.Fatalf("%+v", got)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if status, err := s.client.Status(t.Context()); err == nil && !status.Deferring {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the speaker tells nobody anything")
		}
	}
	l := &listener{}
	r := reporter{host: l, client: s.client, received: map[string]api.BGPAudit{}}
	healed := func() int64 {
		t.Helper()
		status, err := s.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return status.Healed
	}
	look := func(minute int) time.Time { return time.Date(2026, 11, 30, 0, minute, 0, 0, time.UTC) }
	for i, a := range []api.BGPAudit{{Digest: "one", Digested: look(0)}, {Digest: "two", Digested: look(2)}, {Digest: "two", Digested: look(2)}} {
		a.Neighbor = "c1"
		if r.audit(t.Context(), a); healed() != 0 {
			t.Errorf("healed at report %d, while the peer's routes change, or one look is told twice", i)
		}
	}
	r.audit(t.Context(), api.BGPAudit{Neighbor: "c1", Received: 7, Digest: "two", Digested: look(4)})
	if healed() != 1 || len(l.events) != 1 || l.events[0].Reason != "RoutesRetold" {
		t.Errorf("healed %d times, %+v", healed(), l.events)
	}
	// Of one that has all, and of one that is no neighbour, nothing comes.
	right, err := s.client.Audit(t.Context(), "c1", "three")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []api.BGPAudit{{Neighbor: "c1", Digest: right.Digest}, {Neighbor: "nobody", Digest: "x"}} {
		r.audit(t.Context(), a)
		a.Digested = look(6)
		r.audit(t.Context(), a)
	}
	if healed() != 2 || len(l.events) != 1 {
		t.Errorf("healed %d times, %+v", healed(), l.events)
	}
	for range maxAudits + 10 { // nobody reads: it does not block
		s.Audit(api.BGPAudit{Neighbor: "c1"})
	}
}

func TestEvents(t *testing.T) {
	l := &listener{}
	r := reporter{host: l, states: map[string]map[string]bool{}}
	state := func(s string) bgp.Status {
		return bgp.Status{Zone: "yellow", Sessions: []bgp.Session{{Name: "r1", Role: "reflector", Address: netip.MustParseAddr("198.18.9.1"), State: s, Reason: "hold timer expired"}}}
	}
	for _, s := range []string{"established", "established", "idle", "active", "established"} {
		r.events(state(s))
	}
	if len(l.events) != 2 || l.events[0].Reason != "SessionDown" || !strings.Contains(l.events[0].Message, "hold timer expired") || l.events[1].Reason != "SessionUp" {
		t.Errorf("events %+v", l.events)
	}
	l.events = nil
	guest := bgp.Status{Zone: "yellow", Network: "blue", Sessions: []bgp.Session{{Name: "guest/r1", Role: "guest", State: "established"}}}
	r.events(guest)
	r.events(state("established")) // another speaker's
	guest.Sessions[0].State = "limited"
	r.events(guest)
	if len(l.events) != 1 || l.events[0].Kind != "Network" || l.events[0].Name != "blue" || !strings.Contains(l.events[0].Message, "guest r1 (") {
		t.Errorf("events %+v", l.events)
	}
}

// What never came up inside of a Network is nobody's concern.
func TestToSessions(t *testing.T) {
	list := toSessions(bgp.Status{Sessions: []bgp.Session{
		{Name: "guest/a", Role: "guest", State: "active"}, {Name: "guest/b", Role: "guest", State: "active", Losses: map[string]int{"hold-timer": 1}},
		{Name: "guest/c", Role: "guest", State: "established"}, {Name: "guest/d", Role: "guest", State: "limited"},
		{Name: "host/e", Role: "host", State: "active"}, {Name: "host/f", Role: "host", State: "established"}, {Name: "r1", Role: "reflector", State: "active"}}})
	var names []string
	for _, s := range list {
		names = append(names, s.Peer)
	}
	if got := strings.Join(names, " "); got != "b c d f r1" {
		t.Error(got)
	}
}
