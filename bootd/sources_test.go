package bootd

import (
	"net/netip"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

func TestSourcesOfTheSitesOwn(t *testing.T) {
	s := testsite.Open(t)
	bmc := func(name string, mac api.MAC, address string) *api.Machine {
		return &api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Zone: "z", Profile: "p", Links: []api.Link{{Name: "eth0", MAC: mac}}, BMC: &api.BMC{Address: address, Credentials: "c"}}}
	}
	s.Create(
		&api.Subnet{Base: testsite.Named("mgmt"), Spec: api.SubnetSpec{Purpose: api.Management, Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.1.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "z", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.8.0/24")}}},
		bmc("by-address", "52:54:00:00:00:01", "https://198.18.5.7:8443"), bmc("by-address6", "52:54:00:00:00:02", "https://[2001:db8:5::7]"), bmc("by-name", "52:54:00:00:00:03", "https://BMC7.example"),
	)
	for _, c := range []struct {
		host, address string
		barred        bool
	}{
		{"mirror", "198.18.1.200", true},
		{"mirror", "2001:db8:1::9", true},
		{"mirror", "198.18.5.7", true},
		{"mirror", "2001:db8:5::7", true},
		{"bmc7.example", "203.0.113.1", true},
		{"mirror", "198.18.5.8", false},
		{"mirror", "198.18.8.1", false},
	} {
		if why := barred(s.Cache, c.host, netip.MustParseAddr(c.address)); (why != "") != c.barred {
			t.Errorf("%s at %s: %q", c.host, c.address, why)
		}
	}
}
