package api

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestZoneValidate changes a good Zone in one way each.
func TestZoneValidate(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		name    string
		change  func(*ZoneSpec)
		pointer string // "" for none
		words   string
	}{
		{"as it is", func(*ZoneSpec) {}, "", ""},
		{"reserved ASN", func(z *ZoneSpec) { z.ASN = 23456 }, "/spec/asn", "private ASN"},
		{"named twice", func(z *ZoneSpec) { z.Reflectors.Machines = []string{"a", "b", "a"} }, "/spec/reflectors/machines/2", "entry 0"},
		{"too many named", func(z *ZoneSpec) { z.Reflectors.Machines = strings.Fields("a b c d e f g h i") }, "/spec/reflectors/machines", "8 at most"},
		{"too impatient", func(z *ZoneSpec) { z.Reflectors.ReplaceAfter = Duration(time.Second) }, "/spec/reflectors/replaceAfter", "1m"},
		{"the default route", func(z *ZoneSpec) { z.Prefixes = []netip.Prefix{prefix("0.0.0.0/0")} }, "/spec/prefixes/0", "no unicast"},
		{"loopback", func(z *ZoneSpec) { z.Prefixes = append(z.Prefixes, prefix("127.0.0.0/16")) }, "/spec/prefixes/1", "127.0.0.0/8"},
		{"IPv6", func(z *ZoneSpec) { z.Prefixes = append(z.Prefixes, prefix("fd00:5::/48")) }, "", ""},
		{"half a second", func(z *ZoneSpec) { z.BGP.HoldTime = Duration(3500 * time.Millisecond) }, "/spec/bgp/holdTime", "whole seconds"},
		{"hold for ever", func(z *ZoneSpec) { z.BGP.StaleHold = Duration(-time.Second) }, "", ""},
		{"graceful for too long", func(z *ZoneSpec) { z.BGP.GracefulRestart = Duration(2 * time.Hour) }, "/spec/bgp/gracefulRestart", "4095s"},
		{"station without a port", func(z *ZoneSpec) {
			z.BGP.BMP = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("198.18.8.5"), 0)}
		}, "/spec/bgp/bmp/0", "port"},
		{"uplink without an address", func(z *ZoneSpec) { z.Uplinks[0].Address = netip.Addr{} }, "/spec/uplinks/0/address", "required"},
		{"link-local uplink", func(z *ZoneSpec) { z.Uplinks[0].Address = netip.MustParseAddr("fe80::1") }, "/spec/uplinks/0/address", "no unicast"},
		{"uplink twice", func(z *ZoneSpec) { z.Uplinks = append(z.Uplinks, z.Uplinks[0]) }, "/spec/uplinks/1/address", "entry 0"},
		{"internal uplink", func(z *ZoneSpec) { z.Uplinks[0].ASN = z.ASN }, "/spec/uplinks/0/asn", "external"},
		{"own prefix from outside", func(z *ZoneSpec) {
			z.Uplinks[0].Import = []PrefixFilter{{Prefix: prefix("0.0.0.0/0")}, {Prefix: prefix("10.5.7.0/24")}}
		}, "/spec/uplinks/0/import/1/prefix", "not taken from outside"},
		{"others' to the outside", func(z *ZoneSpec) { z.Uplinks[0].Export = []PrefixFilter{{Prefix: prefix("10.6.0.0/16")}} }, "/spec/uplinks/0/export/0/prefix", "nothing else"},
		{"a part to the outside", func(z *ZoneSpec) { z.Uplinks[0].Export = []PrefixFilter{{Prefix: prefix("10.5.0.0/17"), LE: 24}} }, "", ""},
		{"public ASN as private", func(z *ZoneSpec) { z.Uplinks[0].PrivateASNs = []uint32{3320} }, "/spec/uplinks/0/privateASNs/0", "RFC 6996"},
		{"le shorter than the prefix", func(z *ZoneSpec) { z.Uplinks[0].Import = []PrefixFilter{{Prefix: prefix("192.0.2.0/24"), LE: 16}} }, "/spec/uplinks/0/import/0/le", "24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := &Zone{Spec: ZoneSpec{ASN: 64601, Prefixes: []netip.Prefix{prefix("10.5.0.0/16")}, Uplinks: []Uplink{{Address: netip.MustParseAddr("198.18.8.1"), ASN: 64600}}}}
			z.Metadata.Name = "yellow"
			c.change(&z.Spec)
			z.SetDefaults()
			e := z.Validate()
			if c.pointer == "" && len(e) > 0 {
				t.Fatalf("refused: %v", e)
			}
			if c.pointer != "" && (len(e) != 1 || e[0].Pointer != c.pointer || !strings.Contains(e[0].Message, c.words)) {
				t.Errorf("%v", e)
			}
		})
	}
}

func TestPrefixFilterMatches(t *testing.T) {
	for _, c := range []struct {
		filter string
		le     int
		prefix string
		want   bool
	}{
		{"10.5.0.0/16", 0, "10.5.0.0/16", true},
		{"10.5.0.0/16", 0, "10.5.0.0/17", false},
		{"10.5.0.0/16", 24, "10.5.3.0/24", true},
		{"10.5.0.0/16", 24, "10.5.3.0/25", false},
		{"10.5.0.0/16", 24, "10.0.0.0/8", false},
		{"10.5.0.0/16", 24, "10.6.0.0/24", false},
		{"0.0.0.0/0", 32, "fd00::/64", false},
	} {
		f := PrefixFilter{Prefix: netip.MustParsePrefix(c.filter), LE: c.le}
		if got := f.Matches(netip.MustParsePrefix(c.prefix)); got != c.want {
			t.Errorf("%s le %d and %s: %v", c.filter, c.le, c.prefix, got)
		}
	}
}
