package bootd

import (
	"net/netip"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nstest"
)

func TestNeighbour(t *testing.T) {
	ns := nstest.New(t)
	ip := func(args ...string) { nstest.IP(t, ns, args...) }
	for _, dev := range []string{"br0", "br1"} {
		ip("link", "add", dev, "type", "bridge")
		ip("link", "set", dev, "up")
	}
	ip("addr", "add", "198.18.0.1/24", "dev", "br0")
	ip("neigh", "add", "198.18.0.7", "lladdr", "52:54:00:01:07:00", "dev", "br0", "nud", "stale")
	ip("neigh", "add", "198.18.0.8", "dev", "br0", "nud", "failed")
	ip("neigh", "add", "2001:db8::7", "lladdr", "52:54:00:01:07:00", "dev", "br0", "nud", "reachable")
	err := nstest.Within(ns, func() error {
		for _, c := range []struct {
			iface, addr string
			want        api.MAC
		}{
			{"br0", "198.18.0.7", "52:54:00:01:07:00"}, {"br0", "2001:db8::7", "52:54:00:01:07:00"},
			{"br0", "198.18.0.8", ""}, {"br0", "198.18.0.9", ""}, {"br1", "198.18.0.7", ""}, {"gone", "198.18.0.7", ""},
		} {
			if got, ok := neighbour(c.iface, netip.MustParseAddr(c.addr)); got != c.want || ok != (c.want != "") {
				t.Errorf("%s on %s: %q, %v", c.addr, c.iface, got, ok)
			}
		}
		a, err := source(netip.MustParseAddr("198.18.0.7"))
		if a != netip.MustParseAddr("198.18.0.1") {
			t.Errorf("bootd's address is %s", a)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
