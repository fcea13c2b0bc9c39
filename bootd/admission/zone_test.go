package admission

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestZoneAdmission holds two Zones apart: each line is one way in which they
// would meet, from either side.
func TestZoneAdmission(t *testing.T) {
	addr := netip.MustParseAddr
	zone := func(name string, asn uint32, change ...func(*api.Zone)) *api.Zone {
		z := &api.Zone{Spec: api.ZoneSpec{ASN: asn}}
		z.Metadata.Name = name
		for _, fn := range change {
			fn(z)
		}
		z.SetDefaults()
		return z
	}
	over := func(texts ...string) func(*api.Zone) {
		return func(z *api.Zone) { z.Spec.Prefixes = testsite.Prefixes(texts...) }
	}
	uplink := func(address string, asn uint32, secret string) func(*api.Zone) {
		return func(z *api.Zone) {
			z.Spec.Uplinks = append(z.Spec.Uplinks, api.Uplink{Address: addr(address), ASN: asn, Secret: secret})
		}
	}
	subnet := func(name, zone, prefix string) *api.Subnet {
		s := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Production, Zone: zone, Prefixes: testsite.Prefixes(prefix)}}
		if zone == "" {
			s.Spec.Purpose = api.Management
		}
		s.Metadata.Name = name
		s.SetDefaults()
		return s
	}
	tenant := func(zone, cidr string, advertise bool) *api.Network {
		n := &api.Network{Spec: api.NetworkSpec{Zone: zone, CIDRs: testsite.Prefixes(cidr), Advertise: advertise}}
		n.Metadata.Name = "net"
		n.SetDefaults()
		return n
	}
	machine := func(address string) *api.Machine {
		m := testsite.NewMachine("r1", "52:54:00:00:00:01")
		m.Spec.Zone = "yellow"
		m.Spec.Links = append(m.Spec.Links, api.Link{Name: "prod", VLAN: &api.VLAN{Link: "eth0", ID: 8}, Subnet: "prod", Addresses: []netip.Addr{addr(address)}})
		return m
	}
	serves := func(address string) func(*api.Zone) {
		return func(z *api.Zone) {
			z.Spec.Services = append(z.Spec.Services, api.Service{Name: "dns", Addresses: []netip.Addr{addr(address)}})
		}
	}
	pool := func(text string) func(*api.Zone) {
		return func(z *api.Zone) { z.Spec.Loopbacks = testsite.Prefixes(text) }
	}
	chosen := func(machine, address string) func(*api.Zone) {
		return func(z *api.Zone) {
			z.Status.Loopbacks = []api.LoopbackStatus{{Machine: machine, UID: "u", Addresses: []netip.Addr{addr(address)}}}
		}
	}
	own := func(name, address string) *api.Machine {
		m := machine("198.18.8.7")
		m.Metadata.Name = name
		m.Spec.Loopbacks = []netip.Addr{addr(address)}
		return m
	}
	wide := over("10.5.0.0/16", "198.18.0.0/16")
	secret := func(keys ...string) *api.Secret {
		s := &api.Secret{Spec: api.SecretSpec{Data: map[string]string{}}, Status: api.SecretStatus{Digests: map[string]string{}}}
		s.Metadata.Name = "leaf"
		for _, k := range keys {
			s.Spec.Data[k], s.Status.Digests[k] = "hush", "digest"
		}
		return s
	}
	peering := func(secret string) *api.Network {
		n := tenant("yellow", "10.5.0.0/16", false)
		n.Spec.Peering = &api.Peering{ASN: 64512, Prefixes: testsite.Prefixes("10.244.0.0/16"), Secret: secret}
		return n
	}
	withoutData := func(s *api.Secret) *api.Secret { s.Spec.Data = nil; return s }
	long := secret("password")
	long.Spec.Data["password"] = strings.Repeat("x", 81)
	prod := subnet("prod", "yellow", "198.18.8.0/24")
	for _, c := range []struct {
		name    string
		stands  []api.Object
		object  api.Object
		pointer string // "" for none
		words   string
	}{
		{"two that are apart", []api.Object{zone("red", 64602, over("10.6.0.0/16"), uplink("198.18.9.1", 64600, "")), subnet("redprod", "red", "198.18.9.0/24"), prod},
			zone("yellow", 64601, over("10.5.0.0/16"), uplink("198.18.8.1", 64600, "")), "", ""},
		{"one ASN", []api.Object{zone("red", 64601)}, zone("yellow", 64601), "/spec/asn", "Zone red"},
		{"overlap", []api.Object{zone("red", 64602, over("10.5.9.0/24"))}, zone("yellow", 64601, over("192.0.2.0/24", "10.5.0.0/16")), "/spec/prefixes/1", "10.5.9.0/24 of Zone red"},
		{"its guests' ASN", []api.Object{peering("leaf")}, zone("yellow", 64512), "/spec/asn", "guests of Network net"},
		{"guests' key is taken away", []api.Object{peering("leaf")}, secret("token"), "/spec/data", "Network net"},
		{"guests' key is none", []api.Object{zone("yellow", 64601), withoutData(secret("token"))}, peering("leaf"), "/spec/peering/secret", "has no password"},
		{"an uplink's ASN is another Zone's", []api.Object{zone("red", 64602)}, zone("yellow", 64601, uplink("198.18.8.1", 64602, "")), "/spec/uplinks/0/asn", "do not peer"},
		{"the ASN is that of another's uplink", []api.Object{zone("red", 64602, uplink("198.18.9.1", 64601, ""))}, zone("yellow", 64601), "/spec/asn", "uplink of Zone red"},
		{"one uplink for two", []api.Object{zone("red", 64602, uplink("198.18.7.1", 64600, ""))}, zone("yellow", 64601, uplink("198.18.7.1", 64600, "")), "/spec/uplinks/0/address", "a VRF of its own"},
		{"an uplink on another's segment", []api.Object{subnet("redprod", "red", "198.18.9.0/24")}, zone("yellow", 64601, uplink("198.18.9.1", 64600, "")), "/spec/uplinks/0/address", "join the two"},
		{"a Subnet around another's uplink", []api.Object{zone("yellow", 64601, uplink("198.18.9.1", 64600, ""))}, subnet("redprod", "red", "198.18.9.0/24"), "/spec/prefixes", "uplink of Zone yellow"},
		{"a Machine as uplink", []api.Object{prod, machine("198.18.8.7")}, zone("yellow", 64601, uplink("198.18.8.7", 64600, "")), "/spec/uplinks/0/address", "Machine r1"},
		{"an uplink's address for a Machine", []api.Object{prod, zone("yellow", 64601, uplink("198.18.8.7", 64600, ""))}, machine("198.18.8.7"), "/spec/links/1/addresses/0", "uplink of Zone yellow"},
		{"over another Zone's segment", []api.Object{subnet("redprod", "red", "198.18.9.0/24")}, zone("yellow", 64601, over("198.18.0.0/16")), "/spec/prefixes/0", "Subnet redprod of Zone red"},
		{"over its own segment", []api.Object{prod}, zone("yellow", 64601, over("198.18.0.0/16")), "", ""},
		{"over the BMCs", []api.Object{subnet("bmc", "", "198.18.1.0/24")}, zone("yellow", 64601, over("198.18.0.0/16")), "/spec/prefixes/0", "management Subnet bmc"},
		{"a Subnet under another Zone's prefix", []api.Object{zone("yellow", 64601, over("198.18.0.0/16"))}, subnet("bmc", "", "198.18.1.0/24"), "/spec/prefixes", "routes of Zone yellow"},
		{"a Network outside", []api.Object{zone("yellow", 64601, over("10.6.0.0/16"))}, tenant("yellow", "10.5.0.0/16", true), "/spec/advertise", "(10.6.0.0/16)"},
		{"a Network outside that stays inside", []api.Object{zone("yellow", 64601, over("10.6.0.0/16"))}, tenant("yellow", "10.5.0.0/16", false), "", ""},
		{"a Network before its Zone", nil, tenant("yellow", "10.5.0.0/16", true), "", ""},
		{"a Zone that leaves its Network", []api.Object{tenant("yellow", "10.5.0.0/16", true)}, zone("yellow", 64601, over("10.5.0.0/17")), "/spec/prefixes", "10.5.0.0/16 of Network net"},
		{"a Zone that leaves another's", []api.Object{tenant("red", "10.5.0.0/16", true)}, zone("yellow", 64601), "", ""},
		{"a Secret without a key", []api.Object{secret("token")}, zone("yellow", 64601, uplink("198.18.8.1", 64600, "leaf")), "/spec/uplinks/0/secret", "no password"},
		{"a Secret that loses it", []api.Object{zone("yellow", 64601, uplink("198.18.8.1", 64600, "leaf"))}, secret("token"), "/spec/data", "password is missing"},
		{"a key that is too long", []api.Object{zone("yellow", 64601, uplink("198.18.8.1", 64600, "leaf"))}, long, "/spec/data/password", "at most 80"},
		{"a good key", []api.Object{secret("password")}, zone("yellow", 64601, uplink("198.18.8.1", 64600, "leaf")), "", ""},
		{"a service", []api.Object{tenant("yellow", "10.6.0.0/16", false), tenant("red", "10.5.0.0/16", false), prod}, zone("yellow", 64601, wide, serves("10.5.200.1"), pool("10.5.201.0/24")), "", ""},
		{"a service on a segment", []api.Object{prod}, zone("yellow", 64601, wide, serves("198.18.8.50")), "/spec/services/0/addresses/0", "Subnet prod"},
		{"a service among guests", []api.Object{tenant("yellow", "10.5.0.0/16", false)}, zone("yellow", 64601, wide, serves("10.5.200.1")), "/spec/services/0/addresses/0", "Network net"},
		{"guests around a service", []api.Object{zone("yellow", 64601, wide, serves("10.5.200.1"))}, tenant("yellow", "10.5.0.0/16", true), "/spec/cidrs/0", "service dns of Zone yellow"},
		{"guests of another Zone there", []api.Object{zone("yellow", 64601, wide, serves("10.5.200.1"))}, tenant("red", "10.5.0.0/16", false), "", ""},
		{"a segment around a service", []api.Object{zone("yellow", 64601, wide, serves("198.18.9.50"))}, subnet("more", "yellow", "198.18.9.0/24"), "/spec/prefixes/0", "service dns"},
		{"loopbacks among guests", []api.Object{tenant("yellow", "10.5.0.0/16", false)}, zone("yellow", 64601, wide, pool("10.5.201.0/24")), "/spec/loopbacks/0", "Network net"},
		{"a loopback", []api.Object{prod, zone("yellow", 64601, wide, pool("10.5.201.0/24"), chosen("r1", "10.5.201.7"))}, own("r1", "10.5.201.7"), "", ""},
		{"another's loopback", []api.Object{prod, zone("yellow", 64601, wide, pool("10.5.201.0/24"), chosen("r2", "10.5.201.7"))}, own("r1", "10.5.201.7"), "/spec/loopbacks/0", "chosen for Machine r2"},
		{"a loopback outside", []api.Object{prod, zone("yellow", 64601, wide)}, own("r1", "10.6.0.1"), "/spec/loopbacks/0", "none of spec.prefixes"},
		{"a loopback on a segment", []api.Object{prod, zone("yellow", 64601, wide)}, own("r1", "198.18.8.77"), "/spec/loopbacks/0", "Subnet prod"},
		{"a service's address as loopback", []api.Object{prod, zone("yellow", 64601, wide, serves("10.5.200.1"))}, own("r1", "10.5.200.1"), "/spec/loopbacks/0", "service dns"},
		{"a loopback's address as service", []api.Object{own("r1", "10.5.200.1")}, zone("yellow", 64601, wide, serves("10.5.200.1")), "/spec/services/0/addresses/0", "Machine r1"},
		{"a Zone that leaves a loopback", []api.Object{own("r1", "10.5.200.1")}, zone("yellow", 64601, over("10.6.0.0/16")), "/spec/prefixes", "loopback of Machine r1"},
		{"a Secret to come", nil, zone("yellow", 64601, uplink("198.18.8.1", 64600, "leaf")), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Judge(worldOf(c.stands...), c.object, nil)
			if c.pointer == "" && len(v.Errors) > 0 {
				t.Fatalf("refused: %v", v.Errors)
			}
			if c.pointer != "" && (len(v.Errors) != 1 || v.Errors[0].Pointer != c.pointer || !strings.Contains(v.Errors[0].Message, c.words)) {
				t.Errorf("%v", v.Errors)
			}
		})
	}
}
