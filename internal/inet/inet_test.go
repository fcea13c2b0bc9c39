package inet

import (
	"net/netip"
	"testing"
)

func TestChecksum(t *testing.T) {
	for _, c := range []struct {
		sum  uint32
		b    []byte
		want uint16
	}{
		{0, nil, 0xffff},
		{0, []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, ^uint16(0xddf2)}, // RFC 1071 §3
		{0, []byte{0x12}, ^uint16(0x1200)},
		{0x1ffff, []byte{0x00, 0x01}, ^uint16(0x0002)},
	} {
		if got := Checksum(c.sum, c.b); got != c.want {
			t.Errorf("Checksum(%#x, %x) is %#04x, want %#04x", c.sum, c.b, got, c.want)
		}
	}
}

func TestOverhead(t *testing.T) {
	for _, c := range []struct {
		addr             string
		vxlan, wireGuard int
	}{{"198.18.0.1", 50, 60}, {"2001:db8::1", 70, 80}} {
		addr := netip.MustParseAddr(c.addr)
		if v, w := VXLANOverhead(addr), WireGuardOverhead(addr); v != c.vxlan || w != c.wireGuard {
			t.Errorf("%s: VXLAN takes %d and WireGuard %d, want %d and %d", addr, v, w, c.vxlan, c.wireGuard)
		}
	}
}
