package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nft"
	"github.com/rackweft/rackweft/nodeagent"
)

// vxlanPacket is what a VTEP sends: an inner UDP datagram to a guest.
func vxlanPacket(vni uint32, vtep mac, from, to netip.Addr, text string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0x08, 0, 0, 0}, vni<<8) // RFC 7348 §5
	b = append(append(b, vtep[:]...), 2, 6, 6, 6, 6, 6, 0x08, 0x00)
	return append(b, checksummed(ipv4Packet(from, to, unix.IPPROTO_UDP, udpDatagram(4000, probePort, []byte(text))))...)
}

func sendTo(t testing.TB, p place, to netip.AddrPort, payload []byte) {
	t.Helper()
	var conn net.PacketConn
	must(t, within(p.ns, func() (err error) {
		conn, err = net.ListenPacket("udp", ":0")
		return err
	}))
	defer func() { _ = conn.Close() }()
	_, _ = conn.WriteTo(payload, net.UDPAddrFromAddrPort(to)) // a refusal on the way is an answer, too
}

// heardSoon waits until all of want was heard and returns all that was.
func heardSoon(heard func() []string, want ...string) []string {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		got := heard()
		if !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(got, w) }) {
			return got
		}
	}
	return heard()
}

// UDP 8472 is for the VTEPs of a Network, each for its own VNI.
func TestVXLANFromStrangers(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprint("v6=", v6), func(t *testing.T) {
			f := newFabric(t, 4, v6)
			h := f.hosts[0]
			// Host 1 carries red with host 2 and blue with host 3; host 4 is a stranger.
			redPart := withoutPeer(withoutPeer(f.part(red(), 1), "h3"), "h4")
			bluePart := withoutPeer(withoutPeer(f.part(blue(), 1), "h2"), "h4")
			h.reconcile(redPart, bluePart)
			guest, addr := f.guest(red(), 1, 8)
			heard := listen(t, guest)
			var vtep mac
			copy(vtep[:], red().mac(1).HardwareAddr())
			from := netip.MustParseAddr("10.5.2.8")
			for i, text := range map[int]string{2: "peer", 3: "peer of another Network", 4: "stranger"} {
				sendTo(t, f.hosts[i-1].place, netip.AddrPortFrom(h.underlay, Port), vxlanPacket(red().vni, vtep, from, addr, text))
			}
			sendTo(t, f.hosts[1].place, netip.AddrPortFrom(h.underlay, Port), vxlanPacket(red().vni, vtep, netip.MustParseAddr("192.0.2.1"), addr, "foreign source"))
			sendTo(t, f.hosts[1].place, netip.AddrPortFrom(h.underlay, Port), vxlanPacket(red().vni, vtep, from, addr, "last"))
			if got := heardSoon(heard, "peer", "last"); len(got) != 2 {
				t.Errorf("heard %q, want peer and last", got)
			}
		})
	}
}

// router is what is beyond the hosts: 198.19.9.9, by way of 198.18.0.254.
func (f *fabric) router() place {
	f.t.Helper()
	r := f.namespace("router")
	f.plug(r, "eth0", f.bridge, "router", "br0")
	for name, p := range map[string]string{"eth0": "198.18.0.254/24", "lo": "198.19.9.9/32"} {
		l, err := r.LinkByName(name)
		must(f.t, err)
		must(f.t, r.AddrAdd(l, toAddress(netip.MustParsePrefix(p))))
	}
	for _, h := range f.hosts {
		eth0, err := h.LinkByName("eth0")
		must(f.t, err)
		must(f.t, h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IPv4(198, 18, 0, 254)}))
	}
	return r
}

func readSysctl(t testing.TB, p place, name string) (value string) {
	t.Helper()
	must(t, within(p.ns, func() error {
		b, err := os.ReadFile("/proc/sys/" + name)
		value = strings.TrimSpace(string(b))
		return err
	}))
	return value
}

func TestEgress(t *testing.T) {
	f := newFabric(t, 2, false)
	h := f.hosts[0]
	router := f.router()
	before := h.summary(t)
	const forwarding = "net/ipv4/conf/eth0/forwarding"
	must(t, within(h.ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644) }))

	networks := []tenant{red(), blue(), green()}
	for i := range networks[:2] {
		networks[i].egress = "masquerade"
	}
	f.reconcile(networks...)
	internet := netip.MustParseAddr("198.19.9.9")
	var guests []place
	for _, n := range networks {
		g, _ := f.guest(n, 1, 8)
		guests = append(guests, g)
	}
	ping := func(i int, to netip.Addr, wait time.Duration) error {
		b := networks[i].lease(1).Addr().As4()
		b[3] = 8
		return newPinger(t, guests[i].ns, netip.AddrFrom4(b)).ping(to, 56, wait)
	}
	// Red's and blue's guests have the same address, and both get their answers.
	for i, n := range networks[:2] {
		if err := ping(i, internet, patience); err != nil {
			t.Errorf("%s does not get out: %v", n.name, err)
		}
	}
	if ping(2, internet, moment) == nil {
		t.Error("green gets out, and was not to")
	}
	_, blueEnd := egressAddresses(blue().vni)
	hostEnd, _ := egressAddresses(red().vni)
	for _, to := range []netip.Addr{h.underlay, f.hosts[1].underlay, netip.MustParseAddr("198.18.0.254"), blueEnd.Addr(), hostEnd.Addr()} {
		if ping(0, to, moment) == nil {
			t.Errorf("red reaches %s", to)
		}
	}
	// No VXLAN from a guest, to any VTEP, though other UDP passes.
	heard := listen(t, router)
	sendTo(t, guests[0], netip.AddrPortFrom(internet, Port), []byte("vxlan"))
	sendTo(t, guests[0], netip.AddrPortFrom(internet, probePort), []byte("other"))
	heardSoon(heard, "other")
	// From outside nobody comes in, nor through.
	outside := newPinger(t, router.ns, netip.MustParseAddr("198.18.0.254"))
	eth0, err := router.LinkByName("eth0")
	must(t, err)
	must(t, router.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("240.0.0.0/7")), Gw: h.underlay.AsSlice()}))
	must(t, router.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.5.0.0/16")), Gw: h.underlay.AsSlice()}))
	for _, to := range []netip.Addr{blueEnd.Addr(), first(red().lease(1))} {
		if outside.ping(to, 56, moment) == nil {
			t.Errorf("%s is reached from outside", to)
		}
	}
	if got := readSysctl(t, h.place, forwarding); got != "1" {
		t.Errorf("%s is %s", forwarding, got)
	}

	// Egress is taken back, then everything.
	networks[0].egress = ""
	f.reconcile(networks...)
	if ping(0, internet, moment) == nil {
		t.Error("red still gets out")
	}
	if err := ping(1, internet, patience); err != nil {
		t.Errorf("blue does not get out any more: %v", err)
	}
	h.reconcile(removed(red()), removed(blue()), removed(green()))
	if after := h.summary(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if got := readSysctl(t, h.place, forwarding); got != "0" {
		t.Errorf("%s is left at %s", forwarding, got)
	}
	if tables := h.tables(t); len(tables) > 0 {
		t.Errorf("tables left: %v", tables)
	}
}

func (p place) nft(t testing.TB) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(p.ns)))
	must(t, err)
	return c
}

func (p place) tables(t testing.TB) []string {
	t.Helper()
	tables, err := p.nft(t).ListTables()
	must(t, err)
	var names []string
	for _, table := range tables {
		names = append(names, table.Name)
	}
	return names
}

// rules is how our table looks, but for handles.
func (p place) rules(t testing.TB) string {
	t.Helper()
	if !slices.Contains(p.tables(t), tableName) {
		return ""
	}
	c := p.nft(t)
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	var lines []string
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	must(t, err)
	for _, ch := range chains {
		if ch.Table.Name != tableName {
			continue
		}
		lines = append(lines, fmt.Sprint(ch.Name, *ch.Hooknum, *ch.Priority, *ch.Policy, ch.Type))
		rules, err := c.GetRules(table, ch)
		must(t, err)
		for i, r := range rules {
			lines = append(lines, fmt.Sprint(ch.Name, i, string(r.UserData)))
			for _, e := range r.Exprs {
				lines = append(lines, fmt.Sprintf("%s %d %T %+v", ch.Name, i, e, e))
			}
		}
	}
	sets, err := c.GetSets(table)
	must(t, err)
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		must(t, err)
		for _, e := range elements {
			lines = append(lines, fmt.Sprint(s.Name, e.Key))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// vtepSet is the set of VTEPs with IPv4 addresses.
func vtepSet(table *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: table, Name: vtep4, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeMark)}
}

func TestFilterDriftIsMended(t *testing.T) {
	f := newFabric(t, 2, false)
	f.router()
	h := f.hosts[0]
	n := red()
	n.egress = "masquerade"
	parts := []nodeagent.Part{f.part(n, 1), f.part(blue(), 1)}
	h.reconcile(parts...)
	theirs := &nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet}
	c := h.nft(t)
	c.AddTable(theirs)
	must(t, c.Flush())

	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	input := &nftables.Chain{Name: "input", Table: table}
	addRule := func(c *nftables.Conn, terms ...nft.Term) {
		r := &nftables.Rule{Table: table, Chain: input}
		for _, t := range terms {
			r.Exprs = append(r.Exprs, t.Exprs...)
		}
		c.InsertRule(r)
	}
	for _, tt := range []struct {
		name    string
		at      place
		breakIt func(c *nftables.Conn)
	}{
		{"the host's table", h.place, func(c *nftables.Conn) { c.DelTable(table) }},
		{"the host's chain flushed", h.place, func(c *nftables.Conn) { c.FlushChain(input) }},
		{"all of the host's rules", h.place, func(c *nftables.Conn) { c.FlushTable(table) }},
		{"a rule that lets all in", h.place, func(c *nftables.Conn) { addRule(c, nft.UDP(Port), nft.Accept()) }},
		{"no VTEPs", h.place, func(c *nftables.Conn) { c.FlushSet(vtepSet(table)) }},
		{"one VTEP too many", h.place, func(c *nftables.Conn) {
			must(t, c.SetAddElements(vtepSet(table), []nftables.SetElement{{Key: vtep{netip.MustParseAddr("198.18.0.99"), n.vni}.key()}}))
		}},
		{"a VTEP of no Network", h.place, func(c *nftables.Conn) {
			must(t, c.SetAddElements(vtepSet(table), []nftables.SetElement{{Key: vtep{netip.MustParseAddr("198.18.0.2"), 4711}.key()}}))
		}},
		{"a rule that does other than its comment says", h.place, func(c *nftables.Conn) {
			rules, err := c.GetRules(table, input)
			must(t, err)
			last := rules[len(rules)-1]
			last.Table, last.Chain = table, input
			last.Exprs[len(last.Exprs)-1] = &expr.Verdict{Kind: expr.VerdictAccept}
			c.ReplaceRule(last)
		}},
		{"a rule's address", h.tenant(n), func(c *nftables.Conn) {
			forward := &nftables.Chain{Name: "forward", Table: table}
			rules, err := c.GetRules(table, forward)
			must(t, err)
			for _, r := range rules {
				for _, e := range r.Exprs {
					if b, ok := e.(*expr.Bitwise); ok && b.Len == 4 {
						b.Mask = make([]byte, 4)
						r.Table, r.Chain = table, forward
						c.ReplaceRule(r)
						return
					}
				}
			}
		}},
		{"an open policy", h.tenant(n), func(c *nftables.Conn) {
			open := nftables.ChainPolicyAccept
			c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &open})
		}},
		{"the tenant's table", h.tenant(n), func(c *nftables.Conn) { c.DelTable(table) }},
		{"a chain too many", h.tenant(n), func(c *nftables.Conn) { c.AddChain(&nftables.Chain{Name: "more", Table: table}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.at.rules(t)
			c := tt.at.nft(t)
			tt.breakIt(c)
			must(t, c.Flush())
			if tt.name != "a chain too many" && tt.at.rules(t) == before {
				t.Fatal("nothing is broken")
			}
			repairs := h.overlay.HostRepairs() + h.overlay.repairs("red")
			h.reconcile(parts...)
			if after := tt.at.rules(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if h.overlay.HostRepairs()+h.overlay.repairs("red") == repairs {
				t.Error("the repair was not counted")
			}
			if !slices.Contains(h.tables(t), "theirs") {
				t.Error("somebody else's table is gone")
			}
			repairs = h.overlay.HostRepairs() + h.overlay.repairs("red")
			h.reconcile(parts...)
			if h.overlay.HostRepairs()+h.overlay.repairs("red") != repairs {
				t.Error("the pass after the repair changes something")
			}
		})
	}
	t.Run("egress", func(t *testing.T) {
		for name, breakIt := range map[string]func() error{
			"pair deleted": func() error {
				l, err := h.LinkByName(egressName(n.vni))
				if err != nil {
					return err
				}
				return h.LinkDel(l)
			},
			"host's end down": func() error {
				l, err := h.LinkByName(egressName(n.vni))
				if err != nil {
					return err
				}
				return h.LinkSetDown(l)
			},
			"tenant's end without address": func() error {
				l, err := h.tenant(n).LinkByName(egressInside)
				if err != nil {
					return err
				}
				_, inside := egressAddresses(n.vni)
				return h.tenant(n).AddrDel(l, toAddress(inside))
			},
			"forwarding off": func() error {
				return within(h.ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/eth0/forwarding", []byte("0"), 0o644) })
			},
		} {
			repairs := h.overlay.HostRepairs() + h.overlay.repairs("red")
			must(t, breakIt())
			h.reconcile(parts...)
			if h.overlay.HostRepairs()+h.overlay.repairs("red") == repairs {
				t.Errorf("%s: not counted", name)
			}
			p := newPinger(t, h.tenant(n).ns, first(n.lease(1)))
			if err := p.ping(netip.MustParseAddr("198.19.9.9"), 56, patience); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// What is no longer understood keeps its VTEPs: an agent that lost a part must
// not cut off what still runs.
func TestUnknownNetworksKeepTheirVTEPs(t *testing.T) {
	f := newFabric(t, 2, false)
	f.reconcile(red(), blue())
	for _, h := range f.hosts {
		h.restart()
	}
	f.reconcile(red())
	f.allPairs(blue())
	broken := f.part(blue(), 1)
	broken.Value.(*api.NetworkPart).VNI = 0
	status := f.hosts[0].overlay.Reconcile(context.Background(), []nodeagent.Part{f.part(red(), 1), broken})
	if s := status["network/blue"]; s.State != api.PartFailed || !strings.Contains(s.Message, "VNI 0") {
		t.Errorf("blue is %+v", s)
	}
	f.allPairs(blue())
	f.hosts[0].reconcile()
	f.allPairs(red())
}
