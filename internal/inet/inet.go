// Package inet holds constants and sums that protocols fix for both ends: the
// Internet checksum, and the sizes of headers.
package inet

import (
	"encoding/binary"
	"net/netip"
)

// Checksum returns the Internet checksum (RFC 1071) of b, added to sum.
func Checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Sizes of headers and trailers in bytes.
const (
	ethernet  = 14
	ipv4      = 20
	ipv6      = 40
	udp       = 8
	vxlan     = 8       // RFC 7348 §5
	wireGuard = 16 + 16 // of a data message: header and tag (WireGuard's whitepaper §5.4.6)
)

// VXLANOverhead is how much smaller than the MTU of the underlay a VXLAN's MTU
// must be, when the hosts use addresses of the family of addr: the outer
// headers above Ethernet, and the inner Ethernet header.
func VXLANOverhead(addr netip.Addr) int { return ip(addr) + udp + vxlan + ethernet }

// WireGuardOverhead is the same for WireGuard.
func WireGuardOverhead(addr netip.Addr) int { return ip(addr) + udp + wireGuard }

func ip(addr netip.Addr) int {
	if addr.Is6() {
		return ipv6
	}
	return ipv4
}
