package hostspec

import (
	"context"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// A host reports what it uses only while it is asked for: with thousands of
// Guests it would be most of what the streams carry, unread.
const (
	usageEvery = 2 * time.Second
	// usageFor is how long a host keeps reporting when it is not asked again.
	usageFor = 15 * time.Second
	// usageWait is how long hosts that were not asked before may take for the two
	// reports between which there is a rate.
	usageWait = usageEvery + 2*time.Second
)

// usage is what a host has reported of what it uses.
type usage struct {
	asked    time.Time // last
	old, now *api.HostUsage
}

// UsageSample is what a host has reported of what it uses: Old before Now. Old
// is nil, and both may be, when it was not asked before or does not answer.
type UsageSample struct {
	Old, Now *api.HostUsage
}

// Seconds are between the two, 0 when there are not two.
func (s UsageSample) Seconds() float64 {
	if s.Old == nil || s.Now == nil {
		return 0
	}
	return (time.Duration(s.Now.Uptime) - time.Duration(s.Old.Uptime)).Seconds()
}

// Usage asks hosts, by their Machines' names, for what they use, and waits some
// seconds for those that were not asked before. Hosts that are not connected
// to this bootd are left out.
func (h *Hub) Usage(ctx context.Context, names []string) map[string]UsageSample {
	ctx, cancel := context.WithTimeout(ctx, usageWait)
	defer cancel()
	for {
		samples, complete, news := h.askUsage(names)
		if complete {
			return samples
		}
		select {
		case <-news:
		case <-ctx.Done():
			return samples
		}
	}
}

// askUsage asks the hosts that are due and returns what is there of all. news is
// closed when there is more.
func (h *Hub) askUsage(names []string) (samples map[string]UsageSample, complete bool, news <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.measured == nil {
		h.measured = make(chan struct{})
	}
	samples, complete = map[string]UsageSample{}, true
	for _, name := range names {
		s := h.streams[name]
		if s == nil {
			continue
		}
		s.askUsage(time.Now())
		samples[name] = UsageSample{s.usage.old, s.usage.now}
		complete = complete && s.usage.old != nil
	}
	return samples, complete, h.measured
}

// askUsage keeps the host reporting. What it reported for an earlier request is of
// no use: a rate over minutes is not the current one. The caller holds the Hub's mu.
func (s *stream) askUsage(now time.Time) {
	since := now.Sub(s.usage.asked)
	if since < usageFor/3 {
		return
	}
	if since >= usageFor {
		s.usage = usage{}
	}
	s.usage.asked = now
	s.out.put(usages, api.ServerFrame{Usage: &api.UsageRequest{Every: api.Duration(usageEvery), For: api.Duration(usageFor)}}) // there is no room while the one before has not gone out
}

// usageReport keeps what a host has used.
func (h *Hub) usageReport(s *stream, u *api.HostUsage) {
	kept := *u
	kept.Guests = slices.Clone(u.Guests[:min(len(u.Guests), api.MaxUsageGuests)])
	for i := range kept.Guests {
		g := &kept.Guests[i]
		g.Name, g.UID = text.Clip(g.Name, 64), text.Clip(g.UID, 64)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[s.peer.Name] != s || s.usage.asked.IsZero() {
		return // another stream of the host is newer, or no one waits for it
	}
	s.usage.old, s.usage.now = s.usage.now, &kept
	if h.measured != nil {
		close(h.measured)
		h.measured = nil
	}
}
