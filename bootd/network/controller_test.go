package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// bench is a Site with a Zone, its production Subnet, and a Controller.
type bench struct {
	*testsite.Site
	t       *testing.T
	c       *Controller
	control *control.Controller[*api.Network]
	stop    func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t}
	b.Create(&api.Site{Base: testsite.Named("site"), Spec: api.SiteSpec{VNIRange: api.VNIRange{Low: 100, High: 105}}},
		&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601}},
		&api.Zone{Base: testsite.Named("red"), Spec: api.ZoneSpec{ASN: 64602}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/22")}})
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// start runs an Index and a Controller; stop forgets them, as a killed bootd does.
func (b *bench) start() {
	b.t.Helper()
	x := NewIndex(b.Store, b.Log)
	b.c = &Controller{Env: b.Env(), Index: x, Epoch: 1}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = x.Run(ctx) })
	<-x.Synced()
	b.control = b.c.Control()
	done.Go(func() { _ = b.control.Run(ctx) })
	b.stop = sync.OnceFunc(func() { cancel(); done.Wait() })
}

func machine(i int) *api.Machine {
	return &api.Machine{Base: testsite.Named(fmt.Sprintf("r1u%02d", i)), Spec: api.MachineSpec{Zone: "yellow", Links: []api.Link{
		{Name: "prod0", MAC: api.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255)), Subnet: "prod", Addresses: []netip.Addr{addr(i)}},
	}}, Status: api.MachineStatus{Phase: api.PhaseActive}}
}

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(8 + i>>8), byte(i)}) }

func network(name string, change ...func(*api.Network)) *api.Network {
	n := &api.Network{Base: testsite.Named(name), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	for _, fn := range change {
		fn(n)
	}
	return n
}

func (b *bench) network(name string) *api.Network {
	b.t.Helper()
	n, err := store.Get[api.Network](b.t.Context(), b.Store, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// eventually waits for what the Controller is about to write.
func (b *bench) eventually(what string, done func() bool) {
	b.t.Helper()
	if !waittest.Soon(10*time.Second, done) {
		b.t.Fatalf("it never happens: %s; %v\n%s", what, b.layout("net"), b.Text())
	}
}

// settled waits until a Network has a condition of that reason and as many
// leases.
func (b *bench) settled(name, reason string, leases int) *api.Network {
	b.t.Helper()
	var n *api.Network
	b.eventually(fmt.Sprintf("%s with %d leases", reason, leases), func() bool {
		n = b.network(name)
		c := n.Status.Conditions.Get(api.CondReady)
		return c != nil && c.Reason == reason && n.Status.Leases == leases
	})
	return n
}

// layout is what stands in etcd: key to value.
func (b *bench) layout(name string) map[string]string {
	b.t.Helper()
	resp, err := b.Store.Client().Get(b.t.Context(), store.FlannelPrefix+name+"/", clientv3.WithPrefix())
	if err != nil {
		b.t.Fatal(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[strings.TrimPrefix(string(kv.Key), store.FlannelPrefix+name+"/")] = string(kv.Value)
	}
	return all
}

// leaseOf is the lease that a host has, "" for none; more than one is an error.
func (b *bench) leaseOf(name, host string) string {
	b.t.Helper()
	found := ""
	for key, value := range b.layout(name) {
		if subnet, ok := strings.CutPrefix(key, "hosts/"); ok && strings.Contains(value, `"`+host+`"`) {
			if found != "" {
				b.t.Errorf("%s has %s and %s", host, found, subnet)
			}
			found = subnet
		}
	}
	return found
}

func (b *bench) put(key, value string, opts ...clientv3.OpOption) {
	b.t.Helper()
	if _, err := b.Store.Client().Put(b.t.Context(), store.FlannelPrefix+key, value, opts...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) ttl(seconds int64) clientv3.OpOption {
	b.t.Helper()
	l, err := b.Store.Client().Grant(b.t.Context(), seconds)
	if err != nil {
		b.t.Fatal(err)
	}
	return clientv3.WithLease(l.ID)
}

func TestAllocate(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), machine(2), network("net"))
	n := b.settled("net", "Allocated", 2)
	if n.Status.VNI != 100 || !n.Status.Conditions.Is(api.CondReady) || !slices.Contains(n.Metadata.Finalizers, Finalizer) {
		t.Errorf("%+v", n)
	}
	l := b.layout("net")
	if l["config"] != `{"Network":"10.5.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":100,"Port":8472}}` {
		t.Errorf("config: %s", l["config"])
	}
	m := b.Machine("r1u01")
	if want := string(leaseValue(100, addr(1), VTEPMAC(m.Metadata.UID, 100))); l["subnets/10.5.1.0-24"] != want {
		t.Errorf("lease of the first host: %s, want %s", l["subnets/10.5.1.0-24"], want)
	}

	// A killed bootd comes back to what it left, and writes nothing.
	before := b.layout("net")
	b.stop()
	b.start()
	b.Create(network("second"), machine(3))
	b.settled("second", "Allocated", 3)
	b.settled("net", "Allocated", 3)
	for key, value := range before {
		if now := b.layout("net")[key]; now != value {
			t.Errorf("%s became %s", key, now)
		}
	}
	if got := b.network("second").Status.VNI; got != 101 {
		t.Errorf("VNI %d", got)
	}
}

// TestLeaseStays takes a host through what may not cost it its lease.
func TestLeaseStays(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), machine(2), network("net"))
	b.settled("net", "Allocated", 2)
	lease := b.leaseOf("net", "r1u01")
	for _, phase := range []api.Phase{api.PhaseProvisioning, api.PhaseFailed, api.PhaseAvailable, api.PhaseActive} {
		b.Change("r1u01", func(m *api.Machine) { m.Status.Phase = phase })
		b.Create(network("x-" + strings.ToLower(string(phase)))) // a pass of the Controller over all that stands
		b.eventually("a pass", func() bool { return b.network("x-"+strings.ToLower(string(phase))).Status.VNI != 0 })
		if got := b.leaseOf("net", "r1u01"); got != lease {
			t.Errorf("%s: its lease is %q, was %q", phase, got, lease)
		}
	}
	// Its address changes: the lease is written again, in place.
	b.Change("r1u01", func(m *api.Machine) { m.Spec.Links[0].Addresses = []netip.Addr{addr(77)} })
	b.eventually("the new address", func() bool { return strings.Contains(b.layout("net")["subnets/"+lease], addr(77).String()) })

	// The Machine goes, and its lease at once; one made anew under the name is another host.
	old := b.Machine("r1u01").Metadata.UID
	kind := api.KindOf(new(api.Machine))
	if err := b.Store.Delete(t.Context(), kind, "r1u01", ""); err != nil {
		t.Fatal(err)
	}
	b.settled("net", "Allocated", 1)
	if _, stands := b.layout("net")["subnets/"+lease]; stands {
		t.Error("the lease of a deleted Machine stands")
	}
	b.Create(machine(1))
	b.settled("net", "Allocated", 2)
	if h := b.layout("net")["hosts/"+lease]; h == "" || strings.Contains(h, old) {
		t.Errorf("the lease of the new Machine: %q", h)
	}
}

func TestConditions(t *testing.T) {
	b := newBench(t)
	tiny := func(n *api.Network) { n.Spec.CIDRs, n.Spec.HostPrefix = testsite.Prefixes("10.5.0.0/28"), 30 }
	for i := range 5 {
		b.Create(machine(i + 1))
	}
	b.Create(network("tiny", tiny))
	c := b.settled("tiny", "Exhausted", 3).Status.Conditions.Get(api.CondReady)
	if !strings.Contains(c.Message, "r1u04, r1u05") || c.Status != api.False {
		t.Errorf("%+v", c)
	}
	if _, err := store.Mutate(t.Context(), b.Store, "tiny", func(n *api.Network) error {
		n.Spec.CIDRs = append(n.Spec.CIDRs, testsite.Prefixes("10.5.0.16/28")...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b.settled("tiny", "Allocated", 5)

	nowhere := machine(9)
	nowhere.Spec.Links[0].Addresses = nil
	b.Create(nowhere)
	c = b.settled("tiny", "NoUnderlay", 5).Status.Conditions.Get(api.CondReady)
	if !strings.Contains(c.Message, "r1u09") {
		t.Errorf("%+v", c)
	}
	// What the host reports on that interface does as well.
	b.Change("r1u09", func(m *api.Machine) {
		m.Status.Host = &api.HostStatus{NICs: []api.HostNIC{{Name: "prod0", Addresses: testsite.Prefixes("198.18.8.9/22")}}}
	})
	b.settled("tiny", "Allocated", 6)

	b.Create(network("pinned", func(n *api.Network) { n.Spec.VNI = 100 }))
	if c := b.settled("pinned", "VNITaken", 0).Status.Conditions.Get(api.CondReady); !strings.Contains(c.Message, "Network tiny") {
		t.Errorf("%+v", c)
	}
	for i := range 6 {
		b.Create(network(fmt.Sprint("more", i)))
	}
	b.eventually("VNIs are exhausted", func() bool {
		for i := range 6 {
			if c := b.network(fmt.Sprint("more", i)).Status.Conditions.Get(api.CondReady); c != nil && c.Reason == "VNIsExhausted" {
				return true
			}
		}
		return false
	})

	b.put("foreign/config", `{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`)
	b.Create(network("foreign", func(n *api.Network) { n.Spec.VNI = 3 }))
	b.settled("foreign", "ForeignConfig", 0)
	b.put("foreign/config", `{ "Network": "10.5.0.0/16", "SubnetLen": 24, "Backend": {"VNI": 3, "Type": "vxlan"}}`)
	b.settled("foreign", "Allocated", 6)

	b.put("left/owner", `{"uid":"earlier","vni":4}`)
	b.Create(network("left", func(n *api.Network) { n.Spec.VNI = 4 }))
	b.settled("left", "Leftover", 0)
}

// TestFlannelPeer has a stock flanneld's lease beside a host's.
func TestFlannelPeer(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), network("net"))
	b.settled("net", "Allocated", 1)
	value := string(leaseValue(100, netip.MustParseAddr("198.18.11.1"), "56:aa:bb:cc:dd:ee"))
	lease := b.ttl(2)
	b.put("net/subnets/10.5.2.0-24", value, lease)
	b.put("net/subnets/10.5.7.0-24", value)   // a person's reservation
	b.put("net/subnets/10.5.1.128-25", value) // lies in the host's
	b.eventually("both are peers", func() bool { return b.c.Index.View("net").Leases() == 3 })
	b.Create(machine(2), machine(3))
	b.eventually("two more hosts", func() bool { return b.leaseOf("net", "r1u03") != "" })
	if a, z := b.leaseOf("net", "r1u02"), b.leaseOf("net", "r1u03"); a != "10.5.3.0-24" || z != "10.5.4.0-24" {
		t.Errorf("the new hosts have %s and %s", a, z)
	}
	b.eventually("the flanneld's lease expires", func() bool { return b.c.Index.View("net").Leases() == 4 })
	if _, stands := b.layout("net")["subnets/10.5.7.0-24"]; !stands {
		t.Error("a reservation was removed")
	}
}

// TestTakeOver starts nodeagent where a stock flanneld was.
func TestTakeOver(t *testing.T) {
	b := newBench(t)
	b.put("net/subnets/10.5.42.0-24", string(leaseValue(7, addr(1), "56:aa:bb:cc:dd:ee")), b.ttl(1000))
	b.Create(machine(1), network("net", func(n *api.Network) { n.Spec.VNI = 7 }))
	b.settled("net", "Allocated", 1)
	if got := b.leaseOf("net", "r1u01"); got != "10.5.42.0-24" {
		t.Errorf("its lease is %s", got)
	}
	resp, err := b.Store.Client().Get(t.Context(), store.FlannelPrefix+"net/subnets/10.5.42.0-24")
	if err != nil || resp.Kvs[0].Lease != 0 {
		t.Errorf("%+v %v: a host's lease must not expire", resp.Kvs, err)
	}
	// That flanneld goes on: put back once, then reported instead of fought over.
	for range 2 {
		b.put("net/subnets/10.5.42.0-24", string(leaseValue(7, addr(1), "56:aa:bb:cc:dd:ee")), b.ttl(1000))
	}
	b.settled("net", "LeaseTaken", 1)
}

// TestRaceWithFlanneld has writers that claim subnets as flanneld does while
// hosts are given theirs, by two Controllers at once.
func TestRaceWithFlanneld(t *testing.T) {
	b := newBench(t)
	b.Create(network("net"))
	b.settled("net", "Allocated", 0)
	x := NewIndex(b.Store, b.Log)
	second := &Controller{Env: b.Env(), Index: x, Epoch: 1}
	ctx, cancel := context.WithCancel(t.Context())
	var all, flannelds sync.WaitGroup
	all.Go(func() { _ = x.Run(ctx) })
	all.Go(func() { _ = second.Control().Run(ctx) })
	var mu sync.Mutex
	claimed := map[netip.Prefix]int{}
	for w := range 4 {
		flannelds.Go(func() {
			for i := range 15 {
				p, err := b.claim(netip.AddrFrom4([4]byte{198, 19, byte(w), byte(i + 1)}))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				claimed[p]++
				mu.Unlock()
			}
		})
	}
	const hosts = 70
	for i := range hosts {
		b.Create(machine(i + 1))
	}
	flannelds.Wait()
	b.settled("net", "Allocated", hosts+60)
	cancel()
	all.Wait()
	owners := map[string]string{}
	for key, value := range b.layout("net") {
		if subnet, ok := strings.CutPrefix(key, "hosts/"); ok {
			var r hostRecord
			if err := json.Unmarshal([]byte(value), &r); err != nil {
				t.Fatal(err)
			}
			if other, taken := owners[r.Machine]; taken {
				t.Errorf("%s has %s and %s", r.Machine, other, subnet)
			}
			owners[r.Machine] = subnet
			p, _ := store.ParseFlannelSubnet(subnet)
			if claimed[p] > 0 {
				t.Errorf("%s is that of %s and of a flanneld", subnet, r.Machine)
			}
		}
	}
	if len(owners) != hosts || len(claimed) != 60 {
		t.Errorf("%d hosts and %d flannelds have a lease", len(owners), len(claimed))
	}
}

// claim does what flanneld does for a lease (tryAcquireLease and createSubnet).
func (b *bench) claim(public netip.Addr) (netip.Prefix, error) {
	ctx, client := b.t.Context(), b.Store.Client()
	for {
		resp, err := client.Get(ctx, store.FlannelPrefix+"net/subnets", clientv3.WithPrefix())
		if err != nil {
			return netip.Prefix{}, err
		}
		var taken []netip.Prefix
		for _, kv := range resp.Kvs {
			p, ok := store.ParseFlannelSubnet(string(kv.Key[strings.LastIndexByte(string(kv.Key), '/')+1:]))
			if !ok {
				return netip.Prefix{}, errors.New("flanneld cannot parse " + string(kv.Key))
			}
			taken = append(taken, p)
		}
		free := freeSubnets(testsite.Prefixes("10.5.0.0/16"), 24, 1, taken)
		key := store.FlannelID{Network: "net", Kind: store.FlannelSubnet, Subnet: free[0]}.String()
		l, err := client.Grant(ctx, 3600)
		if err != nil {
			return netip.Prefix{}, err
		}
		done, err := client.Txn(ctx).If(clientv3.Compare(clientv3.Version(key), "=", 0)).
			Then(clientv3.OpPut(key, string(leaseValue(100, public, VTEPMAC(public.String(), 1))), clientv3.WithLease(l.ID))).Commit()
		if err != nil {
			return netip.Prefix{}, err
		}
		if done.Succeeded {
			return free[0], nil
		}
	}
}

// TestZoneChange moves a host to another Zone: it is told to give the Network
// up, and its lease goes when it has.
func TestZoneChange(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), machine(2), network("net"))
	b.settled("net", "Allocated", 2)
	b.Change("r1u01", func(m *api.Machine) { m.Spec.Zone = "red" })
	uid := b.Machine("r1u01").Metadata.UID
	var buried int64
	b.eventually("it is told", func() bool {
		list := b.c.Index.Memberships(uid)
		if len(list) == 1 {
			buried = list[0].Buried
		}
		return buried > 0
	})
	says := func(revision int64, parts ...string) {
		b.Change("r1u01", func(m *api.Machine) {
			m.Status.Host = &api.HostStatus{UID: uid, Epoch: 1, Revision: revision, Parts: map[string]api.PartStatus{"base": {}}}
			for _, p := range parts {
				m.Status.Host.Parts[p] = api.PartStatus{}
			}
		})
	}
	says(buried-1, "base")                  // from before it was told
	says(buried, "network/net@uid", "base") // at work
	says(buried, "network/net")
	b.Idle(b.control)
	if b.leaseOf("net", "r1u01") == "" {
		t.Fatal("its lease is gone before it gave the Network up")
	}
	says(buried)
	b.settled("net", "Allocated", 1)
}

func TestDelete(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), machine(2), network("net"), network("never"))
	b.settled("net", "Allocated", 2)
	n := b.network("net")
	kind := api.KindOf(n)
	b.put("net/subnets/10.5.9.0-24", string(leaseValue(100, netip.MustParseAddr("198.18.11.1"), "56:aa:bb:cc:dd:ee")), b.ttl(3600))
	if err := b.Store.Delete(t.Context(), kind, "net", ""); err != nil {
		t.Fatal(err)
	}
	b.settled("net", reasonDeleting, 3)

	// bootd is killed: the tombstone is the Network itself, and its leases.
	b.stop()
	b.start()
	if c := b.settled("net", reasonDeleting, 3).Status.Conditions.Get(api.CondReady); !strings.Contains(c.Message, "r1u01, r1u02") {
		t.Errorf("%+v", c)
	}
	gaveUp := func(name string) {
		var buried int64
		uid := b.Machine(name).Metadata.UID
		b.eventually("it is told", func() bool {
			for _, m := range b.c.Index.Memberships(uid) {
				if m.Network == "net" {
					buried = m.Buried
				}
			}
			return buried > 0
		})
		b.Change(name, func(m *api.Machine) {
			m.Status.Host = &api.HostStatus{UID: m.Metadata.UID, Epoch: 1, Revision: buried, Parts: map[string]api.PartStatus{"base": {}, "network/never": {}}}
		})
	}
	gaveUp("r1u01")
	b.settled("net", reasonDeleting, 2)
	gaveUp("r1u02")
	b.eventually("the Network is gone", func() bool {
		_, err := store.Get[api.Network](t.Context(), b.Store, "net")
		return errors.Is(err, store.ErrNotFound)
	})
	if l := b.layout("net"); len(l) > 0 {
		t.Errorf("left: %v", slices.Collect(maps.Keys(l)))
	}
	if l := b.layout("never"); len(l) != 6 {
		t.Errorf("another Network has %v", l)
	}
	// Its VNI is not chosen again soon, but may be pinned.
	b.Create(network("net"), network("pinned", func(n *api.Network) { n.Spec.VNI = n.Status.VNI }))
	if n := b.settled("net", "Allocated", 2); n.Status.VNI < 102 {
		t.Errorf("VNI %d is used again at once", n.Status.VNI)
	}
}

// TestVanished takes a Network out of the store past its finalizer: nothing of
// it may be touched.
func TestVanished(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), network("net"))
	b.settled("net", "Allocated", 1)
	before := b.layout("net")
	if _, err := b.Store.Client().Delete(t.Context(), "/rackweft/v1alpha1/networks/net"); err != nil {
		t.Fatal(err)
	}
	b.Create(machine(2), network("other"))
	b.settled("other", "Allocated", 2)
	if now := b.layout("net"); !maps.Equal(now, before) {
		t.Errorf("%v became %v", before, now)
	}
}
