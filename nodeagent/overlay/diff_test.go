package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
)

// model does with entries what the kernel does.
type model struct{ entries }

func (m model) clone() model {
	c := model{entries{maps.Clone(m.fdb), maps.Clone(m.neighbours), maps.Clone(m.nexthops), maps.Clone(m.routes)}}
	for k, v := range c.fdb {
		c.fdb[k] = slices.Clone(v)
	}
	return c
}

func (m model) apply(o entryOp) error {
	switch e := o.entry.(type) {
	case fdbEntry:
		list := m.fdb[e.mac]
		switch {
		case o.verb == remove:
			i := slices.Index(list, e)
			if i < 0 {
				return unix.ENOENT
			}
			list = slices.Delete(list, i, i+1)
		case len(list) == 0:
			list = []fdbEntry{e}
		case o.verb == create:
			return unix.EEXIST
		default:
			list[0] = e
		}
		m.fdb[e.mac] = list
		if len(list) == 0 {
			delete(m.fdb, e.mac)
		}
		return nil
	case neighbour:
		return modelPut(o.verb, m.neighbours, e.ip, e.mac)
	case nexthop:
		if o.verb == remove {
			maps.DeleteFunc(m.routes, func(_ destination, id uint32) bool { return id == e.id })
		}
		return modelPut(o.verb, m.nexthops, e.id, e.via)
	case route:
		if _, ok := m.nexthops[e.nexthop]; !ok && e.nexthop != 0 && o.verb != remove {
			return unix.EINVAL
		}
		return modelPut(o.verb, m.routes, e.dst, e.nexthop)
	}
	panic("unknown entry")
}

func modelPut[K comparable, V any](v verb, m map[K]V, k K, value V) error {
	_, there := m[k]
	switch {
	case v == remove && !there:
		return unix.ENOENT
	case v == remove:
		delete(m, k)
		return nil
	case v == create && there:
		return unix.EEXIST
	}
	m[k] = value
	return nil
}

// All that two peers can be wanted as, against all that the kernel can have.
func TestDiffEntriesExhaustively(t *testing.T) {
	all := []peer{
		{host: "a", lease: netip.MustParsePrefix("10.5.2.0/24"), vtep: netip.MustParseAddr("198.18.0.2"), mac: mac{2, 0, 0, 0, 0, 2}},
		{host: "b", lease: netip.MustParsePrefix("10.5.3.0/24"), vtep: netip.MustParseAddr("198.18.0.3"), mac: mac{2, 0, 0, 0, 0, 3}},
	}
	wants := [][]peer{nil, all[:1], all[1:], all}
	fdbStates := func(p peer) [][]fdbEntry {
		right := fdbEntry{mac: p.mac, dst: p.vtep, state: unix.NUD_PERMANENT}
		wrong, ported := right, right
		wrong.dst, ported.port = netip.MustParseAddr("198.18.0.77"), 4789
		return [][]fdbEntry{nil, {right}, {wrong}, {ported}, {right, wrong}, {wrong, right}, {wrong, ported}}
	}
	wrongMAC, elsewhere := mac{2, 7}, netip.MustParseAddr("10.5.9.0")
	cases, step := 0, 1
	if testing.Short() {
		step = 17 // shares no factor with the number of states
	}
	for i := 0; i < 7*7*3*3*3*3*4*4; i += step {
		seen, digit := newEntries(2), i
		next := func(n int) int { d := digit % n; digit /= n; return d }
		for _, p := range all {
			gateway := p.lease.Addr()
			if s := fdbStates(p)[next(7)]; s != nil {
				seen.fdb[p.mac] = s
			}
			if n := next(3); n > 0 {
				seen.neighbours[gateway] = []mac{p.mac, wrongMAC}[n-1]
			}
			if n := next(3); n > 0 {
				seen.nexthops[nexthopID(p.lease)] = []netip.Addr{gateway, elsewhere}[n-1]
			}
			// A route goes with its nexthop.
			n := next(4)
			if _, ok := seen.nexthops[nexthopID(p.lease)]; n == 1 && ok {
				seen.routes[destination{Prefix: p.lease}] = nexthopID(p.lease)
			}
			if n == 2 {
				seen.routes[destination{Prefix: p.lease}] = 0
			}
			if n == 3 {
				seen.routes[destination{Prefix: p.lease, metric: 7}] = 0
			}
		}
		for _, peers := range wants {
			cases++
			checkDiff(t, wantEntries(peers), seen)
			if t.Failed() {
				return
			}
		}
	}
	if cases < 200000/step {
		t.Errorf("only %d cases", cases)
	}
}

func checkDiff(t *testing.T, want, seen entries) {
	t.Helper()
	kernel := model{seen}.clone()
	ops := diffEntries(want, seen)
	for _, o := range ops {
		whole := wholePeers(want, kernel.entries)
		if err := kernel.apply(o); err != nil && !gone(o, err) {
			t.Fatalf("%v on %v: %s: %v", want, seen, o, err)
		}
		if after := wholePeers(want, kernel.entries); after < whole {
			t.Errorf("%v on %v: %s interrupts a peer that is in order", want, seen, o)
		}
	}
	if !reflect.DeepEqual(kernel.entries, want) {
		t.Errorf("want %v\nseen %v\nops %v\ngot %v", want, seen, ops, kernel.entries)
	}
	if again := diffEntries(want, kernel.entries); len(again) > 0 {
		t.Errorf("want %v\nseen %v\na second pass: %v", want, seen, again)
	}
}

// wholePeers counts the routes whose packets would reach their peer.
func wholePeers(want, seen entries) int {
	n := 0
	for dst, id := range want.routes {
		if seen.routes[dst] != id {
			continue
		}
		via := seen.nexthops[id]
		lladdr, ok := seen.neighbours[via]
		if ok && via == want.nexthops[id] && lladdr == want.neighbours[via] && len(seen.fdb[lladdr]) > 0 &&
			slices.Contains(seen.fdb[lladdr], want.fdb[lladdr][0]) {
			n++
		}
	}
	return n
}

func TestDiffLinks(t *testing.T) {
	n := network{name: "red", uid: "u", vni: 7, mtu: 1450, mac: mac{2, 1}, lease: netip.MustParsePrefix("10.5.1.0/24"),
		underlay: 3, source: netip.MustParseAddr("198.18.0.1")}
	seen := func(change func(map[string]link)) map[string]link {
		m := map[string]link{"theirs": {name: "theirs", kind: "dummy"}}
		for _, l := range wantLinks(n) {
			l.index = 5
			l.addresses = slices.Clone(l.addresses)
			m[l.name] = l
		}
		change(m)
		return m
	}
	set := func(name string, change func(*link)) func(map[string]link) {
		return func(m map[string]link) { l := m[name]; change(&l); m[name] = l }
	}
	made := "add flannel.7; set alias of flannel.7; set up flannel.7; add address to flannel.7 10.5.1.0/32"
	for _, tt := range []struct {
		name   string
		change func(map[string]link)
		ops    string
		err    string
	}{
		{name: "in order", change: func(map[string]link) {}},
		{name: "nothing there", change: func(m map[string]link) { clear(m); m["lo"] = link{name: "lo", kind: "device"} },
			ops: "set alias of lo; set up lo; " + made + "; add br-7; set alias of br-7; set MTU of br-7; set up br-7; add address to br-7 10.5.1.1/24; add address to br-7 169.254.1.1/32; add address to br-7 169.254.169.254/32"},
		{name: "no VXLAN", change: func(m map[string]link) { delete(m, "flannel.7") }, ops: made},
		{name: "unmarked", change: set("flannel.7", func(l *link) { l.alias = "" }), ops: "set alias of flannel.7"},
		{name: "theirs", change: set("flannel.7", func(l *link) { l.alias = "x" }), err: "flannel.7 is marked"},
		{name: "down", change: set("br-7", func(l *link) { l.up = false }), ops: "set up br-7"},
		{name: "MTU", change: set("br-7", func(l *link) { l.mtu = 1 }), ops: "set MTU of br-7"},
		{name: "MAC", change: set("flannel.7", func(l *link) { l.mac[3]++ }), ops: "set MAC of flannel.7"},
		{name: "addresses", change: set("flannel.7", func(l *link) { l.addresses[0] = netip.MustParsePrefix("10.5.1.9/32") }),
			ops: "add address to flannel.7 10.5.1.0/32; remove address from flannel.7 10.5.1.9/32"},
		{name: "loopback's addresses", change: set("lo", func(l *link) { l.addresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")} })},
		{name: "kind", change: set("flannel.7", func(l *link) { l.kind = "bridge" }), ops: "remove flannel.7; " + made},
		{name: "VNI", change: set("flannel.7", func(l *link) { l.vni = 8 }), ops: "remove flannel.7; " + made},
		{name: "underlay", change: set("flannel.7", func(l *link) { l.underlay = 8 }), ops: "remove flannel.7; " + made},
		{name: "source", change: set("flannel.7", func(l *link) { l.source = netip.MustParseAddr("::1") }), ops: "remove flannel.7; " + made},
		{name: "port", change: set("flannel.7", func(l *link) { l.port = 4789 }), ops: "remove flannel.7; " + made},
		{name: "learning", change: set("flannel.7", func(l *link) { l.learning = true }), ops: "remove flannel.7; " + made},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ops, err := diffLinks(wantLinks(n), seen(tt.change))
			var lines []string
			for _, o := range ops {
				lines = append(lines, o.String())
			}
			if got := strings.Join(lines, "; "); got != tt.ops {
				t.Errorf("ops are %s\nwant %s", got, tt.ops)
			}
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

func TestCompile(t *testing.T) {
	u := underlay{name: "eth0", index: 2, mtu: 1500, addresses: []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:db8::1")}}
	peerPart := func(host, lease, vtep string, m api.MAC) api.NetworkPeer {
		return api.NetworkPeer{Host: host, Lease: netip.MustParsePrefix(lease), VTEP: netip.MustParseAddr(vtep), MAC: m}
	}
	for _, tt := range []struct {
		name   string
		change func(*api.NetworkPart)
		mtu    int
		source string
		peers  int
		note   string
		err    string
	}{
		{name: "good", change: func(*api.NetworkPart) {}, mtu: 1450, source: "198.18.0.1", peers: 1},
		{name: "no peers", change: func(p *api.NetworkPart) { p.Peers = nil }, mtu: 1450, source: "198.18.0.1"},
		{name: "IPv6", change: func(p *api.NetworkPart) { p.Peers[0].VTEP = netip.MustParseAddr("2001:db8::2") }, mtu: 1430, source: "2001:db8::1", peers: 1, note: "using 1430"},
		{name: "MTU of the underlay", change: func(p *api.NetworkPart) { p.MTU = 0 }, mtu: 1450, source: "198.18.0.1", peers: 1},
		{name: "small MTU", change: func(p *api.NetworkPart) { p.MTU = 1280 }, mtu: 1280, source: "198.18.0.1", peers: 1},
		{name: "tiny MTU", change: func(p *api.NetworkPart) { p.MTU = 68 }, err: "less than 576"},
		{name: "VNI", change: func(p *api.NetworkPart) { p.VNI = 1 << 24 }, err: "16777215"},
		{name: "uid", change: func(p *api.NetworkPart) { p.UID = "" }, err: "no uid"},
		{name: "MAC", change: func(p *api.NetworkPart) { p.MAC = "01:00:5e:00:00:01" }, err: "no unicast MAC"},
		{name: "no lease", change: func(p *api.NetworkPart) { p.Lease = netip.Prefix{} }, err: "missing"},
		{name: "unmasked lease", change: func(p *api.NetworkPart) { p.Lease = netip.MustParsePrefix("10.5.1.9/24") }, err: "meant is 10.5.1.0/24"},
		{name: "a /32", change: func(p *api.NetworkPart) { p.Lease = netip.MustParsePrefix("10.5.1.9/32") }, err: "8-31"},
		{name: "IPv6 lease", change: func(p *api.NetworkPart) { p.Lease = netip.MustParsePrefix("fd00::/64") }, err: "lease6"},
		{name: "unmasked lease6", change: func(p *api.NetworkPart) { p.Lease6 = netip.MustParsePrefix("fd00::9/64") }, err: "meant is fd00::/64"},
		{name: "IPv4 as lease6", change: func(p *api.NetworkPart) { p.Lease6 = netip.MustParsePrefix("10.5.1.0/24") }, err: "not IPv6"},
		{name: "link-local lease6", change: func(p *api.NetworkPart) { p.Lease6 = netip.MustParsePrefix("fe80::/64") }, err: "not routed"},
		{name: "a /127 as lease6", change: func(p *api.NetworkPart) { p.Lease6 = netip.MustParsePrefix("fd00::2/127") }, err: "8-126"},
		{name: "both families", change: func(p *api.NetworkPart) {
			p.Lease6, p.Peers[0].Lease6 = netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:2::/64")
		}, mtu: 1450, source: "198.18.0.1", peers: 1},
		{name: "IPv6 and a small MTU", change: func(p *api.NetworkPart) { p.MTU, p.Lease6 = 1279, netip.MustParsePrefix("fd00:1::/64") },
			mtu: 1279, source: "198.18.0.1", peers: 1, note: "no IPv6: it needs an MTU of 1280"},
		{name: "peer with this host's lease6", change: func(p *api.NetworkPart) {
			p.Lease6, p.Peers[0].Lease6 = netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:1::/64")
		}, mtu: 1450, source: "198.18.0.1", note: "its lease6 fd00:1::/64 begins where that of this host does"},
		{name: "peer at this host", change: func(p *api.NetworkPart) {
			p.Peers = append(p.Peers, peerPart("x", "10.5.3.0/24", "198.18.0.1", "02:00:00:00:00:03"))
		}, mtu: 1450, source: "198.18.0.1", peers: 1, note: "peer x is left out: its VTEP 198.18.0.1 is this host's"},
		{name: "peer with this host's lease", change: func(p *api.NetworkPart) {
			p.Peers = append(p.Peers, peerPart("x", "10.5.1.0/24", "198.18.0.3", "02:00:00:00:00:03"))
		}, mtu: 1450, source: "198.18.0.1", peers: 1, note: "begins where that of this host does"},
		{name: "peer with another's MAC", change: func(p *api.NetworkPart) {
			p.Peers = append(p.Peers, peerPart("x", "10.5.3.0/24", "198.18.0.3", "02:00:00:00:00:02"))
		}, mtu: 1450, source: "198.18.0.1", peers: 1, note: "its MAC 02:00:00:00:00:02 is that of b"},
		{name: "second lease of a peer", change: func(p *api.NetworkPart) {
			p.Peers = append(p.Peers, peerPart("b", "10.5.3.8/31", "198.18.0.2", "02:00:00:00:00:02"))
		}, mtu: 1450, source: "198.18.0.1", peers: 2},
		{name: "a moved Guest with an IPv6 address", change: func(p *api.NetworkPart) {
			p.Peers = append(p.Peers, peerPart("b", "10.5.3.8/31", "198.18.0.2", "02:00:00:00:00:02"))
			p.Peers[1].Lease6 = netip.MustParsePrefix("fd00::8/128")
		}, mtu: 1450, source: "198.18.0.1", peers: 2},
		{name: "peer of the other family", change: func(p *api.NetworkPart) {
			p.Peers = append(p.Peers, peerPart("x", "10.5.3.0/24", "2001:db8::3", "02:00:00:00:00:03"))
		}, mtu: 1450, source: "198.18.0.1", peers: 1, note: "not of the family"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			part := api.NetworkPart{UID: "u", VNI: 7, MTU: 1450, Lease: netip.MustParsePrefix("10.5.1.0/24"), MAC: "02:00:00:00:00:01",
				Peers: []api.NetworkPeer{peerPart("b", "10.5.2.0/24", "198.18.0.2", "02:00:00:00:00:02")}}
			tt.change(&part)
			n, notes, err := compile("red", part, u)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n.mtu != tt.mtu || n.source.String() != tt.source || len(n.peers) != tt.peers || !strings.Contains(fmt.Sprint(notes), tt.note) || tt.note == "" && len(notes) > 0 {
				t.Errorf("MTU %d, source %s, peers %v, notes %q", n.mtu, n.source, n.peers, notes)
			}
		})
	}
}

// FuzzNetlink walks over whatever bytes a netlink socket could give.
func FuzzNetlink(f *testing.F) {
	f.Add(message{typ: unix.RTM_NEWNEIGH, body: ndmsg(unix.AF_BRIDGE, 1, 128, 2)}.append(nil, 1, 0))
	o := entryOp{create, fdbEntry{mac: mac{2}, dst: netip.MustParseAddr("198.18.0.2"), port: 1, vni: 2, ifindex: 3}}
	f.Add(o.message(1).append(nil, 1, 0))
	f.Add(entryOp{replace, neighbour{netip.MustParseAddr("10.5.2.0"), mac{2}}}.message(1).append(nil, 1, 0))
	f.Add(entryOp{create, nexthop{7, netip.MustParseAddr("10.5.2.0")}}.message(1).append(nil, 1, 0))
	f.Add(entryOp{create, route{destination{netip.MustParsePrefix("10.5.2.0/24"), 1}, 7}}.message(1).append(nil, 1, 0))
	f.Fuzz(func(_ *testing.T, b []byte) {
		e := newEntries(0)
		_, _ = eachMessage(b, func(_ unix.NlMsghdr, body []byte) (bool, error) {
			e.seeFDB(body, 1)
			e.seeNeighbour(body, 1)
			e.seeNexthop(body, 1)
			e.seeRoute(body, 1)
			return false, nil
		})
	})
}
