package server

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// TestNetworkAdmission changes a Network that has leases in one way each, beside
// another of its Zone and one of another Zone.
func TestNetworkAdmission(t *testing.T) {
	make := func(name, zone string, cidrs ...string) *api.Network {
		n := &api.Network{Spec: api.NetworkSpec{Zone: zone, CIDRs: prefixList(cidrs...)}}
		n.Metadata.Name = name
		n.SetDefaults()
		return n
	}
	other := make("other", "yellow", "10.6.0.0/16")
	other.Spec.Advertise, other.Spec.Allow = true, []string{"net"}
	other.Status.VNI = 10001
	abroad := make("abroad", "red", "10.7.0.0/16")
	zone := &api.Zone{Spec: api.ZoneSpec{ASN: 64601, Prefixes: prefixList("10.0.0.0/8")}}
	zone.Metadata.Name = "yellow"
	subnet := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: prefixList("198.18.8.0/24")}}
	subnet.Metadata.Name = "prod"
	w := worldOf(zone, subnet, other, abroad)

	for _, c := range []struct {
		name    string
		leases  int
		change  func(*api.Network)
		pointer string // "" for none
		words   string
	}{
		{"as it was", 3, func(*api.Network) {}, "", ""},
		{"CIDR added", 3, func(n *api.Network) { n.Spec.CIDRs = prefixList("10.5.0.0/16", "10.8.0.0/16") }, "", ""},
		{"CIDR widened", 3, func(n *api.Network) { n.Spec.CIDRs = prefixList("10.4.0.0/15") }, "", ""},
		{"CIDR changed without leases", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.HostPrefix = prefixList("10.9.0.0/20"), 26 }, "", ""},
		{"VNI pinned as it is", 3, func(n *api.Network) { n.Spec.VNI = 10017 }, "", ""},
		{"allowed", 3, func(n *api.Network) { n.Spec.Allow = []string{"other"} }, "", ""},
		{"advertised", 3, func(n *api.Network) { n.Spec.Advertise = true }, "", ""},

		{"VNI changed", 0, func(n *api.Network) { n.Spec.VNI = 10018 }, "/spec/vni", "10017 and stays so"},
		{"VNI of another", 0, func(n *api.Network) { n.Spec.VNI = 10001 }, "/spec/vni", ""},
		{"CIDR narrowed", 3, func(n *api.Network) { n.Spec.CIDRs = prefixList("10.5.0.0/17") }, "/spec/cidrs", "10.5.0.0/16 is gone"},
		{"lease length", 3, func(n *api.Network) { n.Spec.HostPrefix = 25 }, "/spec/hostPrefix", "3 leases are /24"},
		{"Zone", 3, func(n *api.Network) { n.Spec.Zone = "red" }, "/spec/zone", "stays in its Zone"},
		{"own overlap", 3, func(n *api.Network) { n.Spec.CIDRs = prefixList("10.5.0.0/16", "10.5.9.0/24") }, "/spec/", "overlaps 10.5.0.0/16"},
		{"too few leases", 0, func(n *api.Network) { n.Spec.CIDRs = prefixList("10.5.0.0/23") }, "/spec/hostPrefix", "/25 or longer"},
		{"IPv6 alone", 0, func(n *api.Network) { n.Spec.CIDRs = prefixList("2001:db8::/48") }, "/spec/cidrs", "one IPv4"},
		{"multicast", 0, func(n *api.Network) { n.Spec.CIDRs = prefixList("224.0.0.0/16") }, "/spec/cidrs/0", "not for unicast"},
		{"overlaps one that allows it", 0, func(n *api.Network) { n.Spec.CIDRs = prefixList("10.6.0.0/16") }, "/spec/cidrs", "spec.allow names this"},
		{"allows one that it overlaps", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Allow = prefixList("10.6.0.0/16"), []string{"other"} }, "/spec/allow/0", "could not be told"},
		{"allows another Zone's", 0, func(n *api.Network) { n.Spec.Allow = []string{"abroad"} }, "/spec/allow/0", "within a Zone only"},
		{"advertised over another", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Advertise = prefixList("10.6.0.0/15"), true }, "/spec/", ""},
		{"advertised over a Subnet", 0, func(n *api.Network) { n.Spec.CIDRs, n.Spec.Advertise = prefixList("198.18.0.0/16"), true }, "/spec/advertise", "Subnet prod"},
		{"flannel's own name", 0, func(n *api.Network) { n.Metadata.Name = "subnets" }, "/metadata/name", "flanneld"},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := make("net", "yellow", "10.5.0.0/16")
			old.Status.VNI, old.Status.Leases = 10017, c.leases
			n := make("net", "yellow", "10.5.0.0/16")
			c.change(n)
			v := admit(w, n, old)
			if c.pointer == "" {
				if len(v.errors) > 0 {
					t.Errorf("refused: %v", v.errors)
				}
				return
			}
			if len(v.errors) == 0 {
				t.Fatal("taken")
			}
			for _, e := range v.errors {
				if !strings.HasPrefix(e.Pointer, c.pointer) {
					t.Errorf("%s: %s, want %s", e.Pointer, e.Message, c.pointer)
				}
			}
			if !strings.Contains(v.errors[0].Message, c.words) {
				t.Errorf("%q says nothing of %q", v.errors[0].Message, c.words)
			}
		})
	}
}
