package dhcp

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/internal/logtest"
	"github.com/rackweft/rackweft/internal/nstest"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// rig is a Network's namespace with its bridge, guests around it, and a
// namespace outside of it that has the resolvers.
type rig struct {
	t       testing.TB
	tenant  string
	outside string
	network Network
	server  *Server
	log     *logs
}

const patience = 20 * time.Second

func newRig(t testing.TB, guests ...Guest) *rig {
	t.Helper()
	r := &rig{t: t, tenant: nstest.New(t), outside: nstest.New(t), log: &logs{},
		network: Network{MTU: 1410, Domain: "tenant.example", Guests: guests, Resolvers: []netip.Addr{resolver()}}}
	nstest.IP(t, r.outside, "addr", "add", resolver().String()+"/32", "dev", "lo")
	nstest.IP(t, r.tenant, "link", "add", "br-7", "address", "02:00:a9:fe:01:01", "mtu", "1410", "type", "bridge")
	nstest.IP(t, r.tenant, "link", "set", "br-7", "up")
	nstest.IP(t, r.tenant, "addr", "add", Gateway4().String()+"/32", "dev", "br-7")
	nstest.IP(t, r.tenant, "addr", "add", "10.5.3.1/24", "dev", "br-7")
	nstest.IP(t, r.tenant, "addr", "add", Gateway6().String()+"/64", "dev", "br-7", "nodad")
	sysctl(t, r.tenant, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	return r
}

func resolver() netip.Addr { return netip.MustParseAddr("198.18.53.53") }

// one and two are guests.
func one() Guest {
	return Guest{Name: "one", MAC: MAC{2, 0, 0, 0, 0, 1}, Addresses: []netip.Addr{netip.MustParseAddr("10.5.3.2"), netip.MustParseAddr("fd00:5:3::2")}}
}

func two() Guest {
	return Guest{Name: "two", MAC: MAC{2, 0, 0, 0, 0, 2}, Addresses: []netip.Addr{netip.MustParseAddr("10.5.3.4"), netip.MustParseAddr("fd00:5:3::4")}}
}

// serve runs a Server until the test ends.
func (r *rig) serve() {
	r.t.Helper()
	f := NewForwarder(func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = nstest.Within(r.outside, func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}, filepath.Join(r.t.TempDir(), "resolv.conf"))
	s, err := Open(Options{Within: func(f func() error) error { return nstest.Within(r.tenant, f) }, Bridge: "br-7", Forwarder: f,
		Log: slog.New(slog.NewTextHandler(r.log, nil))}, r.network)
	must(r.t, err)
	r.server = s
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			r.t.Errorf("the server ended: %v", err)
		}
		if r.t.Failed() {
			r.t.Logf("log of the server:\n%s", r.log)
		}
	})
}

// plug makes the namespace of a guest, with nothing configured on its eth0.
func (r *rig) plug(mac MAC) string {
	r.t.Helper()
	name, port := nstest.New(r.t), "p"+random()
	nstest.IP(r.t, r.tenant, "link", "add", port, "type", "veth", "peer", "name", "eth0", "address", mac.String(), "netns", name)
	nstest.IP(r.t, r.tenant, "link", "set", port, "master", "br-7", "up")
	sysctl(r.t, name, "net.ipv6.conf.eth0.accept_dad=0")
	nstest.IP(r.t, name, "link", "set", "eth0", "up")
	// The bridge learns in its own time that the port has a carrier.
	eventually(r.t, "eth0 is up and forwarded from", func() bool {
		return strings.Contains(nstest.IP(r.t, name, "link", "show", "eth0"), "state UP") &&
			strings.Contains(nstest.Run(r.t, "bridge", "-n", r.tenant, "link", "show", "dev", port), "state forwarding")
	})
	return name
}

// configured plugs a guest in and gives it its addresses by hand.
func (r *rig) configured(g Guest) string {
	r.t.Helper()
	ns := r.plug(g.MAC)
	nstest.IP(r.t, ns, "addr", "add", g.Addresses[0].String()+"/32", "dev", "eth0")
	nstest.IP(r.t, ns, "route", "add", Gateway4().String(), "dev", "eth0")
	nstest.IP(r.t, ns, "route", "add", "default", "via", Gateway4().String())
	return ns
}

func random() string { return strings.ToLower(rand.Text()[:8]) }

func sysctl(t testing.TB, ns string, settings ...string) {
	t.Helper()
	must(t, nstest.Within(ns, func() error {
		for _, s := range settings {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	}))
}

// background runs a program in a namespace until the test ends, in a mount
// namespace and with a host name of its own, and collects what it writes.
func background(t testing.TB, ns, script string, args ...string) *logs {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, "unshare", "--uts", "sh", "-ec", script, "sh"}, args...)...)
	out := &logs{}
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s in %s wrote:\n%s", script, ns, out)
		}
	})
	return out
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	waittest.Until(t, patience, what, is)
}

func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is missing: run lab/deps", p)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// logs is text that grows.
type logs struct{ logtest.Buffer }

func (l *logs) has(format string, args ...any) bool {
	return strings.Contains(l.String(), fmt.Sprintf(format, args...))
}
