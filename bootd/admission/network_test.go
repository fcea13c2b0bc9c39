package admission

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestNetworkAdmission changes a Network that has leases in one way each, beside
// another of its Zone and one of another Zone.
func TestNetworkAdmission(t *testing.T) {
	make := func(name, zone string, cidrs ...string) *api.Network {
		n := &api.Network{Spec: api.NetworkSpec{Zone: zone, CIDRs: testsite.Prefixes(cidrs...)}}
		n.Metadata.Name = name
		n.SetDefaults()
		return n
	}
	other := make("other", "yellow", "10.6.0.0/16")
	other.Spec.Advertise, other.Spec.Allow = true, []string{"net"}
	other.Status.VNI = 10001
	peering := func(asn uint32, texts ...string) *api.Peering {
		return &api.Peering{ASN: asn, Prefixes: testsite.Prefixes(texts...)}
	}
	told := func(texts ...string) *api.Peering {
		p := peering(64512, texts...)
		p.Advertise = true
		return p
	}
	other.Spec.Peering = peering(64513, "10.245.0.0/16")
	other.Spec.Peering.Advertise = true
	abroad := make("abroad", "red", "10.7.0.0/16")
	zone := &api.Zone{Spec: api.ZoneSpec{ASN: 64601, Prefixes: testsite.Prefixes("10.0.0.0/8")}}
	zone.Metadata.Name = "yellow"
	subnet := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/24")}}
	subnet.Metadata.Name = "prod"
	second := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("10.99.8.0/24")}}
	second.Metadata.Name = "second"
	w := worldOf(zone, subnet, second, other, abroad)

	for _, c := range []struct {
		name    string
		leases  int
		change  func(*api.Network)
		pointer string // "" for none
		words   string
	}{
		{"as it was", 3, func(*api.Network) {}, "", ""},
		{"CIDR added", 3, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "10.8.0.0/16") }, "", ""},
		{"CIDR widened", 3, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.4.0.0/15") }, "", ""},
		{"CIDR changed without leases", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.HostPrefix = testsite.Prefixes("10.9.0.0/20"), 26 }, "", ""},
		{"VNI pinned as it is", 3, func(n *api.Network) { n.Spec.VNI = 10017 }, "", ""},
		{"allowed", 3, func(n *api.Network) { n.Spec.Allow = []string{"other"} }, "", ""},
		{"advertised", 3, func(n *api.Network) { n.Spec.Advertise = true }, "", ""},

		{"VNI changed", 0, func(n *api.Network) { n.Spec.VNI = 10018 }, "/spec/vni", "10017 and cannot change"},
		{"VNI of another", 0, func(n *api.Network) { n.Spec.VNI = 10001 }, "/spec/vni", ""},
		{"CIDR narrowed", 3, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/17") }, "/spec/cidrs", "10.5.0.0/16 is missing"},
		{"lease length", 3, func(n *api.Network) { n.Spec.HostPrefix = 25 }, "/spec/hostPrefix", "3 leases are /24"},
		{"Zone", 3, func(n *api.Network) { n.Spec.Zone = "red" }, "/spec/zone", ""},
		{"own overlap", 3, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "10.5.9.0/24") }, "/spec/", "overlaps 10.5.0.0/16"},
		{"too few leases", 0, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/23") }, "/spec/hostPrefix", "/25 or longer"},
		{"IPv6 alone", 0, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("2001:db8::/48") }, "/spec/cidrs", "one IPv4"},
		{"multicast", 0, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("224.0.0.0/16") }, "/spec/cidrs/0", "not for unicast"},
		{"overlaps one that allows it", 0, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.6.0.0/16") }, "/spec/cidrs", "spec.allow names this"},
		{"allows one that it overlaps", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Allow = testsite.Prefixes("10.6.0.0/16"), []string{"other"} }, "/spec/allow/0", "would be ambiguous"},
		{"allows another Zone's", 0, func(n *api.Network) { n.Spec.Allow = []string{"abroad"} }, "/spec/allow/0", "within one Zone only"},
		{"advertised over another", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Advertise = testsite.Prefixes("10.6.0.0/15"), true }, "/spec/", ""},
		{"advertised over a Subnet", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Advertise = testsite.Prefixes("198.18.0.0/16"), true }, "/spec/advertise", "Subnet prod"},
		{"IPv6 beside it", 3, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "fd00:5::/48") }, "", ""},
		{"IPv6 not for unicast", 0, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "fe80::/64") }, "/spec/cidrs/1", "fd00::/8"},
		{"IPv4 in IPv6", 0, func(n *api.Network) { n.Spec.CIDRs = testsite.Prefixes("10.5.0.0/16", "::ffff:10.0.0.0/112") }, "/spec/cidrs/1", "not for unicast"},
		{"direct over another", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Direct = testsite.Prefixes("10.6.8.0/22"), true }, "/spec/", ""},
		{"peering", 3, func(n *api.Network) { n.Spec.Peering = peering(64512, "10.244.0.0/16") }, "", ""},
		{"what guests announce outside of the Zone", 0, func(n *api.Network) {
			n.Spec.Advertise, n.Spec.Peering = true, told("172.30.0.0/16")
		}, "/spec/peering/advertise", "172.30.0.0/16 is in none of spec.prefixes"},
		{"what guests announce is a Subnet's", 0, func(n *api.Network) {
			n.Spec.Advertise, n.Spec.Peering = true, told("10.99.8.0/25")
		}, "/spec/peering/advertise", "Subnet second"},
		{"what guests of another announce too", 0, func(n *api.Network) {
			n.Spec.Advertise, n.Spec.Peering = true, told("10.245.8.0/24")
		}, "/spec/peering/prefixes", "Network other"},
		{"and nobody outside hears it", 0, func(n *api.Network) { n.Spec.Advertise, n.Spec.Peering = true, peering(64512, "10.245.8.0/24") }, "", ""},
		{"what guests announce", 0, func(n *api.Network) { n.Spec.Advertise, n.Spec.Peering = true, told("10.244.0.0/16", "fd00::/48") }, "", ""},
		{"guests with the Zone's ASN", 3, func(n *api.Network) { n.Spec.Peering = peering(64601, "10.244.0.0/16") }, "/spec/peering/asn", "Zone yellow"},
		{"guests draw what another allows", 3, func(n *api.Network) { n.Spec.Peering = peering(64512, "10.6.8.0/24") }, "/spec/peering/prefixes", "Network other"},
		{"guests of another draw", 0, func(n *api.Network) {
			n.Spec.CIDRs, n.Spec.Allow = testsite.Prefixes("10.245.0.0/16"), []string{"other"}
		}, "/spec/cidrs", "spec.peering.prefixes of Network other"},
		{"flannel's own name", 0, func(n *api.Network) { n.Metadata.Name = "subnets" }, "/metadata/name", "flanneld"},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := make("net", "yellow", "10.5.0.0/16")
			old.Status.VNI, old.Status.Leases = 10017, c.leases
			n := make("net", "yellow", "10.5.0.0/16")
			c.change(n)
			v := Judge(w, n, old)
			if c.pointer == "" {
				if len(v.Errors) > 0 {
					t.Errorf("refused: %v", v.Errors)
				}
				return
			}
			if len(v.Errors) == 0 {
				t.Fatal("taken")
			}
			for _, e := range v.Errors {
				if !strings.HasPrefix(e.Pointer, c.pointer) {
					t.Errorf("%s: %s, want %s", e.Pointer, e.Message, c.pointer)
				}
			}
			if !strings.Contains(v.Errors[0].Message, c.words) {
				t.Errorf("%q says nothing of %q", v.Errors[0].Message, c.words)
			}
		})
	}
}

// TestNetworkNeighbours judges objects by Networks that stand: what one may not
// be, none of the others may make it.
func TestNetworkNeighbours(t *testing.T) {
	make := func(name, cidr string, change ...func(*api.Network)) *api.Network {
		n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes(strings.Fields(cidr)...), HostPrefix: 28}}
		n.Metadata.Name = name
		for _, fn := range change {
			fn(n)
		}
		n.SetDefaults()
		return n
	}
	direct := func(n *api.Network) { n.Spec.Direct = true }
	advertised := func(n *api.Network) { n.Spec.Advertise = true }
	red := func(n *api.Network) { n.Spec.Zone = "red" }
	allow := func(names ...string) func(*api.Network) { return func(n *api.Network) { n.Spec.Allow = names } }
	zone := func(name string, prefixes ...string) *api.Zone {
		z := &api.Zone{Spec: api.ZoneSpec{ASN: 64601, Prefixes: testsite.Prefixes(prefixes...)}}
		z.Metadata.Name = name
		return z
	}
	subnet := func(prefix string) *api.Subnet {
		s := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Management, Prefixes: testsite.Prefixes(prefix)}}
		s.Metadata.Name = "bmc"
		return s
	}
	for _, c := range []struct {
		name    string
		stands  []api.Object
		object  api.Object
		pointer string // "" for none
		words   string
	}{
		{"allow of two that overlap", []api.Object{make("a", "10.1.0.0/16"), make("b", "10.1.9.0/24")}, make("net", "10.5.0.0/16", allow("a", "b")), "/spec/allow/1", "overlap those of Network a"},
		{"allow of two that do not", []api.Object{make("a", "10.1.0.0/16"), make("b", "10.2.0.0/16")}, make("net", "10.5.0.0/16", allow("a", "b", "later")), "", ""},
		{"made under a waiting allow", []api.Object{make("net", "10.5.0.0/16", allow("a", "b")), make("a", "10.1.0.0/16")}, make("b", "10.1.0.0/24"), "/spec/cidrs", "spec.allow of Network net names both"},
		{"made under a waiting allow, over it", []api.Object{make("net", "10.5.0.0/16", allow("b"))}, make("b", "10.5.7.0/24"), "/spec/cidrs", "whose spec.allow names this"},
		{"made under a waiting allow, in another Zone", []api.Object{make("net", "10.5.0.0/16", allow("b"))}, make("b", "10.1.0.0/16", red), "/spec/zone", "Network net of Zone yellow"},
		{"made under a waiting allow, beside it", []api.Object{make("net", "10.5.0.0/16", allow("a", "b")), make("a", "10.1.0.0/16")}, make("b", "10.2.0.0/24"), "", ""},
		{"IPv6 overlap in an allow", []api.Object{make("a", "10.1.0.0/16 fd00::/48")}, make("net", "10.2.0.0/16 fd00::/56", allow("a")), "/spec/allow/0", "would be ambiguous"},

		{"direct, alone", []api.Object{make("a", "10.1.0.0/16"), subnet("198.18.0.0/24"), zone("yellow", "10.64.0.0/16")}, make("net", "10.5.0.0/16", direct), "", ""},
		{"direct beside the same in another Zone", []api.Object{make("a", "10.5.0.0/16", red)}, make("net", "10.5.0.0/16", direct), "", ""},
		{"direct over another", []api.Object{make("a", "10.5.1.0/24")}, make("net", "10.5.0.0/16", direct), "/spec/direct", "the two would mix"},
		{"over one that is direct", []api.Object{make("a", "10.5.0.0/16", direct)}, make("net", "10.5.1.0/24"), "/spec/cidrs", "which is direct"},
		{"direct over a Subnet", []api.Object{subnet("10.5.3.0/24")}, make("net", "10.5.0.0/16", direct), "/spec/direct", "Subnet bmc"},
		{"a Subnet over one that is direct", []api.Object{make("net", "10.5.0.0/16", direct)}, subnet("10.5.3.0/24"), "/spec/prefixes/0", "Network net"},
		{"a Subnet over one that is advertised", []api.Object{make("net", "10.5.0.0/16", advertised)}, subnet("10.5.3.0/24"), "/spec/prefixes/0", "Network net"},
		{"a Subnet over one that is neither", []api.Object{make("net", "10.5.0.0/16")}, subnet("10.5.3.0/24"), "", ""},
		{"direct over its Zone's prefixes", []api.Object{zone("yellow", "10.0.0.0/8")}, make("net", "10.5.0.0/16", direct), "/spec/direct", "Zone yellow"},
		{"direct over another Zone's prefixes", []api.Object{zone("red", "10.0.0.0/8")}, make("net", "10.5.0.0/16", direct), "", ""},
		{"direct and advertised out of them", []api.Object{zone("yellow", "10.0.0.0/8")}, make("net", "10.5.0.0/16", direct, advertised), "", ""},
		{"Zone prefixes over one that is direct", []api.Object{make("net", "10.5.0.0/16", direct)}, zone("yellow", "192.0.2.0/24", "10.0.0.0/8"), "/spec/prefixes/1", "Network net"},
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
