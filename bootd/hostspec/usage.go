package hostspec

import (
	"context"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

// A host reports its usage only on request: with thousands of Guests it would be most of the streams' traffic,
// unread.
const (
	usageEvery = 2 * time.Second
	// usageFor is how long a host keeps reporting after a request.
	usageFor = 15 * time.Second
	// usageWait is how long hosts without an earlier request may take for the two reports that a rate needs.
	usageWait = usageEvery + 2*time.Second
)

// usage is what a host has reported about its usage.
type usage struct {
	asked    time.Time // last
	old, now *api.HostUsage
}

// UsageSample is a host's usage: Old before Now. Old is nil, and both may be, when there was no earlier request or
// no answer.
type UsageSample struct {
	Old, Now *api.HostUsage
}

// Seconds between the two, 0 when there are not two.
func (s UsageSample) Seconds() float64 {
	if s.Old == nil || s.Now == nil {
		return 0
	}
	return (time.Duration(s.Now.Uptime) - time.Duration(s.Old.Uptime)).Seconds()
}

// Usage requests the usage of hosts, by their Machines' names, and waits some seconds for those without an earlier
// request. Hosts that are not connected to this bootd are omitted.
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

// askUsage sends the due requests and returns the available samples of all. news is closed when there are more.
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

// askUsage keeps the host reporting. Reports for an earlier request are useless: a rate over minutes is not the
// current one. The caller holds the Hub's mu.
func (s *stream) askUsage(now time.Time) {
	since := now.Sub(s.usage.asked)
	if since < usageFor/3 {
		return
	}
	if since >= usageFor {
		s.usage = usage{}
	}
	s.usage.asked = now
	s.out.put(usages, api.ServerFrame{Usage: &api.UsageRequest{Every: api.Duration(usageEvery), For: api.Duration(usageFor)}}) // the lane is full until the previous one is sent
}

// usageReport stores a host's usage.
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
