package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// shelf is a layout in the making: leases that a plan writes stand in it.
type shelf struct {
	*layout
	t        *testing.T
	world    *world
	network  *api.Network
	revision int64
}

const shelfVNI = 100

func newShelf(t *testing.T, hosts int, cidrs ...string) *shelf {
	n := network("net", func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes(cidrs...) })
	n.SetDefaults()
	n.Metadata.UID = "net-uid"
	s := &shelf{layout: newLayout(), t: t, network: n, world: &world{
		vtep:       func(m *api.Machine) netip.Addr { return m.Spec.Links[0].Addresses[0] },
		current:    func(string) bool { return true },
		deleted:    func(hostRecord) bool { return true },
		mayRestore: func(store.FlannelID) bool { return true },
		epoch:      1,
	}}
	for i := range hosts {
		m := machine(i + 1)
		m.Metadata.UID = "uid-" + m.Metadata.Name
		s.world.machines = append(s.world.machines, m)
	}
	s.settle()
	return s
}

// settle carries plans out until nothing is to be done, and returns what was
// written, one line a group: "-KEY" was deleted.
func (s *shelf) settle() (done []string, fault error) {
	s.t.Helper()
	for range 20 {
		p := s.world.plan(s.network, shelfVNI, s.layout)
		if p.done() {
			return done, p.fault
		}
		seen := map[string]bool{}
		for _, group := range p.writes {
			var line []string
			for _, w := range group {
				key := strings.TrimPrefix(w.String(), store.FlannelPrefix+"net/")
				if seen[key] {
					s.t.Errorf("%s is written twice in one plan, which etcd refuses", key)
				}
				seen[key] = true
				if at := s.at(w.FlannelID); at != w.At {
					s.t.Errorf("%s is at %d, and written at %d", key, at, w.At)
				}
				if w.Value == nil {
					key = "-" + key
				}
				line = append(line, key)
				s.revision++
				s.set(store.FlannelKey{FlannelID: w.FlannelID, Value: w.Value, Revision: s.revision})
			}
			done = append(done, strings.Join(line, " "))
		}
		s.revision++
		s.set(store.FlannelKey{FlannelID: store.FlannelID{Network: "net", Kind: store.FlannelOwner}, Revision: s.revision, Value: encode(ownerRecord{UID: "net-uid", VNI: shelfVNI})})
		s.set(store.FlannelKey{FlannelID: store.FlannelID{Network: "net", Kind: store.FlannelConfig}, Revision: s.revision, Value: flannelConfig(s.network, shelfVNI)})
		if p.leases != len(s.subnets) {
			s.t.Errorf("%d leases are counted, %d stand", p.leases, len(s.subnets))
		}
	}
	s.t.Fatalf("it comes to no end: %q", done)
	return nil, nil
}

func (s *shelf) at(id store.FlannelID) int64 {
	if id.Kind == store.FlannelHost {
		return s.hosts[id.Subnet].key.Revision
	}
	return s.subnets[id.Subnet].Revision
}

// guest puts a Guest on a host, "" for none.
func (s *shelf) guest(name, host string, addresses ...string) {
	s.world.guests = slices.DeleteFunc(s.world.guests, func(g *api.Guest) bool { return g.Metadata.Name == name })
	g := &api.Guest{Base: testsite.Named(name), Spec: api.GuestSpec{Network: "net"}, Status: api.GuestStatus{Host: host}}
	for _, a := range addresses {
		g.Status.Addresses = append(g.Status.Addresses, netip.MustParseAddr(a))
	}
	s.world.guests = append(s.world.guests, g)
}

// TestMovedGuests takes one Guest, at home on r1u01 (10.5.1.0/24), to places.
func TestMovedGuests(t *testing.T) {
	const lease, record = "subnets/10.5.1.8-31", "hosts/10.5.1.8-31"
	at := func(host string) func(*shelf) {
		return func(s *shelf) { s.guest("g", host, "10.5.1.8", "fd00:5:0:1::8") }
	}
	gone := func(s *shelf) { s.world.guests = nil }
	zone := func(zone string) func(*shelf) {
		return func(s *shelf) { s.world.machines[1].Spec.Zone = zone }
	}
	for _, c := range []struct {
		name   string
		before []func(*shelf)
		then   func(*shelf)
		want   []string
	}{
		{"at home", nil, at("r1u01"), nil},
		{"nowhere", nil, at(""), nil},
		{"on no Machine", nil, at("r9u99"), nil},
		{"moves", nil, at("r1u02"), []string{lease + " " + record}},
		{"moves on, in place", []func(*shelf){at("r1u02")}, at("r1u03"), []string{lease + " " + record}},
		{"is on an earlier Machine of that name", []func(*shelf){at("r1u02")}, func(s *shelf) { s.world.guests[0].Status.HostUID = "earlier" },
			[]string{"-" + record + " -" + lease + " subnets/10.5.2.0-24"}},
		{"stays", []func(*shelf){at("r1u02")}, at("r1u02"), nil},
		{"comes home", []func(*shelf){at("r1u02")}, at("r1u01"), []string{"-" + record + " -" + lease + " subnets/10.5.2.0-24"}},
		{"goes", []func(*shelf){at("r1u02")}, gone, []string{"-" + record + " -" + lease + " subnets/10.5.2.0-24"}},
		{"has no host", []func(*shelf){at("r1u02")}, at(""), []string{"-" + record + " -" + lease + " subnets/10.5.2.0-24"}},
		{"seems to have gone to a cache that is behind", []func(*shelf){at("r1u02")}, func(s *shelf) {
			gone(s)
			s.world.current = func(string) bool { return false }
		}, nil},
		{"another takes its name over", []func(*shelf){at("r1u02")}, func(s *shelf) {
			gone(s)
			s.guest("h", "r1u02", "10.5.1.8")
		}, []string{record}},
		{"its old host is deleted, and another made", []func(*shelf){at("r1u02")}, func(s *shelf) {
			m := machine(1)
			m.Metadata.UID = "new"
			s.world.machines[0] = m
		}, []string{"-hosts/10.5.1.0-24 -subnets/10.5.1.0-24", "subnets/10.5.4.0-24 hosts/10.5.4.0-24"}},
		{"its host is deleted", []func(*shelf){at("r1u02")}, func(s *shelf) { s.world.machines = slices.Delete(s.world.machines, 1, 2) },
			[]string{"-hosts/10.5.2.0-24 -subnets/10.5.2.0-24 -" + record + " -" + lease}},
		{"its host leaves the Zone", []func(*shelf){at("r1u02")}, func(s *shelf) {
			zone("red")(s)
			s.world.machines[1].Metadata.ResourceVersion = "7"
		}, []string{"-" + record + " -" + lease + " subnets/10.5.2.0-24 hosts/10.5.2.0-24"}},
		{"its host has another address", []func(*shelf){at("r1u02")}, func(s *shelf) {
			s.world.machines[1].Spec.Links[0].Addresses[0] = addr(77)
		}, []string{lease, "subnets/10.5.2.0-24"}},
		{"its host's address changes as it leaves", []func(*shelf){at("r1u02")}, func(s *shelf) {
			gone(s)
			s.world.machines[1].Spec.Links[0].Addresses[0] = addr(77)
		}, []string{"-" + record + " -" + lease + " subnets/10.5.2.0-24"}},
		{"two leave", []func(*shelf){at("r1u02"), func(s *shelf) { s.guest("h", "r1u02", "10.5.3.4") }}, gone,
			[]string{"-" + record + " -" + lease + " -hosts/10.5.3.4-31 -subnets/10.5.3.4-31 subnets/10.5.2.0-24"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShelf(t, 3, "10.5.0.0/16", "fd00:5::/56")
			for _, fn := range c.before {
				fn(s)
				s.settle()
			}
			c.then(s)
			got, fault := s.settle()
			if fault != nil {
				t.Error(fault)
			}
			// Transactions of different hosts may come in any order.
			slices.Sort(got)
			want := slices.Clone(c.want)
			if strings.HasPrefix(c.name, "its host is deleted") { // in whichever order, it is one
				got, want = words(got), words(want)
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("written:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func words(lines []string) []string {
	list := strings.Fields(strings.Join(lines, " "))
	slices.Sort(list)
	return list
}

// TestMovedGuestFaults tells of an address that somebody has reserved, and lets
// no host have it.
func TestMovedGuestFaults(t *testing.T) {
	s := newShelf(t, 1, "10.5.0.0/21")
	s.set(store.FlannelKey{FlannelID: store.FlannelID{Network: "net", Kind: store.FlannelSubnet, Subnet: netip.MustParsePrefix("10.5.6.8/31")}, Value: []byte("{}"), Revision: 99})
	s.guest("g", "r1u01", "10.5.6.8")
	if done, fault := s.settle(); len(done) > 0 || fault == nil || !strings.Contains(fault.Error(), "g moved with addresses that another program has reserved") {
		t.Errorf("%q %v", done, fault)
	}
	s.guest("g", "", "10.5.6.8")
	s.guest("h", "", "10.5.2.8")
	for i := range 6 {
		m := machine(i + 2)
		m.Metadata.UID = "uid-" + m.Metadata.Name
		s.world.machines = append(s.world.machines, m)
	}
	_, fault := s.settle()
	if fault == nil || !strings.Contains(fault.Error(), "is free for r1u06, r1u07") {
		t.Errorf("%v", fault)
	}
	for lease := range s.hosts {
		if lease.Contains(netip.MustParseAddr("10.5.2.8")) || lease.Contains(netip.MustParseAddr("10.5.6.8")) {
			t.Errorf("a host has %s, in which a Guest is", lease)
		}
	}
}

// TestManyLeave: more Guests of one host than one transaction takes.
func TestManyLeave(t *testing.T) {
	s := newShelf(t, 2, "10.5.0.0/16")
	for i := range 100 {
		s.guest(fmt.Sprint("g", i), "r1u02", fmt.Sprintf("10.5.1.%d", 2*i+2))
	}
	s.settle()
	s.world.guests = nil
	done, _ := s.settle()
	if len(done) != 5 || len(s.hosts) != 2 {
		t.Errorf("%d transactions, %d leases left", len(done), len(s.hosts))
	}
	for _, line := range done {
		if keys := strings.Fields(line); len(keys) > maxWrites || keys[len(keys)-1] != "subnets/10.5.2.0-24" {
			t.Errorf("%d writes, the last %s", len(keys), keys[len(keys)-1])
		}
	}
}

func TestFreeSubnets6(t *testing.T) {
	for _, c := range []struct {
		name  string
		cidr  string
		bits  int
		n     int
		taken []netip.Prefix
		want  []netip.Prefix
	}{
		{"the first is left out", "fd00::/56", 64, 2, nil, testsite.Prefixes("fd00:0:0:1::/64", "fd00:0:0:2::/64")},
		{"gaps", "fd00::/56", 64, 2, testsite.Prefixes("fd00:0:0:1::/64", "fd00:0:0:3::/64"), testsite.Prefixes("fd00:0:0:2::/64", "fd00:0:0:4::/64")},
		{"a guest in it", "fd00::/56", 64, 1, testsite.Prefixes("fd00:0:0:1::8/128"), testsite.Prefixes("fd00:0:0:2::/64")},
		{"within a byte", "fd00::/64", 67, 9, testsite.Prefixes("fd00::4000:0:0:0/67"), testsite.Prefixes("fd00::2000:0:0:0/67", "fd00::6000:0:0:0/67", "fd00::8000:0:0:0/67", "fd00::a000:0:0:0/67", "fd00::c000:0:0:0/67", "fd00::e000:0:0:0/67")},
		{"a larger one", "fd00::/56", 64, 1, testsite.Prefixes("fd00::/57"), testsite.Prefixes("fd00:0:0:80::/64")},
		{"an enormous one", "fd00::/8", 126, 1, testsite.Prefixes("fd00::/9"), testsite.Prefixes("fd80::/126")},
		{"all", "fd00::/62", 64, 9, testsite.Prefixes("fd00:0:0:1::/64", "fd00:0:0:2::/64", "fd00:0:0:3::/64"), nil},
		{"the last of all", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 122, 9, nil, testsite.Prefixes("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff40/122", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff80/122", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0/122")},
	} {
		if got := freeSubnets6(netip.MustParsePrefix(c.cidr), c.bits, c.n, c.taken); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// TestDualStack gives a Network that stands an IPv6 CIDR, takes it to its end,
// and widens it.
func TestDualStack(t *testing.T) {
	s := newShelf(t, 3, "10.5.0.0/16")
	s.network.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "fd00:5::/62")
	s.network.SetDefaults()
	if done, fault := s.settle(); fault != nil || len(done) != 3 {
		t.Fatalf("%q %v", done, fault)
	}
	seen := map[netip.Prefix]bool{}
	for lease, h := range s.hosts {
		seen[h.Lease6] = true
		if h.Lease6.Bits() != 64 || !strings.Contains(string(h.key.Value), `"lease6":"fd00:5:0:`) {
			t.Errorf("%s: %s", lease, h.key.Value)
		}
	}
	if len(seen) != 3 {
		t.Errorf("%v", seen)
	}
	before := map[netip.Prefix]netip.Prefix{}
	for lease, h := range s.hosts {
		before[lease] = h.Lease6
	}
	m := machine(4)
	m.Metadata.UID = "uid-4"
	s.world.machines = append(s.world.machines, m)
	if _, fault := s.settle(); fault == nil || !strings.Contains(fault.Error(), "no /64 of the IPv6 CIDR in spec.cidrs is free for r1u04: widen") {
		t.Errorf("%v", fault)
	}
	s.network.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "fd00:5::/56")
	if _, fault := s.settle(); fault != nil {
		t.Error(fault)
	}
	for lease, l6 := range before {
		if s.hosts[lease].Lease6 != l6 {
			t.Errorf("%s had %s and has %s", lease, l6, s.hosts[lease].Lease6)
		}
	}
	s.network.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "fd00:6::/56")
	if _, fault := s.settle(); fault == nil || !strings.Contains(fault.Error(), "are no longer in any of spec.cidrs") {
		t.Errorf("%v", fault)
	}
	// What hosts are told, and what of it is a delta.
	list := s.peers()
	if !slices.ContainsFunc(list, func(p peer) bool { return p.Lease6.IsValid() && p.uid == "uid-4" }) {
		t.Errorf("%+v", list)
	}
	old, _ := newView(1, slices.Clone(list))
	list[1].Lease6 = netip.MustParsePrefix("fd00:9::/64")
	now, _ := newView(2, list)
	d := partOf(t, now, "nobody").Delta(partOf(t, old, "nobody"))
	if d == nil || len(d.Put) != 1 || d.Put[0].Lease6.String() != "fd00:9::/64" || partOf(t, now, "nobody").Digest() == partOf(t, old, "nobody").Digest() {
		t.Errorf("%+v", d)
	}
}

// TestMove follows a Guest's status into etcd, over a bootd that is killed.
func TestMove(t *testing.T) {
	b := newBench(t)
	b.Create(machine(1), machine(2), machine(3), network("net"))
	b.settled("net", "Allocated", 3)
	home := netip.MustParsePrefix(strings.Replace(b.leaseOf("net", "r1u01"), "-", "/", 1))
	address := netip.AddrFrom4([4]byte{10, 5, home.Addr().As4()[2], 8})
	b.Create(newGuest("g"))
	b.place("g", "r1u02", address)
	key := address.String() + "-31"
	b.eventually("the extra lease", func() bool {
		l := b.layout("net")
		return strings.Contains(l["subnets/"+key], addr(2).String()) && strings.Contains(l["hosts/"+key], `"guest":"g"`)
	})
	moved := func(host string) []netip.Prefix {
		for _, m := range b.c.Index.Memberships(b.Machine(host).Metadata.UID) {
			return m.Moved
		}
		return nil
	}
	b.eventually("its host knows", func() bool {
		return slices.Equal(moved("r1u02"), []netip.Prefix{guestLease(address)}) && moved("r1u01") == nil
	})
	b.settled("net", "Allocated", 4)

	b.stop()
	b.place("g", "r1u03", address)
	b.start()
	b.eventually("it moved on", func() bool {
		l := b.layout("net")
		return strings.Contains(l["subnets/"+key], addr(3).String()) && strings.Contains(l["hosts/"+key], "r1u03")
	})
	b.eventually("its hosts know", func() bool { return len(moved("r1u03")) == 1 && moved("r1u02") == nil })
	own := store.FlannelPrefix + "net/subnets/" + b.ownLease("net", "r1u03")
	before, err := b.Store.Client().Get(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Store.Delete(t.Context(), api.KindOf(new(api.Guest)), "g", ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("the lease is gone", func() bool { return b.layout("net")["subnets/"+key] == "" })
	after, err := b.Store.Client().Get(t.Context(), own)
	if err != nil || after.Kvs[0].ModRevision == before.Kvs[0].ModRevision || string(after.Kvs[0].Value) != string(before.Kvs[0].Value) {
		t.Errorf("the host's own lease was not written again: %v %v", after, err)
	}
	b.settled("net", "Allocated", 3)
}

func newGuest(name string) *api.Guest {
	g := &api.Guest{Base: testsite.Named(name), Spec: api.GuestSpec{Network: "net", Image: "i", CPUs: 1}}
	g.Spec.Memory, _ = api.ParseQuantity("1Gi")
	return g
}

// place writes a Guest's status as the guest controller does.
func (b *bench) place(name, host string, addresses ...netip.Addr) {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.Store, name, func(g *api.Guest) error {
		g.Status.Host, g.Status.Addresses = host, addresses
		return nil
	}); err != nil {
		b.t.Fatal(err)
	}
	b.Sync()
}

// ownLease is a host's own lease, beside which it has others.
func (b *bench) ownLease(name, host string) string {
	b.t.Helper()
	for key, value := range b.layout(name) {
		if subnet, ok := strings.CutPrefix(key, "hosts/"); ok && strings.Contains(value, `"`+host+`"`) && !strings.Contains(value, `"guest"`) {
			return subnet
		}
	}
	b.t.Fatalf("%s has no lease", host)
	return ""
}
