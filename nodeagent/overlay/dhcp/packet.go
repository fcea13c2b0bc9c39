package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/inet"
)

// The servers use packet sockets: these show a packet's source MAC, which the taps'
// filters keep guests from forging, and they reach a guest that has no address and does
// not answer ARP yet.

const (
	dhcp4Server = 67
	dhcp4Client = 68
	dhcp6Server = 547
	dhcp6Client = 546

	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
)

// maxPacket is more than any request of a guest takes: a longer one is truncated and
// then fails to parse.
const maxPacket = 2048

// listenPackets opens a packet socket in the calling thread's namespace.
func listenPackets(bridge *net.Interface, protocol int, filter []bpf.Instruction) (*packet.Conn, error) {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return nil, fmt.Errorf("assemble the filter of a packet socket: %w", err)
	}
	c, err := packet.Listen(bridge, packet.Datagram, protocol, &packet.Config{Filter: raw})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", bridge.Name, err)
	}
	return c, nil
}

// filter4 accepts unfragmented UDP packets to port 67.
func filter4() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4}, // a fragment
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: dhcp4Server, SkipTrue: 1},
		bpf.RetConstant{Val: maxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// filter6 accepts UDP packets to port 547 and router solicitations.
func filter6() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 5},
		bpf.LoadAbsolute{Off: ipv6Header + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: dhcp6Server, SkipTrue: 2, SkipFalse: 3},
		bpf.LoadAbsolute{Off: ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: routerSolicitation, SkipTrue: 1},
		bpf.RetConstant{Val: maxPacket},
		bpf.RetConstant{Val: 0},
	}
}

// payload4 returns the data after an IPv4 packet's UDP header. It ignores checksums: a
// guest whose device offloads them does not fill them in.
func payload4(b []byte) ([]byte, bool) {
	if len(b) < ipv4Header || b[0]>>4 != 4 {
		return nil, false
	}
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < ipv4Header || total > len(b) || total < header {
		return nil, false
	}
	return udpPayload(b[header:total])
}

// next6 splits an IPv6 packet without extension headers.
func next6(b []byte) (source netip.Addr, next byte, rest []byte, ok bool) {
	if len(b) < ipv6Header || b[0]>>4 != 6 {
		return source, 0, nil, false
	}
	total := ipv6Header + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return source, 0, nil, false
	}
	return netip.AddrFrom16([16]byte(b[8:24])), b[6], b[ipv6Header:total], true
}

func udpPayload(b []byte) ([]byte, bool) {
	if len(b) < udpHeader {
		return nil, false
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size < udpHeader || size > len(b) {
		return nil, false
	}
	return b[udpHeader:size], true
}

// udpPacket4 puts the headers of IPv4 (RFC 791) and UDP (RFC 768) before data.
func udpPacket4(to netip.Addr, data []byte) []byte {
	from, dst := Gateway4().As4(), to.As4()
	b := make([]byte, ipv4Header, ipv4Header+udpHeader+len(data))
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(cap(b)))
	b[8] = 64
	b[9] = unix.IPPROTO_UDP
	copy(b[12:], from[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], inet.Checksum(0, b))
	return append(b, udpDatagram(from[:], dst[:], dhcp4Server, dhcp4Client, data)...)
}

// udpPacket6 builds a packet from the gateway's link-local address (RFC 8200 §3).
func udpPacket6(to netip.Addr, data []byte) []byte {
	from, dst := Gateway6().As16(), to.As16()
	return ipv6Packet(from, dst, unix.IPPROTO_UDP, udpDatagram(from[:], dst[:], dhcp6Server, dhcp6Client, data))
}

// icmpPacket6 builds a packet and fills in its checksum.
func icmpPacket6(to netip.Addr, message []byte) []byte {
	from, dst := Gateway6().As16(), to.As16()
	sum := inet.Checksum(pseudo(from[:], dst[:], unix.IPPROTO_ICMPV6, len(message)), message)
	binary.BigEndian.PutUint16(message[2:], sum)
	return ipv6Packet(from, dst, unix.IPPROTO_ICMPV6, message)
}

func ipv6Packet(from, to [16]byte, next byte, rest []byte) []byte {
	b := make([]byte, ipv6Header, ipv6Header+len(rest))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[6] = next
	b[7] = 255 // proof that no router was passed (RFC 4861 §6.1.2)
	copy(b[8:], from[:])
	copy(b[24:], to[:])
	return append(b, rest...)
}

func udpDatagram(from, to []byte, source, destination uint16, data []byte) []byte {
	b := make([]byte, udpHeader, udpHeader+len(data))
	binary.BigEndian.PutUint16(b[0:], source)
	binary.BigEndian.PutUint16(b[2:], destination)
	binary.BigEndian.PutUint16(b[4:], uint16(cap(b)))
	b = append(b, data...)
	sum := inet.Checksum(pseudo(from, to, unix.IPPROTO_UDP, len(b)), b)
	if sum == 0 {
		sum = 0xffff // zero means "no checksum"
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// pseudo sums the pseudo-header, which is the same for IPv4 and IPv6.
func pseudo(from, to []byte, protocol uint32, size int) uint32 {
	sum := protocol + uint32(size)
	for _, a := range [][]byte{from, to} {
		for ; len(a) >= 2; a = a[2:] {
			sum += uint32(binary.BigEndian.Uint16(a))
		}
	}
	return sum
}
