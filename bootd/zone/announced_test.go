package zone

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// TestChooseLoopbacks: every host gets its own out of each pool, and what it has
// it keeps, whoever comes and goes.
func TestChooseLoopbacks(t *testing.T) {
	z := &api.Zone{Spec: api.ZoneSpec{Loopbacks: testsite.Prefixes("10.5.9.0/29", "fd00:5::/64")}}
	var members []Member
	add := func(name string, pinned ...netip.Addr) {
		m := &api.Machine{Spec: api.MachineSpec{Loopbacks: pinned}}
		m.Metadata.Name, m.Metadata.UID = name, "uid-"+name
		members = append(members, Member{Machine: m})
		slices.SortFunc(members, func(a, b Member) int {
			return strings.Compare(a.Machine.Metadata.Name, b.Machine.Metadata.Name)
		})
	}
	expect := func(want string) {
		t.Helper()
		z.Status.Loopbacks = chooseLoopbacks(z, members)
		var got []string
		for _, l := range z.Status.Loopbacks {
			got = append(got, fmt.Sprint(l.Machine, l.Addresses))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("chosen %s, want %s", text, want)
		}
		if again := chooseLoopbacks(z, members); !reflect.DeepEqual(again, z.Status.Loopbacks) {
			t.Errorf("chosen again %v, before %v", again, z.Status.Loopbacks)
		}
	}
	add("b")
	add("d")
	expect("b[10.5.9.1 fd00:5::1] d[10.5.9.2 fd00:5::2]")
	add("a")
	add("c", netip.MustParseAddr("10.5.9.4"))
	expect("a[10.5.9.3 fd00:5::3] b[10.5.9.1 fd00:5::1] d[10.5.9.2 fd00:5::2]")
	members = slices.Delete(members, 1, 2) // b leaves; its address is free for the next
	add("e")
	expect("a[10.5.9.3 fd00:5::3] d[10.5.9.2 fd00:5::2] e[10.5.9.1 fd00:5::1]")
	for i := range 3 {
		add(fmt.Sprint("f", i))
	}
	expect("a[10.5.9.3 fd00:5::3] d[10.5.9.2 fd00:5::2] e[10.5.9.1 fd00:5::1] f0[10.5.9.5 fd00:5::4] f1[10.5.9.6 fd00:5::5] f2[10.5.9.7 fd00:5::6]")
	add("g")
	expect("a[10.5.9.3 fd00:5::3] d[10.5.9.2 fd00:5::2] e[10.5.9.1 fd00:5::1] f0[10.5.9.5 fd00:5::4] f1[10.5.9.6 fd00:5::5] f2[10.5.9.7 fd00:5::6] g[fd00:5::7]")
	z.Spec.Loopbacks = testsite.Prefixes("10.5.10.0/29")
	members = members[:2]
	expect("a[10.5.10.1]")
}

// TestServices: what is announced is told by the condition and by the routes,
// and a reflector takes it from the hosts alone that have it.
func TestServices(t *testing.T) {
	b := newBench(t)
	edge := func(m *api.Machine) { m.Metadata.Labels = map[string]string{"tier": "edge"} }
	b.host(1, 1, edge)
	b.host(2, 1)
	b.host(3, 1, edge)
	b.host(3, 2)
	b.settled("r1u01:Starting r2u01:Starting")
	vip := netip.MustParseAddr("10.5.200.1")
	b.edit(func(z *api.Zone) {
		z.Spec.Loopbacks = testsite.Prefixes("10.5.9.0/24")
		z.Spec.Services = []api.Service{{Name: "dns", Addresses: []netip.Addr{vip}, Hosts: map[string]string{"tier": "edge"},
			Check: &api.ServiceCheck{Type: api.CheckTCP, Port: 53}, OnFailure: api.OnFailureLastResort}}
	})
	report := func(host, state, fault string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sessions[host] = &api.BGPStatus{Services: []api.BGPServiceStatus{{Service: "dns", Address: vip, State: state, LastError: fault}}}
	}
	b.condition(Services, "NotReported")
	report("r1u01", api.ServiceWithdrawn, "connection refused")
	report("r3u01", api.ServiceWithdrawn, "connection refused")
	b.touch()
	if got := b.condition(Services, "Unserved"); !strings.Contains(got, "10.5.200.1 of service dns is announced by none of its 2 hosts (r1u01: connection refused)") {
		t.Error(got)
	}
	report("r3u01", api.ServiceAnnounced, "")
	b.touch()
	if got := b.condition(Services, "Degraded"); !strings.Contains(got, "by 1 of its 2 hosts (r1u01") {
		t.Error(got)
	}
	report("r1u01", api.ServiceAnnounced, "")
	b.touch()
	b.condition(Services, "Announced")
	b.Sync()

	z := b.zone("yellow")
	part, err := b.parts.Part(t.Context(), b.Machine("r1u01"))
	if err != nil {
		t.Fatal(err)
	}
	if len(part.Loopbacks) != 1 || len(part.Services) != 1 || !part.Services[0].LastResort || part.Services[0].Check.Port != 53 {
		t.Errorf("the part of r1u01: %v %+v", part.Loopbacks, part.Services)
	}
	accepts := map[string]string{}
	for _, a := range part.Accept {
		accepts[a.Client] = fmt.Sprint(a.Prefixes)
	}
	loopback := Loopbacks(z, b.Machine("r3u01"))[0]
	if want := fmt.Sprintf("[%s/32 10.5.200.1/32]", loopback); accepts["r3u01"] != want {
		t.Errorf("of r3u01 it accepts %s, want %s", accepts["r3u01"], want)
	}
	v := &Views{Cache: b.Cache, Parts: b.parts, Sessions: b.reported}
	for from, want := range map[string]string{"r3u01": "r3u01 may originate 10.5.200.1/32", "r3u02": "labels of r3u02 do not select"} {
		got, err := v.TestPolicy(t.Context(), "yellow", from, api.HostPrefix(vip))
		if err != nil || !strings.Contains(got.Reason, want) {
			t.Errorf("of %s: %+v, %v; want %q", from, got, err, want)
		}
	}
	routes, err := v.ZoneRoutes(t.Context(), "yellow")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, r := range routes.Routes {
		list = append(list, fmt.Sprintf("%s %s service=%s loopback=%v %s", r.Prefix, r.Origin, r.Service, r.Loopback, r.State))
	}
	if text := strings.Join(list, "\n"); len(list) != 6 || !strings.Contains(text, "10.5.200.1/32 r3u01 service=dns loopback=false announced") || !strings.Contains(text, loopback.String()+"/32 r3u01 service= loopback=true") {
		t.Errorf("routes:\n%s", text)
	}
	// Labels decide, and nobody has these.
	b.edit(func(z *api.Zone) { z.Spec.Services[0].Hosts["tier"] = "core" })
	if got := b.condition(Services, "Unserved"); !strings.Contains(got, "tier=core") {
		t.Error(got)
	}
}

// touch has the Zone looked at.
func (b *bench) touch() {
	b.t.Helper()
	b.edit(func(z *api.Zone) {
		if z.Metadata.Labels == nil {
			z.Metadata.Labels = map[string]string{}
		}
		z.Metadata.Labels["touched"] += "x"
	})
}
