package overlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

func (f *fabric) advertisedPart(n tenant, i int, egress string) nodeagent.Part {
	p := f.part(n, i)
	p.Digest = "advertised " + egress
	v := p.Value.(*api.NetworkPart)
	v.Advertise, v.Egress = true, egress
	return p
}

// The router stands for the zone: it was told of each host's leases.
func TestAdvertise(t *testing.T) {
	f := newFabric(t, 2, false)
	router := f.router()
	out, uplink := netip.MustParseAddr("198.19.9.9"), netip.MustParseAddr("198.18.0.254")
	n, masked, shut := plain(), green(), red()
	all := []tenant{n, masked, shut}
	before := f.hosts[0].summary(t) + f.hosts[0].routes(t)
	egress := "none"
	pass := func() {
		t.Helper()
		for i, h := range f.hosts {
			masquerading := f.part(masked, i+1)
			masquerading.Value.(*api.NetworkPart).Egress = "masquerade"
			h.reconcile(f.advertisedPart(n, i+1, egress), masquerading, f.part(shut, i+1))
		}
	}
	pass()
	people := f.crew(all...)
	eth0, err := router.LinkByName("eth0")
	must(t, err)
	for i, h := range f.hosts {
		for _, net := range all {
			if net.lease(i+1) != masked.lease(i+1) { // it may share the CIDR of another
				_ = router.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(net.lease(i + 1)), Gw: h.underlay.AsSlice()})
			}
		}
	}
	reaches := func(from place, source, to netip.Addr, want bool) {
		t.Helper()
		wait := patience
		if !want {
			wait = moment
		}
		if err := newPinger(t, from.ns, source).ping(to, 1400, wait); (err == nil) != want {
			t.Errorf("%s to %s: %v, want it to arrive: %v", source, to, err, want)
		}
	}
	// In from the zone, also from a subnet that is closed to guests; and out, with
	// the guest's own address.
	for i := range f.hosts {
		reaches(router, out, guest4(n, i+1), true)
		reaches(router, uplink, guest4(n, i+1), true)
		reaches(people[fmt.Sprint("plain", i+1)], guest4(n, i+1), out, true)
	}
	if err := dial(t, router, out, people["plain2"], guest4(n, 2), patience); err != nil {
		t.Errorf("TCP into the Network: %v", err)
	}
	if err := dial(t, people["plain1"], guest4(n, 1), router, out, patience); err != nil {
		t.Errorf("TCP out of the Network: %v", err)
	}
	reaches(people["plain1"], guest4(n, 1), guest4(n, 2), true) // by VXLAN as ever
	// Not into other Networks, not by other tenants, not to what is closed, nor to
	// the host or to addresses of no lease.
	reaches(router, out, guest4(shut, 1), false)
	reaches(people["green1"], guest4(masked, 1), guest4(n, 1), false)
	for _, to := range []netip.Addr{uplink, f.hosts[0].underlay, f.hosts[1].underlay, netip.MustParseAddr("10.30.200.9")} {
		reaches(people["plain1"], guest4(n, 1), to, false)
	}
	reaches(people["green1"], guest4(masked, 1), out, true)

	was := f.state(all...)
	for range 3 {
		for _, h := range f.hosts {
			h.restart()
		}
		pass()
	}
	unchanged(t, was, f.state(all...))
	f.mends(pass, all, []breakage{
		{"host's route to its lease", tenant{}, func(p place) error { return p.RouteDel(&netlink.Route{Dst: ipNet(n.lease(1))}) }},
	})

	egress = "masquerade" // out behind the host, and still reached
	pass()
	reaches(router, out, guest4(n, 1), true)
	must(t, router.RouteDel(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(n.lease(1)), Gw: f.hosts[0].underlay.AsSlice()}))
	if err := dial(t, people["plain1"], guest4(n, 1), router, out, patience); err != nil { // a new connection
		t.Errorf("masqueraded: %v", err)
	}

	for _, m := range all {
		f.hosts[0].reconcile(removed(m))
	}
	unchanged(t, before, f.hosts[0].summary(t)+f.hosts[0].routes(t))
}

func TestAdvertiseRefused(t *testing.T) {
	f := newFabric(t, 1, false)
	h, n := f.hosts[0], plain()
	h.setUnderlay(func(u *api.Underlay) { u.Closed = prefixes("10.30.7.0/24") })
	s := h.overlay.Reconcile(t.Context(), []nodeagent.Part{f.advertisedPart(n, 1, "none")})["network/plain"]
	if s.State != api.PartFailed || !strings.Contains(s.Message, "overlaps with the subnet 10.30.7.0/24") {
		t.Errorf("%+v", s)
	}
	if routes := h.routes(t); routes != "" {
		t.Errorf("routes of the host:\n%s", routes)
	}
}
