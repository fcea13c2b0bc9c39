package bootd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// standIn is a host that has applied whatever it is sent.
type standIn struct {
	mu         sync.Mutex
	parts      map[string]api.PartStatus
	values     map[string]string
	tombstones []api.Tombstone
	batches    int
}

// serve connects the stand-in of a Machine to a Hub until the test ends.
func serve(t *testing.T, hub *hostspec.Hub, m *api.Machine) *standIn {
	t.Helper()
	near, far := net.Pipe()
	h := &standIn{parts: map[string]api.PartStatus{}, values: map[string]string{}}
	var both sync.WaitGroup
	both.Go(func() {
		_ = hub.Serve(context.Background(), hostspec.Peer{Name: m.Metadata.Name, UID: m.Metadata.UID, Key: m.Status.HostKey},
			hostspec.Conn{In: near, Out: near, Flush: func() error { return nil }, SetReadDeadline: near.SetReadDeadline})
		_ = near.Close()
	})
	both.Go(func() { h.answer(far) })
	t.Cleanup(func() { _ = far.Close(); both.Wait() })
	return h
}

func (h *standIn) answer(conn net.Conn) {
	out := json.NewEncoder(conn)
	_ = out.Encode(api.HostFrame{Hello: &api.Hello{}})
	for in := bufio.NewScanner(conn); in.Scan(); {
		var f api.ServerFrame
		if json.Unmarshal(in.Bytes(), &f) != nil {
			return
		}
		if status := h.take(f); status != nil {
			_ = out.Encode(api.HostFrame{Status: status})
		}
	}
}

// take returns the status after the last frame of a batch.
func (h *standIn) take(f api.ServerFrame) *api.HostStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case f.Part != nil:
		h.parts[f.Part.Name], h.values[f.Part.Name] = api.PartStatus{State: api.PartApplied, Digest: f.Part.Digest}, string(f.Part.Value)
	case f.Gone != "":
		delete(h.parts, f.Gone)
	case f.Tombstones != nil:
		h.tombstones = append(h.tombstones, f.Tombstones...)
	case f.Bookmark != nil:
		h.batches++
		status := &api.HostStatus{Epoch: f.Bookmark.Epoch, Revision: f.Bookmark.Revision, Parts: map[string]api.PartStatus{}}
		for name, p := range h.parts {
			status.Parts[name] = p
		}
		return status
	}
	return nil
}

func (h *standIn) has(part string) (value string, batches int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.values[part], h.batches
}

// A Beacon goes from the object to the hosts of its Zone and back, and no other
// host hears of it.
func TestBeacon(t *testing.T) {
	s := testsite.Open(t)
	keys := &zone.Keys{Key: func(one, other string) string { return "key of " + one }}
	d := &daemon{cache: s.Cache, zones: &zone.Parts{Cache: s.Cache, Keys: keys}}
	hub := &hostspec.Hub{Store: s.Store, Cache: s.Cache, Record: s, Log: s.Log, Compiler: &hostspec.Compiler{Cache: s.Cache, Parts: d.parts, Epoch: 1}}
	s.Create(&api.Site{Base: testsite.Named("site")}, &api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601}}, &api.Zone{Base: testsite.Named("red"), Spec: api.ZoneSpec{ASN: 64602}})
	for name, zone := range map[string]string{"a": "yellow", "b": "red"} {
		s.Create(&api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Zone: zone, Links: []api.Link{{Name: "eth0", MAC: api.MAC("52:54:00:01:00:0" + name)}}}})
		s.Change(name, func(m *api.Machine) { m.Status.HostKey = "key" })
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	all.Go(func() { _ = hub.Run(ctx) })
	for _, k := range d.kinds() {
		if k.name == "Beacon" {
			c := k.control(s.Env())
			all.Go(func() { _ = c.Run(ctx) })
		}
	}
	yellow, red := serve(t, hub, s.Machine("a")), serve(t, hub, s.Machine("b"))
	until(t, "both hosts have their base part", func() bool {
		a, _ := yellow.has("base")
		b, _ := red.has("base")
		return a != "" && b != ""
	})

	s.Create(&api.Beacon{Base: testsite.Named("x"), Spec: api.BeaconSpec{Zone: "yellow", Address: netip.MustParseAddrPort("198.18.0.9:4711")}})
	until(t, "the host of the Zone has the part", func() bool { value, _ := yellow.has("beacon/x"); return strings.Contains(value, "key of ") })
	until(t, "the Beacon is Ready on one host", func() bool {
		b, ok := store.Cached[api.Beacon](s.Cache, "x")
		return ok && b.Status.Conditions.Is(api.CondReady) && b.Status.Hosts == 1
	})
	spec, err := hub.Compiler.Compile(t.Context(), s.Machine("a"))
	if shown := string(spec.Parts["beacon/x"]); err != nil || !strings.Contains(shown, "198.18.0.9:4711") || strings.Contains(shown, "key of ") {
		t.Errorf("people are shown %s, %v", shown, err)
	}

	b, err := store.Get[api.Beacon](t.Context(), s.Store, "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Store.Delete(t.Context(), api.KindOf(b), "x", ""); err != nil {
		t.Fatal(err)
	}
	until(t, "the host has given it up, and it is gone", func() bool {
		_, err := store.Get[api.Beacon](t.Context(), s.Store, "x")
		return errors.Is(err, store.ErrNotFound)
	})
	yellow.mu.Lock()
	if want := (api.Tombstone{Part: "beacon/x", UID: b.Metadata.UID}); len(yellow.tombstones) != 1 || yellow.tombstones[0] != want {
		t.Errorf("tombstones: %+v", yellow.tombstones)
	}
	yellow.mu.Unlock()
	if value, _ := red.has("beacon/x"); value != "" {
		t.Error("a host of another Zone has the part")
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	if !waittest.Soon(20*time.Second, done) {
		t.Fatalf("never: %s", what)
	}
}

// Only a change of what hosts are sent concerns any, and only those of the Zone.
func TestBeaconConcerns(t *testing.T) {
	s := testsite.Open(t)
	parts := (&daemon{zones: &zone.Parts{Cache: s.Cache, Keys: new(zone.Keys)}}).parts(s.Cache)
	concerned := func(old, now api.Object) (zones []string, others bool) {
		kind := api.KindOf(now)
		for _, p := range parts {
			if p.Concerns == nil {
				continue
			}
			hosts := p.Concerns(store.Change{Kind: kind, Name: "x", Old: old, New: now})
			zones = append(zones, hosts.Zones...)
			others = others || hosts.All || len(hosts.Names)+len(hosts.UIDs) > 0
		}
		return zones, others
	}
	before := &api.Beacon{Base: testsite.Named("x"), Spec: api.BeaconSpec{Zone: "yellow"}}
	if zones, others := concerned(nil, before); len(zones) != 1 || zones[0] != "yellow" || others {
		t.Errorf("a new one concerns Zones %q, and others: %t", zones, others)
	}
	after := *before
	after.Status.Hosts = 7
	if zones, others := concerned(before, &after); len(zones) > 0 || others {
		t.Errorf("a new status concerns Zones %q, and others: %t", zones, others)
	}
	if zones, others := concerned(nil, &api.Image{Base: testsite.Named("x")}); len(zones) > 0 || others {
		t.Errorf("an Image that nothing refers to concerns Zones %q, and others: %t", zones, others)
	}
}
