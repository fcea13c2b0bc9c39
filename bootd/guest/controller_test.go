package guest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

const diskDigest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

// bench is a Site with a Network, an Image, hosts that have leases, and a
// Controller.
type bench struct {
	*testsite.Site
	t       *testing.T
	control *control.Controller[*api.Guest]
	stop    func()
}

func newBench(t *testing.T, hosts ...string) *bench {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t}
	b.Create(&api.Site{Base: testsite.Named("site")},
		&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601}},
		&api.Network{Base: testsite.Named("blue"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}}},
		&api.Image{Base: testsite.Named("debian"), Spec: api.ImageSpec{Version: "1", Files: map[string]api.ImageFile{api.DiskFile: {SHA256: diskDigest}}},
			Status: api.ImageStatus{Files: map[string]api.ImageFileStatus{api.DiskFile: {SHA256: diskDigest}}}})
	for _, name := range hosts {
		b.addHost(name)
	}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *bench) addHost(name string) {
	m := &api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Zone: "yellow", Links: []api.Link{{Name: "a", MAC: api.MAC("52:54:00:00:00:0" + name[1:])}}}, Status: api.MachineStatus{Phase: api.PhaseActive}}
	b.Create(m)
	b.machine(name, func(m *api.Machine) {
		m.Status.Host = &api.HostStatus{UID: m.Metadata.UID, Epoch: 1, CPUs: 8, Memory: api.Bytes(8 << 30)}
	})
}

// start runs a Controller; stop forgets it, as a killed bootd does.
func (b *bench) start() {
	b.t.Helper()
	c := &Controller{
		Env: b.Env(), Epoch: 1,
		Leases: func(ctx context.Context, _ func(map[string]bool)) error { <-ctx.Done(); return ctx.Err() },
		Lease: func(uid, _ string) (netip.Prefix, netip.Prefix, bool) {
			for _, m := range store.CachedList[api.Machine](b.Cache) {
				var n byte
				if _, err := fmt.Sscanf(m.Metadata.Name, "h%d", &n); err == nil && m.Metadata.UID == uid {
					return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n, 0}), 24), netip.Prefix{}, true
				}
			}
			return netip.Prefix{}, netip.Prefix{}, false
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	b.control = c.Control()
	done.Go(func() { _ = b.control.Run(ctx) })
	b.stop = sync.OnceFunc(func() { cancel(); done.Wait() })
}

func (b *bench) machine(name string, fn func(*api.Machine)) {
	b.t.Helper()
	_, err := store.Mutate(b.t.Context(), b.Store, name, func(m *api.Machine) error { fn(m); return nil })
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) get(name string) *api.Machine {
	b.t.Helper()
	m, err := store.Get[api.Machine](b.t.Context(), b.Store, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func (b *bench) guest(name string) *api.Guest {
	b.t.Helper()
	g, err := store.Get[api.Guest](b.t.Context(), b.Store, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return g
}

func (b *bench) change(name string, fn func(*api.Guest)) {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.Store, name, func(g *api.Guest) error { fn(g); return nil }); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) eventually(what string, done func() bool) {
	b.t.Helper()
	if !waittest.Soon(10*time.Second, done) {
		b.t.Fatalf("it never happens: %s\n%s", what, b.Text())
	}
}

func (b *bench) create(name string, change ...func(*api.Guest)) {
	g := of(b.t, name, "1Gi", change...)
	g.Metadata = api.Metadata{Name: name}
	g.Spec.Image = "debian"
	b.Create(g)
}

// placed waits until a Guest has a host, and returns it.
func (b *bench) placed(name string) *api.Guest {
	b.t.Helper()
	var g *api.Guest
	b.eventually(name+" is placed", func() bool { g = b.guest(name); return g.Status.Host != "" })
	return g
}

func (b *bench) because(name, typ, reason string) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%s is %s: %s", name, typ, reason), func() bool {
		c := b.guest(name).Status.Conditions.Get(typ)
		return c != nil && c.Reason == reason
	})
}

// obey is the host: it makes the Guest's part so, and says so.
func (b *bench) obey(name string) {
	b.t.Helper()
	g := b.guest(name)
	p, err := Part(b.Cache, g)
	if err != nil {
		b.t.Fatal(err)
	}
	raw, err := api.EncodePart(p)
	if err != nil {
		b.t.Fatal(err)
	}
	b.machine(g.Status.Host, func(m *api.Machine) {
		if m.Status.Host.Parts == nil {
			m.Status.Host.Parts = map[string]api.PartStatus{}
		}
		m.Status.Host.Parts[api.GuestPartName(name)] = api.PartStatus{Digest: api.PartDigest(raw), State: api.PartApplied, Guest: &api.GuestObserved{State: p.State}}
	})
}

// gone is the host that a Guest has left: it has nothing of it any more.
func (b *bench) gone(host string) {
	b.t.Helper()
	b.machine(host, func(m *api.Machine) {
		m.Status.Host.Revision = 1 << 40
		m.Status.Host.Parts = map[string]api.PartStatus{}
	})
}

func TestLife(t *testing.T) {
	b := newBench(t, "h1")
	b.create("web")
	g := b.placed("web")
	if g.Status.Host != "h1" || len(g.Status.Addresses) != 1 || g.Status.Addresses[0].String() != "10.5.1.2" || g.Status.MAC != MAC(g.Metadata.UID) {
		t.Errorf("it is placed as %+v", g.Status)
	}
	b.because("web", api.CondReady, "NotApplied")
	b.obey("web")
	b.because("web", api.CondReady, "Running")
	b.change("web", func(g *api.Guest) { g.Spec.State = api.GuestStopped })
	b.because("web", api.CondReady, "NotApplied")
	b.obey("web")
	b.because("web", api.CondReady, "Stopped")

	if err := b.Store.Delete(t.Context(), guestKind(t), "web", ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("its host is told", func() bool {
		g := b.guest("web")
		return g.Status.Host == "" && len(g.Status.Left) == 1 && g.Status.Left[0].Since > 0
	})
	// The host still has it: nothing goes.
	b.machine("h1", func(m *api.Machine) {
		m.Status.Host.Revision = 1 << 40
		m.Status.Host.Parts = map[string]api.PartStatus{api.GuestPartName("web") + "@" + g.Metadata.UID: {State: api.PartPending}}
	})
	b.Idle(b.control)
	b.guest("web")
	b.gone("h1")
	b.eventually("it is gone", func() bool {
		_, err := store.Get[api.Guest](t.Context(), b.Store, "web")
		return err != nil
	})
}

func guestKind(t *testing.T) api.Kind {
	t.Helper()
	k, err := api.LookupKind("Guest")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Many Guests at once get addresses of their own, and no host more than it has.
func TestManyAtOnce(t *testing.T) {
	b := newBench(t, "h1", "h2", "h3")
	const most = 6 // of 1 GiB fit on a host that gives 7
	for i := range 3*most + 2 {
		b.create(fmt.Sprintf("g%02d", i))
	}
	b.eventually("all that fit are placed", func() bool {
		return len(slices.DeleteFunc(b.guests(), func(g *api.Guest) bool { return g.Status.Host == "" })) == 3*most
	})
	hosts, addrs := map[string]int{}, map[netip.Addr]string{}
	var waiting []string
	for _, g := range b.guests() {
		if g.Status.Host == "" {
			waiting = append(waiting, g.Metadata.Name)
			continue
		}
		hosts[g.Status.Host]++
		if other := addrs[g.Status.Addresses[0]]; other != "" {
			t.Errorf("%s and %s are both %s", other, g.Metadata.Name, g.Status.Addresses[0])
		}
		addrs[g.Status.Addresses[0]] = g.Metadata.Name
	}
	for host, n := range hosts {
		if n != most {
			t.Errorf("%s has %d", host, n)
		}
	}
	b.because(waiting[0], api.CondPlaced, "NoHost")
	b.addHost("h4")
	b.placed(waiting[0])
	b.placed(waiting[1])
}

func (b *bench) guests() []*api.Guest {
	b.t.Helper()
	list, _, err := store.List[api.Guest](b.t.Context(), b.Store)
	if err != nil {
		b.t.Fatal(err)
	}
	return list
}

// A move that a person asks for goes where they say, also without its disks.
func TestMoveAsked(t *testing.T) {
	b := newBench(t, "h1", "h2", "h3")
	b.create("web", func(g *api.Guest) {
		g.Spec.Disks = []api.Disk{{Name: "data", Size: api.Bytes(1 << 30), Retain: true}}
	})
	was := b.placed("web").Status.Host
	b.obey("web")
	to := map[string]string{"h1": "h3", "h2": "h3", "h3": "h2"}[was]
	b.change("web", func(g *api.Guest) {
		if err := Ask(g, api.GuestVerbMove, api.GuestAction{To: to, LoseDisks: true}); err != nil {
			t.Error(err)
		}
	})
	b.because("web", api.CondReady, "Moving")
	b.obey("web")
	b.eventually("it is where it was asked to", func() bool { return b.guest("web").Status.Host == to })
}

// What a host says of requests and snapshots is the Guest's, until it has
// another host.
func TestResults(t *testing.T) {
	b := newBench(t, "h1", "h2")
	b.create("web")
	b.placed("web")
	b.obey("web")
	ask := func(verb string, a api.GuestAction) {
		t.Helper()
		b.change("web", func(g *api.Guest) {
			if err := Ask(g, verb, a); err != nil {
				t.Error(err)
			}
		})
	}
	ask(api.GuestSnapshotCreate, api.GuestAction{ID: "r1", Snapshot: "s1"})
	host := b.guest("web").Status.Host
	b.machine(host, func(m *api.Machine) {
		seen := m.Status.Host.Parts[api.GuestPartName("web")]
		seen.Guest.Result = &api.GuestResult{ID: "r1", Verb: api.GuestSnapshotCreate, Message: "made", Time: time.Now().UTC()}
		seen.Guest.Snapshots = []api.GuestSnapshot{{Name: "s1", Disks: []string{"root"}, Consistency: api.ConsistentCrash}}
		m.Status.Host.Parts[api.GuestPartName("web")] = seen
	})
	b.eventually("the result is the Guest's", func() bool {
		s := b.guest("web").Status
		return s.Result != nil && s.Result.Message == "made" && len(s.Snapshots) == 1
	})
	ask(api.GuestVerbMove, api.GuestAction{LoseDisks: true})
	b.obey("web")
	b.eventually("it has moved", func() bool { s := b.guest("web").Status; return s.Host != host && s.Host != "" })
	if s := b.guest("web").Status; s.Request != nil || s.Result != nil || s.Snapshots != nil {
		t.Errorf("the new host is asked for %+v, and has %+v, %+v", s.Request, s.Result, s.Snapshots)
	}
}

// A host that was switched off for certain has its Guests started elsewhere; one
// with a disk there waits.
func TestHostWithoutPower(t *testing.T) {
	b := newBench(t, "h1")
	b.create("free")
	b.create("pinned", func(g *api.Guest) {
		g.Spec.Disks = []api.Disk{{Name: "data", Size: api.Bytes(1 << 30), Retain: true}}
	})
	b.placed("free")
	b.placed("pinned")
	b.addHost("h2")
	b.machine("h1", func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "Disconnected", "")
	})
	b.Idle(b.control)
	if host := b.guest("free").Status.Host; host != "h1" {
		t.Fatalf("a silent host has lost its Guest to %q", host)
	}
	b.machine("h1", func(m *api.Machine) { m.Status.Conditions.Set(time.Now(), api.CondFenced, api.True, "PoweredOff", "") })
	b.eventually("it starts elsewhere", func() bool { return b.guest("free").Status.Host == "h2" })
	b.because("pinned", api.CondReady, "HostDown")
	if left := b.guest("free").Status.Left; len(left) != 1 || left[0].Host != "h1" {
		t.Errorf("the dead host is not told to take away what it has: %+v", left)
	}
}

func TestWhatKeepsAGuest(t *testing.T) {
	b := newBench(t, "h1")
	b.create("free")
	b.create("data", func(g *api.Guest) {
		g.Spec.Disks = []api.Disk{{Name: "data", Size: api.Bytes(1 << 30), Retain: true}}
	})
	b.placed("free")
	b.placed("data")
	b.drain("h1", true)
	b.because("free", api.CondPlaced, "NowhereToGo")
	b.because("data", api.CondPlaced, "NowhereToGo")

	machines, err := api.LookupKind("Machine")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Store.Delete(t.Context(), machines, "h1", ""); err != nil {
		t.Fatal(err)
	}
	b.because("data", api.CondPlaced, "HostDeleted")
	b.addHost("h2")
	b.eventually("the one without retained disks is placed anew", func() bool { return b.guest("free").Status.Host == "h2" })
	if host := b.guest("data").Status.Host; host != "h1" {
		t.Errorf("the one with a retained disk is on %q", host)
	}
}

func TestWhatAGuestWaitsFor(t *testing.T) {
	b := newBench(t)
	b.create("lost", func(g *api.Guest) { g.Spec.Network = "green" })
	b.create("web")
	b.because("lost", api.CondPlaced, "NoNetwork")
	b.because("web", api.CondPlaced, "NoHost")
	b.addHost("h1")
	b.placed("web")
	b.Create(&api.Network{Base: testsite.Named("green"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.6.0.0/16")}}})
	b.placed("lost")
	b.change("web", func(g *api.Guest) { g.Spec.Image = "none" })
	b.because("web", api.CondReady, "Incomplete")
}
