package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/inet"
	"github.com/rackweft/rackweft/internal/nstest"
)

// dhclient runs ISC's client with Debian's script, on a resolv.conf of its own.
func dhclient(t *testing.T, ns string, args ...string) (log *logs, resolvConf string) {
	t.Helper()
	need(t, "dhclient", "unshare")
	dir := t.TempDir()
	resolvConf = filepath.Join(dir, "resolv.conf")
	must(t, os.WriteFile(resolvConf, nil, 0o644))
	log = background(t, ns, `mount --bind "$1" /etc/resolv.conf; hostname localhost; dir=$2; shift 2
exec dhclient -d -v -pf "$dir/pid" -lf "$dir/leases" "$@" eth0`, append([]string{resolvConf, dir}, args...)...)
	return log, resolvConf
}

func TestDhclientIPv4(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	r := newRig(t, one())
	r.serve()
	ns := r.plug(one().MAC)
	log, resolvConf := dhclient(t, ns, "-4")
	eventually(t, "dhclient is bound", func() bool { return log.has("bound to 10.5.3.2") })
	if got := nstest.IP(t, ns, "-4", "addr", "show", "dev", "eth0"); !strings.Contains(got, "inet 10.5.3.2/32") || !strings.Contains(got, "mtu 1410") {
		t.Errorf("eth0 has %s", got)
	}
	routes := nstest.IP(t, ns, "route")
	for _, want := range []string{"default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 scope link"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no route %q in\n%s", want, routes)
		}
	}
	conf, err := os.ReadFile(resolvConf)
	must(t, err)
	if !strings.Contains(string(conf), "nameserver 169.254.1.1") || !strings.Contains(string(conf), "search tenant.example") {
		t.Errorf("resolv.conf is %q", conf)
	}
	reaches(t, ns, "169.254.1.1:53")
}

func TestDhclientIPv6(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	r := newRig(t, one())
	r.serve()
	ns := r.plug(one().MAC)
	log, resolvConf := dhclient(t, ns, "-6")
	eventually(t, "dhclient has the address", func() bool {
		return strings.Contains(nstest.IP(t, ns, "-6", "addr", "show", "dev", "eth0"), "inet6 fd00:5:3::2/128")
	})
	eventually(t, "resolv.conf names the gateway", func() bool {
		conf, err := os.ReadFile(resolvConf)
		return err == nil && strings.Contains(string(conf), "nameserver fe80::1") && strings.Contains(string(conf), "search tenant.example")
	})
	if log.has("NoAddrsAvail") {
		t.Error("dhclient was given no address")
	}
	// The router comes from the kernel's own solicitation.
	eventually(t, "the kernel has a default route", func() bool {
		routes := nstest.IP(t, ns, "-6", "route")
		return strings.Contains(routes, "default via fe80::1 dev eth0 proto ra") && strings.Contains(routes, "mtu 1410")
	})
	reaches(t, ns, "[fe80::1%"+index(t, ns)+"]:53")
}

// index is the number of eth0: net's names of scopes are of one namespace.
func index(t *testing.T, ns string) string {
	t.Helper()
	number, _, _ := strings.Cut(nstest.IP(t, ns, "link", "show", "eth0"), ":")
	return number
}

// reaches connects from a guest.
func reaches(t *testing.T, ns, address string) {
	t.Helper()
	must(t, nstest.Within(ns, func() error {
		c, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		return c.Close()
	}))
}

// The kernel hears an advertisement that nobody asked for.
func TestAdvertisedUnasked(t *testing.T) {
	r := newRig(t, one())
	ns := r.plug(one().MAC)
	sysctl(t, ns, "net.ipv6.conf.eth0.router_solicitations=0")
	nstest.IP(t, ns, "link", "set", "eth0", "down")
	nstest.IP(t, ns, "link", "set", "eth0", "up")
	eventually(t, "eth0 has its link-local address", func() bool {
		return strings.Contains(nstest.IP(t, ns, "-6", "addr", "show", "dev", "eth0"), "scope link")
	})
	r.serve()
	eventually(t, "the kernel has a default route", func() bool {
		return strings.Contains(nstest.IP(t, ns, "-6", "route"), "default via fe80::1 dev eth0 proto ra")
	})
}

// Where no guest has an IPv6 address, nothing of IPv6 is served.
func TestNoIPv6(t *testing.T) {
	g := one()
	g.Addresses = g.Addresses[:1]
	r := newRig(t, g)
	r.serve()
	if r.server.IPv6() || len(r.server.udp) != 1 || len(r.server.tcp) != 1 {
		t.Error("it listens for IPv6")
	}
}

// caller sends DHCPv4 messages from a guest's namespace as raw packets.
type caller struct {
	t    *testing.T
	conn *packet.Conn
	mac  MAC
}

func (r *rig) caller(t *testing.T, mac MAC) *caller {
	t.Helper()
	ns := r.plug(mac)
	c := &caller{t: t, mac: mac}
	must(t, nstest.Within(ns, func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c.conn, err = packet.Listen(eth0, packet.Datagram, unix.ETH_P_IP, nil)
		return err
	}))
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

func (c *caller) send(m *dhcpv4.DHCPv4) {
	c.t.Helper()
	b := udpPacket4(netip.AddrFrom4([4]byte{255, 255, 255, 255}), m.ToBytes())
	copy(b[12:16], net.IPv4zero.To4())
	b[20], b[21], b[22], b[23] = 0, dhcp4Client, 0, dhcp4Server
	b[26], b[27] = 0, 0 // no checksum
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], inet.Checksum(0, b[:ipv4Header]))
	_, err := c.conn.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})
	must(c.t, err)
}

// answer waits for the next DHCP message; nil if there is none.
func (c *caller) answer(m *dhcpv4.DHCPv4, wait time.Duration) (*dhcpv4.DHCPv4, netip.Addr) {
	c.t.Helper()
	must(c.t, c.conn.SetReadDeadline(time.Now().Add(wait)))
	b := make([]byte, 2048)
	for {
		n, _, err := c.conn.ReadFrom(b)
		if err != nil {
			return nil, netip.Addr{}
		}
		payload, ok := payload4(b[:n])
		if !ok {
			continue
		}
		if r, err := dhcpv4.FromBytes(payload); err == nil && r.TransactionID == m.TransactionID && r.OpCode == dhcpv4.OpcodeBootReply {
			return r, netip.AddrFrom4([4]byte(b[16:20]))
		}
	}
}

func message(t *testing.T, mac MAC, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac[:]), dhcpv4.WithMessageType(kind)}, mods...)...)
	must(t, err)
	return m
}

// A message is answered on the wire, or meets silence.
func TestAnswersOnTheWire(t *testing.T) {
	r := newRig(t, one(), two())
	r.serve()
	known, stranger := r.caller(t, one().MAC), r.caller(t, MAC{2, 0, 0, 0, 0, 9})

	strange := message(t, stranger.mac, dhcpv4.MessageTypeDiscover)
	stranger.send(strange)
	forged := message(t, two().MAC, dhcpv4.MessageTypeDiscover)
	stranger.send(forged)

	wrong := message(t, known.mac, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 5, 3, 77))))
	known.send(wrong)
	if a, to := known.answer(wrong, patience); a == nil || a.MessageType() != dhcpv4.MessageTypeNak || to.String() != "255.255.255.255" {
		t.Errorf("a request for another's address is answered %v to %s, not NAK", a, to)
	}
	flagged := message(t, known.mac, dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true))
	known.send(flagged)
	if a, to := known.answer(flagged, patience); a == nil || a.MessageType() != dhcpv4.MessageTypeOffer || to.String() != "255.255.255.255" {
		t.Errorf("a client with the broadcast flag is answered %v to %s", a, to)
	}
	plain := message(t, known.mac, dhcpv4.MessageTypeDiscover)
	known.send(plain)
	if a, to := known.answer(plain, patience); a == nil || !a.YourIPAddr.Equal(net.IPv4(10, 5, 3, 2)) || to.String() != "10.5.3.2" {
		t.Errorf("a client is answered %v to %s", a, to)
	}
	// All of the stranger's were read before: there is one reader.
	for _, m := range []*dhcpv4.DHCPv4{strange, forged} {
		if a, _ := stranger.answer(m, 100*time.Millisecond); a != nil {
			t.Errorf("a stranger is answered %v", a)
		}
	}
	if !r.log.has("no guest of this Network on this host has this MAC") {
		t.Error("the stranger is not in the log")
	}
}

// A guest that comes later is served by the same Server.
func TestGuestsChange(t *testing.T) {
	r := newRig(t)
	r.serve()
	c := r.caller(t, one().MAC)
	m := message(t, one().MAC, dhcpv4.MessageTypeDiscover)
	r.network.Guests = []Guest{one()}
	r.server.Set(r.network)
	c.send(m)
	if a, _ := c.answer(m, patience); a == nil {
		t.Error("a new guest is not answered")
	}
}

// networkd is the client of most guests' systems. It runs without a bus and
// without udev, which it does not expect where /sys is read-only.
func TestNetworkd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const networkd = "/lib/systemd/systemd-networkd"
	need(t, networkd, "unshare")
	r := newRig(t, one())
	r.serve()
	ns := r.plug(one().MAC)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "eth0.network"), []byte("[Match]\nName=eth0\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n[DHCPv4]\nUseMTU=yes\n"), 0o644))
	background(t, ns, `mount -o remount,ro /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
cp "$1"/eth0.network /run/systemd/network/
chown -R systemd-network: /run/systemd/netif 2>/dev/null || true
SYSTEMD_LOG_LEVEL=debug exec `+networkd, dir)
	eventually(t, "networkd has configured both families", func() bool {
		addrs := nstest.IP(t, ns, "addr", "show", "dev", "eth0")
		routes := nstest.IP(t, ns, "route") + nstest.IP(t, ns, "-6", "route")
		for _, want := range []string{"inet 10.5.3.2/32", "inet6 fd00:5:3::2/128", "mtu 1410"} {
			if !strings.Contains(addrs, want) {
				return false
			}
		}
		return strings.Contains(routes, "default via 169.254.1.1 dev eth0") && strings.Contains(routes, "default via fe80::1 dev eth0")
	})
	reaches(t, ns, "169.254.1.1:53")
}
