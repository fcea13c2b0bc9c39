package overlay

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nft"
	"github.com/rackweft/rackweft/nodeagent"
)

// portStats are those of a guest's, as of now.
func (g *testGuest) stats(parts ...nodeagent.Part) PortStats {
	g.host.fabric.t.Helper()
	g.host.reconcile(parts...)
	for _, s := range g.host.overlay.Stats() {
		for _, p := range s.Ports {
			if p.UID == g.port.UID {
				return p
			}
		}
	}
	g.host.fabric.t.Fatalf("no statistics of %s", g.port.Guest)
	return PortStats{}
}

func TestGuestsReachEachOther(t *testing.T) {
	f := newFabric(t, 2, false)
	f.reconcile(red(), blue())
	a, b, c := f.plugIn(red(), 1, 8), f.plugIn(red(), 1, 10), f.plugIn(red(), 2, 8)
	twin := f.plugIn(blue(), 2, 8) // has the address of c
	a.reaches(b)
	a.reaches(c)
	c.reaches(b)
	if err := a.ping(c.addr, underlayMTU-overheadIPv4-28, patience); err != nil {
		t.Errorf("a full packet is lost: %v", err)
	}
	if err := a.ping(gatewayAddress().Addr(), 56, patience); err != nil {
		t.Errorf("the gateway: %v", err)
	}
	s := a.stats(f.part(red(), 1), f.part(blue(), 1))
	if s.Traffic.InBytes < 1000 || s.Traffic.OutBytes < 1<<20 || s.Traffic.OutPackets < 700 || s.Drops != (Drops{}) {
		t.Errorf("statistics are %+v", s)
	}
	for _, n := range f.hosts[0].overlay.Stats() {
		if moved := n.Traffic.OutBytes > 1<<20; moved != (n.Network == "red") {
			t.Errorf("statistics of %s are %+v", n.Network, n)
		}
	}
	// What goes to all on a link goes to none of the others.
	before := len(b.heard())
	for _, to := range []string{"255.255.255.255", "224.0.0.251", "10.5.1.255"} {
		must(t, a.send(ethernet(mac{255, 255, 255, 255, 255, 255}, a.mac, etherIPv4,
			ipv4Packet(a.addr, netip.MustParseAddr(to), unix.IPPROTO_UDP, udpDatagram(probePort, probePort, []byte("all"))))))
	}
	must(t, a.send(ethernet(b.mac, a.mac, etherIPv4, ipv4Packet(a.addr, b.addr, unix.IPPROTO_UDP, udpDatagram(probePort, probePort, []byte("past the gateway"))))))
	must(t, a.ping(gatewayAddress().Addr(), 56, patience)) // after them
	for _, frame := range b.heard()[before:] {
		t.Errorf("%s heard %x", b.addr, frame)
	}
	for _, g := range []*testGuest{a, b, c, twin} {
		gateway := gatewayMAC()
		for _, frame := range g.heard() {
			if !bytes.Equal(frame[6:12], gateway[:]) {
				t.Errorf("%s heard %x from another than its gateway", g.addr, frame)
			}
		}
	}
}

// The same over IPv6, with addresses of the link that guests choose themselves.
func TestGuestsReachEachOtherByIPv6(t *testing.T) {
	f := newFabric(t, 2, false)
	n := red()
	n.v6 = true
	f.reconcile(n)
	a, b, c := f.plugIn(n, 1, 8, n.guest6(1, 8)), f.plugIn(n, 1, 10, n.guest6(1, 10)), f.plugIn(n, 2, 8, n.guest6(2, 8))
	p := newPinger(t, a.ns, n.guest6(1, 8))
	for _, to := range []netip.Addr{first(n.lease6(1)), n.guest6(1, 10), n.guest6(2, 8)} {
		for range 3 { // a redirect would send the second astray
			if err := p.ping(to, 1000, patience); err != nil {
				t.Errorf("%s: %v", to, err)
			}
		}
	}
	a.reaches(c) // by IPv4, beside it
	for _, g := range []*testGuest{a, b} {
		if s := g.stats(f.part(n, 1)); s.Drops != (Drops{}) {
			t.Errorf("%s: %+v", g.addr, s)
		}
	}
	if n := f.hosts[0].overlay.repairs("red"); n != 0 {
		t.Errorf("%d repairs", n)
	}
	before := f.hosts[0].tenant(n).everything(t)
	link, err := f.hosts[0].tenant(n).LinkByName(bridgeName(n.vni))
	must(t, err)
	must(t, f.hosts[0].tenant(n).NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: n.guest6(1, 8).AsSlice()}))
	f.reconcile(n)
	if after := f.hosts[0].tenant(n).everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// A guest sends what is its own, and nothing else.
func TestSpoofedFrames(t *testing.T) {
	f := newFabric(t, 1, false)
	f.reconcile(red())
	own6 := netip.MustParseAddr("fd00:5::8")
	g, victim := f.plugIn(red(), 1, 8, own6), f.plugIn(red(), 1, 10, netip.MustParseAddr("fd00:5::a"))
	wire := bridgeTrace(t, f.hosts[0].tenant(red()), red())
	gateway, all := gatewayMAC(), mac{255, 255, 255, 255, 255, 255}
	none4, none6, link6 := netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("fe80::1234")
	gate4, theirs6 := gatewayAddress().Addr(), netip.MustParseAddr("fd00:5::a")
	allNodes, solicited := netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::1:ff00:8")
	udp4 := func(from netip.Addr, sport, dport uint16) []byte {
		return ipv4Packet(from, netip.MustParseAddr("198.18.0.2"), unix.IPPROTO_UDP, udpDatagram(sport, dport, make([]byte, 20)))
	}
	nd := func(from, to netip.Addr, kind byte, target netip.Addr) []byte {
		return ethernet(gateway, g.mac, etherIPv6, ipv6Packet(from, to, unix.IPPROTO_ICMPV6, icmp6(kind, target)))
	}
	ip4 := func(payload []byte) []byte { return ethernet(gateway, g.mac, etherIPv4, payload) }
	ip6 := func(from, to netip.Addr, payload []byte) []byte {
		return ethernet(gateway, g.mac, etherIPv6, ipv6Packet(from, to, unix.IPPROTO_UDP, payload))
	}
	arp := func(m mac, op byte, sender mac, ip netip.Addr) []byte {
		return ethernet(all, m, etherARP, arpPacket(op, sender, ip, gate4))
	}
	tagged := func(tpid uint16, frame []byte) []byte {
		return slices.Concat(frame[:12], []byte{byte(tpid >> 8), byte(tpid), 0, 1}, frame[12:])
	}
	for _, tt := range []struct {
		name  string
		frame []byte
		good  bool
	}{
		{"own IPv4", ip4(udp4(g.addr, 1000, 1000)), true},
		{"own IPv6", ip6(own6, theirs6, udpDatagram(1000, 1000, make([]byte, 8))), true},
		{"own TCP", ip4(ipv4Packet(g.addr, victim.addr, unix.IPPROTO_TCP, make([]byte, 20))), true},
		{"own TCP over IPv6", ethernet(gateway, g.mac, etherIPv6, ipv6Packet(own6, theirs6, unix.IPPROTO_TCP, make([]byte, 20))), true},
		{"own ARP question", arp(g.mac, 1, g.mac, g.addr), true},
		{"own ARP answer", arp(g.mac, 2, g.mac, g.addr), true},
		{"ARP probe", arp(g.mac, 1, g.mac, none4), true},
		{"DHCP discover", ip4(udp4(none4, 68, 67)), true},
		{"DHCPv6 solicit", ip6(link6, netip.MustParseAddr("ff02::1:2"), udpDatagram(546, 547, make([]byte, 8))), true},
		{"router solicitation", nd(link6, netip.MustParseAddr("ff02::2"), icmpRouterAsk, netip.Addr{}), true},
		{"router solicitation without address", nd(none6, netip.MustParseAddr("ff02::2"), icmpRouterAsk, netip.Addr{}), true},
		{"neighbour solicitation", nd(own6, allNodes, icmpNeighbour, netip.MustParseAddr("fe80::1")), true},
		{"DAD", nd(none6, solicited, icmpNeighbour, own6), true},
		{"DAD of the link", nd(none6, solicited, icmpNeighbour, link6), true},
		{"own neighbour advertisement", nd(own6, allNodes, icmpAnswer, own6), true},
		{"own advertisement of the link", nd(link6, allNodes, icmpAnswer, link6), true},
		{"multicast listener report", nd(none6, netip.MustParseAddr("ff02::16"), icmpMLDv2, netip.Addr{}), true},

		{"foreign MAC", ethernet(gateway, victim.mac, etherIPv4, udp4(g.addr, 1000, 1000)), false},
		{"the gateway's MAC", ethernet(all, gateway, etherARP, arpPacket(2, gateway, gate4, victim.addr)), false},
		{"neighbour's IPv4", ip4(udp4(victim.addr, 1000, 1000)), false},
		{"foreign IPv4", ip4(udp4(netip.MustParseAddr("192.0.2.1"), 1000, 1000)), false},
		{"neighbour's TCP", ip4(ipv4Packet(victim.addr, g.addr, unix.IPPROTO_TCP, make([]byte, 20))), false},
		{"TCP in a VLAN", tagged(0x8100, ip4(ipv4Packet(g.addr, victim.addr, unix.IPPROTO_TCP, make([]byte, 20)))), false},
		{"no IPv4 but no DHCP", ip4(udp4(none4, 68, 53)), false},
		{"DHCP from another port", ip4(udp4(none4, 1068, 67)), false},
		{"neighbour's IPv6", ip6(theirs6, own6, udpDatagram(1000, 1000, nil)), false},
		{"no IPv6 address", ip6(none6, own6, udpDatagram(1000, 1000, nil)), false},
		{"link-local into the world", ip6(link6, theirs6, udpDatagram(1000, 1000, nil)), false},
		{"the gateway's link-local", ip6(netip.MustParseAddr("fe80::1"), allNodes, udpDatagram(1000, 1000, nil)), false},
		{"ARP of a neighbour", arp(g.mac, 2, g.mac, victim.addr), false},
		{"ARP of the gateway", arp(g.mac, 2, g.mac, gate4), false},
		{"ARP with another MAC inside", arp(g.mac, 2, victim.mac, g.addr), false},
		{"ARP with another MAC outside", arp(victim.mac, 2, g.mac, g.addr), false},
		{"ARP of tokens", ethernet(all, g.mac, etherARP, append([]byte{0, 6, 8, 0, 6, 4, 0, 2}, arpPacket(2, g.mac, g.addr, gate4)[8:]...)), false},
		{"advertisement of a neighbour", nd(own6, allNodes, icmpAnswer, theirs6), false},
		{"advertisement of the gateway", nd(own6, allNodes, icmpAnswer, netip.MustParseAddr("fe80::1")), false},
		{"advertisement of the gateway's other address", nd(link6, allNodes, icmpAnswer, gatewayAddress6().Addr()), false},
		{"DAD of a neighbour's", nd(none6, solicited, icmpNeighbour, theirs6), false},
		{"router advertisement", nd(link6, allNodes, icmpRouter, netip.Addr{}), false},
		{"redirect", nd(link6, own6, icmpRedirect, theirs6), false},
		{"MLD query", nd(link6, allNodes, icmpMLDQuery, netip.Addr{}), false},
		{"IGMP query", ip4(ipv4Packet(g.addr, netip.MustParseAddr("224.0.0.1"), unix.IPPROTO_IGMP, []byte{igmpQuery, 0, 0, 0, 0, 0, 0, 0})), false},
		{"DHCP offer", ip4(udp4(g.addr, 67, 68)), false},
		{"DHCPv6 advertise", ip6(link6, allNodes, udpDatagram(547, 546, make([]byte, 8))), false},
		{"VXLAN", ip4(udp4(g.addr, 1000, Port)), false},
		{"VXLAN over IPv6", ip6(own6, theirs6, udpDatagram(1000, Port, make([]byte, 16))), false},
		{"VLAN tag", tagged(0x8100, ip4(udp4(g.addr, 1000, 1000))), false},
		{"priority tag", slices.Concat(ip4(nil)[:12], []byte{0x81, 0, 0, 0}, ip4(udp4(g.addr, 1000, 1000))[12:]), false},
		{"service tag", tagged(0x88a8, ip4(udp4(g.addr, 1000, 1000))), false},
		{"two tags", tagged(0x88a8, tagged(0x8100, ip4(udp4(g.addr, 1000, 1000)))), false},
		{"PPPoE", ethernet(gateway, g.mac, 0x8863, make([]byte, 46)), false},
		{"MPLS", ethernet(gateway, g.mac, 0x8847, make([]byte, 46)), false},
		{"LLC", ethernet(gateway, g.mac, 46, make([]byte, 46)), false},
		{"BPDU", ethernet(mac{0x01, 0x80, 0xc2, 0, 0, 0}, g.mac, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 43)...)), false},
		{"past the bridge", ethernet(mac{0x01, 0x80, 0xc2, 0, 0, 0x0e}, g.mac, etherIPv4, udp4(g.addr, 1000, 1000)), false},
		{"too short", ethernet(gateway, g.mac, etherIPv4, []byte{0x45}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			before := g.stats(f.part(red(), 1)).Drops.Spoofed
			must(t, g.send(tt.frame))
			end := ip4(udp4(g.addr, 999, uint16(len(tt.name))))
			must(t, g.send(end))
			passed := wire.until(t, end)
			if got := slices.ContainsFunc(passed, func(b []byte) bool { return bytes.Equal(b, tt.frame) }); got != tt.good {
				t.Errorf("passes: %v", got)
			}
			want := before
			if !tt.good {
				want++
			}
			if got := g.stats(f.part(red(), 1)).Drops.Spoofed; got != want {
				t.Errorf("%d packets were dropped, want %d", got-before, want-before)
			}
		})
	}
	f.t = t
	if s := victim.stats(f.part(red(), 1)); s.Drops != (Drops{}) {
		t.Errorf("the other guest's drops are %+v", s.Drops)
	}
	g.reaches(victim)
}

// trace is what the bridge takes in.
type trace struct{ fd int }

func bridgeTrace(t testing.TB, p place, n tenant) trace {
	t.Helper()
	l, err := p.LinkByName(bridgeName(n.vni))
	must(t, err)
	all := uint16(unix.ETH_P_ALL)>>8 | uint16(unix.ETH_P_ALL)<<8
	tr := trace{-1}
	must(t, within(p.ns, func() (err error) {
		if tr.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return unix.Bind(tr.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	}))
	t.Cleanup(func() { _ = unix.Close(tr.fd) })
	timeout := unix.NsecToTimeval(int64(patience))
	must(t, unix.SetsockoptTimeval(tr.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	return tr
}

// until reads frames up to the last.
func (tr trace) until(t testing.TB, last []byte) (frames [][]byte) {
	t.Helper()
	b := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(tr.fd, b, 0)
		must(t, err)
		if bytes.Equal(b[:n], last) {
			return frames
		}
		frames = append(frames, slices.Clone(b[:n]))
	}
}

// A guest hears what its gateway has for it, and for nobody else.
func TestGuestBoundFrames(t *testing.T) {
	f := newFabric(t, 1, false)
	f.reconcile(red())
	g, other := f.plugIn(red(), 1, 8, netip.MustParseAddr("fd00:5::8")), f.plugIn(red(), 1, 10)
	p := f.hosts[0].tenant(red())
	gateway, all := gatewayMAC(), mac{255, 255, 255, 255, 255, 255}
	l, err := p.LinkByName(bridgeName(red().vni))
	must(t, err)
	fd := -1
	must(t, within(p.ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer func() { _ = unix.Close(fd) }()
	send := func(frame []byte) {
		t.Helper()
		must(t, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index}))
	}
	offer := func(to mac) []byte {
		bootp := make([]byte, 240)
		copy(bootp[28:], to[:])
		return ethernet(all, gateway, etherIPv4, ipv4Packet(gatewayAddress().Addr(), netip.MustParseAddr("255.255.255.255"), unix.IPPROTO_UDP, udpDatagram(67, 68, bootp)))
	}
	advertise := ethernet(mac{0x33, 0x33, 0, 0, 0, 1}, gateway, etherIPv6, ipv6Packet(netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1"), unix.IPPROTO_ICMPV6, routerMessage(icmpRouter)))
	asks := func(target string) []byte {
		return ethernet(mac{0x33, 0x33, 0xff, 0, 0, 8}, gateway, etherIPv6, ipv6Packet(netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1:ff00:8"), unix.IPPROTO_ICMPV6, icmp6(icmpNeighbour, netip.MustParseAddr(target))))
	}
	for name, tt := range map[string]struct {
		frame []byte
		good  bool
	}{
		"to it":                  {ethernet(g.mac, gateway, etherIPv4, ipv4Packet(other.addr, g.addr, unix.IPPROTO_UDP, udpDatagram(1, 2, nil))), true},
		"DHCP to it":             {offer(g.mac), true},
		"router advertisement":   {advertise, true},
		"question for it":        {asks("fd00:5::8"), true},
		"ARP for it":             {ethernet(all, gateway, etherARP, arpPacket(1, gateway, gatewayAddress().Addr(), g.addr)), true},
		"redirect":               {ethernet(g.mac, gateway, etherIPv6, ipv6Packet(netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fd00:5::8"), unix.IPPROTO_ICMPV6, icmp6(icmpRedirect, netip.MustParseAddr("fd00:5::a")))), false},
		"to another":             {ethernet(other.mac, gateway, etherIPv4, ipv4Packet(g.addr, other.addr, unix.IPPROTO_UDP, udpDatagram(1, 2, nil))), false},
		"to nobody":              {ethernet(mac{2, 1, 1, 1, 1, 1}, gateway, etherIPv4, ipv4Packet(other.addr, g.addr, unix.IPPROTO_UDP, udpDatagram(1, 2, nil))), false},
		"DHCP to another":        {offer(other.mac), false},
		"question for another":   {asks("fd00:5::a"), false},
		"ARP for another":        {ethernet(all, gateway, etherARP, arpPacket(1, gateway, gatewayAddress().Addr(), other.addr)), false},
		"broadcast":              {ethernet(all, gateway, etherIPv4, ipv4Packet(other.addr, netip.MustParseAddr("255.255.255.255"), unix.IPPROTO_UDP, udpDatagram(1, 2, nil))), false},
		"from another's address": {ethernet(g.mac, other.mac, etherIPv4, ipv4Packet(other.addr, g.addr, unix.IPPROTO_UDP, udpDatagram(1, 2, nil))), false},
	} {
		before := len(g.heard())
		send(tt.frame)
		end := ethernet(g.mac, gateway, etherIPv4, ipv4Packet(other.addr, g.addr, unix.IPPROTO_UDP, udpDatagram(9, uint16(before), nil)))
		send(end)
		frames := g.after(before, end)
		short := tt.frame[:min(len(tt.frame), 128)]
		if got := slices.ContainsFunc(frames, func(b []byte) bool { return bytes.Equal(b, short) }); got != tt.good {
			t.Errorf("%s: passes is %v", name, got)
		}
	}
}

// routerMessage is a router advertisement without options.
func routerMessage(kind byte) []byte { return append([]byte{kind}, make([]byte, 15)...) }

// after waits for the frame end and returns those before it.
func (g *testGuest) after(skip int, end []byte) [][]byte {
	t := g.host.fabric.t
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		frames := g.heard()[skip:]
		if i := slices.IndexFunc(frames, func(b []byte) bool { return bytes.Equal(b, end) }); i >= 0 {
			return frames[:i]
		}
	}
	t.Fatal("the last frame never came")
	return nil
}

// Agents come and go; guests hear nothing of it.
func TestRestartUnderGuestsTraffic(t *testing.T) {
	f := newFabric(t, 2, false)
	f.reconcile(red())
	a, b, c := f.plugIn(red(), 1, 8), f.plugIn(red(), 1, 10), f.plugIn(red(), 2, 8)
	stop := traffic(t, a.to(b), a.to(c))
	for i := range 30 {
		for _, h := range f.hosts {
			h.restart()
		}
		if i%2 == 0 { // the guest handler may be later than a pass, or earlier
			f.reconcile(red())
		}
		for _, h := range f.hosts {
			h.overlay.SetPorts(h.ports)
		}
		f.reconcile(red())
	}
	// Another guest comes and goes, limits change.
	d := f.plugIn(red(), 1, 12)
	d.stop()
	f.hosts[0].ports[0].Outbound = 1 << 30
	f.hosts[0].overlay.SetPorts(f.hosts[0].ports[:2])
	f.reconcile(red())
	stop(50)
	for _, h := range f.hosts {
		if n := h.overlay.repairs("red"); n != 0 {
			t.Errorf("%d repairs", n)
		}
	}
}

// What is known of ports decides over what is done to taps.
func TestPortsComeAndGo(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	ctx := context.Background()
	early := nodeagent.Port{Network: "red", Guest: "early", UID: "early", MAC: "02:00:00:00:00:07"}
	if _, err := h.overlay.Attach(ctx, early); err == nil || !strings.Contains(err.Error(), "Network red is not on this host yet") {
		t.Errorf("no Network: %v", err)
	}
	f.reconcile(red())
	h.overlay.SetPorts(nil)
	f.reconcile(red())
	before := h.tenant(red()).everything(t)
	g := f.plugIn(red(), 1, 8)
	gate := gatewayAddress().Addr()
	must(t, g.ping(gate, 56, patience))
	if _, err := h.overlay.Attach(ctx, g.port); err == nil || !strings.Contains(err.Error(), "has a queue already") {
		t.Errorf("a second queue: %v", err)
	}
	twin := g.port
	twin.UID = "another"
	if _, err := h.overlay.Attach(ctx, twin); err == nil || !strings.Contains(err.Error(), "shares its MAC") {
		t.Errorf("a Guest like another: %v", err)
	}
	must(t, g.ping(gate, 56, patience))

	// A new agent that has not heard of the ports leaves the guest alone.
	attached := h.tenant(red()).everything(t)
	h.restart()
	f.reconcile(red())
	if after := h.tenant(red()).everything(t); after != attached {
		t.Errorf("before:\n%s\nafter:\n%s", attached, after)
	}
	must(t, g.ping(gate, 56, patience))
	// One that knows better closes it, and opens it.
	h.overlay.SetPorts(nil)
	if g.ping(gate, 56, moment) == nil {
		t.Error("a guest without a port reaches its gateway")
	}
	f.reconcile(red())
	h.overlay.SetPorts(h.ports)
	must(t, g.ping(gate, 56, patience))
	// Its address changes.
	moved := g.port
	moved.Addresses = []netip.Addr{netip.MustParseAddr("10.5.1.20")}
	h.overlay.SetPorts([]nodeagent.Port{moved})
	if g.ping(gate, 56, moment) == nil {
		t.Error("a guest reaches its gateway by an address that it has no more")
	}
	h.overlay.SetPorts(h.ports)
	must(t, g.ping(gate, 56, patience))

	// The guest ends, and begins again; nothing is left of it in between.
	g.stop()
	h.overlay.SetPorts(nil)
	if after := h.tenant(red()).everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	h.overlay.SetPorts(h.ports)
	g.start()
	must(t, g.ping(gate, 56, patience))
	// It dies first, and its port is taken back by a later pass.
	g.stop()
	f.reconcile(red())
	h.overlay.SetPorts(nil)
	if after := h.tenant(red()).everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if n := h.overlay.repairs("red"); n != 0 {
		t.Errorf("%d repairs", n)
	}
	// The Network goes with a guest in it.
	h.overlay.SetPorts(h.ports)
	g.start()
	left := h.tenant(red())
	h.reconcile(removed(red()))
	if names, err := namespaces(h.dir); err != nil || len(names) > 0 {
		t.Errorf("namespaces left: %v %v", names, err)
	}
	links, err := left.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			t.Errorf("%s is left", l.Attrs().Name)
		}
	}
	if _, err := h.overlay.Attach(ctx, g.port); err == nil {
		t.Error("a guest is attached to a Network that was removed")
	}
}

// everything is how a namespace looks: interfaces, bridge ports, FDB,
// neighbours, routes and nftables.
func (p place) everything(t testing.TB) string {
	t.Helper()
	lines := []string{p.summary(t)}
	must(t, within(p.ns, func() error {
		c := &nftables.Conn{}
		for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyNetdev} {
			chains, err := c.ListChainsOfTableFamily(family)
			if err != nil {
				return err
			}
			for _, ch := range chains {
				rules, err := c.GetRules(&nftables.Table{Name: ch.Table.Name, Family: family}, ch)
				if err != nil {
					return err
				}
				for _, r := range rules {
					lines = append(lines, fmt.Sprint(family, ch.Name, string(r.UserData)))
				}
				lines = append(lines, fmt.Sprint(family, ch.Name, ch.Policy != nil && *ch.Policy == nftables.ChainPolicyAccept))
			}
		}
		return nil
	}))
	links, err := p.LinkList()
	must(t, err)
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		lines = append(lines, fmt.Sprint(l.Attrs().Name, l.Attrs().MasterIndex != 0))
	}
	c, err := dialRTNL(p.ns)
	must(t, err)
	defer c.close()
	ports, err := c.listBridgePorts()
	must(t, err)
	for i, port := range ports {
		lines = append(lines, fmt.Sprint(names[i], names[port.master], port.flags))
	}
	for i, name := range names {
		if !strings.HasPrefix(name, "br-") {
			continue
		}
		fdb, neighbours, err := c.listPortEntries(i)
		must(t, err)
		for e := range fdb {
			lines = append(lines, fmt.Sprint(names[e.index], e.mac))
		}
		for a, m := range neighbours {
			lines = append(lines, fmt.Sprint(a, m))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Each thing broken at a tap by hand is mended by the next pass, and counted.
func TestTapDriftIsMended(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	f.reconcile(red())
	g := f.plugIn(red(), 1, 8)
	other := f.plugIn(red(), 1, 10)
	f.reconcile(red())
	p := h.tenant(red())
	tap, err := p.LinkByName(tapName(g.port.UID))
	must(t, err)
	bridge, err := p.LinkByName(bridgeName(red().vni))
	must(t, err)
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}
	changed := func(change func(*nftables.Conn)) func() error {
		return func() error {
			c := p.nft(t)
			change(c)
			return c.Flush()
		}
	}
	out := &nftables.Chain{Name: tap.Attrs().Name + chainOut, Table: table}
	for _, tt := range []struct {
		name    string
		breakIt func() error
	}{
		{"filter deleted", changed(func(c *nftables.Conn) { c.DelTable(table) })},
		{"filter flushed", changed(func(c *nftables.Conn) { c.FlushChain(out) })},
		{"chain deleted", changed(func(c *nftables.Conn) { c.FlushChain(out); c.DelChain(out) })},
		{"open door", changed(func(c *nftables.Conn) {
			c.InsertRule(&nftables.Rule{Table: table, Chain: out, Exprs: nft.Accept().Exprs})
		})},
		{"open policy", changed(func(c *nftables.Conn) {
			open := nftables.ChainPolicyAccept
			c.AddChain(&nftables.Chain{Name: out.Name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
				Priority: nftables.ChainPriorityFilter, Device: tap.Attrs().Name, Policy: &open})
		})},
		{"unplugged", func() error { return p.LinkSetNoMaster(tap) }},
		{"not isolated", func() error { return p.LinkSetIsolated(tap, false) }},
		{"learning", func() error { return p.LinkSetLearning(tap, true) }},
		{"flooding", func() error { return p.LinkSetFlood(tap, true) }},
		{"proxy", func() error { return p.LinkSetBrNeighSuppress(tap, true) }},
		{"MTU", func() error { return p.LinkSetMTU(tap, 1000) }},
		{"down", func() error { return p.LinkSetDown(tap) }},
		{"unmarked", func() error { return p.LinkSetAlias(tap, "") }},
		{"FDB entry deleted", func() error {
			return p.NeighDel(&netlink.Neigh{LinkIndex: tap.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, HardwareAddr: g.mac[:]})
		}},
		{"FDB entry elsewhere", func() error {
			l, err := p.LinkByName(tapName(other.port.UID))
			if err != nil {
				return err
			}
			return p.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: g.mac[:]})
		}},
		{"neighbour deleted", func() error {
			return p.NeighDel(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: g.addr.AsSlice()})
		}},
		{"neighbour with another MAC", func() error {
			return p.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: g.addr.AsSlice(), HardwareAddr: net.HardwareAddr{2, 7, 7, 7, 7, 7}})
		}},
		{"bridge deleted", func() error { return p.LinkDel(bridge) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			before, repairs := p.everything(t), h.overlay.repairs("red")
			must(t, tt.breakIt())
			if p.everything(t) == before {
				t.Fatal("nothing is broken")
			}
			f.reconcile(red())
			if after := p.everything(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if h.overlay.repairs("red") == repairs {
				t.Error("the repair was not counted")
			}
			if err := g.ping(other.addr, 56, patience); err != nil {
				t.Error(err)
			}
			repairs = h.overlay.repairs("red")
			f.reconcile(red())
			if more := h.overlay.repairs("red") - repairs; more != 0 {
				t.Errorf("the pass after the repair changes %d things", more)
			}
		})
	}
}

// The underlay's MTU reaches the taps.
func TestTapsFollowTheMTU(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	f.reconcile(red())
	g := f.plugIn(red(), 1, 8)
	eth0, err := h.LinkByName("eth0")
	must(t, err)
	for _, mtu := range []int{1400, 9000, underlayMTU} {
		must(t, h.LinkSetMTU(eth0, mtu))
		part := f.part(red(), 1)
		part.Value.(*api.NetworkPart).MTU = 0 // the underlay's
		h.reconcile(part)
		for _, name := range []string{tapName(g.port.UID), bridgeName(red().vni)} {
			l, err := h.tenant(red()).LinkByName(name)
			must(t, err)
			if l.Attrs().MTU != mtu-overheadIPv4 {
				t.Errorf("%s has MTU %d, the underlay %d", name, l.Attrs().MTU, mtu)
			}
		}
		must(t, g.ping(gatewayAddress().Addr(), 56, patience))
	}
}

// A guest that moved is reached by its old addresses.
func TestMovedGuest(t *testing.T) {
	f := newFabric(t, 2, false)
	n := red()
	n.v6 = true
	here, there := f.part(n, 1), f.part(n, 2)
	addr, addr6 := netip.MustParseAddr("10.5.77.8"), netip.MustParseAddr("fd00:5:0:77::8")
	lease := netip.PrefixFrom(addr, 31)
	here.Value.(*api.NetworkPart).Moved = []netip.Prefix{lease}
	peers := there.Value.(*api.NetworkPart)
	peers.Peers = append(peers.Peers, api.NetworkPeer{Host: "h1", Lease: lease, Lease6: whole(addr6), VTEP: f.hosts[0].underlay, MAC: n.mac(1)})
	f.hosts[0].reconcile(here)
	f.hosts[1].reconcile(there)
	moved, other := f.plugInAt(n, 1, addr, addr6), f.plugIn(n, 2, 8, n.guest6(2, 8))
	moved.reaches(other)
	other.reaches(moved)
	ping6 := func(wait time.Duration) error {
		return newPinger(t, other.ns, n.guest6(2, 8)).ping(addr6, 56, wait)
	}
	must(t, ping6(patience))
	// Drift, and its end.
	p := f.hosts[0].tenant(n)
	for i, dst := range []netip.Prefix{lease, whole(addr6)} {
		must(t, p.RouteDel(&netlink.Route{Dst: ipNet(dst)}))
		f.hosts[0].reconcile(here)
		must(t, other.ping(addr, 56, patience))
		must(t, ping6(patience))
		if got := f.hosts[0].overlay.repairs("red"); got != int64(i+1) {
			t.Errorf("%d repairs", got)
		}
	}
	f.hosts[0].overlay.SetPorts(nil)
	f.hosts[0].reconcile(f.part(n, 1))
	links, err := listLinks(p.Handle)
	must(t, err)
	routes, err := (&work{tenant: p}).bridgeRoutes(links[bridgeName(n.vni)].index)
	must(t, err)
	if len(routes) > 0 {
		t.Errorf("routes are left: %v", routes)
	}
}

// Limits are measured by what arrives of a burst.
func TestLimits(t *testing.T) {
	f := newFabric(t, 1, false)
	f.reconcile(red())
	g := f.plugIn(red(), 1, 8)
	const limit, size = 200 << 10, 1000
	const sent = 3 * limit / size
	h := f.hosts[0]
	p := h.tenant(red())
	burst := func(from place, to netip.Addr) {
		t.Helper()
		var conn net.PacketConn
		must(t, within(from.ns, func() (err error) {
			conn, err = net.ListenPacket("udp4", ":0")
			return err
		}))
		defer func() { _ = conn.Close() }()
		for i := range sent {
			_, err := conn.WriteTo(make([]byte, size), &net.UDPAddr{IP: to.AsSlice(), Port: probePort})
			must(t, err)
			if i%20 == 19 {
				time.Sleep(5 * time.Millisecond) // the guest's queue must not overflow
			}
		}
	}
	received := func() (n uint64) { // by the gateway, behind all filters of devices
		must(t, within(p.ns, func() error {
			text, err := os.ReadFile("/proc/thread-self/net/snmp")
			if err != nil {
				return err
			}
			_, values, _ := strings.Cut(string(text), "\nIp: ") // after the line of names
			_, err = fmt.Sscan(strings.Fields(values)[2], &n)
			return err
		}))
		return n
	}
	heard := func() uint64 { return uint64(len(g.heard())) }
	rate, err := api.ParseQuantity(fmt.Sprint(limit))
	must(t, err)
	rates := api.Rates{Inbound: rate, Outbound: rate}
	mine := limits{limit, limit}
	for _, tt := range []struct {
		name        string
		port        limits
		guests, all api.Rates
		inbound     bool
		drops       func(Stats) uint64
	}{
		{"the port's, outbound", mine, api.Rates{}, api.Rates{}, false, func(s Stats) uint64 { return s.Ports[0].Drops.LimitedOut }},
		{"the port's, inbound", mine, api.Rates{}, api.Rates{}, true, func(s Stats) uint64 { return s.Ports[0].Drops.LimitedIn }},
		{"each guest's", limits{}, rates, api.Rates{}, false, func(s Stats) uint64 { return s.Ports[0].Drops.LimitedOut }},
		{"all guests', outbound", limits{}, api.Rates{}, rates, false, func(s Stats) uint64 { return s.Drops.LimitedOut }},
		{"all guests', inbound", limits{}, api.Rates{}, rates, true, func(s Stats) uint64 { return s.Drops.LimitedIn }},
	} {
		part := f.part(red(), 1)
		part.Digest = tt.name
		part.Value.(*api.NetworkPart).Limits, part.Value.(*api.NetworkPart).GuestLimits = tt.all, tt.guests
		h.ports[0].Inbound, h.ports[0].Outbound = tt.port.in, tt.port.out
		h.overlay.SetPorts(h.ports)
		h.reconcile(part)
		stats := func() Stats {
			h.reconcile(part)
			return h.overlay.Stats()[0]
		}
		count, send := received, func() { burst(g.place, first(red().lease(1))) }
		if tt.inbound {
			count, send = heard, func() { burst(p, g.addr) }
		}
		before, begin, drops := count(), time.Now(), tt.drops(stats())
		send()
		var through, lost uint64
		for deadline := time.Now().Add(patience); through+lost < sent && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			through, lost = count()-before, tt.drops(stats())-drops
		}
		took := time.Since(begin)
		most := 1.5 * (limit*(1+took.Seconds()) + limitBurst)
		if got := float64(through * size); got > most || got < limit/2 || lost == 0 || through+lost < sent {
			t.Errorf("%s: %d packets through and %d dropped of %d in %s, with %d bytes per second", tt.name, through, lost, sent, took, limit)
		}
		if n := h.overlay.repairs("red"); n != 0 {
			t.Errorf("%s: %d repairs", tt.name, n)
		}
	}
	h.ports[0].Inbound, h.ports[0].Outbound = 0, 0
	h.overlay.SetPorts(h.ports)
	f.reconcile(red())
	if rules := p.everything(t); strings.Contains(rules, bridgeName(red().vni)+chainOut) {
		t.Errorf("a limit is left:\n%s", rules)
	}
}

// Guests come and go while passes run; each finds its tap in order.
func TestPortsAtOnce(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	f.reconcile(red())
	still := f.plugIn(red(), 1, 8)
	const guests, rounds = 6, 8
	ports := make([]nodeagent.Port, guests)
	for i := range ports {
		ports[i] = nodeagent.Port{Network: "red", Guest: fmt.Sprint("g", i), UID: fmt.Sprint("many-", i), MAC: api.MAC(fmt.Sprintf("02:00:00:01:00:%02x", i)),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 5, 1, byte(100 + 2*i)})}}
	}
	var workers sync.WaitGroup
	for i := range guests {
		workers.Go(func() {
			for range rounds {
				at, err := h.overlay.Attach(context.Background(), ports[i])
				if err != nil {
					t.Errorf("attach %s: %v", ports[i].Guest, err)
					return
				}
				if err := at.Tap.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Go(func() {
		for i := range rounds {
			h.overlay.SetPorts(append(slices.Clone(h.ports), ports[i%guests:]...))
		}
	})
	for range rounds {
		f.reconcile(red())
	}
	workers.Wait()
	h.overlay.SetPorts(h.ports)
	f.reconcile(red())
	must(t, still.ping(gatewayAddress().Addr(), 56, patience))
	if links, err := listLinks(h.tenant(red()).Handle); err != nil || len(links) != 4 {
		t.Errorf("links are %v %v", links, err)
	}
	if s := h.overlay.Stats()[0].Ports; len(s) != 1 || s[0].UID != still.port.UID {
		t.Errorf("statistics are %+v", s)
	}
}

// What is in a guest's way, or looks like a tap of ours, is left to its owner.
func TestForeignTapStays(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	f.reconcile(red())
	p := h.tenant(red())
	theirs, err := openQueue(p.ns, "tapabcdef012345")
	must(t, err)
	defer func() { _ = theirs.Close() }()
	l, err := p.LinkByName("tapabcdef012345")
	must(t, err)
	must(t, p.LinkSetUp(l))
	port := nodeagent.Port{Network: "red", Guest: "a", UID: "a", MAC: "02:00:00:00:00:07"}
	must(t, p.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: tapName("a")}}))
	bridge, err := p.LinkByName(tapName("a"))
	must(t, err)
	must(t, p.LinkSetAlias(bridge, "theirs"))
	h.overlay.SetPorts([]nodeagent.Port{port})
	if _, err := h.overlay.Attach(context.Background(), port); err == nil || !strings.Contains(err.Error(), "not a tap") {
		t.Errorf("an interface in the way: %v", err)
	}
	status := h.overlay.Reconcile(context.Background(), []nodeagent.Part{f.part(red(), 1)})["network/red"]
	if status.State != api.PartPending || !strings.Contains(status.Message, "rename or remove it") {
		t.Errorf("an interface in the way: %+v", status)
	}
	l, err = p.LinkByName("tapabcdef012345")
	must(t, err)
	if l.Attrs().MasterIndex != 0 || l.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("a foreign tap was changed: %+v", l.Attrs())
	}
	must(t, p.LinkDel(bridge))
	h.overlay.SetPorts(nil)
	f.reconcile(red())
}

// A guest that is on its way here has a tap that nothing reaches, and its host
// does not know it, until its port is named.
func TestSilentPort(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	f.reconcile(red())
	g := f.plugIn(red(), 1, 8)
	gate := gatewayAddress().Addr()
	g.stop()
	h.overlay.SetPorts(nil)
	before := h.tenant(red()).everything(t)
	g.port.Silent = true
	g.begin()
	for range 2 { // also when the overlay looks again
		if g.ping(gate, 56, moment) == nil {
			t.Error("it reaches its gateway")
		}
		if now := h.tenant(red()).everything(t); strings.Contains(now, "10.5.1.8") && !strings.Contains(before, "10.5.1.8") {
			t.Errorf("its host knows it:\n%s", now)
		}
		f.reconcile(red())
	}
	h.overlay.SetPorts(h.ports)
	must(t, g.ping(gate, 56, patience))
}
