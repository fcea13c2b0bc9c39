package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

func shop() tenant {
	return tenant{name: "shop", uid: "uid-shop", vni: 9999999, second: 20, v6: true}
}
func base() tenant {
	return tenant{name: "base", uid: "uid-base", vni: 9999998, second: 21, v6: true}
}
func spare() tenant {
	return tenant{name: "spare", uid: "uid-spare", vni: 300, second: 22, v6: true}
}

// grants says which Networks' guests may come into which.
type grants map[string][]tenant

func (f *fabric) grantedPart(n tenant, i int, g grants) nodeagent.Part {
	p := f.part(n, i)
	p.Digest = fmt.Sprint(g[n.name])
	for _, a := range g[n.name] {
		value := p.Value.(*api.NetworkPart)
		value.Allow = append(value.Allow, api.NetworkAllow{Network: a.name, UID: a.uid, VNI: a.vni, CIDRs: a.cidrs()})
	}
	return p
}

func (f *fabric) grant(g grants, networks ...tenant) {
	f.t.Helper()
	for i, h := range f.hosts {
		var parts []nodeagent.Part
		for _, n := range networks {
			parts = append(parts, f.grantedPart(n, i+1, g))
		}
		h.reconcile(parts...)
	}
}

// dial opens a TCP connection from a namespace to a listener in another, sends
// a line and wants it back.
func dial(t testing.TB, from place, source netip.Addr, to place, addr netip.Addr, wait time.Duration) error {
	t.Helper()
	var l net.Listener
	must(t, within(to.ns, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	}))
	defer func() { _ = l.Close() }()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	defer func() { _ = l.Close(); <-served }()
	d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: source.AsSlice()}}
	var conn net.Conn
	if err := within(from.ns, func() (err error) { conn, err = d.Dial("tcp", l.Addr().String()); return err }); err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	text := bytes.Repeat([]byte("rackweft"), 8192) // fills segments, and windows
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	sent := make(chan error, 1)
	go func() { _, err := conn.Write(text); sent <- err }()
	back := make([]byte, len(text))
	_, err := io.ReadFull(conn, back)
	return errors.Join(err, <-sent)
}

// crew is guests of Networks on every host.
type crew map[string]place

func (f *fabric) crew(networks ...tenant) crew {
	c := crew{}
	for _, n := range networks {
		for i := range f.hosts {
			g, _ := f.guest(n, i+1, 8)
			c[fmt.Sprint(n.name, i+1)] = g
		}
	}
	for _, n := range networks {
		for i := range f.hosts {
			addresses := []netip.Addr{guest4(n, i+1)}
			if n.v6 {
				addresses = append(addresses, n.guest6(i+1, 8))
			}
			f.awaitGateway(c[fmt.Sprint(n.name, i+1)], addresses...)
		}
	}
	return c
}

// opens checks from every host to every host, in both families, by ping and
// TCP, whether guests of one Network can open connections to another's.
func (c crew) opens(f *fabric, a, b tenant, want bool) {
	f.t.Helper()
	wait := patience
	if !want {
		wait = moment
	}
	var pairs sync.WaitGroup
	for i := range f.hosts {
		for j := range f.hosts {
			from, to := c[fmt.Sprint(a.name, i+1)], c[fmt.Sprint(b.name, j+1)]
			for _, pair := range [][2]netip.Addr{{guest4(a, i+1), guest4(b, j+1)}, {a.guest6(i+1, 8), b.guest6(j+1, 8)}} {
				p := newPinger(f.t, from.ns, pair[0])
				pairs.Go(func() {
					ping := p.ping(pair[1], 1000, wait)
					tcp := dial(f.t, from, pair[0], to, pair[1], wait)
					if want && (ping != nil || tcp != nil) || !want && (ping == nil || tcp == nil) {
						f.t.Errorf("from %s on h%d (%s) to %s on h%d (%s): want %v, ping %v, TCP %v", a.name, i+1, pair[0], b.name, j+1, pair[1], want, ping, tcp)
					}
				})
			}
		}
	}
	pairs.Wait()
}

func guest4(n tenant, i int) netip.Addr {
	b := n.lease(i).Addr().As4()
	b[3] = 8
	return netip.AddrFrom4(b)
}

func TestAllow(t *testing.T) {
	f := newFabric(t, 2, false)
	a, b, c := shop(), base(), spare()
	all := []tenant{a, b, c}
	f.grant(nil, all...)
	people := f.crew(all...)
	people.opens(f, a, b, false)
	before := f.state(all...)

	// A may come into B, and B into C: neither the other way, nor A into C.
	g := grants{"base": {a}, "spare": {b}}
	f.grant(g, all...)
	people.opens(f, a, b, true)
	people.opens(f, b, c, true)
	people.opens(f, b, a, false)
	people.opens(f, c, b, false)
	people.opens(f, a, c, false)
	people.opens(f, c, a, false)
	for _, n := range all {
		f.allPairs(n)
	}
	t.Run("ICMP errors come back", func(t *testing.T) {
		for i := range f.hosts {
			for _, pair := range [][2]netip.Addr{{guest4(a, 1), guest4(b, i+1)}, {a.guest6(1, 8), b.guest6(i+1, 8)}} {
				if err := refusal(t, people["shop1"], netip.AddrPortFrom(pair[0], 0), netip.AddrPortFrom(pair[1], 9)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("a closed port of %s: %v", pair[1], err)
				}
			}
		}
	})
	t.Run("gateways are members", func(t *testing.T) {
		p := newPinger(t, people["shop1"].ns, guest4(a, 1))
		for i := range f.hosts {
			if err := p.ping(first(b.lease(i+1)), 56, patience); err != nil {
				t.Errorf("gateway of base on h%d: %v", i+1, err)
			}
		}
		p = newPinger(t, people["base1"].ns, guest4(b, 1))
		if p.ping(first(a.lease(2)), 56, moment) == nil {
			t.Error("base reaches a gateway of shop")
		}
	})
	t.Run("spoofed sources stay out", func(t *testing.T) {
		// A guest of B with an address of A's, or of its own, may not come in.
		heard := listen(t, people["shop2"])
		lo, err := people["base1"].LinkByName("lo")
		must(t, err)
		must(t, people["base1"].AddrAdd(lo, toAddress(netip.PrefixFrom(guest4(a, 1), 32))))
		sendFrom(t, people["base1"], netip.AddrPortFrom(guest4(a, 1), 0), netip.AddrPortFrom(guest4(a, 2), probePort), "as A")
		sendFrom(t, people["base1"], netip.AddrPortFrom(guest4(b, 1), probePort), netip.AddrPortFrom(guest4(a, 2), probePort), "as B")
		must(t, people["base1"].AddrDel(lo, toAddress(netip.PrefixFrom(guest4(a, 1), 32))))
		sendFrom(t, people["shop1"], netip.AddrPortFrom(guest4(a, 1), 0), netip.AddrPortFrom(guest4(a, 2), probePort), "last")
		if got := heardSoon(heard, "last"); len(got) != 1 {
			t.Errorf("heard %q", got)
		}
	})
	t.Run("a member that is no host of ours", func(t *testing.T) {
		// What comes out of B's VXLAN does not go over to A.
		heard := listen(t, people["shop1"])
		var vtep mac
		copy(vtep[:], b.mac(1).HardwareAddr())
		sendTo(t, f.hosts[1].place, netip.AddrPortFrom(f.hosts[0].underlay, Port), vxlanPacket(b.vni, vtep, guest4(b, 2), guest4(a, 1), "from a VTEP"))
		sendFrom(t, people["shop2"], netip.AddrPortFrom(guest4(a, 2), 0), netip.AddrPortFrom(guest4(a, 1), probePort), "last")
		if got := heardSoon(heard, "last"); len(got) != 1 {
			t.Errorf("heard %q", got)
		}
	})
	t.Run("a new agent changes nothing", func(t *testing.T) {
		stop := traffic(t, way{people["shop1"].ns, guest4(a, 1), guest4(b, 2), 56})
		was := f.state(all...)
		for range 10 {
			for _, h := range f.hosts {
				h.restart()
			}
			f.grant(g, all...)
		}
		f.grant(g, all...)
		stop(1)
		unchanged(t, was, f.state(all...))
		for _, h := range f.hosts {
			for _, n := range all {
				if repairs := h.overlay.repairs(n.name); repairs != 0 {
					t.Errorf("%d repairs of %s on %s", repairs, n.name, h.name)
				}
			}
		}
	})

	// Both ways, then one way again: what B had opened to A ends.
	f.grant(grants{"base": {a}, "shop": {b}}, all...)
	people.opens(f, a, b, true)
	people.opens(f, b, a, true)
	people.opens(f, b, c, false)
	heard := listen(t, people["shop2"])
	sendFrom(t, people["base1"], netip.AddrPortFrom(guest4(b, 1), 5000), netip.AddrPortFrom(guest4(a, 2), probePort), "both ways")
	heardSoon(heard, "both ways")
	sendFrom(t, people["shop2"], netip.AddrPortFrom(guest4(a, 2), 0), netip.AddrPortFrom(guest4(b, 1), 5000), "an answer")
	f.grant(grants{"base": {a}}, all...)
	sendFrom(t, people["base1"], netip.AddrPortFrom(guest4(b, 1), 5000), netip.AddrPortFrom(guest4(a, 2), probePort), "one way")
	people.opens(f, a, b, true)
	people.opens(f, b, a, false)
	if got := heard(); slices.Contains(got, "one way") {
		t.Error("what base opened goes on")
	}
	f.grant(nil, all...)
	people.opens(f, a, b, false)
	people.opens(f, b, a, false)
	unchanged(t, before, f.state(all...))
}

// refusal sends a datagram to a closed port and waits for the error.
func refusal(t testing.TB, from place, source, to netip.AddrPort) error {
	t.Helper()
	var conn net.Conn
	must(t, within(from.ns, func() (err error) {
		conn, err = (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(source)}).Dial("udp", to.String())
		return err
	}))
	defer func() { _ = conn.Close() }()
	_, err := conn.Write([]byte("is anybody there?"))
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(patience)))
	_, err = conn.Read(make([]byte, 10))
	return err
}

func sendFrom(t testing.TB, p place, source, to netip.AddrPort, text string) {
	t.Helper()
	var conn net.PacketConn
	must(t, within(p.ns, func() (err error) {
		lc := net.ListenConfig{Control: reuse}
		conn, err = lc.ListenPacket(t.Context(), "udp", source.String())
		return err
	}))
	defer func() { _ = conn.Close() }()
	_, _ = conn.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)) // a refusal on the way is an answer, too
}

func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
}

// state is all that rackweft has on the hosts, whatever the interfaces' indices.
func (f *fabric) state(networks ...tenant) string {
	f.t.Helper()
	var lines []string
	add := func(where string, p place) {
		lines = append(lines, "# "+where, p.summary(f.t), p.rules(f.t), p.routes(f.t))
	}
	for _, h := range f.hosts {
		add(h.name, h.place)
		for _, n := range networks {
			add(h.name+" "+n.name, h.tenant(n))
			lines = append(lines, fmt.Sprint(h.entries(n)))
		}
	}
	return strings.Join(lines, "\n")
}

// routes are those with our protocol, and permanent neighbours.
func (p place) routes(t testing.TB) string {
	t.Helper()
	links, err := p.LinkList()
	must(t, err)
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var lines []string
	routes, err := p.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	must(t, err)
	for _, r := range routes {
		lines = append(lines, fmt.Sprint("route ", toPrefix(r.Dst), " via ", r.Gw, " dev ", names[r.LinkIndex], " src ", r.Src, " metric ", r.Priority))
	}
	neighbours, err := p.NeighList(0, netlink.FAMILY_ALL)
	must(t, err)
	for _, n := range neighbours {
		if n.State&unix.NUD_PERMANENT != 0 {
			lines = append(lines, fmt.Sprint("neighbour ", n.IP, " ", n.HardwareAddr, " dev ", names[n.LinkIndex]))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// unchanged wants two states to be the same and shows where they are not.
func unchanged(t testing.TB, before, after string) {
	t.Helper()
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			t.Errorf("gone: %s", line)
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			t.Errorf("new: %s", line)
		}
	}
	if !t.Failed() && before != after {
		t.Errorf("in another order:\n%s\nand\n%s", before, after)
	}
}

// breakage is something done by hand in a Network's namespace on host 1.
type breakage struct {
	name string
	at   tenant
	do   func(p place) error
}

// mends wants each breakage mended by one pass of host 1, counted, and nothing
// left to do for the next.
func (f *fabric) mends(pass func(), all []tenant, list []breakage) {
	f.t.Helper()
	t, h := f.t, f.hosts[0]
	repairs := func() (n int64) {
		for _, s := range h.overlay.Stats() {
			n += s.Repairs
		}
		return n + h.overlay.HostRepairs()
	}
	pass()
	for _, b := range list {
		before, counted := f.state(all...), repairs()
		at := h.place
		if b.at.name != "" {
			at = h.tenant(b.at)
		}
		if err := b.do(at); err != nil {
			t.Errorf("%s: %v", b.name, err)
			continue
		}
		if f.state(all...) == before {
			t.Errorf("%s: nothing is broken", b.name)
		}
		pass()
		unchanged(t, before, f.state(all...))
		if repairs() == counted {
			t.Errorf("%s: the repair was not counted", b.name)
		}
		counted = repairs()
		pass()
		if repairs() != counted {
			t.Errorf("%s: the pass after the repair changes something", b.name)
		}
		if t.Failed() {
			t.Fatalf("after: %s", b.name)
		}
	}
}

func onLink(name string, change func(place, netlink.Link) error) func(place) error {
	return func(p place) error {
		l, err := p.LinkByName(name)
		if err != nil {
			return err
		}
		return change(p, l)
	}
}

func TestPassagesAreMended(t *testing.T) {
	f := newFabric(t, 2, false)
	a, b := shop(), base()
	all := []tenant{a, b, spare()}
	people := map[string]place{}
	g := grants{"base": {a}}
	f.grant(g, all...)
	for i, n := range []tenant{a, b} {
		people[n.name], _ = f.guest(n, i+1, 8)
	}
	end := passageName(b.vni)
	f.mends(func() { f.grant(g, all...) }, all, []breakage{
		{"deleted", a, onLink(end, func(p place, l netlink.Link) error { return p.LinkDel(l) })},
		{"other end deleted", b, onLink(passageName(a.vni), func(p place, l netlink.Link) error { return p.LinkDel(l) })},
		{"down", a, onLink(end, func(p place, l netlink.Link) error { return p.LinkSetDown(l) })},
		{"MTU", a, onLink(end, func(p place, l netlink.Link) error { return p.LinkSetMTU(l, 1200) })},
		{"MAC", a, onLink(end, func(p place, l netlink.Link) error {
			return p.LinkSetHardwareAddr(l, net.HardwareAddr{2, 1, 1, 1, 1, 1})
		})},
		{"alias", a, onLink(end, func(p place, l netlink.Link) error { return p.LinkSetAlias(l, "") })},
		{"address", a, onLink(end, func(p place, l netlink.Link) error {
			return p.AddrAdd(l, toAddress(netip.MustParsePrefix("10.9.9.9/32")))
		})},
		{"route deleted", a, onLink(end, func(p place, l netlink.Link) error { return p.RouteDel(&netlink.Route{Dst: ipNet(b.cidrs()[0])}) })},
		{"IPv6 route deleted", a, onLink(end, func(p place, l netlink.Link) error { return p.RouteDel(&netlink.Route{Dst: ipNet(b.cidrs()[1])}) })},
		{"route of ours to a third Network", a, onLink(end, func(p place, l netlink.Link) error {
			return p.RouteAdd(&netlink.Route{Dst: ipNet(spare().cidrs()[0]), LinkIndex: l.Attrs().Index, Protocol: Protocol})
		})},
		{"neighbour deleted", a, onLink(end, func(p place, l netlink.Link) error {
			return p.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: passageGateways()[0].AsSlice()})
		})},
		{"neighbour elsewhere", b, onLink(passageName(a.vni), func(p place, l netlink.Link) error {
			return p.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: unix.NUD_PERMANENT, IP: passageGateways()[1].AsSlice(), HardwareAddr: net.HardwareAddr{2, 1, 1, 1, 1, 1}})
		})},
	})
	if err := newPinger(t, people["shop"].ns, guest4(a, 1)).ping(guest4(b, 2), 56, patience); err != nil {
		t.Error(err)
	}
	// The smaller MTU of both counts, and is followed.
	for i, h := range f.hosts {
		small := f.grantedPart(b, i+1, g)
		small.Value.(*api.NetworkPart).MTU = 1300
		h.reconcile(f.grantedPart(a, i+1, g), small, f.part(spare(), i+1))
		for n, name := range map[tenant]string{a: end, b: passageName(a.vni)} {
			l, err := h.tenant(n).LinkByName(name)
			must(t, err)
			if l.Attrs().MTU != 1300 {
				t.Errorf("%s on %s has MTU %d", name, h.name, l.Attrs().MTU)
			}
		}
	}
	p := newPinger(t, people["shop"].ns, guest4(a, 1))
	for range 3 { // the first ones are answered that they are too big
		_ = p.ping(guest4(b, 2), 1380, moment)
	}
	if err := p.ping(guest4(b, 2), 1380, patience); err != nil {
		t.Errorf("a packet above the smaller MTU: %v", err)
	}
}

// Each Network's end goes with it, whichever goes first, and what cannot be is
// said.
func TestPassagesOnlyWhereTheyCanBe(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	a, b := shop(), base()
	g := grants{"base": {a}}
	link := func(n tenant, other uint32) bool {
		seen, err := listLink(h.tenant(n).Handle, passageName(other))
		must(t, err)
		return len(seen) > 0
	}
	status := func(parts ...nodeagent.Part) map[string]api.PartStatus {
		return h.overlay.Reconcile(t.Context(), parts)
	}
	wants := func(s api.PartStatus, state api.PartState, text string) {
		t.Helper()
		if s.State != state || !strings.Contains(s.Message, text) {
			t.Errorf("%+v, want %s with %q", s, state, text)
		}
	}
	wants(status(f.grantedPart(b, 1, g))["network/base"], api.PartPending, "shop cannot come in yet")
	h.reconcile(f.part(a, 1), f.grantedPart(b, 1, g))
	if !link(a, b.vni) || !link(b, a.vni) {
		t.Error("no passage")
	}
	// A part that is lost takes nothing with it.
	h.restart()
	h.reconcile(f.part(a, 1))
	p := newPinger(t, h.tenant(a).ns, first(a.lease(1)))
	if err := p.ping(first(b.lease(1)), 56, patience); err != nil || !link(a, b.vni) {
		t.Errorf("the passage to a Network of which nothing is known: %v", err)
	}
	h.reconcile(f.part(a, 1))
	if n := h.overlay.repairs("shop"); n != 0 {
		t.Errorf("%d repairs", n)
	}
	h.reconcile(f.part(a, 1), removed(b))
	if link(a, b.vni) {
		t.Error("the passage outlives a Network")
	}
	h.reconcile(f.part(a, 1), f.grantedPart(b, 1, g))
	h.reconcile(f.grantedPart(b, 1, nil), removed(a))
	if link(b, a.vni) {
		t.Error("the passage outlives the other Network")
	}
	h.reconcile(removed(b))

	// Overlaps: with its own, with a third's, on either side.
	twin := spare()
	twin.second = a.second
	same := red()
	same.second = b.second
	for _, tt := range []struct {
		name   string
		g      grants
		all    []tenant
		failed string
		text   string
	}{
		{"with its own", grants{"base": {same}}, []tenant{b, same}, "base", "10.21.0.0/16 overlaps with 10.21.0.0/16 of Network base"},
		{"with another that comes in", grants{"base": {a, twin}}, []tenant{a, b, twin}, "base", "of Network spare, which has a passage to base"},
		{"with another that it goes to", grants{"shop": {b}, "spare": {b}}, []tenant{a, b, twin}, "shop", "of Network spare, which has a passage to base"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var parts, tombstones []nodeagent.Part
			for _, n := range tt.all {
				parts, tombstones = append(parts, f.grantedPart(n, 1, tt.g)), append(tombstones, removed(n))
			}
			for key, s := range status(parts...) {
				if key == "network/"+tt.failed {
					wants(s, api.PartFailed, tt.text)
				} else {
					wants(s, api.PartApplied, "")
				}
			}
			h.reconcile(tombstones...)
		})
	}
}
