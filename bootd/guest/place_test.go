package guest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func quantity(t *testing.T, s string) api.Quantity {
	t.Helper()
	q, err := api.ParseQuantity(s)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func host(name, rack string, gib int64, change ...func(*candidate)) candidate {
	m := &api.Machine{Status: api.MachineStatus{Phase: api.PhaseActive, Host: &api.HostStatus{CPUs: 8, Memory: api.Bytes(gib << 30)}}}
	m.SetDefaults()
	m.Metadata.Name, m.Metadata.UID, m.Spec.Location.Rack = name, "uid-"+name, rack
	c := candidate{machine: m, member: true}
	for _, fn := range change {
		fn(&c)
	}
	return c
}

func of(t *testing.T, name, memory string, change ...func(*api.Guest)) *api.Guest {
	g := &api.Guest{Spec: api.GuestSpec{Network: "blue", CPUs: 2, Memory: quantity(t, memory)}}
	g.Metadata.Name, g.Metadata.UID = name, "uid-"+name
	for _, fn := range change {
		fn(g)
	}
	return g
}

func apart(word string) func(*api.Guest) {
	return func(g *api.Guest) { g.Spec.Placement.AntiAffinity = word }
}

func TestChoose(t *testing.T) {
	with := func(guests ...*api.Guest) func(*candidate) {
		return func(c *candidate) { c.guests = guests }
	}
	machine := func(fn func(*api.Machine)) func(*candidate) {
		return func(c *candidate) { fn(c.machine) }
	}
	web := func(name string) *api.Guest { return of(t, name, "1Gi", apart("web")) }
	eight := make([]*api.Guest, 0, 16)
	for i := range 16 {
		eight = append(eight, of(t, fmt.Sprint("g", i), "64Mi"))
	}
	for _, c := range []struct {
		name  string
		guest *api.Guest
		hosts []candidate
		want  string // the host, or else what the refusal says
	}{
		{"most memory left", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 8), host("h2", "r1", 16)}, "h2"},
		{"equal ones by name", of(t, "a", "1Gi"), []candidate{host("h2", "r1", 8), host("h1", "r2", 8)}, "h1"},
		{"not beside its like", web("a"), []candidate{host("h1", "r1", 64, with(web("b"))), host("h2", "r1", 8)}, "h2"},
		{"another rack than its like", web("a"), []candidate{host("h1", "r1", 64, with(web("b"))), host("h2", "r1", 64), host("h3", "r2", 8)}, "h3"},
		{"its like everywhere", web("a"), []candidate{host("h1", "r1", 64, with(web("b")))}, "has a Guest of anti-affinity web (h1)"},
		{"a label", of(t, "a", "1Gi", func(g *api.Guest) { g.Spec.Placement.Labels = map[string]string{"disk": "ssd"} }),
			[]candidate{host("h1", "r1", 64), host("h2", "r1", 8, machine(func(m *api.Machine) { m.Metadata.Labels = map[string]string{"disk": "ssd"} }))}, "h2"},
		{"no memory", of(t, "a", "7Gi"), []candidate{host("h1", "r1", 8)}, "lacks 7.2 GiB of memory (h1)"}, // 1 GiB is the host's, and QEMU takes some
		{"memory to the full", of(t, "a", "6Gi"), []candidate{host("h1", "r1", 8)}, "h1"},
		{"no processors", of(t, "a", "64Mi"), []candidate{host("h1", "r1", 64, with(eight...))}, "lacks 2 processors (h1)"},
		{"no member", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 8, func(c *candidate) { c.member = false })}, "without a lease of Network blue (h1)"},
		{"drained", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 8, machine(func(m *api.Machine) { m.Metadata.Annotations = map[string]string{api.DrainAnnotation: "true"} }))}, "being drained (h1)"},
		{"maintenance", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 8, machine(func(m *api.Machine) { m.Spec.State = api.StateMaintenance }))}, "being drained (h1)"},
		{"booting", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 8, machine(func(m *api.Machine) { m.Status.Phase = api.PhaseProvisioning }))}, "not Active (h1)"},
		{"of unknown size", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 0)}, "has not reported its memory (h1)"},
		{"what the BMC says does", of(t, "a", "1Gi"), []candidate{host("h1", "r1", 8, machine(func(m *api.Machine) {
			m.Status.Host, m.Status.Inventory = nil, &api.Inventory{MemoryMiB: 8192, CPUs: api.InventoryCPUs{Cores: 4}}
		}))}, "h1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			site := new(api.Site)
			site.SetDefaults()
			m, refused := choose(c.guest, site.Spec.Guests, c.hosts)
			switch {
			case m != nil && m.Metadata.Name != c.want:
				t.Errorf("chose %s, want %s", m.Metadata.Name, c.want)
			case m == nil && !strings.Contains(refused.String(), c.want):
				t.Errorf("refused with %q, want %q", refused, c.want)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	lease := netip.MustParsePrefix("10.5.3.0/29")
	taken := map[netip.Addr]bool{}
	var got []string
	for {
		a, ok := address(lease, taken)
		if !ok {
			break
		}
		taken[a] = true
		got = append(got, a.String())
	}
	// .0 is the VTEP, .1 the bridge, .7 the broadcast address.
	if strings.Join(got, " ") != "10.5.3.2 10.5.3.4" {
		t.Errorf("a /29 gives %v", got)
	}
	full := 0
	for taken := (map[netip.Addr]bool{}); ; full++ {
		a, ok := address(netip.MustParsePrefix("10.5.3.0/24"), taken)
		if !ok {
			break
		}
		if a.As4()[3]%2 != 0 {
			t.Fatalf("%s is odd: a /31 from there is another guest's", a)
		}
		taken[a] = true
	}
	if full != 126 {
		t.Errorf("a /24 gives %d addresses, want 126", full)
	}
	for _, c := range []struct{ lease6, lease, v4, want string }{
		{"fd00:5:3::/64", "10.5.3.0/24", "10.5.3.10", "fd00:5:3::a"},
		{"fd00:5:3::100/120", "10.5.3.0/24", "10.5.3.10", "fd00:5:3::10a"},
		{"fd00:5:3::/64", "10.4.0.0/15", "10.5.3.10", "fd00:5:3::1:30a"},
	} {
		got, ok := address6(netip.MustParsePrefix(c.lease6), netip.MustParsePrefix(c.lease), netip.MustParseAddr(c.v4))
		if !ok || got.String() != c.want {
			t.Errorf("%s in %s and %s: %s, %v; want %s", c.v4, c.lease, c.lease6, got, ok, c.want)
		}
	}
	if _, ok := address6(netip.MustParsePrefix("fd00::/126"), netip.MustParsePrefix("10.5.3.0/24"), netip.MustParseAddr("10.5.3.10")); ok {
		t.Error("an address outside of the IPv6 lease was given")
	}
}

// What a host says of itself must not overflow what placement computes.
func TestCapacityIsBounded(t *testing.T) {
	m := host("h", "r", 1).machine
	for _, c := range []struct {
		cpus, cores int
		memory, mib int64
	}{{1 << 62, 0, 1<<63 - 1, 0}, {-1, 0, -1, 0}, {0, 1 << 62, 0, 1<<63 - 1}, {0, -1, 0, -1}} {
		m.Status.Host = &api.HostStatus{CPUs: c.cpus, Memory: api.Bytes(c.memory)}
		m.Status.Inventory = &api.Inventory{CPUs: api.InventoryCPUs{Cores: c.cores}, MemoryMiB: c.mib}
		r := candidate{machine: m}.room(api.GuestHosting{CPUOvercommit: 10000, MemoryOvercommit: 1000})
		if r.cpus < 0 || r.memory < 0 {
			t.Errorf("%+v: %+v", c, r)
		}
	}
}
