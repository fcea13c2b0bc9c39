package overlay

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
)

// A reflector has what is for its Zone come to itself, and passes it on: that,
// and nothing else, beside what it forwards for its Networks.
func TestTransit(t *testing.T) {
	f := newFabric(t, 2, false)
	reflector, behind := f.hosts[0], f.hosts[1]
	router := f.router()
	const forwarding = "net/ipv4/conf/eth0/forwarding"
	must(t, within(reflector.ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0o644) }))
	zone, foreign := netip.MustParsePrefix("198.19.64.0/18"), netip.MustParsePrefix("198.19.128.0/24")
	route := func(p place, to netip.Prefix, via netip.Addr) {
		t.Helper()
		eth0, err := p.LinkByName("eth0")
		must(t, err)
		must(t, p.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(to), Gw: via.AsSlice()}))
	}
	for _, to := range []netip.Prefix{zone, foreign} {
		route(router, to, reflector.underlay)
		route(reflector.place, to, behind.underlay)
		lo, err := behind.LinkByName("lo")
		must(t, err)
		must(t, behind.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: first(to).AsSlice(), Mask: net.CIDRMask(32, 32)}}))
	}
	from := newPinger(t, router.ns, netip.MustParseAddr("198.18.0.254"))
	check := func(when string, passes bool) {
		t.Helper()
		wait := moment
		if passes {
			wait = patience
		}
		if err := from.ping(first(zone), 56, wait); (err == nil) != passes {
			t.Errorf("%s: into the Zone: %v", when, err)
		}
		if from.ping(first(foreign), 56, moment) == nil {
			t.Errorf("%s: what is not the Zone's passes", when)
		}
	}
	check("before", false)

	reflector.reconcile()
	underlay := api.Underlay{Interface: "eth0", Addresses: []netip.Addr{reflector.underlay}, Transit: []netip.Prefix{zone}}
	reflector.overlay.SetUnderlay(underlay)
	reflector.reconcile()
	check("it reflects, without Networks", true)
	masqueraded := red()
	masqueraded.egress = "masquerade"
	f.reconcile(masqueraded)
	check("with a Network that is masqueraded", true)
	reflector.restart()
	reflector.overlay.SetUnderlay(underlay)
	reflector.reconcile(f.part(masqueraded, 1))
	check("after a restart", true)
	reflector.reconcile(removed(red()))
	check("the Network has gone", true)

	underlay.Transit = nil
	reflector.overlay.SetUnderlay(underlay)
	reflector.reconcile()
	check("it reflects no more", false)
	if got := readSysctl(t, reflector.place, forwarding); got != "0" {
		t.Errorf("%s is left at %s", forwarding, got)
	}
	if tables := reflector.tables(t); len(tables) > 0 {
		t.Errorf("tables left: %v", tables)
	}
}
