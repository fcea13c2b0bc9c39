package network

import (
	"net/netip"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestVTEPOfAnother: the VTEP of a host that reports another's address is not there.
func TestVTEPOfAnother(t *testing.T) {
	s := testsite.Open(t)
	s.Create(&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/22")}},
		machine(1))
	for i, reports := range map[int]netip.Addr{2: addr(1), 3: addr(3), 4: addr(50), 5: addr(50), 6: netip.MustParseAddr("192.0.2.1")} {
		m := machine(i)
		m.Spec.Links[0].Addresses = nil
		m.Status.Host = &api.HostStatus{NICs: []api.HostNIC{{Name: "prod0", Addresses: []netip.Prefix{netip.PrefixFrom(reports, 22)}}}}
		s.Create(m)
	}
	for i, want := range map[int]netip.Addr{1: addr(1), 2: {}, 3: addr(3), 4: {}, 5: {}, 6: {}} {
		if m := s.Machine(machine(i).Metadata.Name); VTEP(s.Cache, m) != want {
			t.Errorf("%s has VTEP %s, want %s", m.Metadata.Name, VTEP(s.Cache, m), want)
		}
	}
}
