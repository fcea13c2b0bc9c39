package overlay

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// moment is how long an answer that must not come is waited for.
const moment = 100 * time.Millisecond

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func (h *testHost) setUnderlay(change func(*api.Underlay)) {
	u := api.Underlay{Interface: "eth0", Addresses: []netip.Addr{h.underlay}}
	change(&u)
	h.overlay.SetUnderlay(u)
}

func (p place) writeSysctl(t testing.TB, name, value string) {
	t.Helper()
	must(t, within(p.ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) }))
}

// What the Site says is closed is closed to masqueraded tenants, but for what
// one Network may reach; UDP 8472 and the host itself no Network may.
func TestClosedPrefixes(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	router := f.router()
	lo, err := router.LinkByName("lo")
	must(t, err)
	bmc, other := netip.MustParseAddr("198.19.1.7"), netip.MustParseAddr("198.19.9.9")
	must(t, router.AddrAdd(lo, toAddress(netip.PrefixFrom(bmc, 32))))
	h.setUnderlay(func(u *api.Underlay) {
		u.Closed = prefixes("198.19.1.0/24", "198.19.0.0/23", "198.18.0.0/24", "2001:db8:5::/64")
	})
	networks := []tenant{red(), blue()}
	for i := range networks {
		networks[i].egress = "masquerade"
	}
	f.reconcile(networks...)
	var pingers []*pinger
	var guests []place
	for _, n := range networks {
		g, addr := f.guest(n, 1, 8)
		guests, pingers = append(guests, g), append(pingers, newPinger(t, g.ns, addr))
	}
	for i, p := range pingers {
		if err := p.ping(other, 56, patience); err != nil {
			t.Errorf("%s does not get out: %v", networks[i].name, err)
		}
		if p.ping(h.underlay, 56, moment) == nil {
			t.Errorf("%s reaches the host itself", networks[i].name)
		}
	}
	for i, p := range pingers {
		if p.ping(bmc, 56, moment) == nil {
			t.Errorf("%s reaches a closed prefix", networks[i].name)
		}
	}
	heard := hearPort(t, router, Port)
	probes := hearPort(t, router, probePort)
	for _, g := range guests {
		sendTo(t, g, netip.AddrPortFrom(bmc, Port), []byte("vxlan"))
		sendTo(t, g, netip.AddrPortFrom(other, Port), []byte("vxlan"))
		sendTo(t, g, netip.AddrPortFrom(other, probePort), []byte("last"))
	}
	heardSoon(probes, "last")
	if got := heard(); len(got) > 0 {
		t.Errorf("guests speak VXLAN: %q", got)
	}
	// Opened by the Site again.
	h.setUnderlay(func(*api.Underlay) {})
	f.reconcile(networks...)
	if err := pingers[0].ping(bmc, 56, patience); err != nil {
		t.Errorf("red does not reach what is open again: %v", err)
	}
}

// hearPort gathers what arrives at a port.
func hearPort(t testing.TB, p place, port int) func() []string {
	t.Helper()
	var conn net.PacketConn
	must(t, within(p.ns, func() (err error) {
		conn, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	return gather(t, conn)
}

func TestOutermost(t *testing.T) {
	got := outermost(prefixes("198.19.1.5/24", "198.19.0.0/23", "198.19.1.0/24", "2001:db8::/64", "198.18.0.0/32", "198.19.2.0/24", "2001:db8::/32"))
	want := prefixes("198.18.0.0/32", "198.19.0.0/23", "198.19.2.0/24", "2001:db8::/32")
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Forwarding is put back to what it was: where it was on it stays on.
func TestForwardingIsPutBack(t *testing.T) {
	for _, was := range []string{"0", "1"} {
		t.Run("was "+was, func(t *testing.T) {
			f := newFabric(t, 1, false)
			h := f.hosts[0]
			f.router()
			const all, eth0 = "net/ipv4/ip_forward", "net/ipv4/conf/eth0/forwarding"
			h.writeSysctl(t, all, "0")
			h.writeSysctl(t, eth0, was)
			n := red()
			n.egress = "masquerade"
			f.reconcile(n)
			h.restart() // the memory is not the agent's
			f.reconcile(n)
			if got := readSysctl(t, h.place, eth0); got != "1" {
				t.Errorf("with egress it is %s", got)
			}
			n.egress = ""
			f.reconcile(n)
			if got := readSysctl(t, h.place, eth0); got != was {
				t.Errorf("without egress it is %s", got)
			}
			n.egress = "masquerade"
			f.reconcile(n)
			h.reconcile(removed(n))
			if got := readSysctl(t, h.place, eth0); got != was {
				t.Errorf("after the Network it is %s", got)
			}
			if tables := h.tables(t); len(tables) > 0 {
				t.Errorf("tables left: %v", tables)
			}
		})
	}
	t.Run("the way out changes", func(t *testing.T) {
		f := newFabric(t, 1, false)
		h := f.hosts[0]
		f.router()
		f.plug(h.place, "eth1", f.bridge, "second", "br0")
		h.writeSysctl(t, "net/ipv4/ip_forward", "0")
		h.address("eth1", netip.MustParsePrefix("198.19.0.1/24"))
		eth1, err := h.LinkByName("eth1")
		must(t, err)
		n := red()
		n.egress = "masquerade"
		way := &netlink.Route{LinkIndex: eth1.Attrs().Index, Gw: net.IPv4(198, 19, 0, 254), Priority: 10}
		must(t, h.RouteAdd(way))
		f.reconcile(n)
		must(t, h.RouteDel(way))
		f.reconcile(n)
		if got := readSysctl(t, h.place, "net/ipv4/conf/eth1/forwarding"); got != "0" {
			t.Errorf("what is no way out any more forwards: %s", got)
		}
		if got := readSysctl(t, h.place, "net/ipv4/conf/eth0/forwarding"); got != "1" {
			t.Errorf("the way out does not forward: %s", got)
		}
	})
}

// Guests speak IPv6 inside their Network as they do IPv4, over either underlay,
// and not beyond it.
func TestIPv6(t *testing.T) {
	for _, underlay6 := range []bool{false, true} {
		t.Run(fmt.Sprint("underlay6=", underlay6), func(t *testing.T) {
			f := newFabric(t, 3, underlay6)
			n, twin := red(), blue()
			n.v6, twin.v6 = true, true
			f.reconcile(n, twin, green())
			var guests []place
			for i := range f.hosts {
				for last := byte(8); last < 12; last += 2 {
					g, _ := f.guest(n, i+1, last)
					guests = append(guests, g)
				}
			}
			f.guest(twin, 2, 20)
			p := newPinger(t, guests[0].ns, n.guest6(1, 8))
			for _, to := range []netip.Addr{n.guest6(1, 10), n.guest6(2, 8), n.guest6(3, 10), n.lease6(1).Addr().Next(), n.lease6(2).Addr().Next()} {
				if err := p.ping(to, 1000, patience); err != nil {
					t.Errorf("%s is not reached: %v", to, err)
				}
			}
			mtu := underlayMTU - map[bool]int{false: overheadIPv4, true: overheadIPv6}[underlay6]
			if err := p.ping(n.guest6(2, 8), min(mtu, underlayMTU-overheadIPv6)-48, patience); err != nil {
				t.Errorf("a packet of the Network's MTU is lost: %v", err)
			}
			if p.ping(n.guest6(2, 20), 56, moment) == nil {
				t.Error("the Network of the same leases is reached")
			}
			for _, h := range f.hosts {
				h.restart()
			}
			f.reconcile(n, twin, green())
			for _, h := range f.hosts {
				for _, name := range []string{"red", "blue", "green"} {
					if repairs := h.overlay.repairs(name); repairs != 0 {
						t.Errorf("%s: %d repairs", name, repairs)
					}
				}
				h.overlay.ledger.settled = map[string]string{}
			}
			// IPv6 comes to a Network that runs, and goes again.
			third := green()
			third.v6, third.second = true, 6
			for _, h := range f.hosts {
				h.reconcile(removed(twin))
			}
			plain := third
			plain.v6 = false
			f.reconcile(n, plain)
			before := f.hosts[0].tenant(third).summary(t) + fmt.Sprint(f.hosts[0].entries(third))
			f.reconcile(n, third)
			g, _ := f.guest(third, 1, 8)
			f.guest(third, 2, 8)
			if err := newPinger(t, g.ns, third.guest6(1, 8)).ping(third.guest6(2, 8), 56, patience); err != nil {
				t.Errorf("IPv6 that came later: %v", err)
			}
			f.hosts[0].unplug(t, third, "tap8")
			f.reconcile(n, plain)
			if after := f.hosts[0].tenant(third).summary(t) + fmt.Sprint(f.hosts[0].entries(third)); after != before {
				t.Errorf("before IPv6:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

func (h *testHost) unplug(t testing.TB, n tenant, port string) {
	t.Helper()
	p := h.tenant(n)
	l, err := p.LinkByName(port)
	must(t, err)
	must(t, p.LinkDel(l))
}

// A masqueraded Network has no way out in IPv6, even where the host forwards it.
func TestNoIPv6Egress(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	router := f.router()
	for p, a := range map[place]string{router: "2001:db8::fe/64", h.place: "2001:db8::1/64"} {
		l, err := p.LinkByName("eth0")
		must(t, err)
		must(t, p.AddrAdd(l, toAddress(netip.MustParsePrefix(a))))
	}
	h.writeSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	n := red()
	n.v6, n.egress = true, "masquerade"
	status := h.overlay.Reconcile(t.Context(), []nodeagent.Part{f.part(n, 1)})["network/red"]
	if status.State != api.PartApplied || !strings.Contains(status.Message, "IPv4 only") {
		t.Errorf("status is %+v", status)
	}
	g, addr := f.guest(n, 1, 8)
	if err := newPinger(t, g.ns, addr).ping(netip.MustParseAddr("198.19.9.9"), 56, patience); err != nil {
		t.Errorf("no egress at all: %v", err)
	}
	p := newPinger(t, g.ns, n.guest6(1, 8))
	for _, to := range []string{"2001:db8::fe", "2001:db8::1"} {
		if err := p.ping(netip.MustParseAddr(to), 56, moment); err == nil {
			t.Errorf("%s is reached", to)
		}
	}
}

func TestIPv6IsMended(t *testing.T) {
	f := newFabric(t, 2, false)
	n := shop()
	vxlan, bridge := vxlanName(n.vni), bridgeName(n.vni)
	peer := n.lease6(2)
	set := func(name, value string) func(place) error {
		return func(p place) error { p.writeSysctl(t, name, value); return nil }
	}
	f.mends(func() { f.reconcile(n) }, []tenant{n}, []breakage{
		{"route deleted", n, func(p place) error { return p.RouteDel(&netlink.Route{Dst: ipNet(peer)}) }},
		{"neighbour deleted", n, onLink(vxlan, func(p place, l netlink.Link) error {
			return p.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: peer.Addr().AsSlice()})
		})},
		{"route of ours to nowhere", n, onLink(vxlan, func(p place, l netlink.Link) error {
			return p.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("fd00:77::/64")), LinkIndex: l.Attrs().Index, Protocol: Protocol})
		})},
		{"VXLAN down and up", n, onLink(vxlan, func(p place, l netlink.Link) error {
			if err := p.LinkSetDown(l); err != nil {
				return err
			}
			return p.LinkSetUp(l)
		})},
		{"no gateway", n, onLink(bridge, func(p place, l netlink.Link) error { return p.AddrDel(l, toAddress(gatewayAddress6())) })},
		{"foreign address", n, onLink(bridge, func(p place, l netlink.Link) error {
			return p.AddrAdd(l, toAddress(netip.MustParsePrefix("fe80::7/64")))
		})},
		{"IPv6 off", n, set("net/ipv6/conf/all/disable_ipv6", "1")},
	})
	f.grant(nil, n)
	g, _ := f.guest(n, 1, 8)
	f.guest(n, 2, 8)
	for name, wrong := range map[string]string{"all/forwarding": "0", bridge + "/accept_ra": "1", vxlan + "/accept_redirects": "1"} {
		f.hosts[0].tenant(n).writeSysctl(t, "net/ipv6/conf/"+name, wrong)
		before := f.hosts[0].overlay.repairs(n.name)
		f.grant(nil, n)
		if f.hosts[0].overlay.repairs(n.name) == before {
			t.Errorf("%s is not repaired", name)
		}
	}
	if err := newPinger(t, g.ns, n.guest6(1, 8)).ping(n.guest6(2, 8), 56, patience); err != nil {
		t.Error(err)
	}
}

// The underlay's MTU reaches every device of a Network, and nothing is lost on
// the way; a new source address is one more VXLAN, with all that was on it.
func TestUnderlayChangesUnderTraffic(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	f.router()
	a, b := shop(), base()
	b.egress = "masquerade"
	g := grants{"base": {a}}
	pass := func() {
		for i, host := range f.hosts {
			for key, s := range host.overlay.Reconcile(t.Context(), []nodeagent.Part{f.grantedPart(a, i+1, g), f.grantedPart(b, i+1, g)}) {
				if s.State != api.PartApplied {
					t.Fatalf("%s on %s is %+v", key, host.name, s)
				}
			}
		}
	}
	pass()
	people := f.crew(a, b)
	stop := traffic(t, way{people["shop1"].ns, guest4(a, 1), guest4(b, 2), 500})
	eth0, err := h.LinkByName("eth0")
	must(t, err)
	for _, mtu := range []int{1400, 1300, underlayMTU} {
		must(t, h.LinkSetMTU(eth0, mtu))
		pass()
		for at, names := range map[place][]string{
			h.tenant(a): {vxlanName(a.vni), bridgeName(a.vni), passageName(b.vni)},
			h.tenant(b): {vxlanName(b.vni), bridgeName(b.vni), passageName(a.vni), egressInside},
			h.place:     {egressName(b.vni)},
		} {
			for _, name := range names {
				l, err := at.LinkByName(name)
				must(t, err)
				if l.Attrs().MTU != mtu-overheadIPv4 {
					t.Errorf("%s has MTU %d with an underlay of %d", name, l.Attrs().MTU, mtu)
				}
			}
		}
	}
	stop(1)
	old := h.underlay
	h.underlay = netip.MustParseAddr("198.18.0.99")
	must(t, h.AddrDel(eth0, toAddress(netip.PrefixFrom(old, 24))))
	h.address("eth0", netip.PrefixFrom(h.underlay, 24))
	must(t, h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IPv4(198, 18, 0, 254)}))
	h.setUnderlay(func(*api.Underlay) {})
	pass()
	people.opens(f, a, b, true)
	if err := newPinger(t, people["base1"].ns, guest4(b, 1)).ping(netip.MustParseAddr("198.19.9.9"), 56, patience); err != nil {
		t.Errorf("no egress by the new address: %v", err)
	}
}
