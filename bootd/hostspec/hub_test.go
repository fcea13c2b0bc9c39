package hostspec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

const (
	name = "r1u07"
	key  = "key-of-the-host"
)

type signer struct{ key string }

func (s signer) Renew(csr []byte, name, uid string) ([]byte, string, error) {
	if len(csr) > 100 {
		return nil, "", errors.New("too long")
	}
	return []byte("certificate of " + name), s.key, nil
}

type bench struct {
	*testsite.Site
	t   testing.TB
	hub *Hub
	uid string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t}
	b.Create(
		&api.Site{Base: testsite.Named("site")},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.8.0/24")}, MTU: 9000}},
		&api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Zone: "yellow", Links: []api.Link{
			{Name: "pxe0", MAC: "52:54:00:01:07:00"},
			{Name: "prod0", MAC: "52:54:00:01:07:01", Subnet: "prod", Addresses: []netip.Addr{netip.MustParseAddr("198.18.8.7")}},
		}}},
	)
	b.uid = b.Change(name, func(m *api.Machine) { m.Status.HostKey = key }).Metadata.UID
	b.hub = &Hub{Store: b.Store, Cache: b.Cache, Signer: signer{key}, Record: b, Log: b.Log,
		Compiler: &Compiler{Cache: b.Cache, Parts: partsOf(nil, nil), Epoch: 3, API: func(*api.Machine) []string { return []string{"https://198.18.0.1:8443"} }}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.hub.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

func (b *bench) peer() Peer { return Peer{Name: name, UID: b.uid, Key: key, Address: "198.18.0.100"} }

// host is the other end of a stream.
type host struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Scanner
	end  chan error // what Serve returned
}

// connect opens a stream; it says hello when one is given.
func (b *bench) connect(p Peer, hello *api.Hello) *host {
	b.t.Helper()
	theirs, ours := net.Pipe()
	h := &host{t: b.t, conn: theirs, in: bufio.NewScanner(theirs), end: make(chan error, 1)}
	h.in.Buffer(nil, 1<<20)
	go func() {
		h.end <- b.hub.Serve(context.Background(), p, Conn{In: ours, Out: ours, Flush: func() error { return nil },
			SetReadDeadline: ours.SetReadDeadline, SetWriteDeadline: ours.SetWriteDeadline})
		_ = ours.Close()
	}()
	b.t.Cleanup(func() { _ = theirs.Close() })
	if hello != nil {
		h.send(api.HostFrame{Hello: hello})
	}
	return h
}

func (h *host) send(f api.HostFrame) {
	h.t.Helper()
	if err := json.NewEncoder(h.conn).Encode(f); err != nil {
		h.t.Fatal(err)
	}
}

// until reads frames to the first that done takes, and returns all of them.
func (h *host) until(done func(api.ServerFrame) bool) []api.ServerFrame {
	h.t.Helper()
	var all []api.ServerFrame
	for h.in.Scan() {
		var f api.ServerFrame
		if err := json.Unmarshal(h.in.Bytes(), &f); err != nil {
			h.t.Fatal(err)
		}
		all = append(all, f)
		if done(f) {
			return all
		}
	}
	h.t.Fatalf("the stream ended after %+v: %v", all, h.in.Err())
	return nil
}

func bookmark(f api.ServerFrame) bool { return f.Bookmark != nil }

// eventually waits for what another goroutine is about to write.
func (b *bench) eventually(what string, done func(*api.Machine) bool) {
	b.t.Helper()
	if !waittest.Soon(5*time.Second, func() bool { return done(b.Machine(name)) }) {
		b.t.Fatalf("it never happens: %s; %+v", what, b.Machine(name).Status)
	}
}

func connected(m *api.Machine) bool { return m.Status.Conditions.Is(api.CondConnected) }

func TestStreamSendsTheDifference(t *testing.T) {
	b := newBench(t)
	h := b.connect(b.peer(), &api.Hello{Digests: map[string]string{"network/old": "1"}})
	frames := h.until(bookmark)
	if len(frames) != 3 || frames[0].Part.Name != api.PartBase || frames[1].Gone != "network/old" || frames[2].Bookmark.Epoch != 3 {
		t.Fatalf("%+v", frames)
	}
	held := frames[0].Part.Digest
	b.eventually("connected", connected)

	h.send(api.HostFrame{Ping: &api.Ping{}})
	h.until(func(f api.ServerFrame) bool { return f.Pong != nil })
	h.send(api.HostFrame{Renew: "csr"})
	h.until(func(f api.ServerFrame) bool { return f.Certificate == "certificate of "+name })

	b.Change(name, func(m *api.Machine) { m.Metadata.Labels = map[string]string{"tier": "app"} })
	frames = h.until(bookmark)
	if len(frames) != 2 || frames[0].Part == nil || frames[0].Part.Digest == held {
		t.Errorf("after a change: %+v", frames)
	}
	now := frames[0].Part.Digest
	h.send(api.HostFrame{Status: &api.HostStatus{Kernel: "6.1", Parts: map[string]api.PartStatus{"base": {State: api.PartApplied, Digest: now}}}})
	b.eventually("applied", func(m *api.Machine) bool {
		return m.Status.Conditions.Is(api.CondApplied) && m.Status.Host.Kernel == "6.1"
	})

	_ = h.conn.Close()
	if err := <-h.end; err == nil {
		t.Error("a broken stream ends without a reason")
	}
	b.eventually("disconnected", func(m *api.Machine) bool { return m.Status.Conditions.Get(api.CondConnected).Status == api.False })
	if b.hub.Count() != 0 || b.Happened("HostConnected") != 1 || b.Happened("HostDisconnected") != 1 {
		t.Errorf("events %+v", b.Events())
	}

	h = b.connect(b.peer(), &api.Hello{Digests: map[string]string{"base": now}})
	if frames := h.until(bookmark); len(frames) != 1 {
		t.Errorf("a host that holds everything is sent %+v", frames)
	}
}

// With several bootds each says which one a host's stream is at.
func TestWhoHoldsAHost(t *testing.T) {
	b := newBench(t)
	b.hub.Name = "boot1"
	p := b.peer()
	holds := func(part string) {
		t.Helper()
		err := b.hub.Holds(p.Name, p.UID)
		if part == "" && err != nil || part != "" && (err == nil || !strings.Contains(err.Error(), part)) {
			t.Errorf("%q is wanted: %v", part, err)
		}
		if open := b.hub.Open(p.Name, p.UID, api.Channel{}); fmt.Sprint(open) != fmt.Sprint(err) {
			t.Errorf("a channel: %v", open)
		}
	}
	holds("not connected to this bootd: weftctl describe machine " + p.Name)
	h := b.connect(p, &api.Hello{})
	h.until(bookmark)
	h.send(api.HostFrame{Status: &api.HostStatus{Bootd: "forged"}})
	b.eventually("it is written down where it is", func(m *api.Machine) bool {
		return m.Status.Host != nil && m.Status.Host.Bootd == "boot1" && m.Status.Conditions.Is(api.CondConnected)
	})
	holds("")
	if err := b.hub.Holds(p.Name, "another"); err == nil {
		t.Error("another Machine of its name is connected")
	}
	_ = h.conn.Close()
	<-h.end
	b.Change(p.Name, func(m *api.Machine) { // as another bootd writes it down
		m.Status.Host.Bootd = "boot2"
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.True, "Connected", "")
	})
	holds("connected to the bootd on boot2, and not to this one (boot1): use that one")
}

func TestWhoMayHoldAStream(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name, refused string
		peer          func(Peer) Peer
	}{
		{"a stranger", "Machine nobody does not exist", func(p Peer) Peer { p.Name = "nobody"; return p }},
		{"of a Machine before this one", "recreated", func(p Peer) Peer { p.UID = "other"; return p }},
		{"revoked", "is revoked", func(p Peer) Peer { p.Key = "other"; return p }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := b.connect(c.peer(b.peer()), nil)
			frames := h.until(func(f api.ServerFrame) bool { return f.Refused != "" })
			if !strings.Contains(frames[0].Refused, c.refused) {
				t.Errorf("told %q", frames[0].Refused)
			}
			if err := <-h.end; err == nil || b.hub.Count() != 0 {
				t.Errorf("it goes on: %v", err)
			}
		})
	}
}

func TestRevokedInMidStream(t *testing.T) {
	b := newBench(t)
	h := b.connect(b.peer(), &api.Hello{})
	h.until(bookmark)
	b.Change(name, func(m *api.Machine) { m.Status.HostKey = "" })
	h.until(func(f api.ServerFrame) bool { return strings.Contains(f.Refused, "revoked") })
	if err := <-h.end; err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestSecondStreamReplacesTheFirst(t *testing.T) {
	b := newBench(t)
	first := b.connect(b.peer(), &api.Hello{})
	first.until(bookmark)
	second := b.connect(b.peer(), &api.Hello{})
	second.until(bookmark)
	if err := <-first.end; !errors.Is(err, errReplaced) {
		t.Errorf("the first stream ended with %v", err)
	}
	b.eventually("connected", connected)
	second.send(api.HostFrame{Ping: &api.Ping{}})
	second.until(func(f api.ServerFrame) bool { return f.Pong != nil })
	if b.hub.Count() != 1 || !connected(b.Machine(name)) || b.Happened("HostDisconnected") != 0 {
		t.Errorf("the end of the first stream disconnects the host: %+v", b.Events())
	}
}

func TestStreamsThatEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*host)
		want string
	}{
		{"silence", func(h *host) {}, "timeout"},
		{"no hello", func(h *host) { h.send(api.HostFrame{Ping: &api.Ping{}}) }, "is not a hello"},
		{"no JSON", func(h *host) { _, _ = io.WriteString(h.conn, "hello\n") }, "decode a frame"},
		{"oversized frame", func(h *host) {
			h.send(api.HostFrame{Hello: &api.Hello{}})
			go func() { _, _ = io.Copy(io.Discard, h.conn) }()
			_, _ = h.conn.Write(bytes.Repeat([]byte("x"), maxFrame+100<<10))
		}, "longer than"},
		{"it takes nothing", func(h *host) { h.send(api.HostFrame{Hello: &api.Hello{}}) }, "timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.hub.Silence = 300 * time.Millisecond
			if c.want != "timeout" { // what is to be found out takes its time on a busy machine
				b.hub.Silence = time.Minute
			}
			h := b.connect(b.peer(), nil)
			c.do(h)
			if err := <-h.end; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the stream ended with %v, want %s", err, c.want)
			}
			if m := b.Machine(name); connected(m) || b.hub.Count() != 0 {
				t.Errorf("it counts as connected: %+v", m.Status.Conditions)
			}
		})
	}
}

func TestClearStale(t *testing.T) {
	b := newBench(t)
	b.Create(&api.Machine{Base: testsite.Named("r1u08"), Spec: api.MachineSpec{Links: []api.Link{{Name: "pxe0", MAC: "52:54:00:01:08:00"}}}})
	for _, n := range []string{name, "r1u08"} {
		b.Change(n, func(m *api.Machine) {
			m.Status.Conditions.Set(time.Now(), api.CondConnected, api.True, "Connected", "")
		})
	}
	h := b.connect(b.peer(), &api.Hello{})
	h.until(bookmark)
	b.hub.clearStale(t.Context())
	if !connected(b.Machine(name)) || connected(b.Machine("r1u08")) {
		t.Errorf("%+v, %+v", b.Machine(name).Status.Conditions, b.Machine("r1u08").Status.Conditions)
	}
}

func TestEventsOfAHostAreBounded(t *testing.T) {
	b := newBench(t)
	s := mustAttach(b.t, b.hub, b.peer(), func(error) {})
	for i := range 1000 {
		b.hub.handle(t.Context(), s, &api.HostFrame{Event: &api.Event{Reason: "Noise\n" + strings.Repeat("x", 200), Message: fmt.Sprint(i), Type: "Loud"}})
	}
	events := b.Events()
	if len(events) > 31 || len(events) < 30 {
		t.Fatalf("%d events", len(events))
	}
	if e := events[0]; e.Type != api.Normal || len(e.Reason) > 70 || strings.Contains(e.Reason, "\n") {
		t.Errorf("%+v", e)
	}
	if s.quota.dropped == 0 {
		t.Error("what was dropped is not counted")
	}
}

// A host speaks of the Guests that are on it, and of no others.
func TestEventsOfGuests(t *testing.T) {
	b := newBench(t)
	s := mustAttach(b.t, b.hub, b.peer(), func(error) {})
	for name, host := range map[string]string{"here": b.peer().UID, "elsewhere": "another"} {
		b.Create(&api.Guest{Base: testsite.Named(name), Spec: api.GuestSpec{Network: "blue", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}, Status: api.GuestStatus{HostUID: host}})
	}
	uid := func(name string) string {
		g, err := store.Get[api.Guest](t.Context(), b.Store, name)
		if err != nil {
			t.Fatal(err)
		}
		return g.Metadata.UID
	}
	for _, e := range []api.Event{
		{Kind: "Guest", Name: "here", UID: uid("here")}, {Kind: "Guest", Name: "here", UID: "an earlier one"}, {Kind: "Guest", Name: "elsewhere", UID: uid("elsewhere")},
		{Kind: "Machine", Name: "r9u99"}, {Kind: "Network", Name: "blue", UID: "x"},
	} {
		b.hub.handle(t.Context(), s, &api.HostFrame{Event: &e})
	}
	var names []string
	for _, e := range b.Events() {
		names = append(names, e.Name)
	}
	own := b.peer().Name
	if want := []string{"here", own, own, own, own}; !slices.Equal(names, want) {
		t.Errorf("events of %v, want of %v", names, want)
	}
}

func TestStatusIsBounded(t *testing.T) {
	b := newBench(t)
	s := mustAttach(b.t, b.hub, b.peer(), func(error) {})
	spec, err := b.hub.Compiler.Compile(t.Context(), b.Machine(name))
	if err != nil {
		t.Fatal(err)
	}
	large := api.HostStatus{Kernel: strings.Repeat("k", 1<<16), Parts: map[string]api.PartStatus{"base": {State: api.PartApplied, Digest: api.PartDigest(spec.Parts["base"]), Message: strings.Repeat("m", 1<<16)}}}
	for i := range 5000 {
		large.Parts[fmt.Sprintf("aaa/%d", i)] = api.PartStatus{Message: strings.Repeat("m", 100)}
		large.NICs = append(large.NICs, api.HostNIC{Name: fmt.Sprint("eth", i), Addresses: slices.Repeat([]netip.Prefix{netip.MustParsePrefix("198.18.0.1/24")}, 1)})
	}
	b.hub.handle(t.Context(), s, &api.HostFrame{Status: &large})
	m := b.Machine(name)
	if m.Status.Host == nil {
		t.Fatalf("nothing was kept: %+v", b.Events())
	}
	if raw, _ := api.Encode(m); len(raw) > store.MaxObjectBytes/2 {
		t.Errorf("%d bytes are stored", len(raw))
	}
	if _, ok := m.Status.Host.Parts["base"]; !ok || len(m.Status.Host.Parts) != maxStatusParts || !m.Status.Conditions.Is(api.CondApplied) {
		t.Errorf("%d parts, base among them: %v; %+v", len(m.Status.Host.Parts), ok, m.Status.Conditions)
	}
	before := m.Metadata.ResourceVersion
	b.hub.handle(t.Context(), s, &api.HostFrame{Status: &large})
	if m := b.Machine(name); m.Metadata.ResourceVersion != before {
		t.Error("the same status is written twice")
	}
	for i := range large.NICs[:maxStatusNICs] {
		large.NICs[i].Addresses = slices.Repeat([]netip.Prefix{netip.MustParsePrefix("2001:db8:1111:2222:3333:4444:5555:6666/128")}, 200)
	}
	b.hub.handle(t.Context(), s, &api.HostFrame{Status: &large})
	if m := b.Machine(name); m.Metadata.ResourceVersion != before || b.Happened("StatusRefused") != 1 {
		t.Errorf("too large a status: %+v", b.Events())
	}
}

// Of two spellings of an address, a host could take one that another has.
func TestStatusHasOneSpellingOfAnAddress(t *testing.T) {
	b := newBench(t)
	s := mustAttach(b.t, b.hub, b.peer(), func(error) {})
	status := api.HostStatus{NICs: []api.HostNIC{{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("::ffff:198.18.0.1/120"), {}, netip.MustParsePrefix("198.18.0.1/24")}}}}
	b.hub.handle(t.Context(), s, &api.HostFrame{Status: &status})
	got := b.Machine(name).Status.Host
	if got == nil || len(got.NICs) != 1 || !slices.Equal(got.NICs[0].Addresses, status.NICs[0].Addresses[2:]) {
		t.Errorf("kept is %+v", got)
	}
}

func TestCompileIsDeterministic(t *testing.T) {
	b := newBench(t)
	first, err := b.hub.Compiler.Compile(t.Context(), b.Machine(name))
	if err != nil {
		t.Fatal(err)
	}
	var base api.BasePart
	if err := json.Unmarshal(first.Parts[api.PartBase], &base); err != nil {
		t.Fatal(err)
	}
	if base.Underlay.Interface != "prod0" || base.Underlay.MTU != 9000 || base.UID != b.uid || base.Zone != "yellow" {
		t.Errorf("%+v", base)
	}
	for range 50 {
		again, err := b.hub.Compiler.Compile(t.Context(), b.Machine(name))
		if err != nil || !bytes.Equal(again.Parts[api.PartBase], first.Parts[api.PartBase]) {
			t.Fatalf("%s, then %s: %v", first.Parts[api.PartBase], again.Parts[api.PartBase], err)
		}
	}
	b.Change(name, func(m *api.Machine) { m.Status.Power = "On" })
	again, err := b.hub.Compiler.compile(t.Context(), b.Machine(name))
	if err != nil {
		t.Fatal(err)
	}
	if difference(held{digests: map[string]string{"base": api.PartDigest(first.Parts["base"])}}, again)[0].Bookmark == nil {
		t.Error("a status changes the HostSpec")
	}
}

func FuzzHostFrame(f *testing.F) {
	for _, seed := range []string{
		`{"hello":{"uid":"x","digests":{"base":"1"}}}`, `{"ping":{"time":"2026-01-01T00:00:00Z"}}`, `{"renew":"-----BEGIN"}`,
		`{"status":{"uid":"y","nics":[{"name":"eth0","mac":"52:54:00:01:07:00","addresses":["198.18.0.1/24"]}],"parts":{"base":{"state":"Applied","digest":"1"}}}}`,
		`{"event":{"type":"Warning","reason":"Oops","message":"\u0000"}}`, `{}`, `null`, "\n",
	} {
		f.Add([]byte(seed))
	}
	b := newBench(f)
	s := mustAttach(b.t, b.hub, b.peer(), func(error) {})
	f.Fuzz(func(t *testing.T, line []byte) {
		in := &frames{r: bufio.NewReader(bytes.NewReader(append(line, '\n'))), deadline: func(time.Time) error { return nil }}
		frame, err := in.next()
		if err != nil {
			return
		}
		b.hub.handle(context.Background(), s, frame)
		m, err := store.Get[api.Machine](context.Background(), b.Store, name)
		if err != nil {
			t.Fatal(err)
		}
		if m.Metadata.UID != b.uid || m.Status.HostKey != key || m.Status.Host != nil && m.Status.Host.UID != b.uid {
			t.Fatalf("a frame changed who the host is: %+v", m)
		}
	})
}

// TestStopIsSilent: a bootd that stops says nothing of its hosts; they are not what went away.
func TestStopIsSilent(t *testing.T) {
	b := newBench(t)
	h := b.connect(b.peer(), &api.Hello{})
	h.until(bookmark)
	b.eventually("connected", connected)
	b.hub.stop()
	_ = h.conn.Close()
	<-h.end
	if m := b.Machine(name); !connected(m) || b.hub.Count() != 0 || b.Happened("HostDisconnected") != 0 {
		t.Errorf("%d streams, conditions %+v, events %+v", b.hub.Count(), m.Status.Conditions, b.Events())
	}
}
