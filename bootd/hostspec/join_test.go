package hostspec

import (
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// agent answers a stream as nodeagent does: of each batch it says that it is at
// work, then that it is done.
type agent struct {
	*host
	uid string

	mu      sync.Mutex
	digests map[string]string
	mark    api.Bookmark
	fresh   wait.Signal // something changed
	ping    wait.Signal // it is to send one, behind what it has to say
	pongs   wait.Signal // one has come
	told    chan string // host of each peer that it is sent; nil: not asked for
}

func (r *rack) agent(i int) *agent {
	r.t.Helper()
	a := &agent{host: r.dial(i, &api.Hello{}), uid: r.Machine(hostName(i)).Metadata.UID, digests: map[string]string{},
		fresh: wait.NewSignal(), ping: wait.NewSignal(), pongs: wait.NewSignal()}
	var both sync.WaitGroup
	both.Go(a.listen)
	both.Go(a.talk)
	r.t.Cleanup(func() { _ = a.conn.Close(); both.Wait() })
	return a
}

func (a *agent) listen() {
	defer close(a.fresh)
	for a.in.Scan() {
		var f api.ServerFrame
		if json.Unmarshal(a.in.Bytes(), &f) != nil {
			return
		}
		a.mu.Lock()
		switch {
		case f.Part != nil:
			a.digests[f.Part.Name] = f.Part.Digest
			if a.told != nil && f.Part.Delta != nil {
				for _, p := range f.Part.Delta.Put {
					a.told <- p.Host
				}
			}
		case f.Pong != nil:
			a.pongs.Set()
		case f.Gone != "":
			delete(a.digests, f.Gone)
		case f.Bookmark != nil:
			a.mark = *f.Bookmark
			a.fresh.Set()
		}
		a.mu.Unlock()
	}
}

func (a *agent) talk() {
	out := json.NewEncoder(a.conn)
	say := func(open bool) bool {
		for _, state := range []api.PartState{api.PartPending, api.PartApplied} {
			if !open || out.Encode(api.HostFrame{Status: a.status(state)}) != nil {
				return false
			}
		}
		return true
	}
	for {
		select {
		case _, open := <-a.fresh:
			if !say(open) {
				return
			}
			continue
		case <-a.ping:
		}
		select {
		case _, open := <-a.fresh:
			if !say(open) {
				return
			}
		default:
		}
		if out.Encode(api.HostFrame{Ping: &api.Ping{}}) != nil {
			return
		}
	}
}

// answered waits until bootd has handled what the agent has to say of all that
// bootd has sent it.
func (a *agent) answered(t *testing.T) {
	t.Helper()
	for range 2 { // once to have received all, once to have said all
		a.ping.Set()
		select {
		case <-a.pongs:
		case <-time.After(time.Minute):
			t.Fatalf("%s: no pong", a.uid)
		}
	}
}

func (a *agent) status(state api.PartState) *api.HostStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &api.HostStatus{UID: a.uid, Epoch: a.mark.Epoch, Revision: a.mark.Revision, Parts: map[string]api.PartStatus{}}
	for name, digest := range a.digests {
		s.Parts[name] = api.PartStatus{State: state, Digest: digest, Time: time.Now()}
	}
	return s
}

func (r *rack) revision() int64 {
	r.t.Helper()
	resp, err := r.Store.Client().Get(r.t.Context(), "x")
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Header.Revision
}

// TestJoinIsNoStorm has a host join fifty that report as they do: what is written
// for it may not grow with their number.
func TestJoinIsNoStorm(t *testing.T) {
	const hosts = 50
	r := newRack(t, hosts, "net")
	r.settled([]string{"net"}, hosts)
	var agents []*agent
	for i := range hosts {
		agents = append(agents, r.agent(i))
	}
	// applied waits until every host has said that it applied what it should.
	applied := func() {
		t.Helper()
		for i := range agents {
			r.eventually(hostName(i), func() bool {
				spec, err := r.hub.Compiler.compile(t.Context(), r.Machine(hostName(i)))
				said, ok := r.hub.Reported(hostName(i))
				return err == nil && ok && said.Parts["network/net"].State == api.PartApplied && said.Parts["network/net"].Digest == spec.Parts["network/net"].Digest()
			})
		}
	}
	applied()
	// quiet waits until all is written that follows from what has happened.
	quiet := func() {
		t.Helper()
		for before := int64(-1); before != r.revision(); {
			before = r.revision()
			r.Idle(r.networks)
			for _, a := range agents {
				a.answered(t)
			}
		}
	}
	quiet() // what the connecting left to do
	before, start := r.revision(), time.Now()
	r.add(hosts)
	r.settled([]string{"net"}, hosts+1)
	applied()
	t.Logf("%s to the last host's word", time.Since(start))
	quiet()
	if writes := r.revision() - before; writes > 6 {
		t.Errorf("%d writes for one join among %d hosts", writes, hosts)
	}
	for i := range agents {
		if m := r.Machine(hostName(i)); !m.Status.Conditions.Is(api.CondApplied) {
			t.Errorf("%s: %+v", hostName(i), m.Status.Conditions)
		}
	}

	// What is not written is not lost.
	said, _ := r.hub.Reported(hostName(0))
	if said.Revision <= before || said.Reported.Before(start) || r.Machine(hostName(0)).Status.Host.Revision == said.Revision {
		t.Errorf("%+v", said)
	}
	_ = agents[0].conn.Close()
	r.eventually("its last word is kept", func() bool {
		m := r.Machine(hostName(0))
		return !connected(m) && same(m.Status.Host, said)
	})
}

// eventually waits for what another goroutine is about to do.
func (r *rack) eventually(what string, done func() bool) {
	r.t.Helper()
	if !waittest.Soon(10*time.Second, done) {
		r.t.Fatalf("it never happens: %s\n%s", what, r.Text())
	}
}

// TestNews lists what is worth a write and what is not.
func TestNews(t *testing.T) {
	now := time.Now()
	part := func(state api.PartState, digest, message string) api.PartStatus {
		return api.PartStatus{State: state, Digest: digest, Message: message, Time: now}
	}
	for _, c := range []struct {
		name         string
		change       func(*api.HostStatus)
		soon, buried bool
		want         bool
	}{
		{"nothing", func(*api.HostStatus) {}, false, false, false},
		{"kernel", func(s *api.HostStatus) { s.Kernel = "6.2" }, true, false, true},
		{"revision and digest", func(s *api.HostStatus) { s.Revision, s.Parts["network/a"] = 8, part(api.PartApplied, "2", "") }, false, false, false},
		{"revision under a tombstone", func(s *api.HostStatus) { s.Revision = 8 }, false, true, true},
		{"digest of a Guest", func(s *api.HostStatus) { s.Parts["guest/g"] = part(api.PartApplied, "2", "") }, false, false, true},
		{"a Guest, at work", func(s *api.HostStatus) { s.Parts["guest/g"] = part(api.PartPending, "1", "starting") }, true, false, true},
		{"a new Guest, at work", func(s *api.HostStatus) { s.Parts["guest/h"] = part(api.PartPending, "", "") }, true, false, true},
		{"a note", func(s *api.HostStatus) { s.Parts["network/a"] = part(api.PartApplied, "2", "MTU is smaller") }, false, false, true},
		{"at work", func(s *api.HostStatus) { s.Parts["network/a"] = part(api.PartPending, "2", "not looked at yet") }, true, false, false},
		{"at work for long", func(s *api.HostStatus) { s.Parts["network/a"] = part(api.PartPending, "2", "not looked at yet") }, false, false, true},
		{"failed", func(s *api.HostStatus) { s.Parts["network/a"] = part(api.PartFailed, "2", "x") }, true, false, true},
		{"orphaned", func(s *api.HostStatus) { s.Parts["network/a"] = part(api.PartOrphaned, "1", "") }, true, false, true},
		{"a new part, at work", func(s *api.HostStatus) { s.Parts["network/b"] = part(api.PartPending, "", "") }, true, false, false},
		{"a new part", func(s *api.HostStatus) { s.Parts["network/b"] = part(api.PartApplied, "1", "") }, true, false, true},
		{"a part less", func(s *api.HostStatus) { delete(s.Parts, "network/a") }, true, false, true},
	} {
		make := func() *api.HostStatus {
			return &api.HostStatus{Revision: 7, Kernel: "6.1", Reported: now, Parts: map[string]api.PartStatus{
				"network/a": part(api.PartApplied, "1", ""), "guest/g": part(api.PartApplied, "1", "")}}
		}
		old, next := make(), make()
		next.Reported = now.Add(time.Minute)
		c.change(next)
		if got := (&Compiler{Parts: partsOf(nil, nil)}).parts().news(old, next, c.soon, c.buried); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if next.Reported.Equal(now) || len(old.Parts) != 2 || old.Revision != 7 {
			t.Errorf("%s: what was compared was changed", c.name)
		}
	}
}

// TestOverdue: a host that does not come through is written down, at once when it
// fails or was started anew, and after a while when it is still at work.
func TestOverdue(t *testing.T) {
	b := newBench(t)
	b.hub.Lag = 500 * time.Millisecond
	h := b.connect(b.peer(), &api.Hello{})
	digest := h.until(bookmark)[0].Part.Digest
	says := func(boot string, state api.PartState, digest string) {
		h.send(api.HostFrame{Status: &api.HostStatus{BootID: boot, Parts: map[string]api.PartStatus{"base": {State: state, Digest: digest}}}})
	}
	condition := func(reason string) func(*api.Machine) bool {
		return func(m *api.Machine) bool {
			c := m.Status.Conditions.Get(api.CondApplied)
			return c != nil && c.Reason == reason
		}
	}
	pong := func(f api.ServerFrame) bool { return f.Pong != nil }
	says("1", api.PartApplied, digest)
	b.eventually("applied", condition("Applied"))

	says("2", api.PartPending, "")
	b.eventually("started anew", condition("Applying"))
	says("2", api.PartApplied, digest)
	b.eventually("applied", condition("Applied"))

	b.Change(name, func(m *api.Machine) { m.Metadata.Labels = map[string]string{"tier": "app"} })
	digest = h.until(bookmark)[0].Part.Digest
	says("2", api.PartPending, "")
	h.send(api.HostFrame{Ping: &api.Ping{}})
	h.until(pong)
	if m := b.Machine(name); !m.Status.Conditions.Is(api.CondApplied) || m.Status.Host.Parts["base"].State != api.PartApplied {
		t.Errorf("%+v", m.Status)
	}
	time.Sleep(b.hub.Lag)
	h.send(api.HostFrame{Ping: &api.Ping{}}) // as it does every 10 s
	h.until(pong)
	if m := b.Machine(name); !condition("Applying")(m) || m.Status.Host.Parts["base"].State != api.PartPending {
		t.Errorf("%+v", m.Status)
	}
	says("2", api.PartApplied, digest)
	b.eventually("applied", condition("Applied"))
	says("2", api.PartFailed, digest)
	b.eventually("failed", condition("PartFailed"))
}

// BenchmarkJoinReported measures from a Machine becoming Active to the last of
// fifty hosts having its delta, all of which report what they do.
func BenchmarkJoinReported(b *testing.B) {
	const hosts = 50
	r := newRack(b, hosts, "net")
	r.settled([]string{"net"}, hosts)
	told := make(chan string, 10*hosts)
	for i := range hosts {
		a := r.agent(i)
		a.mu.Lock()
		a.told = told
		a.mu.Unlock()
	}
	time.Sleep(2 * time.Second)
	var took []time.Duration
	next, writes := hosts, int64(0)
	for b.Loop() {
		before, start := r.revision(), time.Now()
		if err := r.Store.Create(b.Context(), newMachine(next)); err != nil {
			b.Fatal(err)
		}
		for left := hosts; left > 0; {
			if <-told == hostName(next) {
				left--
			}
		}
		took = append(took, time.Since(start))
		b.StopTimer()
		time.Sleep(500 * time.Millisecond)
		writes = max(writes, r.revision()-before)
		next++
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1e3, "p99-ms")
	b.ReportMetric(float64(writes), "most-writes/op")
}
