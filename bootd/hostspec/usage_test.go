package hostspec

import (
	"context"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// A host is asked once for all who look, and what it reported earlier is not
// taken for what it does now.
func TestUsage(t *testing.T) {
	b := newBench(t)
	h := b.connect(b.peer(), &api.Hello{UID: b.uid})
	h.until(bookmark)
	asked := func(f api.ServerFrame) bool { return f.Usage != nil }
	report := func(second int, more ...api.GuestUsage) {
		h.send(api.HostFrame{Usage: &api.HostUsage{Uptime: api.Duration(time.Duration(second) * time.Second), CPU: float64(second) / 2, Guests: more}})
	}
	now, cancel := context.WithCancel(t.Context())
	cancel() // takes what is there

	report(1) // nobody has asked
	ping := func() {
		h.send(api.HostFrame{Ping: &api.Ping{}})
		h.until(func(f api.ServerFrame) bool { return f.Pong != nil })
	}
	ping()
	if s := b.hub.Usage(now, []string{name, "r9u99"}); len(s) != 1 || s[name] != (UsageSample{}) {
		t.Errorf("before any report: %+v", s)
	}
	answers := make(chan map[string]UsageSample)
	for range 2 {
		go func() { answers <- b.hub.Usage(t.Context(), []string{name}) }()
	}
	frames := h.until(asked)
	if u := frames[len(frames)-1].Usage; time.Duration(u.Every) != usageEvery || time.Duration(u.For) != usageFor {
		t.Errorf("it is asked for %+v", u)
	}
	report(10)
	report(12, api.GuestUsage{Name: "web", UID: "a\nb"})
	for range 2 {
		s := (<-answers)[name]
		if s.Old == nil || s.Seconds() != 2 || len(s.Now.Guests) != 1 || s.Now.Guests[0].UID != "a b" {
			t.Errorf("after two reports: %+v", s)
		}
	}
	report(14)
	ping()
	if s := b.hub.Usage(now, []string{name})[name]; s.Seconds() != 2 || time.Duration(s.Now.Uptime) != 14*time.Second {
		t.Errorf("after the third: %+v", s)
	}

	b.hub.mu.Lock() // a while later
	s := b.hub.streams[name]
	s.usage.asked = s.usage.asked.Add(-usageFor)
	b.hub.mu.Unlock()
	if s := b.hub.Usage(now, []string{name})[name]; s != (UsageSample{}) {
		t.Errorf("what is long past is shown: %+v", s)
	}
	if frames := h.until(asked); len(frames) != 1 {
		t.Errorf("in between it was sent %+v", frames)
	}
}
