package site_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/site"
)

// TestAnothersAddress: a host that reports an address which is another's does not
// have it.
func TestAnothersAddress(t *testing.T) {
	s := testsite.Open(t)
	s.Create(&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601, Uplinks: []api.Uplink{{Address: netip.MustParseAddr("198.18.8.2"), ASN: 64600}}}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow",
			Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.8.0/24")}, Gateway: netip.MustParseAddr("198.18.8.1")}})
	cases := []struct{ name, pinned, reports, has, fault string }{
		{"pinned", "198.18.8.7", "198.18.8.99", "[198.18.8.7]", ""},
		{"honest", "", "198.18.8.9", "[198.18.8.9]", ""},
		{"thief", "", "198.18.8.7", "[]", "pinned by Machine pinned"},
		{"gateway", "", "198.18.8.1", "[]", "the gateway of Subnet prod"},
		{"uplink", "", "198.18.8.2", "[]", "an uplink of Zone yellow"},
		{"outside", "", "192.0.2.1", "[]", ""},
		{"twin1", "", "198.18.8.50", "[]", "so does another Machine"},
		{"twin2", "", "198.18.8.50", "[]", "so does another Machine"},
	}
	for i, c := range cases {
		m := &api.Machine{Base: testsite.Named(c.name), Spec: api.MachineSpec{Zone: "yellow",
			Links: []api.Link{{Name: "prod0", MAC: api.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i)), Subnet: "prod"}}}}
		if c.pinned != "" {
			m.Spec.Links[0].Addresses = []netip.Addr{netip.MustParseAddr(c.pinned)}
		}
		m.Status.Host = &api.HostStatus{NICs: []api.HostNIC{{Name: "prod0", Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(c.reports), 24)}}}}
		s.Create(m)
	}
	for _, c := range cases {
		m := s.Machine(c.name)
		u := site.UnderlayOf(s.Cache, m)
		if fmt.Sprint(u.Addresses) != c.has || !strings.Contains(u.Fault, c.fault) || c.fault == "" && u.Fault != "" {
			t.Errorf("%s has %v, fault %q; want %s, fault %q", c.name, u.Addresses, u.Fault, c.has, c.fault)
		}
	}
}
