package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/inet"
)

const (
	serverPort = 67
	clientPort = 68
	bootPort   = 4011
)

// link is one served interface with its sockets.
type link struct {
	name  string
	index int
	addrs atomic.Pointer[[]netip.Prefix] // its IPv4 addresses, the first is the primary one

	lease *ipv4.PacketConn // port 67
	boot  *ipv4.PacketConn // port 4011
	raw   int              // AF_PACKET socket for clients without an address, or -1

	advertiser *advertiser // nil when IPv6 is disabled
}

// openLink opens the sockets of one interface. Each is bound to the device, so
// it receives and broadcasts only there.
func openLink(ctx context.Context, name string) (*link, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: no such interface%s", name, interfaceNames())
	}
	l := &link{name: name, index: i.Index, raw: -1}
	if err := l.refresh(); err != nil {
		return nil, err
	}
	if l.lease, err = listen(ctx, name, serverPort); err != nil {
		return nil, err
	}
	if l.boot, err = listen(ctx, name, bootPort); err != nil {
		return nil, errors.Join(err, l.close())
	}
	if fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		l.raw = fd // protocol 0: it receives nothing
	}
	return l, nil
}

func interfaceNames() string {
	all, err := net.Interfaces()
	if err != nil {
		return ""
	}
	var names []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 {
			names = append(names, i.Name)
		}
	}
	if len(names) == 0 {
		return "; this machine has none but the loopback"
	}
	return "; this machine has " + strings.Join(names, ", ")
}

func listen(ctx context.Context, name string, port int) (*ipv4.PacketConn, error) {
	config := net.ListenConfig{Control: bindToDevice(name)}
	conn, err := config.ListenPacket(ctx, "udp4", ":"+strconv.Itoa(port))
	if err != nil {
		return nil, listenError(name, port, err)
	}
	udp := conn.(*net.UDPConn)
	growReceiveBuffer(udp)
	pc := ipv4.NewPacketConn(udp)
	if err := pc.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s UDP port %d: %w", name, port, err), udp.Close())
	}
	return pc, nil
}

func bindToDevice(name string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), name) }); cerr != nil {
			return cerr
		}
		return err
	}
}

func listenError(name string, port int, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s UDP port %d: address already in use: another DHCP server runs here; "+
			"find it with \"ss -ulnp sport = :%d\" and stop it, or serve another interface: %w", name, port, port, err)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("listen on %s UDP port %d: not permitted: run as root, or with the capabilities "+
			"CAP_NET_BIND_SERVICE, CAP_NET_RAW and CAP_NET_ADMIN: %w", name, port, err)
	default:
		return fmt.Errorf("listen on %s UDP port %d: %w", name, port, err)
	}
}

// growReceiveBuffer makes room for a rack that powers on at once: the default
// holds some 200 packets. Without CAP_NET_ADMIN the size is limited by
// net.core.rmem_max; a smaller buffer is not an error.
func growReceiveBuffer(c *net.UDPConn) {
	const size = 4 << 20
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
		}
	})
}

// refresh reads the interface's addresses again. It fails if the interface was
// removed or replaced by one of the same name: its sockets then receive
// nothing.
func (l *link) refresh() error {
	i, err := net.InterfaceByName(l.name)
	if err != nil {
		return fmt.Errorf("interface %s is gone: %w", l.name, err)
	}
	if i.Index != l.index {
		return fmt.Errorf("interface %s was replaced by another one", l.name)
	}
	all, err := i.Addrs()
	if err != nil {
		return fmt.Errorf("read the addresses of %s: %w", l.name, err)
	}
	var prefixes []netip.Prefix
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			prefixes = append(prefixes, p)
		}
	}
	l.addrs.Store(&prefixes)
	return nil
}

// stop ends all reads; replies can still be sent.
func (l *link) stop() error {
	past := time.Unix(1, 0)
	err := errors.Join(l.lease.SetReadDeadline(past), l.boot.SetReadDeadline(past))
	if l.advertiser != nil {
		err = errors.Join(err, l.advertiser.conn.SetReadDeadline(past))
	}
	return err
}

// close closes all sockets; the link must not be used afterwards.
func (l *link) close() error {
	var errs []error
	for _, c := range []*ipv4.PacketConn{l.lease, l.boot} {
		if c == nil {
			continue
		}
		errs = append(errs, c.Close())
	}
	if l.advertiser != nil {
		errs = append(errs, l.advertiser.conn.Close())
	}
	if l.raw >= 0 {
		errs = append(errs, unix.Close(l.raw))
		l.raw = -1
	}
	return errors.Join(errs...)
}

func (l *link) primary() netip.Addr {
	if addrs := *l.addrs.Load(); len(addrs) > 0 {
		return addrs[0].Addr()
	}
	return netip.Addr{}
}

func (l *link) has(a netip.Addr) bool {
	return slices.ContainsFunc(*l.addrs.Load(), func(p netip.Prefix) bool { return p.Addr() == a })
}

// inside returns the interface's own address in subnet.
func (l *link) inside(subnet netip.Prefix) netip.Addr {
	for _, p := range *l.addrs.Load() {
		if subnet.Contains(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// source returns the source address of a reply: the server identifier if the
// interface has it.
func (l *link) source(server, local netip.Addr) netip.Addr {
	if l.has(server) {
		return server
	}
	if local.IsValid() {
		return local
	}
	return l.primary()
}

func (l *link) canUnicast() bool { return l.raw >= 0 && l.primary().IsValid() }

func (l *link) send(out outbound, boot bool) error {
	if out.mac != nil {
		return l.sendRaw(out)
	}
	conn := l.lease
	if boot {
		conn = l.boot
	}
	cm := &ipv4.ControlMessage{IfIndex: l.index}
	if l.has(out.src) {
		cm.Src = out.src.AsSlice()
	}
	_, err := conn.WriteTo(out.data, cm, net.UDPAddrFromAddrPort(out.to))
	return err
}

// sendRaw sends to a hardware address whose owner does not answer ARP yet.
func (l *link) sendRaw(out outbound) error {
	to := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: l.index, Halen: 6}
	copy(to.Addr[:], out.mac)
	packet := udpPacket(netip.AddrPortFrom(out.src, serverPort), out.to, out.data)
	if err := unix.Sendto(l.raw, packet, 0, &to); err != nil {
		return fmt.Errorf("send to %s on %s: %w", out.mac, l.name, err)
	}
	return nil
}

// udpPacket builds the IPv4 and UDP headers (RFC 791, RFC 768) before data.
func udpPacket(from, to netip.AddrPort, data []byte) []byte {
	src, dst := from.Addr().As4(), to.Addr().As4()
	length := 8 + len(data)
	b := make([]byte, 28, 28+len(data))
	ip, udp := b[:20], b[20:28]

	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(20+length))
	ip[6] = 0x40 // do not fragment: boot ROMs do not reassemble
	ip[8] = 64
	ip[9] = unix.IPPROTO_UDP
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], inet.Checksum(0, ip))

	binary.BigEndian.PutUint16(udp[0:], from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(length))
	b = append(b, data...)
	pseudo := uint32(unix.IPPROTO_UDP) + uint32(length)
	for _, half := range [][]byte{src[:2], src[2:], dst[:2], dst[2:]} {
		pseudo += uint32(binary.BigEndian.Uint16(half))
	}
	sum := inet.Checksum(pseudo, b[20:])
	if sum == 0 {
		sum = 0xffff // zero means "no checksum"
	}
	binary.BigEndian.PutUint16(b[26:], sum)
	return b
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
