package server

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// measuredHub is a Hub whose hosts have reported.
type measuredHub struct {
	Hub
	samples map[string]hostspec.UsageSample
}

func (h measuredHub) Usage(_ context.Context, names []string) map[string]hostspec.UsageSample {
	out := map[string]hostspec.UsageSample{}
	for _, n := range names {
		if s, ok := h.samples[n]; ok {
			out[n] = s
		}
	}
	return out
}

func TestUsage(t *testing.T) {
	samples := map[string]hostspec.UsageSample{}
	r := newRig(t, func(c *Config) { c.Hub = measuredHub{c.Hub, samples} })
	ctx := t.Context()
	for i, name := range []string{"r1", "r2", "r3", "spare"} {
		m := testsite.NewMachine(name, api.MAC("52:54:00:00:00:0"+string(rune('1'+i))))
		m.Spec.Zone = "yellow"
		put(t, r.root(), m)
		if name != "spare" {
			r.hostPair(name)
		}
	}
	on := func(name, host string) string {
		t.Helper()
		m, err := store.Get[api.Machine](ctx, r.store, host)
		must(t, err)
		g := &api.Guest{Spec: api.GuestSpec{Network: "blue", CPUs: 2, Memory: api.Bytes(1 << 30), Image: "none"}}
		g.SetDefaults()
		g.Metadata.Name = name
		must(t, r.store.Create(ctx, g))
		_, err = store.Mutate(ctx, r.store, name, func(g *api.Guest) error {
			g.Status.Host, g.Status.HostUID = host, m.Metadata.UID
			return nil
		})
		must(t, err)
		return g.Metadata.UID
	}
	web, db, new := on("web", "r1"), on("db", "r2"), on("new", "r1")
	at := func(seconds int, cpu float64, guests ...api.GuestUsage) *api.HostUsage {
		return &api.HostUsage{Uptime: api.Duration(time.Duration(seconds) * time.Second), CPUs: 4, CPU: cpu, Memory: api.MemoryUsage{Total: 100, Used: 40},
			Link: api.LinkUsage{SentBytes: uint64(seconds) * 1000}, Guests: guests}
	}
	maps.Copy(samples, map[string]hostspec.UsageSample{
		"r1": {
			Old: at(10, 5, api.GuestUsage{Name: "web", UID: web, CPU: 1, Disk: &api.DiskUsage{Reads: 100, ReadBytes: 4096}}),
			Now: at(12, 8,
				api.GuestUsage{Name: "web", UID: web, CPU: 2, Memory: api.MemoryUsage{Used: 7, Total: 512 << 20}, Disk: &api.DiskUsage{Reads: 300, ReadBytes: 8192}, Link: &api.LinkUsage{SentBytes: 5}},
				api.GuestUsage{Name: "db", UID: db, CPU: 99}, // that is on another host
				api.GuestUsage{Name: "new", UID: new, CPU: 3}),
		},
		"r2": {Now: at(1, 1, api.GuestUsage{Name: "db", UID: db, CPU: 1, Memory: api.MemoryUsage{Used: 9}})},
	})
	var got *api.Usage
	var err error
	waittest.Soon(time.Minute, func() bool { // until the cache has all of it
		got, err = r.bearer(viewerToken).Usage(ctx, "")
		return err != nil || len(got.Guests) == 3 && len(got.Hosts) == 3
	})
	must(t, err)
	if len(got.Hosts) != 3 || len(got.Guests) != 3 {
		t.Fatalf("%+v", got)
	}
	if h := got.Hosts[0]; h.Host != "r1" || h.Zone != "yellow" || h.CPUs != 4 || h.Guests != 3 || h.Memory.Used != 40 || h.Load == nil || h.Load.CPU != 1.5 || h.Load.SentBytes != 1000 {
		t.Errorf("r1: %+v %+v", h, h.Load)
	}
	if h := got.Hosts[1]; h.Load != nil || h.Guests != 1 {
		t.Errorf("r2: %+v", h)
	}
	if h := got.Hosts[2]; h.Load != nil || !strings.Contains(h.Message, "not connected") {
		t.Errorf("r3: %+v", h)
	}
	if g := got.Guests[0]; g.Guest != "db" || g.Host != "r2" || g.Load != nil || g.Memory != (api.MemoryUsage{Used: 9, Total: 1 << 30}) {
		t.Errorf("db: %+v", g)
	}
	if g := got.Guests[1]; g.Guest != "new" || g.Load != nil {
		t.Errorf("new: %+v", g)
	}
	if g := got.Guests[2]; g.Guest != "web" || g.Network != "blue" || g.CPUs != 2 || g.Memory.Total != 512<<20 || g.Load == nil ||
		*g.Load != (api.Load{CPU: 0.5, Reads: 100, ReadBytes: 2048}) {
		t.Errorf("web: %+v %+v", g, g.Load)
	}

	one, err := r.bearer(viewerToken).Usage(ctx, "r2")
	if err != nil || len(one.Hosts) != 1 || len(one.Guests) != 1 || one.Guests[0].Guest != "db" {
		t.Errorf("of r2 alone: %+v, %v", one, err)
	}
	if _, err := r.bearer(viewerToken).Usage(ctx, "r9"); !api.IsStatus(err, http.StatusNotFound) {
		t.Errorf("of nobody: %v", err)
	}
}

// A counter that begins anew is no rate.
func TestLoad(t *testing.T) {
	disk := func(n uint64) *api.DiskUsage { return &api.DiskUsage{Writes: n} }
	for name, c := range map[string]struct {
		seconds  float64
		old, now counters
		want     *api.Load
	}{
		"rates":               {2, counters{cpu: 1, disk: disk(4)}, counters{cpu: 2, disk: disk(10)}, &api.Load{CPU: 0.5, Writes: 3}},
		"no time":             {0, counters{}, counters{}, nil},
		"processors anew":     {2, counters{cpu: 3}, counters{cpu: 1}, nil},
		"disks anew":          {2, counters{disk: disk(9)}, counters{disk: disk(1)}, nil},
		"disks not known":     {2, counters{disk: disk(9)}, counters{cpu: 1}, &api.Load{CPU: 0.5}},
		"disks not known yet": {2, counters{}, counters{disk: disk(1 << 40)}, &api.Load{}},
	} {
		got := load(c.seconds, c.old, c.now)
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
