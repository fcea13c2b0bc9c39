package dhcp

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

// solicitation is what iPXE sends.
const solicitation = "\x85\x00\xcc\x83\x00\x00\x00\x00\x01\x01\x52\x54\x00\x01\x07\x00"

func TestSolicitor(t *testing.T) {
	tests := []struct {
		name string
		b    string
		ok   bool
	}{
		{"iPXE", solicitation, true},
		{"behind another option", solicitation[:8] + "\x0e\x01nonce!" + solicitation[8:], true},
		{"no option", solicitation[:8], false},
		{"cut off", solicitation[:15], false},
		{"option of length zero", solicitation[:8] + "\x00\x00\x00\x00\x00\x00\x00\x00", false},
		{"advertisement", "\x86" + solicitation[1:], false},
		{"empty", "", false},
	}
	for _, tt := range tests {
		mac, ok := solicitor([]byte(tt.b))
		if ok != tt.ok || ok && !slices.Equal(mac[:], testMAC) {
			t.Errorf("%s: %x, %v", tt.name, mac, ok)
		}
	}
}

func TestOnlyLocalIPXEIsRemembered(t *testing.T) {
	var r recentMACs
	for i, c := range []Client{{Kind: IPXE}, {Kind: PXE}, {Kind: IPXE, Relay: netip.MustParseAddr("198.18.2.1")}} {
		c.MAC = net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}
		r.add(c)
		if got := r.has([6]byte(c.MAC)); got != (i == 0) {
			t.Errorf("client %d: %v", i, got)
		}
	}
	for i := range 10000 {
		r.add(Client{Kind: IPXE, MAC: net.HardwareAddr{2, 1, 0, 0, byte(i >> 8), byte(i)}})
	}
	if len(r.seen) > 4096 {
		t.Errorf("%d MACs are remembered", len(r.seen))
	}
}

func FuzzSolicitor(f *testing.F) {
	f.Add([]byte(solicitation))
	f.Add([]byte(solicitation[:9]))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := solicitor(b); ok && len(b) < 16 {
			t.Errorf("%x has an option", b)
		}
	})
}
