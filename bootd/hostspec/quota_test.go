package hostspec

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/api"
)

func mustAttach(t testing.TB, h *Hub, p Peer, cancel context.CancelCauseFunc) *stream {
	t.Helper()
	s, err := h.attach(p, cancel)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// status is one of about 400 KB that differs from every other.
func largeStatus(n int) *api.HostStatus {
	status := &api.HostStatus{Parts: map[string]api.PartStatus{}}
	for i := range maxStatusParts {
		status.Parts[fmt.Sprintf("part/%d", i)] = api.PartStatus{State: api.PartPending, Message: fmt.Sprint(n, strings.Repeat("m", 250))}
	}
	return status
}

// TestStatusFlood has a host report another large status in each of 98 frames: what is stored is bounded, it is
// said once, and the last word comes through when the host has been quiet.
func TestStatusFlood(t *testing.T) {
	b := newBench(t)
	s := mustAttach(t, b.hub, b.peer(), func(error) {})
	s.quota.stored.SetLimit(0) // what comes back within the test's own time does not count
	revision, stored, bytes := b.Machine(name).Metadata.ResourceVersion, 0, 0
	for n := range 98 {
		b.hub.handle(t.Context(), s, &api.HostFrame{Status: largeStatus(n)})
		m := b.Machine(name)
		if m.Metadata.ResourceVersion != revision {
			raw, err := api.Encode(m)
			if err != nil {
				t.Fatal(err)
			}
			revision, stored, bytes = m.Metadata.ResourceVersion, stored+1, bytes+len(raw)
		}
	}
	t.Logf("%d of 98 were stored, %d bytes", stored, bytes)
	if stored == 0 || bytes > storedBurst {
		t.Errorf("%d of 98 were stored, %d bytes", stored, bytes)
	}
	if n := b.Happened("StatusHeldBack"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	if r, ok := b.hub.Reported(name); !ok || !strings.HasPrefix(r.Parts["part/0"].Message, "97") {
		t.Error("what people see is not the host's last word")
	}

	s.quota.stored.SetLimit(rate.Inf) // time has passed
	b.hub.handle(t.Context(), s, &api.HostFrame{Ping: &api.Ping{}})
	if m := b.Machine(name); !strings.HasPrefix(m.Status.Host.Parts["part/0"].Message, "97") {
		t.Error("the last word was never stored")
	}
}

// TestStreamFlood: each stream is written down at its start and its end.
func TestStreamFlood(t *testing.T) {
	b := newBench(t)
	refused := 0
	for range 200 {
		if _, err := b.hub.attach(b.peer(), func(error) {}); err != nil {
			refused++
		}
	}
	if refused < 150 {
		t.Errorf("%d of 200 streams at once were refused", refused)
	}
}
