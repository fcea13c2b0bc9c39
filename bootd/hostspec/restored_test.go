package hostspec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// reports is the Recovery of a Hub, which keeps what it is told.
type reports struct{ list []api.Recount }

func (r *reports) Reported(_ context.Context, host, uid string, c api.Recount) error {
	r.list = append(r.list, c)
	return nil
}

func (r *reports) Claim(context.Context, api.RecoveryHost) string { return "" }

// hold has the Site be one that was restored.
func (b *bench) hold(held bool) {
	b.t.Helper()
	site, err := store.Mutate(b.t.Context(), b.Store, api.SiteName, func(s *api.Site) error {
		s.Status.Recovery = &api.Recovery{Restored: time.Now(), Held: held}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.Cache.WaitRevision(b.t.Context(), store.RevisionOf(site)); err != nil {
		b.t.Fatal(err)
	}
}

// TestRecount has a host report while the Site is held, which counts once, and at other times, which does not.
func TestRecount(t *testing.T) {
	b, r := newBench(t), &reports{}
	b.hub.Recovery = r
	s := mustAttach(t, b.hub, b.peer(), func(error) {})
	say := func(c api.Recount) { b.hub.handle(t.Context(), s, &api.HostFrame{Recount: &c}) }
	say(api.Recount{ID: "q", Hosts: []string{"a"}})
	if len(r.list) != 0 {
		t.Errorf("what nobody asks for is reported: %+v", r.list)
	}
	b.hold(true)
	one, two := netip.MustParseAddr("198.18.127.1"), netip.MustParseAddr("198.18.127.2")
	say(api.Recount{ID: "q", Incomplete: true, Hosts: []string{"a"}, Reflector: true, Loopbacks: []netip.Addr{one}, Guests: []api.HeldGuest{{Name: "g1"}}})
	say(api.Recount{ID: "q", Incomplete: true, Guests: []api.HeldGuest{{Name: "g2"}}, Networks: []api.HeldNetwork{{Name: "n"}}})
	say(api.Recount{ID: "q", Hosts: []string{"b"}, Loopbacks: []netip.Addr{two}, Flannelds: []api.HeldFlanneld{{Network: "n"}}})
	if len(r.list) != 1 {
		t.Fatalf("%d reports", len(r.list))
	}
	if c := r.list[0]; fmt.Sprint(c.Hosts, len(c.Guests), len(c.Networks), len(c.Flannelds), c.Loopbacks, c.Reflector) != "[a b] 2 1 1 [198.18.127.1 198.18.127.2] true" {
		t.Errorf("the report is %+v", c)
	}
	say(api.Recount{ID: "q", Hosts: []string{"c"}})
	say(api.Recount{ID: "r", Hosts: []string{"c"}})
	if len(r.list) != 1 {
		t.Errorf("a second answer on one stream is reported: %+v", r.list[1:])
	}
}

// TestRecountIsBounded has a host go on and on.
func TestRecountIsBounded(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	for what, c := range map[string]api.Recount{
		"names":     {Hosts: []string{long, long, long, long}},
		"loopbacks": {Loopbacks: make([]netip.Addr, 32<<10)},
		"states":    {Guests: []api.HeldGuest{{State: api.GuestState(long)}, {State: api.GuestState(long)}}},
	} {
		t.Run(what, func(t *testing.T) {
			b, r := newBench(t), &reports{}
			b.hub.Recovery = r
			b.hold(true)
			s := mustAttach(t, b.hub, b.peer(), func(error) {})
			c.ID, c.Incomplete = "q", true
			for range 100 {
				b.hub.handle(t.Context(), s, &api.HostFrame{Recount: &c})
			}
			if raw, err := json.Marshal(s.recount.Recount); err != nil || len(raw) > maxRecount {
				t.Errorf("%d bytes are kept, %v", len(raw), err)
			}
			if len(r.list) != 0 || b.Happened("RecountRefused") != 1 {
				t.Errorf("%d reports, %d events", len(r.list), b.Happened("RecountRefused"))
			}
		})
	}
}

// FuzzRecount has a host send frames of a recount.
func FuzzRecount(f *testing.F) {
	for _, seed := range []string{
		`{"recount":{"id":"q","incomplete":true,"networks":[{"name":"blue","uid":"n","vni":10017,"lease":"10.5.1.0/24"}],"hosts":["b"]}}` + "\n" +
			`{"recount":{"id":"q","guests":[{"name":"web","uid":"u","network":"blue","addresses":["10.5.1.2"],"state":"Running","transfer":{"id":"m","role":"Source","peer":{"host":"b","uid":"bu"}}}]}}`,
		`{"recount":{"id":"q","loopbacks":["198.18.127.1","fe80::1%x",""],"reflector":true,"flannelds":[{"network":"blue","lease":"10.5.3.0/24","vtep":"198.18.8.9","mac":"02:00:00:00:00:02"}]}}`,
		`{"recount":{"id":"q","incomplete":true}}` + "\n" + `{"recount":{"id":"r"}}`, `{"recount":null}`, `{"recount":{"guests":[null]}}`,
	} {
		f.Add([]byte(seed))
	}
	b, r := newBench(f), &reports{}
	b.hub.Recovery = r
	b.hold(true)
	s := mustAttach(b.t, b.hub, b.peer(), func(error) {})
	f.Fuzz(func(t *testing.T, text []byte) {
		r.list, s.recount = nil, recount{}
		in := &frames{r: bufio.NewReader(bytes.NewReader(text)), deadline: func(time.Time) error { return nil }}
		for {
			frame, err := in.next()
			if err != nil {
				break
			}
			if frame.Recount != nil {
				b.hub.handle(context.Background(), s, &api.HostFrame{Recount: frame.Recount})
			}
		}
		if len(r.list) > 1 {
			t.Fatalf("%d reports on one stream", len(r.list))
		}
		for _, c := range r.list {
			raw, err := json.Marshal(c)
			if err != nil || len(raw) > maxRecount {
				t.Fatalf("a report of %d bytes, %v", len(raw), err)
			}
			var again api.Recount
			if err := json.Unmarshal(raw, &again); err != nil {
				t.Fatalf("what is reported cannot be read back: %v: %s", err, raw)
			}
		}
	})
}
