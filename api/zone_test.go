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
		{"too many named", func(z *ZoneSpec) { z.Reflectors.Machines = strings.Fields("a b c d e f g h i") }, "/spec/reflectors/machines", "at most 8"},
		{"too impatient", func(z *ZoneSpec) { z.Reflectors.ReplaceAfter = Duration(time.Second) }, "/spec/reflectors/replaceAfter", "1m"},
		{"the default route", func(z *ZoneSpec) { z.Prefixes = []netip.Prefix{prefix("0.0.0.0/0")} }, "/spec/prefixes/0", "unicast"},
		{"loopback", func(z *ZoneSpec) { z.Prefixes = append(z.Prefixes, prefix("127.0.0.0/16")) }, "/spec/prefixes/1", "127.0.0.0/8"},
		{"IPv6", func(z *ZoneSpec) { z.Prefixes = append(z.Prefixes, prefix("fd00:5::/48")) }, "", ""},
		{"half a second", func(z *ZoneSpec) { z.BGP.HoldTime = Duration(3500 * time.Millisecond) }, "/spec/bgp/holdTime", "whole seconds"},
		{"hold for ever", func(z *ZoneSpec) { z.BGP.StaleHold = Duration(-time.Second) }, "", ""},
		{"graceful for too long", func(z *ZoneSpec) { z.BGP.GracefulRestart = Duration(2 * time.Hour) }, "/spec/bgp/gracefulRestart", "4095s"},
		{"station without a port", func(z *ZoneSpec) {
			z.BGP.BMP = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("198.18.8.5"), 0)}
		}, "/spec/bgp/bmp/0", "port"},
		{"uplink without an address", func(z *ZoneSpec) { z.Uplinks[0].Address = netip.Addr{} }, "/spec/uplinks/0/address", "required"},
		{"link-local uplink", func(z *ZoneSpec) { z.Uplinks[0].Address = netip.MustParseAddr("fe80::1") }, "/spec/uplinks/0/address", "unicast"},
		{"uplink twice", func(z *ZoneSpec) { z.Uplinks = append(z.Uplinks, z.Uplinks[0]) }, "/spec/uplinks/1/address", "entry 0"},
		{"internal uplink", func(z *ZoneSpec) { z.Uplinks[0].ASN = z.ASN }, "/spec/uplinks/0/asn", "external"},
		{"own prefix from outside", func(z *ZoneSpec) {
			z.Uplinks[0].Import = []PrefixFilter{{Prefix: prefix("0.0.0.0/0")}, {Prefix: prefix("10.5.7.0/24")}}
		}, "/spec/uplinks/0/import/1/prefix", "does not accept its own prefixes"},
		{"others' to the outside", func(z *ZoneSpec) { z.Uplinks[0].Export = []PrefixFilter{{Prefix: prefix("10.6.0.0/16")}} }, "/spec/uplinks/0/export/0/prefix", "nothing else"},
		{"a part to the outside", func(z *ZoneSpec) { z.Uplinks[0].Export = []PrefixFilter{{Prefix: prefix("10.5.0.0/17"), LE: 24}} }, "", ""},
		{"public ASN as private", func(z *ZoneSpec) { z.Uplinks[0].PrivateASNs = []uint32{3320} }, "/spec/uplinks/0/privateASNs/0", "RFC 6996"},
		{"paths of another kind", func(z *ZoneSpec) { z.BGP.Paths = "some" }, "/spec/bgp/paths", "all, best"},
		{"loopbacks of both families", func(z *ZoneSpec) {
			z.Prefixes = append(z.Prefixes, prefix("fd00:5::/48"))
			z.Loopbacks = []netip.Prefix{prefix("10.5.255.0/24"), prefix("fd00:5:0:1::/64")}
		}, "", ""},
		{"loopbacks outside", func(z *ZoneSpec) { z.Loopbacks = []netip.Prefix{prefix("10.6.0.0/24")} }, "/spec/loopbacks/0", "none of spec.prefixes"},
		{"loopbacks twice", func(z *ZoneSpec) { z.Loopbacks = []netip.Prefix{prefix("10.5.1.0/24"), prefix("10.5.2.0/24")} }, "/spec/loopbacks/1", "one prefix per family"},
		{"a service", serving(func(*Service) {}), "", ""},
		{"a service without a check", serving(func(s *Service) { s.Check = nil }), "", ""},
		{"without an address", serving(func(s *Service) { s.Addresses = nil }), "/spec/services/0/addresses", "required"},
		{"outside", serving(func(s *Service) { s.Addresses[1] = netip.MustParseAddr("10.6.0.1") }), "/spec/services/0/addresses/1", "none of spec.prefixes"},
		{"an address twice", serving(func(s *Service) { s.Addresses[1] = s.Addresses[0] }), "/spec/services/0/addresses/1", "already an address of service dns"},
		{"a service's address among loopbacks", func(z *ZoneSpec) {
			serving(func(*Service) {})(z)
			z.Loopbacks = []netip.Prefix{prefix("10.5.200.0/24")}
		}, "/spec/services/0/addresses/0", "of spec.loopbacks"},
		{"one name twice", func(z *ZoneSpec) {
			serving(func(*Service) {})(z)
			z.Services = append(z.Services, Service{Name: "dns", Addresses: []netip.Addr{netip.MustParseAddr("10.5.1.1")}})
		}, "/spec/services/1/name", "entry 0"},
		{"a check of nothing", serving(func(s *Service) { s.Check.Type = "exec" }), "/spec/services/0/check/type", "tcp, http"},
		{"a check without a port", serving(func(s *Service) { s.Check.Port = 0 }), "/spec/services/0/check/port", "65535"},
		{"a path for tcp", serving(func(s *Service) { s.Check.Type = CheckTCP; s.Check.Path = "/" }), "/spec/services/0/check/path", "no path"},
		{"a path of another host", serving(func(s *Service) { s.Check.Path = "http://192.0.2.1/" }), "/spec/services/0/check/path", "/healthz"},
		{"a check that takes too long", serving(func(s *Service) { s.Check.Timeout = Duration(time.Minute) }), "/spec/services/0/check/timeout", "the interval"},
		{"a last resort that is never needed", serving(func(s *Service) { s.Check, s.OnFailure = nil, OnFailureLastResort }), "/spec/services/0/onFailure", "never fails"},
		{"EVPN with an uplink alone", func(z *ZoneSpec) { z.Uplinks[0].EVPN = true }, "/spec/uplinks/0/evpn", "spec.bgp.evpn"},
		{"EVPN", func(z *ZoneSpec) { z.BGP.EVPN, z.Uplinks[0].EVPN = true, true }, "", ""},
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

// serving has a Zone have a service, changed.
func serving(change func(*Service)) func(*ZoneSpec) {
	return func(z *ZoneSpec) {
		s := Service{Name: "dns", Addresses: []netip.Addr{netip.MustParseAddr("10.5.200.1"), netip.MustParseAddr("10.5.201.1")},
			Check: &ServiceCheck{Type: CheckHTTP, Port: 8080}}
		change(&s)
		z.Services = append(z.Services, s)
	}
}

// A check's fields are all set once its defaults are; the timeout never passes
// the interval.
func TestServiceDefaults(t *testing.T) {
	s := Service{Check: &ServiceCheck{Type: CheckHTTP, Port: 80, Interval: Duration(200 * time.Millisecond)}}
	s.setDefaults()
	want := ServiceCheck{Type: CheckHTTP, Port: 80, Path: "/", Interval: Duration(200 * time.Millisecond), Timeout: Duration(200 * time.Millisecond), Rise: 2, Fall: 3}
	if *s.Check != want || s.OnFailure != OnFailureWithdraw {
		t.Errorf("%+v, %s", *s.Check, s.OnFailure)
	}
	m := &Machine{Base: Base{Metadata: Metadata{Labels: map[string]string{"tier": "edge", "row": "1"}}}}
	for _, c := range []struct {
		labels map[string]string
		want   bool
	}{{nil, true}, {map[string]string{"tier": "edge"}, true}, {map[string]string{"tier": "edge", "row": "2"}, false}, {map[string]string{"other": ""}, false}} {
		if got := (&Service{Hosts: c.labels}).Selects(m); got != c.want {
			t.Errorf("%v selects: %v", c.labels, got)
		}
	}
}

func TestMachineLoopbacks(t *testing.T) {
	for _, c := range []struct {
		list    []netip.Addr
		pointer string
	}{
		{[]netip.Addr{netip.MustParseAddr("10.5.9.1"), netip.MustParseAddr("fd00:5::1")}, ""},
		{[]netip.Addr{netip.MustParseAddr("127.0.0.1")}, "/spec/loopbacks/0"},
		{[]netip.Addr{netip.MustParseAddr("10.5.9.1"), netip.MustParseAddr("10.5.9.2")}, "/spec/loopbacks/1"},
	} {
		m := &Machine{Spec: MachineSpec{Loopbacks: c.list}}
		var e FieldErrors
		m.validateLoopbacks(&e)
		if (c.pointer == "") != (len(e) == 0) || len(e) > 0 && e[0].Pointer != c.pointer {
			t.Errorf("%v: %v", c.list, e)
		}
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
