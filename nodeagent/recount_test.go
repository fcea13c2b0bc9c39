package nodeagent

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func held(epoch, revision int64) api.ServerFrame {
	return api.ServerFrame{Bookmark: &api.Bookmark{Epoch: epoch, Revision: revision, Hold: true}}
}

// TestHold has a bootd that was restored be taken over, and the one before it
// refused, while everything stays as it is.
func TestHold(t *testing.T) {
	dir := t.TempDir()
	s, _ := loadHostSpec(dir)
	feed(t, s, whole("guest/web", `{"uid":"u"}`), bookmark(1, 900))
	feed(t, s, held(1700000000, 12))
	if got := shape(s); !slices.Equal(got, []string{"guest/web present"}) {
		t.Errorf("the parts are %v", got)
	}
	for _, old := range []api.ServerFrame{bookmark(1, 901), held(1, 901), bookmark(1700000000, 11)} {
		if _, err := s.handle(old, api.Bookmark{}); !errors.Is(err, errStale) {
			t.Errorf("%+v is taken: %v", old.Bookmark, err)
		}
	}
	if s.stale(api.Bookmark{Epoch: 1, Revision: 800}) {
		t.Error("what ran before is not acted upon any more")
	}
}

// TestHoldIsNoConsent has a host that was started again not act upon a HostSpec
// from before that, though the restored bootd's epoch is a later one.
func TestHoldIsNoConsent(t *testing.T) {
	dir, least := t.TempDir(), api.Bookmark{Epoch: 1, Revision: 950}
	s, _ := loadHostSpec(dir)
	feed(t, s, whole("guest/web", `{"uid":"u"}`), bookmark(1, 900))
	if _, err := s.handle(held(1700000000, 12), least); err != nil {
		t.Fatal(err)
	}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	again, faults := loadHostSpec(dir)
	if len(faults) > 0 || !again.stale(least) {
		t.Errorf("after a restart it acts upon it: %v", faults)
	}
	if _, err := again.handle(held(1700000000, 13), least); err != nil || !again.stale(least) {
		t.Errorf("a second hold is consent: %v", err)
	}
	if _, err := again.handle(bookmark(1700000000, 14), least); err != nil || again.stale(least) {
		t.Errorf("bootd's word does not count: %v", err)
	}
}

func TestRecountOfAll(t *testing.T) {
	a := &Agent{spec: &hostSpec{index: index{Parts: map[string]entry{}}, doubted: map[string]bool{}}, log: slog.New(slog.DiscardHandler)}
	put := func(name, value string) {
		a.spec.index.Parts[name] = entry{value: api.Part(value)}
	}
	for i := range 1200 {
		put(fmt.Sprintf("guest/g%04d", i), fmt.Sprintf(`{"uid":"u%d","network":"blue","addresses":["10.5.1.2"],"transfer":{"id":"m","role":"Source","peer":{"host":"b","uid":"bu"}}}`, i))
	}
	put("network/blue", `{"uid":"n","vni":10017,"lease":"10.5.1.0/24","peers":[{"host":"b","lease":"10.5.2.0/24","vtep":"198.18.8.8","mac":"02:00:00:00:00:01"},{"host":"198.18.8.9","lease":"10.5.3.0/24","vtep":"198.18.8.9","mac":"02:00:00:00:00:02"}]}`)
	put("bgp", `{"role":"reflector","loopbacks":["198.18.64.1"],"neighbors":[{"name":"d","role":"client"},{"name":"leaf","role":"uplink"}]}`)
	put("base", `{"uid":"m","underlay":{"encryption":{"port":1,"peers":[{"host":"c"}]}}}`)
	put("newer/kind", `{}`)
	a.parts = map[string]api.PartStatus{"guest/g0007": {Guest: &api.GuestObserved{State: "Running"}}}
	frames := split(a.holdings(), "q")
	if len(frames) != 3 || frames[0].ID != "q" || !frames[0].Incomplete || !frames[1].Incomplete || frames[2].Incomplete {
		t.Fatalf("%d frames", len(frames))
	}
	f := frames[0]
	if len(f.Networks) != 1 || f.Networks[0].VNI != 10017 || f.Networks[0].Name != "blue" || !f.Reflector || len(f.Loopbacks) != 1 {
		t.Errorf("networks %+v, loopbacks %v", f.Networks, f.Loopbacks)
	}
	if !slices.Equal(f.Hosts, []string{"b", "c", "d"}) || len(f.Flannelds) != 1 || f.Flannelds[0].Network != "blue" {
		t.Errorf("hosts %v, flannelds %+v", f.Hosts, f.Flannelds)
	}
	if g := f.Guests[7]; g.Name != "g0007" || g.State != "Running" || g.Transfer == nil || g.Network != "blue" {
		t.Errorf("a Guest is %+v", g)
	}
	if n := len(frames[0].Guests) + len(frames[1].Guests) + len(frames[2].Guests); n != 1200 {
		t.Errorf("%d Guests", n)
	}
	if empty := split(api.Recount{}, "q"); len(empty) != 1 || empty[0].Incomplete {
		t.Errorf("a host that has nothing says %+v", empty)
	}
}
