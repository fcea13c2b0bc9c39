package overlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

func plain() tenant { return tenant{name: "plain", uid: "uid-plain", vni: 4242, second: 30} }

func (f *fabric) directPart(n tenant, i int) nodeagent.Part {
	p := f.part(n, i)
	p.Digest = "direct"
	p.Value.(*api.NetworkPart).Direct = true
	return p
}

// away moves host i to another subnet of the same link, as one behind a router
// would be seen.
func (f *fabric) away(i int) {
	f.t.Helper()
	h := f.hosts[i-1]
	eth0, err := h.LinkByName("eth0")
	must(f.t, err)
	must(f.t, h.AddrDel(eth0, toAddress(netip.PrefixFrom(h.underlay, 24))))
	h.underlay = netip.AddrFrom4([4]byte{198, 18, 1, byte(i)})
	h.address("eth0", netip.PrefixFrom(h.underlay, 24))
	h.restart()
	for j, other := range f.hosts {
		dst := ipNet(netip.MustParsePrefix("198.18.1.0/24"))
		if j+1 == i {
			dst = ipNet(netip.MustParsePrefix("198.18.0.0/24"))
		}
		eth0, err := other.LinkByName("eth0")
		must(f.t, err)
		must(f.t, other.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}))
	}
}

// alone leaves host i on the link of the others, but to itself there is nobody
// on it: it sends by VXLAN what it may be sent directly, as a stock flanneld.
func (f *fabric) alone(i int) {
	f.t.Helper()
	h := f.hosts[i-1]
	eth0, err := h.LinkByName("eth0")
	must(f.t, err)
	must(f.t, h.AddrDel(eth0, toAddress(netip.PrefixFrom(h.underlay, 24))))
	h.address("eth0", netip.PrefixFrom(h.underlay, 32))
	for _, dst := range prefixes("198.18.0.0/24", "198.18.1.0/24") {
		must(f.t, h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(dst), Scope: netlink.SCOPE_LINK}))
	}
}

// tunnelled counts what the host sent through the Network's VXLAN.
func (h *testHost) tunnelled(n tenant) uint64 {
	h.fabric.t.Helper()
	l, err := h.tenant(n).LinkByName(vxlanName(n.vni))
	must(h.fabric.t, err)
	return l.Attrs().Statistics.TxPackets
}

func TestDirect(t *testing.T) {
	f := newFabric(t, 4, false)
	f.away(3)
	f.alone(4)
	f.router()
	n, twin, masked := plain(), red(), green()
	n.egress, masked.egress = "masquerade", "masquerade"
	twin.second = n.second // has the direct Network's CIDR, and carries it by VXLAN
	all := []tenant{n, twin, masked}
	before := []string{f.hosts[0].summary(t) + f.hosts[0].routes(t), readSysctl(t, f.hosts[0].place, "net/ipv4/conf/eth0/forwarding")}
	pass := func() {
		t.Helper()
		for i, h := range f.hosts {
			h.reconcile(f.directPart(n, i+1), f.part(twin, i+1), f.part(masked, i+1))
		}
	}
	pass()
	people := f.crew(all...)
	ping := func(from, to int) {
		t.Helper()
		if err := newPinger(t, people[fmt.Sprint("plain", from)].ns, guest4(n, from)).ping(guest4(n, to), 1400, patience); err != nil {
			t.Errorf("h%d does not reach h%d: %v", from, to, err)
		}
	}
	for _, tt := range []struct {
		from, to int
		out      bool // the request is tunnelled
		back     bool
	}{{1, 2, false, false}, {2, 1, false, false}, {1, 3, true, true}, {3, 1, true, true}, {1, 4, false, true}, {4, 2, true, false}, {1, 1, false, false}} {
		out, back := f.hosts[tt.from-1].tunnelled(n), f.hosts[tt.to-1].tunnelled(n)
		ping(tt.from, tt.to)
		if got := f.hosts[tt.from-1].tunnelled(n) > out; got != tt.out {
			t.Errorf("from h%d to h%d by VXLAN: %v, want %v", tt.from, tt.to, got, tt.out)
		}
		if got := f.hosts[tt.to-1].tunnelled(n) > back; got != tt.back {
			t.Errorf("from h%d back to h%d by VXLAN: %v, want %v", tt.to, tt.from, got, tt.back)
		}
	}
	if err := dial(t, people["plain1"], guest4(n, 1), people["plain2"], guest4(n, 2), patience); err != nil {
		t.Errorf("TCP: %v", err)
	}
	if err := newPinger(t, people["plain1"].ns, guest4(n, 1)).ping(netip.MustParseAddr("198.19.9.9"), 56, patience); err != nil {
		t.Errorf("no egress beside it: %v", err)
	}
	for _, other := range []tenant{twin, masked} {
		f.allPairs(other)
	}

	// Nobody else comes in: not a Network with the same addresses, not one that
	// is masqueraded, not the underlay, not with a source of another's.
	heard := listen(t, people["plain2"])
	masquerader, samer := people["green1"], people["red1"]
	sendFrom(t, masquerader, netip.AddrPortFrom(guest4(masked, 1), 0), netip.AddrPortFrom(guest4(n, 2), probePort), "masqueraded")
	sendFrom(t, samer, netip.AddrPortFrom(guest4(twin, 1), 0), netip.AddrPortFrom(guest4(n, 2), probePort), "same CIDR")
	for i, h := range f.hosts[2:] {
		eth0, err := h.LinkByName("eth0")
		must(t, err)
		// A stranger on the link routes to the host, with its own address.
		_ = h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.PrefixFrom(guest4(n, 2), 32)), Gw: f.hosts[1].underlay.AsSlice()})
		sendTo(t, h.place, netip.AddrPortFrom(guest4(n, 2), probePort), []byte(fmt.Sprint("underlay ", i)))
		_ = h.RouteDel(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.PrefixFrom(guest4(n, 2), 32))})
	}
	sendFrom(t, people["plain1"], netip.AddrPortFrom(guest4(n, 1), 0), netip.AddrPortFrom(guest4(n, 2), probePort), "last")
	if got := heardSoon(heard, "last"); len(got) != 1 {
		t.Errorf("heard %q", got)
	}
	// What is nobody's lease does not leave by the default route.
	if newPinger(t, people["plain1"].ns, guest4(n, 1)).ping(netip.MustParseAddr("10.30.200.9"), 56, moment) == nil {
		t.Error("an address of no lease answers")
	}
	for _, to := range []netip.Addr{f.hosts[0].underlay, f.hosts[1].underlay} {
		if newPinger(t, people["plain1"].ns, guest4(n, 1)).ping(to, 56, moment) == nil {
			t.Errorf("%s is reached", to)
		}
	}

	t.Run("a new agent changes nothing", func(t *testing.T) {
		was := f.state(all...)
		for range 3 {
			for _, h := range f.hosts {
				h.restart()
			}
			pass()
		}
		pass()
		unchanged(t, was, f.state(all...))
		for _, h := range f.hosts {
			if repairs := h.overlay.HostRepairs() + h.overlay.repairs("plain"); repairs != 0 {
				t.Errorf("%d repairs on %s", repairs, h.name)
			}
		}
	})
	peer := ipNet(n.lease(2))
	f.mends(pass, all, []breakage{
		{"host's route to a peer", tenant{}, func(p place) error { return p.RouteDel(&netlink.Route{Dst: peer}) }},
		{"host's route to itself", tenant{}, func(p place) error { return p.RouteDel(&netlink.Route{Dst: ipNet(n.lease(1))}) }},
		{"host's route of ours to nowhere", tenant{}, onLink("eth0", func(p place, l netlink.Link) error {
			return p.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.77.0.0/24")), LinkIndex: l.Attrs().Index, Protocol: Protocol, Scope: netlink.SCOPE_LINK})
		})},
		{"tenant's route to a peer", n, func(p place) error { return p.RouteDel(&netlink.Route{Dst: peer}) }},
	})
	must(t, onLink(egressName(n.vni), func(p place, l netlink.Link) error { return p.LinkDel(l) })(f.hosts[0].place))
	pass()
	ping(1, 2)

	// Back to VXLAN, and gone.
	f.reconcile(all...)
	was := f.hosts[0].tunnelled(n)
	ping(1, 2)
	if f.hosts[0].tunnelled(n) == was {
		t.Error("still direct")
	}
	for _, m := range all {
		f.hosts[0].reconcile(removed(m))
	}
	pass2 := []string{f.hosts[0].summary(t) + f.hosts[0].routes(t), readSysctl(t, f.hosts[0].place, "net/ipv4/conf/eth0/forwarding")}
	unchanged(t, strings.Join(before, "\n"), strings.Join(pass2, "\n"))
}

// Where direct routes would mix tenants or take somebody's subnet there are none.
func TestDirectRefused(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	direct := func(n tenant) nodeagent.Part { return f.directPart(n, 1) }
	n, other := plain(), spare()
	other.v6 = false
	same := other
	same.second = n.second
	outside := direct(n)
	outside.Value.(*api.NetworkPart).CIDRs = prefixes("10.99.0.0/16")
	allowing := direct(n)
	allowing.Value.(*api.NetworkPart).Allow = []api.NetworkAllow{{Network: other.name, UID: other.uid, VNI: other.vni, CIDRs: other.cidrs()}}
	for _, tt := range []struct {
		name   string
		closed []netip.Prefix
		parts  []nodeagent.Part
		failed string
		text   string
	}{
		{"a closed subnet", prefixes("10.30.7.0/24"), []nodeagent.Part{direct(n)}, "plain", "overlaps with the subnet 10.30.7.0/24"},
		{"another direct Network", nil, []nodeagent.Part{direct(n), direct(same)}, "plain", "of Network spare, which is routed directly"},
		{"a lease outside of its CIDRs", nil, []nodeagent.Part{outside}, "plain", "not in any of the Network's CIDRs"},
		{"guests of others come in", nil, []nodeagent.Part{allowing, f.part(other, 1)}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.setUnderlay(func(u *api.Underlay) { u.Closed = tt.closed })
			status := h.overlay.Reconcile(t.Context(), tt.parts)
			for key, s := range status {
				if failed := key == "network/"+tt.failed; failed != (s.State == api.PartFailed) || failed && !strings.Contains(s.Message, tt.text) {
					t.Errorf("%s is %+v", key, s)
				}
			}
			if routes := h.routes(t); tt.name != "another direct Network" && routes != "" {
				t.Errorf("routes of the host:\n%s", routes)
			}
			if _, there := h.entries(n).routes[destination{Prefix: n.lease(2)}]; !there {
				t.Error("the peer is not reached by VXLAN")
			}
			h.reconcile(removed(n), removed(other))
		})
	}
}
