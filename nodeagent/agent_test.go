package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

func newContext(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(t.Context()))
}

func applied(b *fakeBootd, part string) func() bool {
	return func() bool {
		p := b.status.Parts[part]
		return p.State == api.PartApplied && p.Digest == api.PartDigest(b.parts[part])
	}
}

func TestJoinStreamAndReport(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	b.parts["guest/web"] = api.Part(`{"uid":"g1"}`)
	_, stop := runAgent(t, h)
	b.waitFor("base is applied", applied(b, "base"))
	b.waitFor("the revision is applied", func() bool { return b.status.Revision == 10 && b.status.Epoch == 1 })
	b.mu.Lock()
	s := b.status
	b.mu.Unlock()
	if s.UID != testUID || s.AttemptID != testAttempt || s.AgentVersion != "test" || s.Kernel == "" || s.OS == "" || s.BootID == "" {
		t.Errorf("the status lacks something: %+v", s)
	}
	guest := s.Parts["guest/web"]
	if guest.State != api.PartPending || !strings.Contains(guest.Message, "no handler for guest parts") {
		t.Errorf("a part without a handler is reported as %+v", guest)
	}
	if _, err := os.Stat(h.tokens); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the token is still there after the join: %v", err)
	}
	if _, err := os.Stat(filepath.Join(h.state, "join-key.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the key of the join is still there: %v", err)
	}
	var status Status
	var err error
	waittest.Soon(time.Minute, func() bool { // it is written after the report to bootd
		status, err = ReadStatus(h.state, h.run)
		return err == nil && status.Link.State == LinkConnected
	})
	if err != nil || status.Link.State != LinkConnected || !status.Joined {
		t.Errorf("the local status is %+v, %v", status, err)
	}
	stop()
	if _, err := ReadStatus(h.state, h.run); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("after the end the status says %v", err)
	}

	// The second life needs no join and announces what it holds.
	runAgent(t, h)
	b.waitFor("the second stream", func() bool { return b.streams == 2 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.joins != 1 {
		t.Errorf("joined %d times, want once", b.joins)
	}
	if d := b.hellos[1].Digests["base"]; d != api.PartDigest(b.parts["base"]) || b.hellos[1].Revision != 10 {
		t.Errorf("the second hello announces %+v", b.hellos[1])
	}
}

func TestJoinFaults(t *testing.T) {
	tests := []struct {
		name  string
		fault func(n int, w http.ResponseWriter) bool
		want  string // in the log
	}{
		{"401", func(n int, w http.ResponseWriter) bool {
			refuseJoin(w, http.StatusUnauthorized, "the token is used up")
			return n < 3
		}, "the token is used up"},
		{"503", func(n int, w http.ResponseWriter) bool {
			refuseJoin(w, http.StatusServiceUnavailable, "no leader yet")
			return n < 3
		}, "no leader yet"},
		{"no JSON", func(n int, w http.ResponseWriter) bool {
			_, _ = w.Write([]byte("<html>"))
			return n < 3
		}, "cannot be read"},
		{"cut off", func(n int, _ http.ResponseWriter) bool {
			if n < 3 {
				panic(http.ErrAbortHandler)
			}
			return false
		}, "cannot join yet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newFakeBootd(t)
			b.joinFault = func(n int, w http.ResponseWriter) bool { return n < 3 && tt.fault(n, w) }
			b.start(nil)
			log, _ := runAgent(t, newHost(t, b))
			b.waitFor("it joins in the end", applied(b, "base"))
			if !log.has(tt.want) {
				t.Errorf("the log does not say %q", tt.want)
			}
			if !b.with(func() bool { return len(b.keys) == 1 }) {
				t.Error("it joined with more than one key")
			}
		})
	}
}

// An answer for somebody else, or for another BootAttempt, is never used.
func TestJoinAnswerOfAnother(t *testing.T) {
	for name, change := range map[string]func(*api.JoinResponse){
		"machine": func(r *api.JoinResponse) { r.Machine = "r1u08" },
		"uid":     func(r *api.JoinResponse) { r.UID = "other" },
		"attempt": func(r *api.JoinResponse) { r.AttemptID = "attempt-9" },
		"key":     func(r *api.JoinResponse) { r.Certificate = r.CA },
	} {
		t.Run(name, func(t *testing.T) {
			b := newFakeBootd(t)
			b.joinAnswer = change
			b.start(nil)
			h := newHost(t, b)
			runAgent(t, h)
			b.waitFor("it asks again", func() bool { return b.joins > 1 })
			if _, err := os.Stat(filepath.Join(h.state, "identity.json")); err == nil {
				t.Error("it kept the identity of another")
			}
		})
	}
}

func TestWrongCAIsNotJoined(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	h.config.CA = newSite(t, year(1970), year(9999)).pem
	log, _ := runAgent(t, h)
	log.waitFor(t, "is not the bootd of this site")
	if !b.with(func() bool { return b.joins == 0 }) {
		t.Error("the token was sent to a server with the wrong CA")
	}
}

// The site's clock and the host's are decades apart, either way.
func TestClockDecadesOff(t *testing.T) {
	for _, now := range []int{1985, 2085} {
		b := newFakeBootd(t)
		b.site = newSite(t, year(now-5), year(now+5))
		b.site.now = func() time.Time { return year(now) }
		b.start(nil)
		runAgent(t, newHost(t, b))
		b.waitFor("it joins and streams", applied(b, "base"))
	}
}

func TestNoTokenIsExplained(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	if err := os.Remove(h.tokens); err != nil {
		t.Fatal(err)
	}
	log, _ := runAgent(t, h)
	log.waitFor(t, "weftctl machine reprovision r1u07")
	// A token that turns up is used.
	writeTest(t, h.tokens, testToken)
	b.waitFor("it joins", applied(b, "base"))
}

// The data of an earlier BootAttempt were kept, its certificate too: a new
// token means a new join, with a new key.
func TestJoinsAnewInANewAttempt(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	_, stop := runAgent(t, h)
	b.waitFor("it joins", applied(b, "base"))
	stop()
	before, err := loadIdentity(filepath.Join(h.state, "identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	h.config.AttemptID = "attempt-2"
	b.mu.Lock()
	clear(b.keys)
	b.joinAnswer = func(r *api.JoinResponse) { r.AttemptID = "attempt-2" }
	b.mu.Unlock()

	// Without a token the old certificate still is the host's.
	_, stop = runAgent(t, h)
	b.waitFor("the old certificate does", func() bool { return b.streams == 2 })
	stop()
	writeTest(t, h.tokens, testToken)
	runAgent(t, h)
	b.waitFor("it joins anew", func() bool { return b.joins == 2 && b.status.AttemptID == "attempt-2" })
	after, err := loadIdentity(filepath.Join(h.state, "identity.json"))
	if err != nil || after.Key == before.Key {
		t.Errorf("the second attempt uses the key of the first (%v)", err)
	}
}

// Each script breaks the first streams; the agent must come back, and end up
// with the right parts.
func TestStreamFaults(t *testing.T) {
	base := api.Part(`{"uid":"` + testUID + `"}`)
	scripts := map[string]func(s *fakeStream){
		"torn frame": func(s *fakeStream) { s.raw(`{"part":{"name":"base","dig`) },
		"no JSON":    func(s *fakeStream) { s.raw("hello?\n") },
		"refused":    func(s *fakeStream) { s.send(api.ServerFrame{Refused: "another host holds this name"}) },
		"closed":     func(*fakeStream) {},
		"aborted":    func(*fakeStream) { panic(http.ErrAbortHandler) },
		"wrong digest": func(s *fakeStream) {
			s.send(api.ServerFrame{Part: &api.PartUpdate{Name: "base", Digest: "00", Value: base}})
		},
		"delta to nothing": func(s *fakeStream) {
			s.send(api.ServerFrame{Part: &api.PartUpdate{Name: "network/a", Base: "11", Digest: "22", Delta: &api.PeerDelta{}}})
		},
		"evil name": func(s *fakeStream) {
			s.send(api.ServerFrame{Part: &api.PartUpdate{Name: strings.Repeat("../", 90), Digest: api.PartDigest(base), Value: base}})
		},
		"no bookmark": func(s *fakeStream) {
			s.send(api.ServerFrame{Part: &api.PartUpdate{Name: "network/torn", Digest: api.PartDigest(base), Value: base}})
		},
		"silence":       func(s *fakeStream) { <-s.req.Context().Done() },
		"endless frame": func(s *fakeStream) { s.raw(strings.Repeat("x", maxFrame+1)) },
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFakeBootd(t)
			b.stream = func(n int, s *fakeStream) bool {
				if n > 2 {
					return false
				}
				script(s)
				return true
			}
			b.start(nil)
			h := newHost(t, b)
			_, stop := runAgent(t, h)
			b.waitFor("it recovers", applied(b, "base"))
			if !b.with(func() bool { return b.streams == 3 && len(b.status.Parts) == 1 }) {
				t.Errorf("%d streams, status %+v", b.streams, b.status)
			}
			stop()
		})
	}
}

// A bootd that is behind is left for another; nothing of it is taken.
func TestStaleBootd(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	log, _ := runAgent(t, h)
	b.waitFor("it joins", applied(b, "base"))
	b.change(func() {
		b.revision = 5
		b.parts["base"] = api.Part(`{"uid":"` + testUID + `","zone":"old"}`)
	})
	log.waitFor(t, "bootd is behind")
	// A restore raises the epoch: then its lower revision counts.
	b.change(func() { b.epoch, b.revision = 2, 3 })
	b.waitFor("the restored HostSpec is applied", func() bool { return applied(b, "base")() && b.status.Epoch == 2 && b.status.Revision == 3 })
}

func TestGoesToTheNextURL(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	h.config.API = []string{"https://127.0.0.1:1", b.url()}
	runAgent(t, h)
	b.waitFor("the second URL serves", applied(b, "base"))
}

// bootd comes and goes; the host works from its cache meanwhile.
func TestWithoutBootd(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	b.parts["network/a"] = api.Part(`{"uid":"n1","vni":10017}`)
	_, stop := runAgent(t, h, newRecorder("network"))
	b.waitFor("the network is applied", applied(b, "network/a"))
	stop()
	b.stop()

	r := newRecorder("network")
	_, _ = runAgent(t, h, r)
	r.waitFor(t, "the cached part is reconciled without bootd", func() bool {
		return len(r.last) == 1 && r.last[0].Name == "network/a" && r.last[0].Want == Present
	})
	b.start(nil)
	b.waitFor("it finds bootd again", func() bool { return b.streams == 2 })
}

// recorder is a handler that notes what it is asked for.
type recorder struct {
	kind   string
	mu     sync.Mutex
	last   []Part
	refuse bool
}

func newRecorder(kind string) *recorder { return &recorder{kind: kind} }

func (r *recorder) Kind() string { return r.kind }

func (r *recorder) Reconcile(_ context.Context, parts []Part) map[string]api.PartStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = slices.Clone(parts)
	out := map[string]api.PartStatus{}
	for _, p := range parts {
		out[p.Key()] = api.PartStatus{State: api.PartApplied}
		if r.refuse {
			out[p.Key()] = api.PartStatus{State: api.PartFailed, Message: "it will not go"}
		}
	}
	return out
}

func (r *recorder) waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	ok := waittest.Soon(30*time.Second, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return f()
	})
	if !ok {
		t.Fatalf("never came true: %s; last asked for %+v", what, r.last)
	}
}

func (r *recorder) set(refuse bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = refuse
}

// Absence orphans, a tombstone with the uid removes, one with another uid does
// not touch the namesake.
// A host that booted anew does nothing of what it has cached from before: it
// may run elsewhere by now. It is ready for systemd all the same.
func TestHostSpecFromBeforeTheBoot(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	b.parts["network/blue"] = api.Part(`{"uid":"n1"}`)
	h := newHost(t, b)
	_, stop := runAgent(t, h, passes{})
	b.waitFor("the part is applied", applied(b, "network/blue"))
	stop()
	b.stop()

	h.config.HostSpec = api.Bookmark{Epoch: 1, Revision: 11}
	seen := passes{make(chan []Part, 100)}
	a, log, _ := startAgent(t, h, func(*Options) {}, seen)
	log.waitFor(t, "from before this boot")
	a.resynced(t)
	if n := len(seen.parts); n > 0 {
		t.Fatalf("its handler was called %d times", n)
	}
	b.revision = 11
	b.start(nil)
	if parts := <-seen.parts; len(parts) != 1 || parts[0].Name != "network/blue" {
		t.Errorf("then it is called with %+v", parts)
	}
}

// resynced waits until every worker has passed once more.
func (a *Agent) resynced(t *testing.T) {
	t.Helper()
	within := func(f func()) {
		if err := a.do(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	within(func() {
		for _, w := range a.workers {
			w.passed = false
			w.wake.Set()
		}
	})
	waittest.Until(t, time.Minute, "every worker has passed", func() (all bool) {
		within(func() { all = a.workers.passed(0) })
		return all
	})
}

// passes is a handler that applies everything, and passes on what it was asked.
type passes struct{ parts chan []Part }

func (passes) Kind() string { return "network" }

func (p passes) Reconcile(_ context.Context, parts []Part) map[string]api.PartStatus {
	if p.parts != nil {
		p.parts <- parts
	}
	out := map[string]api.PartStatus{}
	for _, part := range parts {
		out[part.Key()] = api.PartStatus{State: api.PartApplied}
	}
	return out
}

func TestAbsenceIsNotDeletion(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	b.parts["guest/web"] = api.Part(`{"uid":"g2"}`)
	r := newRecorder("guest")
	_, stop := runAgent(t, h, r)
	b.waitFor("the guest is applied", applied(b, "guest/web"))

	b.change(func() { delete(b.parts, "guest/web") })
	b.waitFor("it is orphaned", func() bool { return b.status.Parts["guest/web"].State == api.PartOrphaned })
	stop()
	_, stop = runAgent(t, h, r) // it stays so over a restart
	b.waitFor("it is orphaned still", func() bool { return b.streams == 2 && b.status.Parts["guest/web"].State == api.PartOrphaned })
	r.waitFor(t, "the handler knows", func() bool { return len(r.last) == 1 && r.last[0].Want == Orphaned })

	b.change(func() { b.tombstones = []api.Tombstone{{Part: "guest/web", UID: "g1"}} })
	b.waitFor("the tombstone of a namesake changes nothing", func() bool {
		return b.status.Revision == b.revision && b.status.Parts["guest/web"].State == api.PartOrphaned
	})

	r.set(true)
	b.change(func() { b.tombstones = []api.Tombstone{{Part: "guest/web", UID: "g2"}} })
	b.waitFor("its removal fails", func() bool { return b.status.Parts["guest/web@g2"].State == api.PartFailed })
	stop()
	_, stop = runAgent(t, h, r) // the tombstone outlives a restart
	r.waitFor(t, "the handler is asked again", func() bool { return len(r.last) == 1 && r.last[0].Want == Removed && r.last[0].UID == "g2" })
	r.set(false)
	b.waitFor("it is removed", func() bool { return b.status.Revision == b.revision && len(b.status.Parts) == 1 })
	stop()
	spec, faults := loadHostSpec(filepath.Join(h.state, "hostspec"))
	if len(faults) > 0 || len(spec.index.Parts) != 1 {
		t.Errorf("the cache holds %v (%v), want base alone", spec.index.Parts, faults)
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	b := newFakeBootd(t)
	b.life = 6 * time.Second // of which 4 pass before it is renewed
	b.start(nil)
	h := newHost(t, b)
	_, stop := runAgent(t, h)
	b.waitFor("it renews", func() bool { return b.renewals == 1 })
	b.mu.Lock()
	b.life = time.Hour
	b.mu.Unlock()
	b.waitFor("it renews again", func() bool { return b.renewals == 2 })
	b.waitFor("it says so", func() bool {
		return slices.ContainsFunc(b.events, func(e api.Event) bool { return e.Reason == "CertificateRenewed" })
	})
	stop()
	runAgent(t, h)
	b.waitFor("the new certificate opens a stream", func() bool { return b.streams == 2 && len(b.clients) == 2 })
}

func TestTwoAgentsOnOneState(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	runAgent(t, h)
	b.waitFor("the first runs", applied(b, "base"))
	a, err := New(Options{Config: h.config, StateDir: h.state, RunDir: h.run})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another nodeagent runs") {
		t.Errorf("the second one says %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	if err := os.MkdirAll(h.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=128k", "rackweft-test", h.state).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a small file system here: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", h.state).Run() })
	_, stop := runAgent(t, h, newRecorder("network"))
	defer stop()
	b.waitFor("it joins", applied(b, "base"))
	filler := filepath.Join(h.state, "filler")
	_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600) // ENOSPC is the point
	b.change(func() { b.parts["network/a"] = api.Part(`{"uid":"n1","mtu":1450}`) })
	b.waitFor("it applies the part all the same", applied(b, "network/a"))
	b.waitFor("it says that the disk is full", func() bool {
		return slices.ContainsFunc(b.events, func(e api.Event) bool {
			return e.Type == api.Warning && strings.Contains(e.Message, "no space left")
		})
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b.waitFor("it is cached once there is room", func() bool {
		return slices.ContainsFunc(b.events, func(e api.Event) bool { return e.Reason == "CacheSaved" })
	})
}

// runner is a recorder that works beside Reconcile.
type runner struct {
	*recorder
	host  chan Host
	ended chan struct{}
}

func (r *runner) Run(ctx context.Context, host Host) {
	defer close(r.ended)
	r.host <- host
	<-ctx.Done()
}

// A Runner is run, may ask for another pass and tell of events, and is waited for.
func TestRunner(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	b.parts["guest/web"] = api.Part(`{"uid":"g1"}`)
	r := &runner{recorder: newRecorder("guest"), host: make(chan Host, 1), ended: make(chan struct{})}
	_, stop := runAgent(t, h, r)
	host := <-r.host
	b.waitFor("the guest is applied", applied(b, "guest/web"))
	r.set(true)
	host.Changed()
	b.waitFor("the handler was asked again", func() bool { return b.status.Parts["guest/web"].State == api.PartFailed })
	host.Event(api.Event{Kind: "Guest", Name: "web", UID: "g1", Type: api.Warning, Reason: "Crashed", Message: "gone"})
	b.waitFor("the event is told", func() bool {
		return slices.ContainsFunc(b.events, func(e api.Event) bool {
			return e.Kind == "Guest" && e.UID == "g1" && e.Reason == "Crashed" && !e.Time.IsZero()
		})
	})
	stop()
	select {
	case <-r.ended:
	default:
		t.Error("the agent has ended before its runner")
	}
}

// asker is a runner that reads from bootd through its agent.
type asker struct {
	*recorder
	said chan string
}

func (r *asker) Run(ctx context.Context, host Host) {
	agent := host.(*worker).agent
	for ctx.Err() == nil {
		body, err := agent.Get(ctx, "/v1/blobs/sha256:abc")
		if err != nil {
			_ = wait.For(ctx, 10*time.Millisecond)
			continue
		}
		raw, err := io.ReadAll(body)
		_ = body.Close()
		_, missing := agent.Get(ctx, "/v1/blobs/sha256:xyz")
		r.said <- fmt.Sprint(string(raw), err, " ", missing)
		return
	}
}

func TestGet(t *testing.T) {
	b := newFakeBootd(t).start(nil)
	h := newHost(t, b)
	r := &asker{recorder: newRecorder("guest"), said: make(chan string, 1)}
	_, stop := runAgent(t, h, r)
	defer stop()
	said := <-r.said
	if !strings.HasPrefix(said, "octets<nil> ") || !strings.Contains(said, "404") || !strings.Contains(said, "no such blob") {
		t.Errorf("bootd's answers: %s", said)
	}
}
