package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/nodeagent"
)

// changes counts what a Runner asks its agent for.
type changes chan struct{}

func (c changes) Changed()          { c <- struct{}{} }
func (c changes) Event(api.Event)   {}
func (c changes) BGP(api.BGPStatus) {}

// run is the agent's Run of the overlay. The overlay has begun when it
// returns, and has left nothing running when the returned function does.
func (h *testHost) run() (stop func()) {
	h.fabric.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	begun, done := make(changes, 1), make(chan struct{})
	overlay := h.overlay
	go func() { defer close(done); overlay.Run(ctx, begun) }()
	<-begun
	stop = func() { cancel(); <-done }
	h.fabric.t.Cleanup(stop)
	return stop
}

// within starts a program in a network namespace, with mounts and a host name
// of its own, until the test ends.
func (p place) program(t testing.TB, script string, args ...string) {
	t.Helper()
	net := fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(p.ns))
	cmd := exec.Command("nsenter", append([]string{net, "unshare", "--mount", "--uts", "sh", "-ec", script, "sh"}, args...)...)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s wrote:\n%s", script, text)
		}
	})
}

// networkd is the client that most guests have.
func (g *testGuest) networkd(t testing.TB) {
	t.Helper()
	l, err := g.LinkByName("eth0")
	must(t, err)
	addrs, err := g.AddrList(l, netlink.FAMILY_ALL)
	must(t, err)
	for _, a := range addrs {
		if a.IP.IsGlobalUnicast() {
			must(t, g.AddrDel(l, &a))
		}
	}
	g.program(t, `mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n' >/run/systemd/network/eth0.network
chown -R systemd-network: /run/systemd/netif
exec /lib/systemd/systemd-networkd`)
}

// has says whether eth0 has the addresses, and routes by the gateways.
func (g *testGuest) has(addresses ...netip.Addr) bool {
	l, err := g.LinkByName("eth0")
	if err != nil {
		return false
	}
	for _, a := range addresses {
		addrs, err := g.AddrList(l, netlink.FAMILY_ALL)
		routes, err2 := g.RouteList(l, familyOf(a))
		if err != nil || err2 != nil {
			return false
		}
		addressed, routed := false, false
		for _, have := range addrs {
			addressed = addressed || have.IPNet.String() == whole(a).String()
		}
		for _, r := range routes {
			routed = routed || (r.Dst == nil || r.Dst.IP.IsUnspecified()) && (r.Gw.Equal(gatewayAddress().Addr().AsSlice()) || r.Gw.Equal(gatewayAddress6().Addr().AsSlice()))
		}
		if !addressed || !routed {
			return false
		}
	}
	return true
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func (g *testGuest) ask(network, server, name string, kind uint16) (*dns.Msg, error) {
	var conn net.Conn
	if err := within(g.ns, func() (err error) {
		conn, err = net.DialTimeout(network, server, patience)
		return err
	}); err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	m, _, err := (&dns.Client{Timeout: 2 * patience}).ExchangeWithConn(new(dns.Msg).SetQuestion(name, kind), &dns.Conn{Conn: conn})
	return m, err
}

func soon(t testing.TB, what string, is func() bool) {
	t.Helper()
	waittest.Until(t, 4*patience, what, is)
}

// A guest gets its addresses, its gateways and names, through all filters; an
// agent that restarts serves it again; nothing is left of a Network that goes.
func TestGuestsAreServed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	n := tenant{name: "green", uid: "uid-green", vni: 7001, second: 7, v6: true}
	part := f.part(n, 1)
	part.Value.(*api.NetworkPart).DNS = []netip.Addr{h.underlay}
	part.Value.(*api.NetworkPart).Domain = "green.example"
	h.program(t, `exec dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --pid-file --user=root --bind-interfaces \
--listen-address="$1" --address=/www.example/198.18.7.7`, h.underlay.String())
	stop := h.run()
	h.reconcile(part)
	if len(h.overlay.serving.servers) != 0 {
		t.Error("a Network without guests is served")
	}
	g := f.plugIn(n, 1, 8, n.guest6(1, 8))
	f.plugIn(n, 1, 10)
	g.networkd(t)
	soon(t, "networkd has both addresses", func() bool { return g.has(g.addr, n.guest6(1, 8)) })
	checkNames(t, g)

	// A unicast renewal is not refused by the kernel (ICMP), which would not know of it.
	must(t, within(g.ns, func() error {
		c, err := net.Dial("udp", "169.254.1.1:67")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write([]byte{1})
		must(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
		if _, readErr := c.Read(make([]byte, 1)); errors.Is(readErr, unix.ECONNREFUSED) {
			t.Error("port 67 is refused")
		}
		return err
	}))

	before := h.tenant(n).everything(t)
	stop()
	if after := h.tenant(n).everything(t); after != before {
		t.Errorf("the agent's end changed the namespace:\n%s\nwas\n%s", after, before)
	}
	if _, err := g.ask("tcp", "169.254.1.1:53", "www.example.", dns.TypeA); err == nil {
		t.Error("guests are served by an agent that has ended")
	}
	h.restart()
	h.run()
	h.overlay.SetPorts(h.ports)
	h.reconcile(part)
	checkNames(t, g)

	h.ports = nil
	h.overlay.SetPorts(nil)
	if len(h.overlay.serving.servers) != 0 {
		t.Error("a Network whose guests have gone is served")
	}
	h.reconcile(nodeagent.Part{Name: part.Name, UID: part.UID, Want: nodeagent.Removed})
}

func checkNames(t *testing.T, g *testGuest) {
	t.Helper()
	l, err := g.LinkByName("eth0")
	must(t, err)
	for _, server := range []string{"169.254.1.1:53", fmt.Sprintf("[fe80::1%%%d]:53", l.Attrs().Index)} {
		for _, network := range []string{"udp", "tcp"} {
			soon(t, "names are answered by "+network+" at "+server, func() bool {
				forwarded, err := g.ask(network, server, "www.example.", dns.TypeA)
				own, err2 := g.ask(network, server, g.port.Guest+".green.example.", dns.TypeA)
				return err == nil && err2 == nil && strings.Contains(forwarded.String(), "198.18.7.7") && strings.Contains(own.String(), g.addr.String())
			})
		}
	}
}

// Servers follow the bridge and the guests' families.
func TestServersFollow(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	n := tenant{name: "green", uid: "uid-green", vni: 7002, second: 7, v6: true}
	h.run()
	h.reconcile(f.part(n, 1))
	g := f.plugIn(n, 1, 8)
	server := func() *served { return h.overlay.serving.servers[n.uid] }
	first := server()
	if first == nil || first.IPv6() {
		t.Fatalf("a guest without IPv6 is served by %+v", first)
	}
	f.plugIn(n, 1, 12)
	if server() != first {
		t.Error("another guest made another server")
	}
	h.ports[0].Addresses = append(h.ports[0].Addresses, n.guest6(1, 8))
	h.overlay.SetPorts(h.ports)
	var second *served
	soon(t, "a guest's IPv6 address makes another server", func() bool {
		if second = server(); second == nil { // the gateway's IPv6 address was not there yet
			h.reconcile(f.part(n, 1))
			second = server()
		}
		return second != nil && second != first && second.IPv6() && first.ended()
	})
	p := h.tenant(n)
	l, err := p.LinkByName(bridgeName(n.vni))
	must(t, err)
	must(t, p.LinkDel(l))
	h.reconcile(f.part(n, 1))
	if server() == second {
		t.Error("a new bridge has the server of the old one")
	}
	soon(t, "the guest is answered at the new bridge", func() bool {
		m, err := g.ask("udp", "169.254.1.1:53", g.port.Guest+".", dns.TypeA)
		return err == nil && len(m.Answer) == 1
	})
}

func TestEnvFile(t *testing.T) {
	f := newFabric(t, 1, false)
	h := f.hosts[0]
	h.overlay.env = filepath.Join(t.TempDir(), "run", "networks")
	n := tenant{name: "green", uid: "uid-green", vni: 7003, second: 7, v6: true}
	h.reconcile(f.part(n, 1))
	file := filepath.Join(h.overlay.env, "green.env")
	got, err := os.ReadFile(file)
	must(t, err)
	want := fmt.Sprintf("# rackweft:uid-green\nFLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_IPV6_NETWORK=%s\nFLANNEL_IPV6_SUBNET=%s\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
		netip.PrefixFrom(first(n.lease(1)), 24), f.part(n, 1).Value.(*api.NetworkPart).CIDRs[1], netip.PrefixFrom(first(n.lease6(1)), n.lease6(1).Bits()))
	if string(got) != want {
		t.Errorf("it is\n%s\nnot\n%s", got, want)
	}
	must(t, os.WriteFile(file, []byte("FLANNEL_MTU=9000\n"), 0o644))
	h.reconcile(f.part(n, 1))
	if got, err = os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("a file that was changed stays: %s %v", got, err)
	}
	// Of two Networks of one name the older goes.
	h.reconcile(nodeagent.Part{Name: api.NetworkPartName("green"), UID: "uid-before", Want: nodeagent.Removed})
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file went with another Network: %v", err)
	}
	h.reconcile(nodeagent.Part{Name: api.NetworkPartName("green"), UID: n.uid, Want: nodeagent.Removed})
	left, err := os.ReadDir(h.overlay.env)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("%s is left of a Network that was removed", left)
	}
}
