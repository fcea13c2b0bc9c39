package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/nodeagent"
)

// What VXLAN takes of the underlay's MTU.
const (
	overheadIPv4 = 50
	overheadIPv6 = 70
)

// fabric is an underlay: a bridge, and hosts as namespaces around it.
type fabric struct {
	t      testing.TB
	dir    string
	bridge place
	hosts  []*testHost
}

type testHost struct {
	place
	fabric   *fabric
	name     string
	path     string
	dir      string // of its tenants' namespaces
	underlay netip.Addr
	overlay  *Overlay
	speakers Speakers         // nil: guests do not peer
	ports    []nodeagent.Port // of its guests
}

const underlayMTU = 1500

// newFabric makes hosts h1, h2, … at 198.18.0.1 and on, or 2001:db8::1 and on.
func newFabric(t testing.TB, hosts int, v6 bool) *fabric {
	t.Helper()
	nstest.Root(t, nstest.Namespaces)
	f := &fabric{t: t, dir: t.TempDir()}
	// The directory's own mount goes last.
	t.Cleanup(func() { _ = unix.Unmount(f.dir, unix.MNT_DETACH) })
	_, err := namespace.ShareMounts(f.dir)
	must(t, err)
	f.bridge = f.namespace("fabric")
	must(t, f.bridge.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	f.up(f.bridge, "br0")
	for i := range hosts {
		f.addHost(i+1, v6)
	}
	return f
}

// namespace makes one that goes with the test.
func (f *fabric) namespace(name string) place {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	must(f.t, namespace.Pin(path))
	f.t.Cleanup(func() { _ = namespace.Unpin(path) })
	p, err := openPlace(path)
	must(f.t, err)
	f.t.Cleanup(p.close)
	f.up(p, "lo")
	return p
}

func (f *fabric) up(p place, name string) netlink.Link {
	f.t.Helper()
	l, err := p.LinkByName(name)
	must(f.t, err)
	must(f.t, p.LinkSetUp(l))
	return l
}

// plug joins a and b by a veth pair and puts b's end into b's bridge.
func (f *fabric) plug(a place, name string, b place, port, bridge string) {
	f.t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: underlayMTU}, PeerName: port, PeerNamespace: netlink.NsFd(b.ns), PeerMTU: underlayMTU}
	must(f.t, a.LinkAdd(veth))
	f.up(a, name)
	end := f.up(b, port)
	master, err := b.LinkByName(bridge)
	must(f.t, err)
	must(f.t, b.LinkSetMaster(end, master))
}

func (f *fabric) addHost(i int, v6 bool) {
	f.t.Helper()
	h := &testHost{fabric: f, name: fmt.Sprintf("h%d", i), underlay: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)})}
	bits := 24
	if v6 {
		h.underlay, bits = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)), 64
	}
	h.path = filepath.Join(f.dir, h.name)
	h.place = f.namespace(h.name)
	h.dir = f.t.TempDir()
	f.t.Cleanup(func() { h.cleanup() })
	f.plug(h.place, "eth0", f.bridge, h.name, "br0")
	h.address("eth0", netip.PrefixFrom(h.underlay, bits))
	h.restart()
	f.hosts = append(f.hosts, h)
}

func (h *testHost) address(name string, p netip.Prefix) {
	h.fabric.t.Helper()
	l, err := h.LinkByName(name)
	must(h.fabric.t, err)
	a := toAddress(p)
	a.Flags = unix.IFA_F_NODAD
	must(h.fabric.t, h.AddrAdd(l, a))
}

// cleanup unpins what tests leave running.
func (h *testHost) cleanup() {
	names, _ := namespaces(h.dir)
	for _, name := range names {
		_ = namespace.Unpin(filepath.Join(h.dir, name))
	}
	_ = unix.Unmount(h.dir, unix.MNT_DETACH)
}

// restart is a new agent.
func (h *testHost) restart() {
	h.overlay = New(Options{NamespaceDir: h.dir, HostNamespace: h.path, ProbeFile: filepath.Join(h.fabric.dir, "probe.json"), Speakers: h.speakers, Log: slog.New(slog.DiscardHandler)})
	h.overlay.SetUnderlay(api.Underlay{Interface: "eth0", Addresses: []netip.Addr{h.underlay}})
}

// tenant is a Network of the test; host i has the lease <base>.i.0/24.
type tenant struct {
	name, uid string
	vni       uint32
	second    byte // 10.<second>.<third+i>.0/24
	third     byte
	egress    string
	v6        bool // host i has fd00:<second>:0:<third+i>::/64, too
}

func (n tenant) lease(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n.second, n.third + byte(i), 0}), 24)
}

func (n tenant) lease6(i int) netip.Prefix {
	if !n.v6 {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(fmt.Sprintf("fd00:%x:0:%x::/64", n.second, n.third+byte(i)))
}

func (n tenant) cidrs() []netip.Prefix {
	list := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, n.second, 0, 0}), 16)}
	if n.v6 {
		list = append(list, netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/48", n.second)))
	}
	return list
}

func (n tenant) mac(i int) api.MAC {
	return api.MAC(fmt.Sprintf("02:%02x:%02x:%02x:00:%02x", byte(n.vni>>16), byte(n.vni>>8), byte(n.vni), i))
}

// part is the Network's on host i (from 1), with all other hosts as its peers.
func (f *fabric) part(n tenant, i int) nodeagent.Part {
	mtu := underlayMTU - overheadIPv4
	if f.hosts[0].underlay.Is6() {
		mtu = underlayMTU - overheadIPv6
	}
	value := &api.NetworkPart{UID: n.uid, VNI: n.vni, MTU: mtu, Lease: n.lease(i), Lease6: n.lease6(i), MAC: n.mac(i), Egress: n.egress, CIDRs: n.cidrs()}
	for j, h := range f.hosts {
		if j+1 != i {
			value.Peers = append(value.Peers, api.NetworkPeer{Host: h.name, Lease: n.lease(j + 1), Lease6: n.lease6(j + 1), VTEP: h.underlay, MAC: n.mac(j + 1)})
		}
	}
	return nodeagent.Part{Name: api.NetworkPartName(n.name), UID: n.uid, Digest: "1", Value: value}
}

// reconcile makes the Networks true on every host, and wants them applied.
func (f *fabric) reconcile(networks ...tenant) {
	f.t.Helper()
	for i, h := range f.hosts {
		var parts []nodeagent.Part
		for _, n := range networks {
			parts = append(parts, f.part(n, i+1))
		}
		h.reconcile(parts...)
	}
}

func (h *testHost) reconcile(parts ...nodeagent.Part) {
	h.fabric.t.Helper()
	for key, s := range h.overlay.Reconcile(context.Background(), parts) {
		if s.State != api.PartApplied || s.Message != "" {
			h.fabric.t.Fatalf("%s on %s is %s: %s", key, h.name, s.State, s.Message)
		}
	}
}

func (h *testHost) tenantPath(n tenant) string {
	return filepath.Join(h.dir, namespaceName(n.name, n.uid))
}

// tenant opens the Network's namespace on the host.
func (h *testHost) tenant(n tenant) place {
	h.fabric.t.Helper()
	p, err := openPlace(h.tenantPath(n))
	must(h.fabric.t, err)
	h.fabric.t.Cleanup(p.close)
	return p
}

// guest is a namespace that is plugged into the Network's bridge on a host.
func (f *fabric) guest(n tenant, i int, last byte) (place, netip.Addr) {
	f.t.Helper()
	h := f.hosts[i-1]
	g := f.namespace(fmt.Sprintf("guest-%s-%s-%d", n.name, h.name, last))
	f.plug(g, "eth0", h.tenant(n), fmt.Sprintf("tap%d", last), bridgeName(n.vni))
	b := n.lease(i).Addr().As4()
	b[3] = last
	addr := netip.AddrFrom4(b)
	l, err := g.LinkByName("eth0")
	must(f.t, err)
	must(f.t, g.LinkSetMTU(l, underlayMTU-overheadIPv6))
	must(f.t, g.AddrAdd(l, toAddress(netip.PrefixFrom(addr, 32))))
	must(f.t, g.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(gatewayAddress()), Scope: netlink.SCOPE_LINK}))
	must(f.t, g.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gatewayAddress().Addr().AsSlice()}))
	if n.v6 {
		must(f.t, g.AddrAdd(l, toAddress(netip.PrefixFrom(n.guest6(i, last), 128))))
		must(f.t, g.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gatewayAddress6().Addr().AsSlice()}))
	}
	return g, addr
}

// guest6 is the address that guest gives beside the IPv4 one.
func (n tenant) guest6(i int, last byte) netip.Addr {
	b := n.lease6(i).Addr().As16()
	b[15] = last
	return netip.AddrFrom16(b)
}

func ipNet(p netip.Prefix) *net.IPNet { return toAddress(p).IPNet }

// first is the bridge's address in a lease.
func first(lease netip.Prefix) netip.Addr { return lease.Addr().Next() }

// pinger sends ICMP echo requests from an address in a namespace.
type pinger struct {
	conn           *icmp.PacketConn
	id             int
	seq            int
	protocol       int
	request, reply icmp.Type
}

func newPinger(t testing.TB, ns netns.NsHandle, source netip.Addr) *pinger {
	t.Helper()
	p := &pinger{id: os.Getpid() & 0xffff, protocol: unix.IPPROTO_ICMP, request: ipv4.ICMPTypeEcho, reply: ipv4.ICMPTypeEchoReply}
	network := "ip4:icmp"
	if source.Is6() {
		p.protocol, p.request, p.reply, network = unix.IPPROTO_ICMPV6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, "ip6:ipv6-icmp"
	}
	must(t, within(ns, func() (err error) {
		p.conn, err = icmp.ListenPacket(network, source.String())
		return err
	}))
	t.Cleanup(func() { _ = p.conn.Close() })
	return p
}

var errNoReply = errors.New("no reply")

// ping waits for the reply to one request with size bytes of data.
func (p *pinger) ping(to netip.Addr, size int, wait time.Duration) error {
	p.seq = (p.seq + 1) & 0xffff // as on the wire
	request, err := (&icmp.Message{Type: p.request, Body: &icmp.Echo{ID: p.id, Seq: p.seq, Data: make([]byte, size)}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := p.conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	if err := p.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	b := make([]byte, 65536)
	for {
		n, from, err := p.conn.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errNoReply
		}
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(p.protocol, b[:n])
		if err != nil {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if ok && m.Type == p.reply && echo.ID == p.id && echo.Seq == p.seq && from.String() == to.String() {
			return nil
		}
	}
}

// patience is how long a reply that must come may take on a busy machine.
const patience = 5 * time.Second

// allPairs pings from every host's bridge to every other's.
func (f *fabric) allPairs(n tenant) {
	f.t.Helper()
	for i, from := range f.hosts {
		p := newPinger(f.t, from.tenant(n).ns, first(n.lease(i+1)))
		for j := range f.hosts {
			if err := p.ping(first(n.lease(j+1)), 56, patience); err != nil {
				f.t.Errorf("%s: %s does not reach h%d: %v", n.name, from.name, j+1, err)
			}
		}
	}
}

// entries lists what the host's kernel has for the Network.
func (h *testHost) entries(n tenant) entries {
	h.fabric.t.Helper()
	p := h.tenant(n)
	l, err := p.LinkByName(vxlanName(n.vni))
	must(h.fabric.t, err)
	c, err := dialRTNL(p.ns)
	must(h.fabric.t, err)
	defer c.close()
	e, err := c.listEntries(l.Attrs().Index, 0)
	must(h.fabric.t, err)
	return e
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
