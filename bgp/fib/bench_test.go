package fib

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// BenchmarkRoutes puts 10,000 routes into the kernel and waits until it shows
// them: ours, BIRD from its own configuration, and FRR's zebra from staticd, which
// vtysh(1) tells them.
func BenchmarkRoutes(b *testing.B) {
	const routes, runs = 10000, 3
	taken := map[string][]float64{}
	for range runs {
		for name, measure := range map[string]func(*testing.B, int) time.Duration{"ours": measureOurs, "bird": measureBIRD, "frr": measureFRR} {
			bench(b) // a namespace of its own
			taken[name] = append(taken[name], measure(b, routes).Seconds())
		}
	}
	median := func(name string) float64 { slices.Sort(taken[name]); return taken[name][runs/2] }
	ours, best := median("ours"), min(median("bird"), median("frr"))
	verdict := "ok"
	if ours > best {
		verdict = "short"
	}
	_, _ = fmt.Printf("BENCH bgp-fib-%d ours=%.3fs bird=%.3fs frr=%.3fs ratio=%.2f bar=<=1.0 %s\n", routes, ours, median("bird"), median("frr"), ours/best, verdict)
}

// count counts the routes of 10.0.0.0/8 in the kernel.
func count(b *testing.B) int {
	b.Helper()
	list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
	if err != nil {
		return -1 // a list that changes
	}
	n := 0
	for _, r := range list {
		if r.Dst != nil && r.Dst.IP.To4() != nil && r.Dst.IP.To4()[0] == 10 {
			n++
		}
	}
	return n
}

func await(b *testing.B, want int) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); count(b) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("the kernel has %d routes, want %d", count(b), want)
		}
	}
}

func prefixOf(i int) string { return fmt.Sprintf("10.%d.%d.0/24", i/256, i%256) }

func measureOurs(b *testing.B, routes int) time.Duration {
	f := open(b)
	var want []Route
	for i := range routes {
		want = append(want, to(prefixOf(i), "198.18.9.7"))
	}
	began := time.Now()
	sync(b, f, false, want...)
	await(b, routes)
	return time.Since(began)
}

// start runs a daemon in the namespace of this thread until the run is over.
func start(b *testing.B, args ...string) func() {
	b.Helper()
	c := exec.Command(args[0], args[1:]...)
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	return func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

func run(b *testing.B, args ...string) {
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func measureBIRD(b *testing.B, routes int) time.Duration {
	dir := b.TempDir()
	conf, ctl := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	text := "router id 198.18.9.1;\nprotocol device { scan time 600; }\nprotocol kernel { ipv4 { export where source = RTS_STATIC; }; }\n"
	give := func(text string) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	give(text)
	defer start(b, "bird", "-f", "-c", conf, "-s", ctl)()
	run(b, "birdc", "-s", ctl, "show", "status")
	var all strings.Builder
	for i := range routes {
		_, _ = fmt.Fprintf(&all, "route %s via 198.18.9.7;\n", prefixOf(i))
	}
	give(text + "protocol static { ipv4;\n" + all.String() + "}\n")
	began := time.Now()
	run(b, "birdc", "-s", ctl, "configure")
	await(b, routes)
	return time.Since(began)
}

func measureFRR(b *testing.B, routes int) time.Duration {
	dir, err := os.MkdirTemp("", "fib") // whose parents are open, too
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	zserv, empty := filepath.Join(dir, "zserv"), filepath.Join(dir, "empty.conf")
	// Both run as frr.
	if err := errors.Join(os.Chmod(dir, 0o777), os.WriteFile(empty, nil, 0o644)); err != nil {
		b.Fatal(err)
	}
	for _, daemon := range []string{"zebra", "staticd"} {
		defer start(b, "/usr/lib/frr/"+daemon, "-f", empty, "-z", zserv, "-i", filepath.Join(dir, daemon+".pid"), "--vty_socket", dir, "-P", "0")()
		time.Sleep(time.Second)
	}
	var all strings.Builder
	for i := range routes {
		_, _ = fmt.Fprintf(&all, "ip route %s 198.18.9.7\n", prefixOf(i))
	}
	file := filepath.Join(dir, "routes")
	if err := os.WriteFile(file, []byte(all.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	command := []string{"vtysh", "--vty_socket", dir, "-d", "staticd", "-f", file}
	began := time.Now()
	run(b, command...)
	await(b, routes)
	return time.Since(began)
}
