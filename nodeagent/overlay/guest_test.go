package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// vnetHeader is struct virtio_net_hdr: before each frame of a tap's queue with
// IFF_VNET_HDR. All zero it asks for nothing.
const vnetHeader = 10

// testGuest is a namespace whose only interface is the other end of a tap's
// queue, as a guest's NIC is.
type testGuest struct {
	place
	host   *testHost
	port   nodeagent.Port
	addr   netip.Addr
	mac    mac
	queue  *os.File // of the host's tap
	nic    *os.File // of the guest's end
	pumps  sync.WaitGroup
	mu     sync.Mutex
	frames [][]byte // that came to the guest
}

// plugIn starts a guest at an address of the host's, by Attach.
func (f *fabric) plugIn(n tenant, i int, last byte, more ...netip.Addr) *testGuest {
	f.t.Helper()
	b := n.lease(i).Addr().As4()
	b[3] = last
	return f.plugInAt(n, i, netip.AddrFrom4(b), more...)
}

func (f *fabric) plugInAt(n tenant, i int, addr netip.Addr, more ...netip.Addr) *testGuest {
	f.t.Helper()
	g := f.plugInSoon(n, i, addr, more...)
	f.awaitGateway(g.place, g.port.Addresses...)
	return g
}

// plugInSoon does not wait until the guest reaches its gateway.
func (f *fabric) plugInSoon(n tenant, i int, addr netip.Addr, more ...netip.Addr) *testGuest {
	f.t.Helper()
	h := f.hosts[i-1]
	b := addr.As4()
	g := &testGuest{host: h, addr: addr, mac: mac{2, 0xee, b[1], b[2], b[3], byte(n.vni)}}
	dashed := strings.ReplaceAll(addr.String(), ".", "-")
	g.port = nodeagent.Port{Network: n.name, Guest: "g-" + dashed, UID: fmt.Sprint("uid-", n.name, "-", dashed), MAC: api.MAC(g.mac.String()),
		Addresses: append([]netip.Addr{addr}, more...)}
	g.place = f.namespace(fmt.Sprintf("nic-%s-%s-%d", n.name, addr, time.Now().UnixNano()))
	h.ports = append(h.ports, g.port)
	h.overlay.SetPorts(h.ports)
	g.begin()
	f.t.Cleanup(g.stop)
	return g
}

// part is the guest's in a HostSpec: as it is held here, no QEMU is to run for it.
func (g *testGuest) part() nodeagent.Part {
	return nodeagent.Part{Name: "guest/" + g.port.Guest, UID: g.port.UID, Value: &api.GuestPart{UID: g.port.UID, Network: g.port.Network,
		MAC: g.port.MAC, Addresses: g.port.Addresses, CPUs: 1, Memory: api.Bytes(1 << 30), State: "Stopped"}}
}

// start makes the guest's NIC, plugs it in and waits until it serves.
func (g *testGuest) start() {
	g.host.fabric.t.Helper()
	g.begin()
	g.host.fabric.awaitGateway(g.place, g.port.Addresses...)
}

func (g *testGuest) begin() {
	t := g.host.fabric.t
	t.Helper()
	at, err := g.host.overlay.Attach(context.Background(), g.port)
	must(t, err)
	g.queue = at.Tap
	g.nic = guestNIC(t, g.place)
	l, err := g.LinkByName("eth0")
	must(t, err)
	must(t, g.LinkSetHardwareAddr(l, g.mac[:]))
	must(t, g.LinkSetMTU(l, at.MTU))
	g.pumps.Go(func() { g.pump(g.nic, g.queue, 0, vnetHeader) })
	g.pumps.Go(func() { g.pump(g.queue, g.nic, vnetHeader, 0) })
	must(t, g.LinkSetUp(l))
	for _, a := range g.port.Addresses {
		address := toAddress(whole(a))
		address.Flags = unix.IFA_F_NODAD
		must(t, g.AddrAdd(l, address))
	}
	must(t, g.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(gatewayAddress()), Scope: netlink.SCOPE_LINK}))
	must(t, g.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gatewayAddress().Addr().AsSlice()}))
	if len(g.port.Addresses) > 1 {
		// An advertisement may have brought it already.
		must(t, g.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gatewayAddress6().Addr().AsSlice()}))
	}
}

// awaitGateway: a bridge that gets its first port sends nothing before the
// kernel has seen its carrier, which it does in its own time (linkwatch). So
// does the guest's with its IPv6 address: until addrconf has made the route of
// it, even without duplicate address detection, it drops what comes for it.
func (f *fabric) awaitGateway(guest place, addresses ...netip.Addr) {
	f.t.Helper()
	for _, addr := range addresses {
		to := gatewayAddress().Addr()
		if addr.Is6() {
			to = addr
		}
		p := newPinger(f.t, guest.ns, addr)
		for deadline := time.Now().Add(patience); p.ping(to, 56, moment) != nil; {
			if time.Now().After(deadline) {
				f.t.Fatalf("%s does not reach %s", addr, to)
			}
		}
		_ = p.conn.Close()
	}
}

// stop is the end of the guest's QEMU.
func (g *testGuest) stop() {
	_ = g.queue.Close()
	_ = g.nic.Close()
	g.pumps.Wait()
}

// guestNIC makes a tap that stands for a NIC.
func guestNIC(t testing.TB, p place) *os.File {
	t.Helper()
	request, err := unix.NewIfreq("eth0")
	must(t, err)
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	var fd int
	must(t, within(p.ns, func() (err error) {
		if fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}))
	return os.NewFile(uintptr(fd), "eth0")
}

// pump copies frames until a file is closed.
func (g *testGuest) pump(from, to *os.File, headerIn, headerOut int) {
	b := make([]byte, headerOut+1<<16)
	for {
		n, err := from.Read(b[headerOut:])
		if errors.Is(err, os.ErrClosed) || n < headerIn {
			return
		}
		out := b[:headerOut+n]
		if headerIn > 0 {
			out = b[headerIn:n]
			g.mu.Lock()
			g.frames = append(g.frames, slices.Clone(out[:min(len(out), 128)]))
			g.mu.Unlock()
		}
		_, _ = to.Write(out) // a NIC that is down takes none
	}
}

// send puts a frame of the guest's onto the wire, past its kernel.
func (g *testGuest) send(frame []byte) error {
	_, err := g.queue.Write(append(make([]byte, vnetHeader), frame...))
	return err
}

// heard are the frames that came to the guest.
func (g *testGuest) heard() [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.frames)
}

func (g *testGuest) ping(to netip.Addr, size int, wait time.Duration) error {
	g.host.fabric.t.Helper()
	return newPinger(g.host.fabric.t, g.ns, g.addr).ping(to, size, wait)
}

// reaches wants pings and a TCP connection's bytes through.
func (g *testGuest) reaches(other *testGuest) {
	t := g.host.fabric.t
	t.Helper()
	if err := g.ping(other.addr, 56, patience); err != nil {
		t.Errorf("%s does not reach %s: %v", g.addr, other.addr, err)
		return
	}
	const size = 1 << 20
	var listener net.Listener
	must(t, within(other.ns, func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(other.addr, 80).String())
		return err
	}))
	defer func() { _ = listener.Close() }()
	got := make(chan int, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(2 * patience))
		b, sum := make([]byte, 1<<16), 0
		for {
			n, err := c.Read(b)
			sum += n
			if err != nil {
				got <- sum
				return
			}
		}
	}()
	must(t, within(g.ns, func() error {
		c, err := net.DialTimeout("tcp4", listener.Addr().String(), patience)
		if err != nil {
			return err
		}
		_, err = c.Write(make([]byte, size))
		return errors.Join(err, c.Close())
	}))
	if n := <-got; n != size {
		t.Errorf("%d of %d bytes came from %s to %s", n, size, g.addr, other.addr)
	}
}

// Frames, piece by piece; their checksums are zero, which no filter looks at.

func ethernet(to, from mac, kind uint16, payload []byte) []byte {
	b := append(append([]byte{}, to[:]...), from[:]...)
	return append(binary.BigEndian.AppendUint16(b, kind), payload...)
}

func ipv4Packet(from, to netip.Addr, proto byte, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	return append(append(append(b, from.AsSlice()...), to.AsSlice()...), payload...)
}

func ipv6Packet(from, to netip.Addr, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, 0, 0, next, 255}
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	return append(append(append(b, from.AsSlice()...), to.AsSlice()...), payload...)
}

func udpDatagram(from, to uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

func arpPacket(op byte, sender mac, senderIP, targetIP netip.Addr) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, sender[:]...)
	b = append(b, senderIP.AsSlice()...)
	return append(append(b, make([]byte, 6)...), targetIP.AsSlice()...)
}

// icmp6 is a message of neighbour discovery, with a target or without.
func icmp6(kind byte, target netip.Addr) []byte {
	b := []byte{kind, 0, 0, 0, 0, 0, 0, 0}
	if target.IsValid() {
		b = append(b, target.AsSlice()...)
	}
	return b
}
