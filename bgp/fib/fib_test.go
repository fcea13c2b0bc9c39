package fib

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait"
)

// bench is a network namespace of the test's own thread, with eth0 at
// 198.18.9.1/24 and 2001:db8::1/64, eth1 at 198.18.10.1/24, and a route to
// 198.18.20.0/24 by 198.18.9.254.
func bench(t testing.TB) {
	t.Helper()
	nstest.Enter(t)
	for _, line := range []string{
		"link add eth0 type veth peer name eth0p", "link add eth1 type veth peer name eth1p",
		"link set eth0 up", "link set eth0p up", "link set eth1 up", "link set eth1p up",
		"addr add 198.18.9.1/24 dev eth0", "addr add 198.18.10.1/24 dev eth1", "addr add 2001:db8::1/64 dev eth0 nodad",
		"route add 198.18.20.0/24 via 198.18.9.254", "route add default via 198.18.10.254",
	} {
		ip(t, line)
	}
}

func ip(t testing.TB, line string) string {
	t.Helper()
	return strings.TrimSpace(nstest.Run(t, "ip", strings.Fields(line)...))
}

func open(t testing.TB) *FIB {
	t.Helper()
	f, err := Open(Options{Table: 254, Metric: 4096, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func to(prefix string, hops ...string) Route {
	r := Route{Prefix: netip.MustParsePrefix(prefix)}
	for _, h := range hops {
		r.NextHops = append(r.NextHops, netip.MustParseAddr(h))
	}
	return r
}

func sync(t testing.TB, f *FIB, keep bool, want ...Route) State {
	t.Helper()
	s, err := f.Sync(want, keep)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ours(t testing.TB) string {
	t.Helper()
	out := ip(t, "route show proto 217") + "\n" + ip(t, "-6 route show proto 217")
	return strings.TrimSpace(strings.ReplaceAll(out, " \n", "\n"))
}

func TestSync(t *testing.T) {
	bench(t)
	f := open(t)
	foreign := ip(t, "route show") + ip(t, "-6 route show")
	for _, c := range []struct {
		name       string
		want       Route
		kernel     string // of `ip route show proto 217`, beginning
		unresolved string
	}{
		{"on the link", to("198.19.1.0/24", "198.18.9.7"), "198.19.1.0/24 via 198.18.9.7 dev eth0 metric 4096", ""},
		{"behind a router", to("198.19.1.0/24", "198.18.20.7"), "198.19.1.0/24 via 198.18.9.254 dev eth0", ""},
		{"IPv6", to("2001:db8:1::/48", "2001:db8::7"), "2001:db8:1::/48 via 2001:db8::7 dev eth0", ""},
		{"ECMP", to("198.19.1.0/24", "198.18.9.7", "198.18.10.7"), "198.19.1.0/24 metric 4096 \n\tnexthop via 198.18.9.7 dev eth0 weight 1 \n\tnexthop via 198.18.10.7 dev eth1 weight 1", ""},
		{"IPv6 ECMP", to("2001:db8:1::/48", "2001:db8::7", "2001:db8::8"), "2001:db8:1::/48 metric 4096", ""},
		{"ECMP, one of two resolved", to("198.19.1.0/24", "198.18.9.7", "198.18.77.7"), "198.19.1.0/24 via 198.18.9.7", "no route leads there"},
		{"two by one router", to("198.19.1.0/24", "198.18.20.7", "198.18.20.8"), "198.19.1.0/24 via 198.18.9.254", ""},
		{"blackhole", to("198.19.0.0/16"), "blackhole 198.19.0.0/16", ""},
		{"default", to("0.0.0.0/0", "198.18.9.7"), "default via 198.18.9.7", ""},
		{"IPv6 default", to("::/0", "2001:db8::7"), "default via 2001:db8::7", ""},
		{"by the default route only", to("198.19.1.0/24", "203.0.113.7"), "", "a default route does not count"},
		{"within what is connected", to("198.18.9.7/32", "198.18.10.7"), "", "which this host is connected to"},
		{"what is connected", to("198.18.10.0/24", "198.18.9.7"), "", "which this host is connected to"},
	} {
		s := sync(t, f, false, c.want)
		got := ours(t)
		if !strings.HasPrefix(strings.ReplaceAll(got, " \n", "\n"), strings.ReplaceAll(c.kernel, " \n", "\n")) || c.kernel == "" && got != "" {
			t.Errorf("%s: the kernel has\n%s\nwant\n%s", c.name, got, c.kernel)
		}
		told := ""
		if len(s.Unresolved) > 0 {
			told = s.Unresolved[0].Reason
		}
		if !strings.Contains(told, c.unresolved) || (told == "") != (c.unresolved == "") {
			t.Errorf("%s: told %+v, want %q", c.name, s.Unresolved, c.unresolved)
		}
		// The kernel shows what we believe, or every look would repair it.
		if err := f.Refresh(); err != nil {
			t.Fatal(err)
		}
		if s = sync(t, f, false, c.want); s.Repairs != 0 {
			t.Errorf("%s: %d repairs of nothing", c.name, s.Repairs)
		}
	}
	sync(t, f, false)
	if got := ours(t); got != "" {
		t.Errorf("left behind:\n%s", got)
	}
	if got := ip(t, "route show") + ip(t, "-6 route show"); got != foreign {
		t.Errorf("others' routes have changed:\n%s\nbefore:\n%s", got, foreign)
	}
}

func TestSyncFollowsTheKernel(t *testing.T) {
	bench(t)
	f := open(t)
	want := []Route{to("198.19.1.0/24", "198.18.20.7"), to("198.19.2.0/24", "198.18.9.7")}
	sync(t, f, false, want...)
	refresh := func() State {
		t.Helper()
		if err := f.Refresh(); err != nil {
			t.Fatal(err)
		}
		return sync(t, f, false, want...)
	}
	// Drift is repaired, and counted.
	ip(t, "route del 198.19.1.0/24")
	ip(t, "route replace 198.19.2.0/24 via 198.18.9.99 metric 4096 proto 217")
	ip(t, "route add 198.19.3.0/24 via 198.18.9.99 proto 217")
	if s := refresh(); s.Repairs != 3 || s.Installed != 2 {
		t.Errorf("after drift: %+v", s)
	}
	if got := ours(t); got != "198.19.1.0/24 via 198.18.9.254 dev eth0 metric 4096\n198.19.2.0/24 via 198.18.9.7 dev eth0 metric 4096" {
		t.Errorf("drift is not repaired:\n%s", got)
	}
	// A next hop moves with the route that it is reached by.
	ip(t, "route replace 198.18.20.0/24 via 198.18.10.254")
	refresh()
	if got := ours(t); !strings.Contains(got, "198.19.1.0/24 via 198.18.10.254 dev eth1") {
		t.Errorf("the next hop is not resolved anew:\n%s", got)
	}
	ip(t, "route del 198.18.20.0/24")
	if s := refresh(); s.Unsettled != 1 || s.Installed != 1 {
		t.Errorf("without a way: %+v", s)
	}
	ip(t, "route add 198.18.20.0/24 via 198.18.9.254")
	if s := refresh(); s.Unsettled != 0 || s.Installed != 2 {
		t.Errorf("with a way again: %+v", s)
	}
	// A link that is down carries nothing.
	ip(t, "link set eth0p down")
	deadline := time.Now().Add(10 * time.Second) // the kernel takes its time to notice
	s := refresh()
	for ; s.Unsettled != 2 && time.Now().Before(deadline); s = refresh() {
		time.Sleep(50 * time.Millisecond)
	}
	if s.Unsettled != 2 || !strings.Contains(s.Unresolved[0].Reason, "down") {
		t.Errorf("with the link down: %+v", s)
	}
}

func TestSyncKeeps(t *testing.T) {
	bench(t)
	first := open(t)
	sync(t, first, false, to("198.19.1.0/24", "198.18.9.7"), to("198.19.2.0/24", "198.18.9.7"))
	first.Close() // removes nothing
	f := open(t)
	if err := f.Refresh(); err != nil || f.Known() != 2 {
		t.Fatalf("%d known, %v", f.Known(), err)
	}
	if s := sync(t, f, true, to("198.19.1.0/24", "198.18.9.8")); s.Held != 1 || s.Installed != 2 {
		t.Errorf("held: %+v", s)
	}
	if got := ours(t); !strings.Contains(got, "198.19.2.0/24") || !strings.Contains(got, "198.19.1.0/24 via 198.18.9.8") {
		t.Errorf("the kernel has\n%s", got)
	}
	if s := sync(t, f, false, to("198.19.1.0/24", "198.18.9.8")); s.Held != 0 || s.Installed != 1 {
		t.Errorf("after the hold: %+v", s)
	}
}

// Another's route of our metric stays, and is told of.
func TestSyncTakesNoPlace(t *testing.T) {
	bench(t)
	ip(t, "route add 198.19.1.0/24 via 198.18.9.3 metric 4096")
	s := sync(t, open(t), false, to("198.19.1.0/24", "198.18.9.7"))
	if s.Unsettled != 1 || !strings.Contains(s.Unresolved[0].Reason, "not rackweft's") {
		t.Errorf("%+v", s)
	}
	if got := ip(t, "route show 198.19.1.0/24"); !strings.Contains(got, "via 198.18.9.3") {
		t.Errorf("another's route is now %s", got)
	}
}

func TestWatch(t *testing.T) {
	bench(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := wait.NewSignal(), make(chan error, 1)
	ready := make(chan struct{})
	self, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(self); err != nil {
			done <- err
			return
		}
		close(ready)
		done <- Watch(ctx, changed)
	}()
	<-ready
	deadline := time.After(10 * time.Second)
	for i := 0; ; i++ { // the watch may have begun only after the first
		ip(t, fmt.Sprintf("route replace 198.18.30.0/24 via 198.18.9.%d", 2+i%200))
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
			continue
		case <-deadline:
			t.Fatal("a change of the routes is not noticed")
		}
		break
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// One refusal among thousands is told of as that, and costs no other.
func TestSyncManyWithRefusals(t *testing.T) {
	bench(t)
	f := open(t)
	var want []Route
	for i := range 2*batchRoutes + 100 {
		want = append(want, to(fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), "198.18.9.7"))
	}
	taken := []string{"10.0.0.0/24", "10.1.255.0/24", "10.2.0.0/24", "10.3.9.0/24"}
	for _, p := range taken {
		ip(t, "route add "+p+" via 198.18.9.3 metric 4096")
	}
	s := sync(t, f, false, want...)
	if s.Installed != len(want)-len(taken) || s.Unsettled != len(taken) || s.Unresolved[1].Prefix != want[511].Prefix {
		t.Errorf("with %d in the way: %+v", len(taken), s)
	}
	for _, p := range taken {
		ip(t, "route del "+p)
	}
	if err := f.Refresh(); err != nil {
		t.Fatal(err)
	}
	if s = sync(t, f, false, want...); s.Installed != len(want) || s.Unsettled != 0 || s.Repairs != 0 {
		t.Errorf("with nothing in the way: %+v", s)
	}
	// What went by itself is no fault.
	ip(t, "route del 10.0.7.0/24 metric 4096")
	if s = sync(t, f, false); s.Installed != 0 || s.Unsettled != 0 || ours(t) != "" {
		t.Errorf("after the removal of all: %+v\n%s", s, ours(t))
	}
}
