package bootd

import (
	"crypto/rand"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/rackweft/rackweft/api"
)

func TestNeighbour(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	ns := "rwbootd-" + strings.ToLower(rand.Text()[:8])
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { ip("netns", "del", ns) })
	for _, dev := range []string{"br0", "br1"} {
		ip("-n", ns, "link", "add", dev, "type", "bridge")
		ip("-n", ns, "link", "set", dev, "up")
	}
	ip("-n", ns, "addr", "add", "198.18.0.1/24", "dev", "br0")
	ip("-n", ns, "neigh", "add", "198.18.0.7", "lladdr", "52:54:00:01:07:00", "dev", "br0", "nud", "stale")
	ip("-n", ns, "neigh", "add", "198.18.0.8", "dev", "br0", "nud", "failed")
	ip("-n", ns, "neigh", "add", "2001:db8::7", "lladdr", "52:54:00:01:07:00", "dev", "br0", "nud", "reachable")
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: nobody else may get this thread
		h, err := netns.GetFromName(ns)
		if err == nil {
			err = netns.Set(h)
		}
		if err != nil {
			done <- err
			return
		}
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
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
