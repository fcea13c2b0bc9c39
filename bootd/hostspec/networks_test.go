package hostspec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// rack is a Site whose hosts are given leases by a real Controller, and their
// HostSpecs by a real Hub.
type rack struct {
	*bench
	index    *network.Index
	keys     *zone.Keys // nil: no bgp parts
	zones    *zone.Parts
	networks *control.Controller[*api.Network]
	stop     func() // kills all but the store
}

func newRack(t testing.TB, hosts int, networks ...string) *rack {
	t.Helper()
	r := &rack{bench: &bench{Site: testsite.Open(t), t: t}}
	r.Create(&api.Site{Base: testsite.Named("site")}, &api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}, MTU: 9000}})
	var machines []api.Object
	for i := range hosts {
		machines = append(machines, newMachine(i))
	}
	r.Create(machines...)
	for _, n := range networks {
		r.Create(&api.Network{Base: testsite.Named(n), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}})
	}
	r.start()
	return r
}

func hostName(i int) string { return fmt.Sprintf("r%du%02d", i/100, i%100) }

func (r *rack) add(i int) {
	r.t.Helper()
	r.Create(newMachine(i))
}

func newMachine(i int) *api.Machine {
	m := &api.Machine{Base: testsite.Named(hostName(i)), Spec: api.MachineSpec{Zone: "yellow", Links: []api.Link{
		{Name: "prod0", MAC: api.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255)), Subnet: "prod", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}},
	}}}
	m.Status.HostKey, m.Status.Phase = key, api.PhaseActive
	return m
}

// start runs all that a bootd does for Networks.
func (r *rack) start() {
	r.t.Helper()
	x := network.NewIndex(r.Store, r.Log)
	r.index = x
	if r.keys != nil {
		r.zones = &zone.Parts{Cache: r.Cache, Networks: x, Keys: r.keys}
	}
	r.hub = &Hub{Store: r.Store, Cache: r.Cache, Signer: signer{key}, Record: r, Log: r.Log, Compiler: &Compiler{Cache: r.Cache, Parts: partsOf(x, r.zones), Epoch: 1}}
	c := &network.Controller{Env: r.Env(), Index: x, Epoch: 1}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = x.Run(ctx) })
	<-x.Synced()
	hub := r.hub
	all.Go(func() { _ = hub.Run(ctx) })
	r.networks = c.Control()
	networks := r.networks
	all.Go(func() { _ = networks.Run(ctx) })
	r.stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	r.t.Cleanup(r.stop)
}

func (r *rack) settled(networks []string, leases int) {
	r.t.Helper()
	ok := waittest.Soon(30*time.Second, func() bool {
		return !slices.ContainsFunc(networks, func(name string) bool {
			n, ok := store.Cached[api.Network](r.Cache, name)
			return !ok || !n.Status.Conditions.Is(api.CondReady) || n.Status.Leases != leases
		})
	})
	if !ok {
		r.t.Fatalf("never: %d leases; %s", leases, r.Text())
	}
}

func (r *rack) dial(i int, hello *api.Hello) *host {
	r.t.Helper()
	return r.connect(Peer{Name: hostName(i), UID: r.Machine(hostName(i)).Metadata.UID, Key: key}, hello)
}

// cached is what nodeagent makes of frames (nodeagent/hostspec.go).
type cached struct {
	parts      map[string]api.Part
	tombstones []api.Tombstone
	mark       api.Bookmark
	wholes     int
	deltas     int
}

func (c *cached) take(t testing.TB, frames []api.ServerFrame) {
	t.Helper()
	if c.parts == nil {
		c.parts = map[string]api.Part{}
	}
	for _, f := range frames {
		switch {
		case f.Part != nil:
			value := f.Part.Value
			if f.Part.Delta != nil {
				c.deltas++
				if api.PartDigest(c.parts[f.Part.Name]) != f.Part.Base {
					t.Fatalf("a delta to %s, held is %s", f.Part.Base, c.parts[f.Part.Name])
				}
				var err error
				if value, err = f.Part.Delta.Apply(c.parts[f.Part.Name]); err != nil {
					t.Fatal(err)
				}
			} else {
				c.wholes++
			}
			if api.PartDigest(value) != f.Part.Digest {
				t.Fatalf("%s has another digest: %s", f.Part.Name, value)
			}
			c.parts[f.Part.Name] = value
		case f.Gone != "":
			delete(c.parts, f.Gone)
		case f.Bookmark != nil:
			c.mark = *f.Bookmark
		}
		c.tombstones = append(c.tombstones, f.Tombstones...)
	}
}

func (c *cached) network(t testing.TB, name string) api.NetworkPart {
	t.Helper()
	var n api.NetworkPart
	if err := json.Unmarshal(c.parts[api.NetworkPartName(name)], &n); err != nil {
		t.Fatalf("%s: %v", c.parts, err)
	}
	return n
}

// follow takes frames until done.
func (c *cached) follow(h *host, done func() bool) {
	h.t.Helper()
	for !done() {
		c.take(h.t, h.until(bookmark))
	}
}

func TestNetworkPart(t *testing.T) {
	r := newRack(t, 3, "a", "b")
	r.settled([]string{"a", "b"}, 3)
	h := r.dial(1, &api.Hello{})
	var has cached
	has.follow(h, func() bool { return len(has.parts) == 3 })
	n, a := has.network(t, "a"), r.Machine(hostName(1))
	stored, _ := store.Cached[api.Network](r.Cache, "a")
	if n.UID != stored.Metadata.UID || n.VNI != stored.Status.VNI || n.MTU != 8950 || n.MAC != network.VTEPMAC(a.Metadata.UID, n.VNI) || len(n.CIDRs) != 1 || n.Egress != "none" {
		t.Errorf("%+v", n)
	}
	if len(n.Peers) != 2 || n.Peers[0].Host != hostName(0) || n.Peers[0].VTEP != netip.MustParseAddr("198.18.0.0") || n.Peers[1].Host != hostName(2) {
		t.Errorf("%+v", n.Peers)
	}
	whole, err := r.hub.Compiler.Compile(t.Context(), a)
	if err != nil || string(whole.Parts["network/a"]) != string(has.parts["network/a"]) {
		t.Errorf("%s %v", whole.Parts["network/a"], err)
	}

	// A host that joins is a delta for the others.
	wholes := has.wholes
	r.add(3)
	has.follow(h, func() bool { return len(has.network(t, "a").Peers) == 3 && len(has.network(t, "b").Peers) == 3 })
	if has.wholes != wholes || has.deltas < 2 {
		t.Errorf("%d wholes, %d deltas", has.wholes-wholes, has.deltas)
	}
	// And so is one that goes, for a host that comes back with what it holds.
	_ = h.conn.Close()
	digests := map[string]string{}
	for name, p := range has.parts {
		digests[name] = api.PartDigest(p)
	}
	h = r.dial(1, &api.Hello{Digests: digests})
	if frames := h.until(bookmark); len(frames) != 1 {
		t.Errorf("it holds all, and is sent %+v", frames)
	}
	has.deltas = 0
	if err := r.Store.Delete(t.Context(), api.KindOf(a), hostName(3), ""); err != nil {
		t.Fatal(err)
	}
	has.follow(h, func() bool { return len(has.network(t, "a").Peers) == 2 && len(has.network(t, "b").Peers) == 2 })
	if has.wholes != wholes || has.deltas < 2 {
		t.Errorf("%d wholes, %d deltas", has.wholes-wholes, has.deltas)
	}
	// Another field is not: the part is sent whole.
	rates := api.Rates{Inbound: quantity(t, "100M"), Outbound: quantity(t, "10M")}
	if _, err := store.Mutate(t.Context(), r.Store, "a", func(n *api.Network) error {
		n.Spec.Egress, n.Spec.Limits, n.Spec.GuestLimits = "masquerade", rates, api.Rates{Outbound: rates.Outbound}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	has.follow(h, func() bool { return has.network(t, "a").Egress == "masquerade" })
	if n := has.network(t, "a"); n.Limits.Inbound.Value() != 100e6 || n.Limits.Outbound.Value() != 10e6 || n.GuestLimits.Outbound.Value() != 10e6 || !n.GuestLimits.Inbound.IsZero() {
		t.Errorf("limits are %+v and %+v", n.Limits, n.GuestLimits)
	}
	if has.wholes != wholes+1 {
		t.Errorf("%d wholes", has.wholes-wholes)
	}
}

func quantity(t testing.TB, text string) api.Quantity {
	t.Helper()
	q, err := api.ParseQuantity(text)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestAllow follows what is let into a Network while others come, change and go.
func TestAllow(t *testing.T) {
	r := newRack(t, 1)
	make := func(name, zone, cidr string, allow ...string) {
		r.Create(&api.Network{Base: testsite.Named(name), Spec: api.NetworkSpec{Zone: zone, CIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}, Allow: allow}})
	}
	make("same", "yellow", "10.5.0.0/16")
	make("abroad", "red", "10.7.0.0/16")
	make("net", "yellow", "10.5.0.0/16", "friend", "same", "abroad", "twin")
	h := r.dial(0, &api.Hello{})
	var has cached
	allowed := func(names ...string) func() bool {
		return func() bool {
			if has.parts["network/net"] == nil {
				return false
			}
			var got []string
			for _, a := range has.network(t, "net").Allow {
				got = append(got, a.Network)
			}
			return slices.Equal(got, names)
		}
	}
	says := func(words ...string) {
		t.Helper()
		said := func() bool {
			n, _ := store.Cached[api.Network](r.Cache, "net")
			c := n.Status.Conditions.Get(network.Allowed)
			return c != nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(c.Message, w) })
		}
		if !waittest.Soon(time.Minute, said) {
			n, _ := store.Cached[api.Network](r.Cache, "net")
			t.Errorf("no %q in %+v", words, n.Status.Conditions)
		}
	}
	has.follow(h, allowed())
	says("friend does not exist", "same has CIDRs that overlap", "abroad is in Zone red")
	make("friend", "yellow", "10.6.0.0/16")
	make("twin", "yellow", "10.6.4.0/22") // past admission, which refuses it
	has.follow(h, allowed("friend"))
	says("twin has CIDRs that overlap")
	friend, _ := store.Cached[api.Network](r.Cache, "friend")
	if a := has.network(t, "net").Allow[0]; a.UID != friend.Metadata.UID || a.VNI == 0 || a.VNI != friend.Status.VNI || !slices.Equal(a.CIDRs, friend.Spec.CIDRs) {
		t.Errorf("%+v", a)
	}
	if _, err := store.Mutate(t.Context(), r.Store, "friend", func(n *api.Network) error {
		n.Spec.CIDRs = append(n.Spec.CIDRs, netip.MustParsePrefix("10.8.0.0/16"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	has.follow(h, func() bool { return len(has.network(t, "net").Allow[0].CIDRs) == 2 })
	if err := r.Store.Delete(t.Context(), api.KindOf(friend), "friend", ""); err != nil {
		t.Fatal(err)
	}
	has.follow(h, allowed("twin"))
	says("friend is being deleted")
}

// TestEdges compiles what a Network and the base part say of the rest of the Site.
func TestEdges(t *testing.T) {
	r := newRack(t, 2)
	if _, err := store.Mutate(t.Context(), r.Store, "site", func(s *api.Site) error {
		s.Spec.Domain, s.Spec.DNS = "dc1.example", []netip.Addr{netip.MustParseAddr("198.18.8.1")}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.Create(&api.Network{Base: testsite.Named("net"), Spec: api.NetworkSpec{Zone: "yellow", Direct: true,
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:5::/56")}}})
	r.settled([]string{"net"}, 2)
	h := r.dial(0, &api.Hello{})
	var has cached
	has.follow(h, func() bool { return has.parts["network/net"] != nil })
	n := has.network(t, "net")
	if n.Domain != "net.dc1.example" || len(n.DNS) != 1 || !n.Direct || n.Lease6 != netip.MustParsePrefix("fd00:5:0:1::/64") ||
		len(n.Peers) != 1 || n.Peers[0].Lease6 != netip.MustParsePrefix("fd00:5:0:2::/64") {
		t.Errorf("%+v", n)
	}

	closed := func(want ...string) func() bool {
		return func() bool {
			var b api.BasePart
			if err := json.Unmarshal(has.parts["base"], &b); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range b.Underlay.Closed {
				got = append(got, p.String())
			}
			return slices.Equal(got, want)
		}
	}
	if !closed("198.18.0.0/16")() {
		t.Errorf("%s", has.parts["base"])
	}
	subnet := &api.Subnet{Base: testsite.Named("bmc"), Spec: api.SubnetSpec{Purpose: api.Management, Prefixes: []netip.Prefix{netip.MustParsePrefix("198.19.1.0/24")}}}
	r.Create(subnet)
	has.follow(h, closed("198.18.0.0/16", "198.19.1.0/24"))
	bmc := func(address string) func(*api.Machine) {
		return func(m *api.Machine) { m.Spec.BMC = &api.BMC{Address: address, Credentials: "x"} }
	}
	r.Change(hostName(1), bmc("https://198.19.2.7:444"))
	has.follow(h, closed("198.18.0.0/16", "198.19.1.0/24", "198.19.2.7/32"))
	r.Change(hostName(1), bmc("https://198.19.1.7"))
	has.follow(h, closed("198.18.0.0/16", "198.19.1.0/24"))
	r.Change(hostName(1), bmc("https://bmc.example"))
	if err := r.Store.Delete(t.Context(), api.KindOf(subnet), "bmc", ""); err != nil {
		t.Fatal(err)
	}
	has.follow(h, closed("198.18.0.0/16"))
	r.Change(hostName(1), bmc("https://198.19.2.7"))
	r.Change(hostName(0), bmc("https://198.19.2.6"))
	has.follow(h, closed("198.18.0.0/16", "198.19.2.6/31"))
}

// TestTombstone deletes a Network under two hosts, one of which is away for a
// while, with bootd killed in between.
func TestTombstone(t *testing.T) {
	r := newRack(t, 0, "net")
	r.add(0)
	r.add(1)
	r.settled([]string{"net"}, 2)
	n, _ := store.Cached[api.Network](r.Cache, "net")
	stone := api.Tombstone{Part: "network/net", UID: n.Metadata.UID}
	h := r.dial(0, &api.Hello{})
	var has cached
	has.follow(h, func() bool { return has.parts["network/net"] != nil })
	if err := r.Store.Delete(t.Context(), api.KindOf(n), "net", ""); err != nil {
		t.Fatal(err)
	}
	has.follow(h, func() bool { return len(has.tombstones) > 0 })
	if has.tombstones[0] != stone || has.parts["network/net"] != nil {
		t.Fatalf("%+v %v", has.tombstones, has.parts)
	}
	gone := func() bool {
		_, err := store.Get[api.Network](t.Context(), r.Store, "net")
		return errors.Is(err, store.ErrNotFound)
	}
	// It is at work, then done. The other is away, and holds all up.
	report := func(h *host, uid string, mark api.Bookmark, parts ...string) {
		s := &api.HostStatus{UID: uid, Epoch: mark.Epoch, Revision: mark.Revision, Parts: map[string]api.PartStatus{}}
		for _, p := range parts {
			s.Parts[p] = api.PartStatus{State: api.PartPending}
		}
		h.send(api.HostFrame{Status: s})
	}
	// finish answers tombstones until the lease is gone.
	finish := func(i int, h *host, has *cached) {
		uid := r.Machine(hostName(i)).Metadata.UID
		for range 10 {
			report(h, uid, has.mark)
			if waittest.Soon(500*time.Millisecond, func() bool { return len(r.index.Memberships(uid)) == 0 }) {
				return
			}
			has.take(t, h.until(bookmark)) // it is told again, from the revision that counts
		}
		t.Fatalf("the lease of %s stands: %+v %s", hostName(i), has.mark, r.Text())
	}
	report(h, r.Machine(hostName(0)).Metadata.UID, has.mark, "network/net@"+n.Metadata.UID)
	r.eventually("its report is stored", func() bool {
		h := r.Machine(hostName(0)).Status.Host
		return h != nil && h.Revision == has.mark.Revision
	})
	r.Idle(r.networks)
	if len(r.index.Memberships(r.Machine(hostName(0)).Metadata.UID)) != 1 {
		t.Fatal("its lease is gone before the host is done")
	}
	finish(0, h, &has)
	if gone() {
		t.Fatal("the Network is gone while a host still has it")
	}

	// bootd is started again: the other host comes back and hears of it.
	_ = h.conn.Close()
	r.stop()
	r.start()
	late := r.dial(1, &api.Hello{Digests: map[string]string{"network/net": "whatever"}})
	var late1 cached
	late1.follow(late, func() bool { return len(late1.tombstones) > 0 })
	if late1.tombstones[0] != stone {
		t.Errorf("%+v", late1.tombstones)
	}
	finish(1, late, &late1)
	if !waittest.Soon(time.Minute, gone) {
		t.Errorf("the Network is still there: %s", r.Text())
	}
}

// TestVanishedNetworkIsNoTombstone: absence is not deletion.
func TestVanishedNetworkIsNoTombstone(t *testing.T) {
	r := newRack(t, 1, "net")
	r.settled([]string{"net"}, 1)
	h := r.dial(0, &api.Hello{})
	var has cached
	has.follow(h, func() bool { return has.parts["network/net"] != nil })
	if _, err := r.Store.Client().Delete(t.Context(), "/rackweft/v1alpha1/networks/net"); err != nil {
		t.Fatal(err)
	}
	has.follow(h, func() bool { return has.parts["network/net"] == nil })
	if len(has.tombstones) > 0 {
		t.Errorf("%+v", has.tombstones)
	}
}

// BenchmarkJoin measures from a Machine becoming Active to the last of many hosts
// having been sent the deltas of all Networks.
func BenchmarkJoin(b *testing.B) {
	for _, c := range []struct{ hosts, networks int }{{50, 1}, {500, 20}, {1000, 1}} {
		b.Run(fmt.Sprintf("hosts=%d/networks=%d", c.hosts, c.networks), func(b *testing.B) { benchmarkJoin(b, c.hosts, c.networks, nil) })
	}
}

// BenchmarkChange is bootd's half of a figure of `make bench-overlay`: until each
// of fifty hosts has been sent its delta, at the 99th percentile.
func BenchmarkChange(b *testing.B) {
	var took []float64
	benchmarkJoin(b, 50, 1, func(after time.Duration) { took = append(took, after.Seconds()) })
	slices.Sort(took)
	fmt.Printf("PART overlay-change-50 %.4f\n", took[len(took)*99/100])
	fmt.Fprintf(os.Stderr, "from a Machine that is Active to sent to 50 hosts: median %.3f s, p99 %.3f s of %d\n", took[len(took)/2], took[len(took)*99/100], len(took))
}

// benchmarkJoin tells of each host's delta when it has come, unless arrived is nil.
func benchmarkJoin(b *testing.B, hosts, networks int, arrived func(after time.Duration)) {
	var names []string
	for i := range networks {
		names = append(names, fmt.Sprintf("n%02d", i))
	}
	r := newRack(b, hosts, names...)
	r.hub.Silence = time.Hour // these hosts never ping
	r.settled(names, hosts)
	// Each host tells how many of its Networks have the newcomer.
	done := make(chan int, hosts)
	var sent, deltas, wholes atomic.Int64
	ready := make(chan struct{}, hosts)
	newcomer := atomic.Pointer[[]byte]{}
	for i := range hosts {
		h := r.dial(i, &api.Hello{})
		go func() {
			greeted, seen := false, 0
			for h.in.Scan() {
				line := h.in.Bytes()
				sent.Add(int64(len(line)))
				if !greeted && bytes.Contains(line, []byte(`{"bookmark"`)) {
					greeted = true
					ready <- struct{}{}
				}
				if bytes.Contains(line, []byte(`"delta"`)) {
					deltas.Add(1)
				} else if bytes.Contains(line, []byte(`"value"`)) {
					wholes.Add(1)
				}
				if name := newcomer.Load(); name != nil && bytes.Contains(line, *name) {
					if seen++; seen%len(names) == 0 {
						done <- i
					}
				}
			}
		}()
	}
	for range hosts {
		<-ready
	}
	next := hosts
	for b.Loop() {
		b.StopTimer()
		time.Sleep(2 * time.Second) // what the last one left to do
		name := fmt.Appendf(nil, `"host":%q`, hostName(next))
		newcomer.Store(&name)
		for _, n := range []*atomic.Int64{&sent, &deltas, &wholes} {
			n.Store(0)
		}
		var before, after unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
		b.StartTimer()
		start := time.Now()
		if err := r.Store.Create(b.Context(), newMachine(next)); err != nil {
			b.Fatal(err)
		}
		for range hosts {
			<-done
			if arrived != nil {
				arrived(time.Since(start))
			}
		}
		b.StopTimer()
		_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
		b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/1e9, "cpu-s/op")
		b.ReportMetric(float64(sent.Load())/1e6, "MB/op")
		b.ReportMetric(float64(deltas.Load()), "deltas/op")
		b.ReportMetric(float64(wholes.Load()), "wholes/op")
		next++
		b.StartTimer()
	}
}
