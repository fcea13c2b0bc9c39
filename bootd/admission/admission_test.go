package admission

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

func worldOf(objects ...api.Object) *World {
	w := NewWorld()
	for _, o := range objects {
		w.Set(api.KindOf(o).Name, o.Meta().Name, o)
	}
	return w
}

// TestAdmission changes a good object in one way each and looks for the one
// fault.
func TestAdmission(t *testing.T) {
	machine := func(change func(*api.Machine)) api.Object {
		m := testsite.NewMachine("r2", "52:54:00:00:00:02")
		m.Spec.Zone = "yellow"
		change(m)
		return m
	}
	subnet := func(name string, s api.SubnetSpec) api.Object {
		o := &api.Subnet{Spec: s}
		o.Metadata.Name = name
		o.SetDefaults()
		return o
	}
	link := func(subnet string, addresses ...string) func(*api.Machine) {
		return func(m *api.Machine) {
			l := api.Link{Name: "prod", VLAN: &api.VLAN{Link: "eth0", ID: 8}, Subnet: subnet}
			for _, a := range addresses {
				l.Addresses = append(l.Addresses, netip.MustParseAddr(a))
			}
			m.Spec.Links = append(m.Spec.Links, l)
		}
	}
	zone := &api.Zone{Spec: api.ZoneSpec{ASN: 64601}}
	zone.Metadata.Name = "red"
	network := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", VNI: 10017}}
	network.Metadata.Name = "net2"
	for _, c := range []struct {
		name    string
		object  api.Object
		pointer string // "" for none
		words   string
	}{
		{"another Machine", machine(link("prod", "198.18.8.8")), "", ""},
		{"MAC in use", machine(func(m *api.Machine) { m.Spec.Links[0].MAC = "52:54:00:00:00:01" }), "/spec/links/0/mac", "MAC 52:54:00:00:00:01 is in use by Machine r1"},
		{"MAC in use in a bond", machine(func(m *api.Machine) {
			m.Spec.Links = append(m.Spec.Links, api.Link{Name: "bond0", Bond: &api.Bond{Members: []api.MAC{"52:54:00:00:00:05", "52:54:00:00:00:01"}}})
		}), "/spec/links/1/bond/members/1", "Machine r1"},
		{"address in use", machine(link("prod", "198.18.8.8", "198.18.8.7")), "/spec/links/1/addresses/1", "pinned by Machine r1"},
		{"address twice", machine(link("prod", "198.18.8.8", "198.18.8.8")), "/spec/links/1/addresses/1", "already"},
		{"address outside", machine(link("prod", "198.18.9.8")), "/spec/links/1/addresses/0", "198.18.8.0/24"},
		{"BMC in use", machine(func(m *api.Machine) { m.Spec.BMC = &api.BMC{Address: "https://198.18.0.7:443/", Credentials: "bmc"} }), "/spec/bmc/address", "Machine r1"},
		{"BMC in use, by a Machine that names no system", machine(func(m *api.Machine) {
			m.Spec.BMC = &api.BMC{Address: "https://198.18.0.7:443/", Credentials: "bmc", System: "Node2"}
		}), "/spec/bmc/address", "Machine r1"},
		{"BMC in use, spoken to in IPMI", machine(func(m *api.Machine) {
			m.Spec.BMC = &api.BMC{Address: "ipmi://198.18.0.7", Protocol: api.ProtocolIPMI, Credentials: "bmc"}
		}), "/spec/bmc/address", "Machine r1"},
		{"BMC of another port of its host", machine(func(m *api.Machine) {
			m.Spec.BMC = &api.BMC{Address: "ipmi://198.18.0.7:6230", Protocol: api.ProtocolIPMI, Credentials: "bmc"}
		}), "", ""},
		{"other Zone", machine(func(m *api.Machine) { link("prod")(m); m.Spec.Zone = "red" }), "/spec/links/1/subnet", "belongs to Zone yellow"},
		{"no Zone", machine(func(m *api.Machine) { link("prod")(m); m.Spec.Zone = "" }), "/spec/links/1/subnet", "set spec.zone"},
		{"itself", testsite.NewMachine("r1", "52:54:00:00:00:01"), "", ""},
		{"overlapping Subnet", subnet("x", api.SubnetSpec{Purpose: api.Management, Prefixes: testsite.Prefixes("198.19.0.0/24", "198.18.0.0/16")}), "/spec/prefixes/1", "of Subnet p"},
		{"second on one interface", subnet("x", api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth1", Prefixes: testsite.Prefixes("198.19.0.0/24")}), "/spec/interface", "Subnet pxe"},
		{"other interface", subnet("x", api.SubnetSpec{Purpose: api.Provisioning, Interface: "eth2", Prefixes: testsite.Prefixes("198.19.0.0/24")}), "", ""},
		{"Subnet leaves its Machines", subnet("prod", api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.9.0/24")}), "/spec/prefixes", "198.18.8.7 of Machine r1"},
		{"Subnet leaves the Zone", subnet("prod", api.SubnetSpec{Purpose: api.Production, Zone: "red", Prefixes: testsite.Prefixes("198.18.8.0/24")}), "/spec/zone", "Machine r1"},
		{"ASN in use", zone, "/spec/asn", "Zone yellow"},
		{"VNI in use", network, "/spec/vni", "Network net1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := Judge(worldOf(testsite.Objects()...), c.object, nil)
			if c.pointer == "" {
				if len(v.Errors) > 0 {
					t.Errorf("refused: %v", v.Errors)
				}
				return
			}
			for _, e := range v.Errors {
				if e.Pointer != c.pointer || !strings.Contains(e.Message, c.words) {
					t.Errorf("got %v, want %s: …%s…", e, c.pointer, c.words)
				}
			}
			if len(v.Errors) == 0 {
				t.Error("taken")
			}
		})
	}
}

func TestAdmissionWarnsOfWhatIsMissing(t *testing.T) {
	all := testsite.Objects()
	m := all[len(all)-1]
	if v := Judge(worldOf(all...), m, nil); len(v.Warnings) > 0 {
		t.Errorf("all is there, and yet: %v", v.Warnings)
	}
	v := Judge(worldOf(), m, nil)
	text := strings.Join(v.Warnings, "\n")
	for _, w := range []string{`/spec/zone: Zone "yellow"`, `/spec/profile: Profile "worker"`, `/spec/links/1/subnet: Subnet "prod"`, `/spec/bmc/credentials: Secret "bmc"`} {
		if !strings.Contains(text, w) {
			t.Errorf("%s is missing in: %s", w, text)
		}
	}
}

func TestEveryKindHasRules(t *testing.T) {
	kinds := map[string]bool{}
	for _, k := range api.Kinds() {
		kinds[k.Name] = !k.Computed && !k.Independent
	}
	for _, r := range table() {
		if !kinds[r.kind] {
			t.Errorf("the table has rules of %s, which is no stored kind that others matter to, or has them twice", r.kind)
		}
		delete(kinds, r.kind)
	}
	for name, stored := range kinds {
		if stored {
			t.Errorf("kind %s has no rules: add it to table()", name)
		}
	}
}

// TestBMCOfTwoProtocols: the host and the ports decide whether two Machines name one BMC, whatever is spoken to it.
func TestBMCOfTwoProtocols(t *testing.T) {
	plain := api.BMC{Address: "https://198.18.0.9"}
	odd := api.BMC{Address: "https://198.18.0.9:8443"}
	ipmi := api.BMC{Address: "ipmi://198.18.0.9", Protocol: api.ProtocolIPMI}
	oddIPMI := api.BMC{Address: "ipmi://198.18.0.9:6230", Protocol: api.ProtocolIPMI}
	fallback := api.BMC{Address: "https://198.18.0.9:8443", Fallback: api.ProtocolIPMI}
	for _, c := range []struct {
		a, b api.BMC
		one  bool
	}{
		{plain, plain, true}, {plain, odd, false}, {plain, ipmi, true}, {ipmi, fallback, true}, {odd, fallback, true},
		{plain, oddIPMI, false}, {ipmi, oddIPMI, false}, {plain, fallback, false},
	} {
		if got := intersect(endpoints(&c.a), endpoints(&c.b)); got != c.one {
			t.Errorf("%v and %v are one BMC: %t, want %t", c.a, c.b, got, c.one)
		}
	}
}

// TestOperatorKeepsIPMI: an operator changes a Machine whose BMC is spoken to in IPMI, as long as the BMC stays.
func TestOperatorKeepsIPMI(t *testing.T) {
	of := func(suite int) *api.Machine {
		m := testsite.NewMachine("r9", "52:54:00:00:00:09")
		m.Spec.BMC = &api.BMC{Address: "ipmi://198.18.0.9", Protocol: api.ProtocolIPMI, Credentials: "bmc", IPMI: &api.BMCIPMI{CipherSuite: &suite}}
		return m
	}
	w := worldOf(testsite.Objects()...)
	if why := w.bmcSecret(of(17), of(17)); why != "" {
		t.Errorf("the same BMC is refused: %s", why)
	}
	if w.bmcSecret(of(3), of(17)) == "" {
		t.Error("another cipher suite is taken from an operator whose Secret names no BMC")
	}
}

// TestSharedBMC: Machines share a BMC when each names a system of its own.
func TestSharedBMC(t *testing.T) {
	blade := func(name string, mac api.MAC, system string) *api.Machine {
		m := testsite.NewMachine(name, mac)
		m.Spec.BMC = &api.BMC{Address: "https://198.18.0.9", Credentials: "bmc", System: system}
		return m
	}
	w := worldOf(append(testsite.Objects(), blade("r9", "52:54:00:00:00:09", "Node1"))...)
	for system, pointer := range map[string]string{"": "/spec/bmc/address", "Node1": "/spec/bmc/system", "Node2": ""} {
		got := ""
		for _, e := range Judge(w, blade("r2", "52:54:00:00:00:02", system), nil).Errors {
			got = e.Pointer
		}
		if got != pointer {
			t.Errorf("system %q is refused at %q, want %q", system, got, pointer)
		}
	}
}
