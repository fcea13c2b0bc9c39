package overlay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/nodeagent"
)

func red() tenant   { return tenant{name: "red", uid: "uid-red", vni: 101, second: 5} }
func green() tenant { return tenant{name: "green", uid: "uid-green", vni: 102, second: 5, third: 10} }

// blue has the very leases of red.
func blue() tenant { return tenant{name: "blue", uid: "uid-blue", vni: 10003, second: 5} }

func TestNetworksReachTheirOwn(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4 underlay", true: "IPv6 underlay"}[v6], func(t *testing.T) {
			f := newFabric(t, 3, v6)
			f.reconcile(red(), green(), blue())
			for _, n := range []tenant{red(), green(), blue()} {
				f.allPairs(n)
			}
			// The largest packet fits the underlay: nothing is fragmented or lost.
			overhead := map[bool]int{false: overheadIPv4, true: overheadIPv6}[v6]
			p := newPinger(t, f.hosts[0].tenant(red()).ns, first(red().lease(1)))
			if err := p.ping(first(red().lease(2)), underlayMTU-overhead-28, patience); err != nil {
				t.Errorf("a packet of the Network's MTU is lost: %v", err)
			}
		})
	}
}

const probePort = 7777

// listen gathers what arrives in a namespace by UDP.
func listen(t testing.TB, p place) func() []string {
	t.Helper()
	var conn net.PacketConn
	must(t, within(p.ns, func() (err error) {
		conn, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", probePort))
		return err
	}))
	return gather(t, conn)
}

// gather reads until the test is over.
func gather(t testing.TB, conn net.PacketConn) func() []string {
	var mu sync.Mutex
	var heard []string
	var reader sync.WaitGroup
	reader.Go(func() {
		b := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			mu.Lock()
			heard = append(heard, string(b[:n]))
			mu.Unlock()
		}
	})
	t.Cleanup(func() { _ = conn.Close(); reader.Wait() })
	return func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), heard...) }
}

func send(t testing.TB, p place, text string, to []netip.Addr) {
	t.Helper()
	var conn net.PacketConn
	must(t, within(p.ns, func() (err error) {
		conn, err = net.ListenPacket("udp4", ":0")
		return err
	}))
	defer func() { _ = conn.Close() }()
	for _, a := range to {
		// A refusal on the way is an answer, too.
		_, _ = conn.WriteTo([]byte(text), &net.UDPAddr{IP: a.AsSlice(), Port: probePort})
	}
}

// Each thing broken by hand is mended by the next pass, and counted.
func TestDriftIsMended(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	f.reconcile(red(), blue())
	f.allPairs(red())
	vxlan, bridge := vxlanName(red().vni), bridgeName(red().vni)
	peerMAC := red().mac(2).HardwareAddr()
	set := func(name, value string) func(place) error {
		return func(p place) error {
			return within(p.ns, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
		}
	}
	onLink := func(name string, change func(place, netlink.Link) error) func(place) error {
		return func(p place) error {
			l, err := p.LinkByName(name)
			if err != nil {
				return err
			}
			return change(p, l)
		}
	}
	fdb := func(l netlink.Link, hw net.HardwareAddr, dst string) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			HardwareAddr: hw, IP: net.ParseIP(dst).To4()}
	}
	arp := func(l netlink.Link, ip string, hw net.HardwareAddr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(ip).To4(), HardwareAddr: hw}
	}
	lease := ipNet(red().lease(2))
	for _, tt := range []struct {
		name    string
		breakIt func(p place) error
	}{
		{"VXLAN deleted", onLink(vxlan, func(p place, l netlink.Link) error { return p.LinkDel(l) })},
		{"VXLAN down", onLink(vxlan, func(p place, l netlink.Link) error { return p.LinkSetDown(l) })},
		{"VXLAN up again without routes", onLink(vxlan, func(p place, l netlink.Link) error {
			if err := p.LinkSetDown(l); err != nil {
				return err
			}
			return p.LinkSetUp(l)
		})},
		{"VXLAN MTU", onLink(vxlan, func(p place, l netlink.Link) error { return p.LinkSetMTU(l, 1000) })},
		{"VXLAN MAC", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9})
		})},
		{"VXLAN alias", onLink(vxlan, func(p place, l netlink.Link) error { return p.LinkSetAlias(l, "") })},
		{"VXLAN address", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.AddrDel(l, toAddress(netip.PrefixFrom(red().lease(1).Addr(), 32)))
		})},
		{"VXLAN foreign address", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.AddrAdd(l, toAddress(netip.MustParsePrefix("10.5.2.9/32")))
		})},
		{"VXLAN of another kind", onLink(vxlan, func(p place, l netlink.Link) error {
			if err := p.LinkDel(l); err != nil {
				return err
			}
			return p.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: vxlan}})
		})},
		{"VXLAN of another port", onLink(vxlan, func(p place, l netlink.Link) error {
			if err := p.LinkDel(l); err != nil {
				return err
			}
			w := wantLinks(network{uid: "uid-red", vni: red().vni, mtu: 1450, lease: red().lease(1), mac: mac{2, 1, 1, 1, 1, 1},
				underlay: l.(*netlink.Vxlan).VtepDevIndex, source: h.underlay})[1]
			w.port, w.learning = 4789, true
			return createLink(h.Handle, p.ns, w)
		})},
		{"bridge deleted", onLink(bridge, func(p place, l netlink.Link) error { return p.LinkDel(l) })},
		{"bridge down", onLink(bridge, func(p place, l netlink.Link) error { return p.LinkSetDown(l) })},
		{"bridge MTU", onLink(bridge, func(p place, l netlink.Link) error { return p.LinkSetMTU(l, 9000) })},
		{"bridge without addresses", onLink(bridge, func(p place, l netlink.Link) error {
			for _, a := range []string{"10.5.1.1/24", "169.254.1.1/32"} {
				if err := p.AddrDel(l, toAddress(netip.MustParsePrefix(a))); err != nil {
					return err
				}
			}
			return nil
		})},
		{"loopback down and unmarked", onLink("lo", func(p place, l netlink.Link) error {
			if err := p.LinkSetAlias(l, ""); err != nil {
				return err
			}
			return p.LinkSetDown(l)
		})},
		{"forwarding off", set("net/ipv4/ip_forward", "0")},
		{"strict reverse path", set("net/ipv4/conf/all/rp_filter", "1")},
		{"redirects on", set("net/ipv4/conf/"+bridge+"/send_redirects", "1")},
		{"FDB entry deleted", onLink(vxlan, func(p place, l netlink.Link) error { return p.NeighDel(fdb(l, peerMAC, "198.18.0.2")) })},
		{"FDB entry to another VTEP", onLink(vxlan, func(p place, l netlink.Link) error { return p.NeighSet(fdb(l, peerMAC, "198.18.0.77")) })},
		{"FDB entry appended", onLink(vxlan, func(p place, l netlink.Link) error {
			n := fdb(l, net.HardwareAddr{0, 0, 0, 0, 0, 0}, "198.18.0.77")
			if err := p.NeighAppend(n); err != nil {
				return err
			}
			n.IP = net.ParseIP("198.18.0.78").To4()
			return p.NeighAppend(n)
		})},
		{"FDB entry of nobody", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.NeighSet(fdb(l, net.HardwareAddr{2, 7, 7, 7, 7, 7}, "198.18.0.77"))
		})},
		{"neighbour deleted", onLink(vxlan, func(p place, l netlink.Link) error { return p.NeighDel(arp(l, "10.5.2.0", peerMAC)) })},
		{"neighbour with another MAC", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.NeighSet(arp(l, "10.5.2.0", net.HardwareAddr{2, 7, 7, 7, 7, 7}))
		})},
		{"neighbour of nobody", onLink(vxlan, func(p place, l netlink.Link) error { return p.NeighSet(arp(l, "10.5.9.0", peerMAC)) })},
		{"route deleted", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.RouteDel(&netlink.Route{Dst: lease})
		})},
		{"route of ours to nowhere", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.5.2.128/25")), LinkIndex: l.Attrs().Index, Protocol: Protocol, Scope: netlink.SCOPE_LINK})
		})},
		{"route of ours with a metric", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.RouteAdd(&netlink.Route{Dst: lease, Priority: 7, LinkIndex: l.Attrs().Index, Protocol: Protocol, Scope: netlink.SCOPE_LINK})
		})},
		{"route with a gateway of its own", onLink(vxlan, func(p place, l netlink.Link) error {
			return p.RouteReplace(&netlink.Route{Dst: lease, LinkIndex: l.Attrs().Index, Protocol: Protocol,
				Gw: net.ParseIP("10.5.9.0").To4(), Flags: int(netlink.FLAG_ONLINK)})
		})},
		{"nexthop deleted", onLink(vxlan, func(p place, l netlink.Link) error {
			c, err := dialRTNL(p.ns)
			if err != nil {
				return err
			}
			defer c.close()
			return c.applyEntries(l.Attrs().Index, []entryOp{{remove, nexthop{id: nexthopID(red().lease(2))}}})
		})},
		{"nexthop elsewhere, and one of nobody", onLink(vxlan, func(p place, l netlink.Link) error {
			c, err := dialRTNL(p.ns)
			if err != nil {
				return err
			}
			defer c.close()
			return c.applyEntries(l.Attrs().Index, []entryOp{
				{replace, nexthop{nexthopID(red().lease(2)), netip.MustParseAddr("10.5.9.0")}},
				{create, nexthop{77, netip.MustParseAddr("10.5.9.1")}}})
		})},
		{"namespace unpinned", onLink(vxlan, func(p place, l netlink.Link) error {
			if err := p.LinkDel(l); err != nil {
				return err
			}
			return namespace.Unpin(h.tenantPath(red()))
		})},
		{"namespace's mount lost", onLink(vxlan, func(p place, l netlink.Link) error {
			if err := p.LinkDel(l); err != nil {
				return err
			}
			return unix.Unmount(h.tenantPath(red()), unix.MNT_DETACH)
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			h.reconcile(f.part(red(), 1), f.part(blue(), 1))
			before, entriesBefore := h.tenant(red()).summary(t), fmt.Sprint(h.entries(red()))
			repairs := h.overlay.repairs("red")
			must(t, tt.breakIt(h.tenant(red())))
			h.reconcile(f.part(red(), 1), f.part(blue(), 1))
			if after := h.tenant(red()).summary(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if after := fmt.Sprint(h.entries(red())); after != entriesBefore {
				t.Errorf("entries before:\n%s\nafter:\n%s", entriesBefore, after)
			}
			if h.overlay.repairs("red") == repairs {
				t.Error("the repair was not counted")
			}
			f.allPairs(red())
			if repairs := h.overlay.repairs("blue"); repairs != 0 {
				t.Errorf("%d repairs in the Network beside it", repairs)
			}
			repairs = h.overlay.repairs("red")
			h.reconcile(f.part(red(), 1), f.part(blue(), 1))
			if more := h.overlay.repairs("red") - repairs; more != 0 {
				t.Errorf("the pass after the repair changes %d things", more)
			}
		})
	}
}

func (o *Overlay) repairs(network string) int64 {
	for _, s := range o.Stats() {
		if s.Network == network {
			return s.Repairs
		}
	}
	return 0
}

// summary is how a namespace's interfaces are, whatever their indices.
func (p place) summary(t testing.TB) string {
	t.Helper()
	links, err := listLinks(p.Handle)
	must(t, err)
	var lines []string
	for _, l := range links {
		l.index, l.traffic = 0, Traffic{}
		lines = append(lines, fmt.Sprintf("%+v", l))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// A new agent, or the same one at work all the time, drops nothing.
func TestRestartUnderTraffic(t *testing.T) {
	f := newFabric(t, 2, false)
	f.reconcile(red(), blue())
	f.allPairs(red())
	stop := traffic(t, way{f.hosts[0].tenant(red()).ns, first(red().lease(1)), first(red().lease(2)), 56})
	for range 50 {
		for _, h := range f.hosts {
			h.restart()
		}
		f.reconcile(red(), blue())
	}
	// Others come and go beside it.
	f.reconcile(red(), blue(), green())
	for _, h := range f.hosts {
		h.reconcile(removed(green()))
	}
	stop(100)
	if n := f.hosts[0].overlay.repairs("red"); n != 0 {
		t.Errorf("%d repairs", n)
	}
}

func removed(n tenant) nodeagent.Part {
	return nodeagent.Part{Name: api.NetworkPartName(n.name), UID: n.uid, Want: nodeagent.Removed}
}

// Only a tombstone removes, and then nothing is left.
func TestRemoval(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	before := h.summary(t)
	f.reconcile(red(), blue())
	h.restart()
	h.reconcile() // nothing is asked for: nothing goes
	orphan := f.part(blue(), 1)
	orphan.Want = nodeagent.Orphaned
	h.reconcile(orphan)
	f.allPairs(red())
	f.allPairs(blue())

	successor := red()
	successor.uid = "uid-red-2"
	other := nodeagent.Part{Name: api.NetworkPartName("red"), UID: "uid-unknown", Want: nodeagent.Removed}
	h.reconcile(other) // the name alone says nothing
	f.allPairs(red())
	h.reconcile(removed(red()), f.part(successor, 1)) // VNI and name are free at once
	f.hosts[1].reconcile(removed(red()), f.part(successor, 2))
	f.allPairs(successor)
	h.reconcile(removed(successor), removed(blue()))
	h.reconcile(removed(successor), removed(blue())) // again: the agent died before it could say so
	if names, err := namespaces(h.dir); err != nil || len(names) > 0 {
		t.Errorf("namespaces left: %v %v", names, err)
	}
	if after := h.summary(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if stats := h.overlay.Stats(); len(stats) > 0 {
		t.Errorf("statistics left: %v", stats)
	}
}

// What bears a Network's name but not our mark stays.
func TestForeignThingsStay(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	f.reconcile(red())
	p := h.tenant(red())
	vxlan, err := p.LinkByName(vxlanName(red().vni))
	must(t, err)
	must(t, p.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "theirs"}}))
	must(t, p.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.77.0.0/16")), LinkIndex: vxlan.Attrs().Index, Protocol: unix.RTPROT_STATIC}))
	must(t, p.RouteDel(&netlink.Route{Dst: ipNet(red().lease(2))}))
	must(t, p.RouteAdd(&netlink.Route{Dst: ipNet(red().lease(2)), LinkIndex: vxlan.Attrs().Index, Protocol: unix.RTPROT_STATIC}))
	status := h.overlay.Reconcile(context.Background(), []nodeagent.Part{f.part(red(), 1)})["network/red"]
	if status.State != api.PartPending || !strings.Contains(status.Message, "another program") {
		t.Errorf("a route in the way: %+v", status)
	}
	if _, err := p.LinkByName("theirs"); err != nil {
		t.Error(err)
	}
	routes, err := p.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: unix.RTPROT_STATIC}, netlink.RT_FILTER_PROTOCOL)
	must(t, err)
	if len(routes) != 2 {
		t.Errorf("their routes: %v", routes)
	}
	must(t, p.LinkSetAlias(vxlan, "mine"))
	status = h.overlay.Reconcile(context.Background(), []nodeagent.Part{f.part(red(), 1)})["network/red"]
	if status.State != api.PartPending || !strings.Contains(status.Message, "rename or remove it") {
		t.Errorf("a link in the way: %+v", status)
	}
}

// The underlay's MTU and address are followed.
func TestUnderlayChanges(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	f.reconcile(red())
	eth0, err := h.LinkByName("eth0")
	must(t, err)
	must(t, h.LinkSetMTU(eth0, 1400))
	status := h.overlay.Reconcile(context.Background(), []nodeagent.Part{f.part(red(), 1)})["network/red"]
	if status.State != api.PartApplied || !strings.Contains(status.Message, "using 1350") {
		t.Errorf("a smaller underlay: %+v", status)
	}
	for _, name := range []string{vxlanName(red().vni), bridgeName(red().vni)} {
		l, err := h.tenant(red()).LinkByName(name)
		must(t, err)
		if l.Attrs().MTU != 1350 {
			t.Errorf("%s has MTU %d", name, l.Attrs().MTU)
		}
	}
	f.allPairs(red())
	must(t, h.LinkSetMTU(eth0, underlayMTU))
	f.reconcile(red())
	f.allPairs(red())

	// The address moves; the peers hear of it from bootd.
	old := h.underlay
	h.underlay = netip.MustParseAddr("198.18.0.99")
	must(t, h.AddrDel(eth0, toAddress(netip.PrefixFrom(old, 24))))
	h.address("eth0", netip.PrefixFrom(h.underlay, 24))
	status = h.overlay.Reconcile(context.Background(), []nodeagent.Part{f.part(red(), 1)})["network/red"]
	if status.State != api.PartPending || !strings.Contains(status.Message, "lacks the host's addresses") {
		t.Errorf("an underlay without its address: %+v", status)
	}
	h.overlay.SetUnderlay(api.Underlay{Interface: "eth0", Addresses: []netip.Addr{h.underlay}})
	f.reconcile(red())
	f.allPairs(red())

	// The interface is another one.
	must(t, h.LinkDel(eth0))
	f.plug(h.place, "eth0", f.bridge, "h1b", "br0")
	h.address("eth0", netip.PrefixFrom(h.underlay, 24))
	f.reconcile(red())
	f.allPairs(red())
}
