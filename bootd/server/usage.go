package server

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/store"
)

// loads shows the load of hosts and Guests.
type loads struct {
	cache *store.Cache
	hub   Hub
}

func (h *loads) routes() []route {
	return []route{{method: "GET", path: "/v1/usage", tag: "Host", role: viewer, out: api.Usage{}, handle: h.read,
		query:   []parameter{{"host", "Only this host and its Guests.", "string"}},
		summary: "The current load of hosts and Guests; requested from the hosts, which takes some seconds the first time"}}
}

func (h *loads) read(c *call) error {
	hosts, err := h.hosts(c.r.URL.Query().Get("host"))
	if err != nil {
		return err
	}
	names := make([]string, len(hosts))
	for i, m := range hosts {
		names[i] = m.Metadata.Name
	}
	samples := h.hub.Usage(c.r.Context(), names)
	out := api.Usage{Hosts: make([]api.HostLoad, 0, len(hosts)), Guests: []api.GuestLoad{}}
	byHost := map[string]hostspec.UsageSample{} // by the Machine's uid
	for _, m := range hosts {
		sample, connected := samples[m.Metadata.Name]
		byHost[m.Metadata.UID] = sample
		out.Hosts = append(out.Hosts, hostLoad(m, sample, connected))
	}
	guests := guestsUsage(byHost)
	for _, g := range store.CachedList[api.Guest](h.cache) {
		if used, ok := guests[guestOn{g.Status.HostUID, g.Metadata.UID}]; ok {
			out.Guests = append(out.Guests, guestLoad(g, used))
		}
	}
	slices.SortFunc(out.Hosts, func(a, b api.HostLoad) int { return strings.Compare(a.Host, b.Host) })
	slices.SortFunc(out.Guests, func(a, b api.GuestLoad) int { return strings.Compare(a.Guest, b.Guest) })
	return c.json(http.StatusOK, out)
}

// hosts lists the Machines that have joined, or the one with a name.
func (h *loads) hosts(name string) ([]*api.Machine, error) {
	if name != "" {
		m, ok := store.Cached[api.Machine](h.cache, name)
		if !ok {
			return nil, problem(http.StatusNotFound, "there is no Machine %s", name)
		}
		return []*api.Machine{m}, nil
	}
	return slices.DeleteFunc(store.CachedList[api.Machine](h.cache), func(m *api.Machine) bool { return m.Status.Host == nil }), nil
}

func hostLoad(m *api.Machine, s hostspec.UsageSample, connected bool) api.HostLoad {
	l := api.HostLoad{Host: m.Metadata.Name, Zone: m.Spec.Zone}
	switch {
	case !connected:
		l.Message = "it is not connected to this bootd"
		return l
	case s.Now == nil:
		l.Message = "it has not reported its usage: its nodeagent is too old for it, or hangs"
		return l
	}
	l.CPUs, l.Memory, l.Guests = s.Now.CPUs, s.Now.Memory, len(s.Now.Guests)
	if s.Old != nil {
		l.Load = load(s.Seconds(), counters{s.Old.CPU, &s.Old.Disk, &s.Old.Link}, counters{s.Now.CPU, &s.Now.Disk, &s.Now.Link})
	}
	return l
}

// guestOn is a Guest, by uid, on a host, by its Machine's uid.
type guestOn struct{ host, guest string }

// guestUsed is a Guest's usage at two times, old before now, and the time between them. old is nil for a Guest
// that has just started.
type guestUsed struct {
	old, now *api.GuestUsage
	seconds  float64
}

// guestsUsage sorts the hosts' reports by Guest.
func guestsUsage(byHost map[string]hostspec.UsageSample) map[guestOn]guestUsed {
	all := map[guestOn]guestUsed{}
	for host, s := range byHost {
		if s.Now == nil {
			continue
		}
		for i := range s.Now.Guests {
			all[guestOn{host, s.Now.Guests[i].UID}] = guestUsed{now: &s.Now.Guests[i], seconds: s.Seconds()}
		}
		if s.Old == nil {
			continue
		}
		for i := range s.Old.Guests {
			at := guestOn{host, s.Old.Guests[i].UID}
			if used, ok := all[at]; ok {
				used.old = &s.Old.Guests[i]
				all[at] = used
			}
		}
	}
	return all
}

func guestLoad(g *api.Guest, used guestUsed) api.GuestLoad {
	now := used.now
	l := api.GuestLoad{Guest: g.Metadata.Name, Network: g.Spec.Network, Host: g.Status.Host, CPUs: g.Spec.CPUs,
		Memory: api.MemoryUsage{Used: now.Memory.Used, Total: cmp.Or(now.Memory.Total, g.Spec.Memory.Value())}}
	if old := used.old; old != nil {
		l.Load = load(used.seconds, counters{old.CPU, old.Disk, old.Link}, counters{now.CPU, now.Disk, now.Link})
	}
	return l
}

// counters are common to a host and a Guest. disk and link may be nil.
type counters struct {
	cpu  float64
	disk *api.DiskUsage
	link *api.LinkUsage
}

// load is nil when a counter has restarted, or no time has passed. A counter that is not known at both times
// counts as zero.
func load(seconds float64, old, now counters) *api.Load {
	if seconds <= 0 || now.cpu < old.cpu {
		return nil
	}
	whole := true
	per := func(old, now uint64) float64 {
		whole = whole && now >= old
		return float64(now-old) / seconds
	}
	l := &api.Load{CPU: (now.cpu - old.cpu) / seconds}
	if a, b := old.disk, now.disk; a != nil && b != nil {
		l.ReadBytes, l.WrittenBytes = per(a.ReadBytes, b.ReadBytes), per(a.WrittenBytes, b.WrittenBytes)
		l.Reads, l.Writes, l.DiskErrors = per(a.Reads, b.Reads), per(a.Writes, b.Writes), per(a.Errors, b.Errors)
	}
	if a, b := old.link, now.link; a != nil && b != nil {
		l.ReceivedBytes, l.SentBytes, l.Dropped = per(a.ReceivedBytes, b.ReceivedBytes), per(a.SentBytes, b.SentBytes), per(a.Dropped, b.Dropped)
	}
	if !whole {
		return nil
	}
	return l
}
