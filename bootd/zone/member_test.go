package zone

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestMembers: a host's word on its own address counts for as much as it must.
func TestMembers(t *testing.T) {
	s := testsite.Open(t)
	s.Create(&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601, Uplinks: []api.Uplink{{Address: netip.MustParseAddr("198.18.8.2"), ASN: 64600}}}},
		&api.Zone{Base: testsite.Named("red"), Spec: api.ZoneSpec{ASN: 64602}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/24", "fd00:8::/64"), Gateway: netip.MustParseAddr("198.18.8.1")}},
		&api.Subnet{Base: testsite.Named("pxe"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Prefixes: testsite.Prefixes("198.18.0.0/24")}})
	mac := 0
	host := func(name, pinned string, reported ...string) {
		mac++
		m := &api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Zone: "yellow", Links: []api.Link{{Name: "prod0", MAC: api.MAC(fmt.Sprintf("52:54:00:00:00:%02x", mac)), Subnet: "prod"}}}}
		for _, a := range strings.Fields(pinned) {
			m.Spec.Links[0].Addresses = append(m.Spec.Links[0].Addresses, netip.MustParseAddr(a))
		}
		nic := api.HostNIC{Name: "prod0"}
		for _, p := range reported {
			nic.Addresses = append(nic.Addresses, netip.MustParsePrefix(p))
		}
		m.Status.Host = &api.HostStatus{NICs: []api.HostNIC{nic, {Name: "eth9", Addresses: testsite.Prefixes("198.18.8.77/24")}}}
		s.Create(m)
	}
	host("pinned", "198.18.8.7 fd00:8::7", "198.18.8.99/24")
	host("reports", "", "fe80::1/64", "fd00:8::9/64", "198.18.8.9/24", "198.18.8.10/24")
	host("elsewhere", "", "192.0.2.9/24")
	host("gateway", "", "198.18.8.1/24")
	host("uplink", "", "198.18.8.2/24")
	host("others", "", "198.18.8.7/24")
	host("twin1", "", "198.18.8.50/24")
	host("twin2", "", "198.18.8.50/24")
	host("both", "", "198.18.8.7/24", "198.18.8.51/24")
	host("six", "fd00:8::6")
	mac++
	s.Create(&api.Machine{Base: testsite.Named("nowhere"), Spec: api.MachineSpec{Zone: "yellow", Links: []api.Link{{Name: "eth0", MAC: "52:54:00:00:01:01", Subnet: "pxe"}}}},
		&api.Machine{Base: testsite.Named("stray"), Spec: api.MachineSpec{Zone: "red", Links: []api.Link{{Name: "eth0", MAC: "52:54:00:00:01:02", Subnet: "prod", Addresses: []netip.Addr{netip.MustParseAddr("198.18.8.80")}}}}},
		&api.Machine{Base: testsite.Named("alone"), Spec: api.MachineSpec{Links: []api.Link{{Name: "eth0", MAC: "52:54:00:00:01:03"}}}})
	want := map[string]string{
		"pinned": "[198.18.8.7 fd00:8::7]", "reports": "[198.18.8.9 fd00:8::9]", "elsewhere": "no IPv4 address", "gateway": "the gateway of Subnet prod",
		"uplink": "an uplink of Zone yellow", "others": "pinned by Machine pinned", "twin1": "so does another", "twin2": "so does another",
		"both": "[198.18.8.51]", "six": "no IPv4 address", "nowhere": "no link on a production Subnet", "stray": "on Subnet prod of Zone yellow",
	}
	p := &Parts{Cache: s.Cache}
	for _, m := range slices.Concat(p.Members("yellow"), p.Members("red"), p.Members("")) {
		name := m.Machine.Metadata.Name
		got := m.Fault
		if got == "" {
			got = fmt.Sprint(m.Addresses)
		}
		if want[name] == "" || !strings.Contains(got, want[name]) {
			t.Errorf("%s: %s, want %s", name, got, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
}
