// Package inet has what the Internet's protocols fix for both ends of a wire:
// how packets are summed, and what headers take of their size.
package inet

import (
	"encoding/binary"
	"net/netip"
)

// Checksum is the Internet checksum (RFC 1071) of b, added to sum.
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

// Bytes of headers and trailers.
const (
	ethernet  = 14
	ipv4      = 20
	ipv6      = 40
	udp       = 8
	vxlan     = 8       // RFC 7348 §5
	wireGuard = 16 + 16 // of a data message: header and tag (WireGuard's whitepaper §5.4.6)
)

// VXLANOverhead is what VXLAN takes of the MTU between hosts that reach each
// other by addresses of the family of addr: the outer headers above Ethernet,
// and the inner Ethernet header.
func VXLANOverhead(addr netip.Addr) int { return ip(addr) + udp + vxlan + ethernet }

// WireGuardOverhead is what WireGuard takes of it.
func WireGuardOverhead(addr netip.Addr) int { return ip(addr) + udp + wireGuard }

func ip(addr netip.Addr) int {
	if addr.Is6() {
		return ipv6
	}
	return ipv4
}
