// Go listens for MPTCP, which knows no MD5 keys.
//
//go:debug multipathtcp=0
package overlay

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/wait/waittest"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/speaker"
)

// speakerEnvironment makes the test's binary a speaker: with its part and
// socket, and the directory of those inside of Networks.
const speakerEnvironment = "RACKWEFT_TEST_SPEAKER"

func TestMain(m *testing.M) {
	paths := strings.Split(os.Getenv(speakerEnvironment), "|")
	if len(paths) != 3 {
		os.Exit(m.Run())
	}
	err := bgp.Run(context.Background(), bgp.Options{Part: paths[0], Socket: paths[1], Inside: paths[2], Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Notify: silentNotifier{}})
	fmt.Fprintln(os.Stderr, "speaker:", err)
	os.Exit(1)
}

type silentNotifier struct{}

func (silentNotifier) Ready()                                {}
func (silentNotifier) Status(string)                         {}
func (silentNotifier) Watchdog(context.Context, func() bool) {}

// insideUnits stand for what starts a host's speakers inside of Networks.
type insideUnits struct {
	t         *testing.T
	dir       string
	processes map[string]*exec.Cmd // by uid
	starts    int
}

// runSpeakers has a host run speakers where guests peer.
func (h *testHost) runSpeakers(t *testing.T) *insideUnits {
	// A socket's path is short.
	dir, err := os.MkdirTemp("", "in")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	u := &insideUnits{t: t, dir: dir, processes: map[string]*exec.Cmd{}}
	t.Cleanup(func() {
		for uid := range u.processes {
			u.kill(uid)
		}
	})
	h.speakers = speaker.NewInside(speaker.InsideOptions{Dir: u.dir, Start: u.start,
		Stop: func(_ context.Context, uid string) error { u.kill(uid); return nil }, Log: slog.New(slog.DiscardHandler)})
	h.restart()
	return u
}

func (u *insideUnits) start(_ context.Context, s speaker.InsideService) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(u.dir, s.UID, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	u.starts++
	p := exec.Command("nsenter", "--net="+s.Namespace, self)
	p.Env = append(os.Environ(), speakerEnvironment+"="+s.Part+"|"+s.Socket+"|")
	p.Stdout, p.Stderr = log, log
	u.processes[s.UID] = p
	return p.Start()
}

// kill ends a speaker without a word.
func (u *insideUnits) kill(uid string) {
	p := u.processes[uid]
	if p == nil {
		return
	}
	_ = p.Process.Kill()
	_ = p.Wait()
	delete(u.processes, uid)
	if u.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(u.dir, uid, "log"))
		u.t.Logf("log of the speaker of %s:\n%s", uid, log)
	}
}

func (u *insideUnits) status(n tenant) bgp.Status {
	s, _ := bgp.NewClient(filepath.Join(u.dir, n.uid, "socket")).Status(context.Background())
	return s
}

func (u *insideUnits) session(n tenant, name string) bgp.Session {
	for _, s := range u.status(n).Sessions {
		if s.Name == name {
			return s
		}
	}
	return bgp.Session{}
}

const (
	guestASN = 64512 // Calico's
	blueKey  = "hush"
)

func peeringOf(prefixes ...string) *api.PeeringPart {
	p := &api.PeeringPart{Zone: "yellow", ASN: 64601, Community: "64601:1:1", GuestASN: guestASN, MaxPrefixes: 8}
	for _, x := range prefixes {
		p.Prefixes = append(p.Prefixes, netip.MustParsePrefix(x))
	}
	return p
}

// peeringParts are those of Networks whose guests peer.
func (f *fabric) peeringParts(i int, networks ...tenant) []nodeagent.Part {
	var parts []nodeagent.Part
	for _, n := range networks {
		p := f.part(n, i)
		v := p.Value.(*api.NetworkPart)
		v.Peering = peeringOf("10.244.0.0/16")
		if n.v6 {
			v.Peering = peeringOf("10.244.0.0/16", "fd00:244::/48")
		}
		if n.name == "blue" {
			v.Peering.Password = blueKey
		}
		parts = append(parts, p)
	}
	return parts
}

func (f *fabric) peer(networks ...tenant) {
	f.t.Helper()
	for i, h := range f.hosts {
		h.reconcile(f.peeringParts(i+1, networks...)...)
	}
}

// daemon runs something in the guest to the test's end, or until stop is called.
func (g *testGuest) daemon(argv ...string) (stop func()) {
	t := g.host.fabric.t
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "log")
	must(t, err)
	defer func() { _ = log.Close() }()
	p := exec.Command("nsenter", append([]string{"--net=" + g.path()}, argv...)...)
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, p.Start())
	var once sync.Once
	stop = func() {
		once.Do(func() {
			_ = p.Process.Kill()
			_ = p.Wait()
			if t.Failed() {
				text, _ := os.ReadFile(log.Name())
				t.Logf("log of %s in %s:\n%s", argv[0], g.addr, text)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// path is that of the guest's namespace.
func (g *testGuest) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(g.ns)) }

func (g *testGuest) run(line string) string {
	t := g.host.fabric.t
	t.Helper()
	out, err := command.Output(exec.Command("nsenter", append([]string{"--net=" + g.path()}, strings.Fields(line)...)...))
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// pod gives the guest an address of a pod's on it.
func (g *testGuest) pod(addr string) netip.Addr {
	g.host.fabric.t.Helper()
	a := netip.MustParseAddr(addr)
	g.run("ip addr add " + whole(a).String() + " dev lo")
	return a
}

// calico runs BIRD as a Calico node has it: multihop, its blocks as blackholes,
// graceful restart. channel goes into that of IPv4, session into the protocol.
func (g *testGuest) calico(channel, session string, blocks ...string) (stop func()) {
	t := g.host.fabric.t
	t.Helper()
	if _, err := exec.LookPath("bird"); err != nil {
		t.Skip("bird is not installed: see lab/deps")
	}
	var conf strings.Builder
	_, _ = fmt.Fprintf(&conf, "router id %s;\nprotocol device { scan time 2; }\n", g.addr)
	for _, v4 := range []bool{true, false} {
		name, routes := map[bool]string{true: "ipv4", false: "ipv6"}[v4], ""
		for _, b := range blocks {
			if netip.MustParsePrefix(b).Addr().Is4() == v4 {
				routes += fmt.Sprintf(" route %s blackhole;\n", b)
			}
		}
		_, _ = fmt.Fprintf(&conf, "protocol static blocks_%s { %s;\n%s}\n", name, name, routes)
		_, _ = fmt.Fprintf(&conf, "protocol kernel kernel_%s { %s { import all; export where source = RTS_BGP; }; learn; }\n", name, name)
	}
	_, _ = fmt.Fprintf(&conf, `protocol bgp Global_169_254_1_1 {
 local as %d; neighbor 169.254.1.1 as 64601; source address %s; multihop;
 graceful restart on; connect delay time 1; connect retry time 1; error wait time 1,2;
 ipv4 { import all; export where source = RTS_STATIC; gateway recursive; %s };
`, guestASN, g.addr, channel)
	if len(g.port.Addresses) > 1 {
		_, _ = fmt.Fprintf(&conf, " ipv6 { import all; export where source = RTS_STATIC; gateway recursive; next hop address %s; };\n", g.port.Addresses[1])
	}
	conf.WriteString(session + "}\n")
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(conf.String()), 0o600))
	return g.daemon("bird", "-f", "-c", filepath.Join(dir, "conf"), "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid"))
}

// frr runs FRR's bgpd with GTSM and blue's key, without zebra: the guest's default route leads
// everywhere.
func (g *testGuest) frr(blocks ...string) {
	t := g.host.fabric.t
	t.Helper()
	const bgpd = "/usr/lib/frr/bgpd"
	if _, err := os.Stat(bgpd); err != nil {
		t.Skip("frr is not installed: see lab/deps")
	}
	dir, err := os.MkdirTemp("", "frr") // which bgpd, as frr, reaches
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777))
	conf := fmt.Sprintf("router bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp network import-check\n bgp graceful-restart\n"+
		" neighbor 169.254.1.1 remote-as 64601\n neighbor 169.254.1.1 ttl-security hops 1\n neighbor 169.254.1.1 disable-connected-check\n"+
		" neighbor 169.254.1.1 timers connect 1\n neighbor 169.254.1.1 password %s\n address-family ipv4 unicast\n", guestASN, g.addr, blueKey)
	for _, b := range blocks {
		conf += "  network " + b + "\n"
	}
	must(t, os.WriteFile(filepath.Join(dir, "bgpd.conf"), []byte(conf+" exit-address-family\n"), 0o644))
	g.daemon(bgpd, "-Z", "-S", "-f", filepath.Join(dir, "bgpd.conf"), "-i", filepath.Join(dir, "pid"), "--vty_socket", dir, "-P", "0", "--log", "stdout")
}

// eventually waits until all of it is so.
func eventually(t testing.TB, checks ...func() error) {
	t.Helper()
	waittest.Pass(t, time.Minute, checks...)
}

// guestRoutes are the routes of guests that a host has in a Network: "prefix
// via" lines, without those that only lead to a link.
func (h *testHost) guestRoutes(n tenant) string {
	out := ""
	for _, family := range []string{"-4", "-6"} {
		b, err := command.Output(exec.Command("nsenter", "--net="+h.tenantPath(n), "ip", family, "route", "show", "proto", "217"))
		if err != nil {
			return err.Error()
		}
		out += string(b)
	}
	return out
}

func (h *testHost) hasRoute(n tenant, prefix, via string) func() error {
	return func() error {
		for line := range strings.Lines(h.guestRoutes(n)) {
			if strings.HasPrefix(line, prefix+" via "+via+" ") {
				return nil
			}
		}
		return fmt.Errorf("%s lacks %s via %s in %s; it has:\n%s", h.name, prefix, via, n.name, h.guestRoutes(n))
	}
}

func (h *testHost) lacksRoute(n tenant, prefix string) func() error {
	return func() error {
		if strings.Contains("\n"+h.guestRoutes(n), "\n"+prefix+" ") {
			return fmt.Errorf("%s has %s in %s:\n%s", h.name, prefix, n.name, h.guestRoutes(n))
		}
		return nil
	}
}

func reaches(t testing.TB, from place, source, to netip.Addr) func() error {
	return func() error {
		p := newPinger(t, from.ns, source)
		defer func() { _ = p.conn.Close() }()
		if err := p.ping(to, 56, time.Second); err != nil {
			return fmt.Errorf("%s does not reach %s: %w", source, to, err)
		}
		return nil
	}
}

// Pods of guests on two hosts reach each other by the routes that the guests
// tell their hosts; and another tenant has the very same prefixes.
func TestGuestsPeer(t *testing.T) {
	f := newFabric(t, 2, false)
	n, other := red(), blue()
	n.v6 = true
	u := []*insideUnits{f.hosts[0].runSpeakers(t), f.hosts[1].runSpeakers(t)}
	f.peer(n, other)
	a, b := f.plugIn(n, 1, 8, n.guest6(1, 8)), f.plugIn(n, 2, 8, n.guest6(2, 8))
	c, d := f.plugIn(other, 1, 8), f.plugIn(other, 2, 8)
	neighbour := f.plugIn(n, 1, 10) // it does not peer
	f.peer(n, other)
	podA, podB := a.pod("10.244.1.5"), b.pod("10.244.2.5")
	podA6, podB6 := a.pod("fd00:244:0:1::5"), b.pod("fd00:244:0:2::5")
	podC, podD := c.pod("10.244.2.5"), d.pod("10.244.1.5")
	a.calico("", "", "10.244.1.0/26", "fd00:244:0:1::/64")
	b.calico("", "", "10.244.2.0/26", "fd00:244:0:2::/64")
	c.calico("", fmt.Sprintf(" password %q;\n", blueKey), "10.244.2.0/26")
	d.frr("10.244.1.0/26")
	eventually(t,
		f.hosts[0].hasRoute(n, "10.244.1.0/26", "10.5.1.8"), f.hosts[0].hasRoute(n, "10.244.2.0/26", "10.5.2.0"),
		f.hosts[1].hasRoute(n, "10.244.2.0/26", "10.5.2.8"), f.hosts[1].hasRoute(n, "10.244.1.0/26", "10.5.1.0"),
		f.hosts[0].hasRoute(n, "fd00:244:0:1::/64", "fd00:5:0:1::8"), f.hosts[1].hasRoute(n, "fd00:244:0:1::/64", "fd00:5:0:1::"),
		f.hosts[0].hasRoute(other, "10.244.2.0/26", "10.5.1.8"), f.hosts[0].hasRoute(other, "10.244.1.0/26", "10.5.2.0"),
		reaches(t, a.place, podA, podB), reaches(t, b.place, podB, podA), reaches(t, a.place, podA6, podB6),
		reaches(t, c.place, podC, podD), reaches(t, neighbour.place, neighbour.addr, podB), reaches(t, a.place, podA, neighbour.addr))
	// The guests are told of each other's, by way of their gateways.
	eventually(t, func() error {
		if got := a.run("ip route show"); !strings.Contains(got, "10.244.2.0/26 via 169.254.1.1 ") {
			return fmt.Errorf("the guest has\n%s", got)
		}
		return nil
	})
	if line := u[0].status(n).Line(); !strings.HasPrefix(line, "2 of 2 sessions up") {
		t.Errorf("the speaker says %s", line)
	}

}

// A guest that lies is heard in what is its own, and in nothing else.
func TestHostileGuest(t *testing.T) {
	f := newFabric(t, 2, false)
	n := red()
	u := []*insideUnits{f.hosts[0].runSpeakers(t), f.hosts[1].runSpeakers(t)}
	f.peer(n)
	liar, victim, remote := f.plugIn(n, 1, 8), f.plugIn(n, 1, 10), f.plugIn(n, 2, 8)
	f.peer(n)
	podR := remote.pod("10.244.2.5")
	remote.calico("", "", "10.244.2.0/26")
	victim.calico("", "", "10.244.3.0/26")
	lies := []string{"10.244.9.0/26", "10.244.8.0/26", "0.0.0.0/0", "198.51.100.0/24", "10.5.2.0/24", "10.5.1.10/32", "169.254.9.0/24"}
	stop := liar.calico("", "", lies...)
	eventually(t, f.hosts[0].hasRoute(n, "10.244.9.0/26", "10.5.1.8"), f.hosts[1].hasRoute(n, "10.244.9.0/26", "10.5.1.0"),
		f.hosts[0].hasRoute(n, "10.244.2.0/26", "10.5.2.0"), f.hosts[0].hasRoute(n, "10.244.3.0/26", "10.5.1.10"), func() error {
			if s := u[0].session(n, "guest/"+liar.port.Guest); s.Received != len(lies) {
				return fmt.Errorf("of the liar's %d routes %d are received", len(lies), s.Received)
			}
			return nil
		})
	for _, h := range f.hosts {
		if got := h.guestRoutes(n); strings.Count(got, "\n") != 4 {
			t.Errorf("%s has routes that nobody may tell:\n%s", h.name, got)
		}
	}
	// It sends from what it announces, and neither from what others do nor from
	// what nobody does.
	parts := f.peeringParts(1, n)
	own, theirs, nobodys := liar.pod("10.244.9.1"), liar.pod("10.244.2.9"), liar.pod("10.244.77.1")
	local := liar.pod("10.244.3.1")
	eventually(t, reaches(t, liar.place, own, podR))
	for _, source := range []netip.Addr{theirs, local, nobodys} {
		before := liar.stats(parts...).Drops.Spoofed
		if reaches(t, liar.place, source, podR)() == nil || liar.stats(parts...).Drops.Spoofed == before {
			t.Errorf("what comes from %s is let through", source)
		}
	}
	// Nobody but a host's own guests, at their gateway, reaches a speaker.
	for _, from := range []*testGuest{liar, remote} {
		if err := dial179(from, netip.MustParseAddr("10.5.1.1")); err == nil {
			t.Errorf("%s reaches the speaker of h1 at the host's own address", from.addr)
		}
	}

	// A next hop that is another guest's.
	stop()
	stop = liar.calico("", "", "10.244.9.0/26")
	eventually(t, f.hosts[0].hasRoute(n, "10.244.9.0/26", "10.5.1.8"), f.hosts[0].lacksRoute(n, "10.244.8.0/26"))
	stop()
	stop = liar.calico("next hop address 10.5.1.10;", "", "10.244.9.0/26", "10.244.8.0/26")
	eventually(t, f.hosts[0].lacksRoute(n, "10.244.9.0/26"), f.hosts[1].lacksRoute(n, "10.244.9.0/26"), f.hosts[0].lacksRoute(n, "10.244.8.0/26"))
	if reaches(t, liar.place, own, podR)() == nil {
		t.Errorf("what comes from %s is let through, and it is announced no more", own)
	}

	// Too many.
	stop()
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("10.244.%d.0/24", 100+i))
	}
	stop = liar.calico("", "", many...)
	eventually(t, func() error {
		if s := u[0].session(n, "guest/"+liar.port.Guest); s.State != "limited" {
			return fmt.Errorf("the session is %q", s.State)
		}
		return nil
	}, f.hosts[0].lacksRoute(n, "10.244.100.0/24"), f.hosts[0].lacksRoute(n, "10.244.119.0/24"))
	defer stop()
	eventually(t, reaches(t, victim.place, victim.addr, podR), reaches(t, remote.place, podR, victim.addr))
}

// speak runs the host's own speaker.
func (h *testHost) speak(t *testing.T, part api.BGPPart, inside string) (change func(api.BGPPart), client *bgp.Client) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sp")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file, socket := filepath.Join(dir, "part.json"), filepath.Join(dir, "socket")
	change = func(p api.BGPPart) {
		raw, err := api.EncodePart(p)
		must(t, err)
		must(t, os.WriteFile(file+".next", raw, 0o600))
		must(t, os.Rename(file+".next", file))
	}
	change(part)
	self, err := os.Executable()
	must(t, err)
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	defer func() { _ = log.Close() }()
	p := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(h.ns)), self)
	p.Env = append(os.Environ(), speakerEnvironment+"="+file+"|"+socket+"|"+inside)
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, p.Start())
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("log of the speaker of %s:\n%s", h.name, text)
		}
	})
	return change, bgp.NewClient(socket)
}

// What guests announce their host tells the zone of, where the Network says so:
// a router of the zone reaches what is behind a guest, and hears of nothing else.
// The agent does nothing meanwhile.
func TestAdvertisedPeering(t *testing.T) {
	f := newFabric(t, 2, false)
	n := plain()
	router := f.router()
	in := f.hosts[0].runSpeakers(t)
	f.hosts[1].runSpeakers(t)
	parts := func(i int) nodeagent.Part {
		p := f.peeringParts(i, n)[0]
		v := p.Value.(*api.NetworkPart)
		v.Advertise, v.Peering.Advertise, p.Digest = true, true, "told"
		return p
	}
	pass := func() {
		t.Helper()
		for i, h := range f.hosts {
			h.reconcile(parts(i + 1))
		}
	}
	pass()
	g := f.plugIn(n, 1, 8)
	pass()
	pod := g.pod("10.244.1.5")
	client, reflector, leaf := f.hosts[0].underlay, f.hosts[1].underlay, netip.MustParseAddr("198.18.0.254")
	part := api.BGPPart{Zone: "yellow", ASN: 64601, Community: "64601:1:1", RouterID: client, Role: api.BGPClient, Listen: []netip.Addr{client},
		NextHops: []netip.Addr{client}, ZoneNextHops: prefixes("198.18.0.0/24"),
		Neighbors: []api.BGPNeighbor{{Name: "h2", Address: reflector, Source: client, ASN: 64601, Role: api.BGPReflector}},
		Inside:    []api.BGPInside{{UID: n.uid, Prefixes: prefixes("10.244.0.0/16"), MaxPrefixes: 2}}}
	change, speaks := f.hosts[0].speak(t, part, in.dir)
	f.hosts[1].speak(t, api.BGPPart{Zone: "yellow", ASN: 64601, Community: "64601:1:1", RouterID: reflector, Role: api.BGPReflector, Listen: []netip.Addr{reflector},
		NextHops: []netip.Addr{reflector}, ZoneNextHops: prefixes("198.18.0.0/24"),
		Neighbors: []api.BGPNeighbor{{Name: "h1", Address: client, Source: reflector, ASN: 64601, Role: api.BGPClient, Passive: true},
			{Name: "leaf", Address: leaf, Source: reflector, ASN: 64601, Role: api.BGPClient, Passive: true}},
		Accept: []api.BGPAccept{{Client: "h1", NextHops: []netip.Addr{client}, Within: prefixes("10.244.0.0/16"), MaxWithin: 2}}}, "")
	f.bird(router, leaf, reflector)
	zone := func(want ...string) func() error {
		return func() error {
			out, err := command.Output(exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(router.ns)), "ip", "route", "show", "proto", "bird"))
			var got []string
			for line := range strings.Lines(string(out)) {
				if prefix, via, _ := strings.Cut(line, " "); strings.HasPrefix(via, "via "+client.String()+" ") {
					got = append(got, prefix)
				}
			}
			if slices.Sort(got); err != nil || !slices.Equal(got, want) {
				s, _ := speaks.Status(context.Background())
				return fmt.Errorf("the zone is told of %v, not of %v (%v): %s\n%s", got, want, err, s.Line(), out)
			}
			return nil
		}
	}
	noGrace := " graceful restart off;\n"
	stop := g.calico("", noGrace, "10.244.1.0/26", "198.51.100.0/24", "10.30.2.0/24")
	eventually(t, zone("10.244.1.0/26"), reaches(t, router, netip.MustParseAddr("198.19.9.9"), pod), reaches(t, g.place, pod, netip.MustParseAddr("198.19.9.9")))
	if reaches(t, router, netip.MustParseAddr("198.19.9.9"), netip.MustParseAddr("10.244.9.9"))() == nil {
		t.Error("what nobody announces is reached")
	}

	part.Inside = nil // the Network says so no more
	change(part)
	eventually(t, zone())
	part.Inside = []api.BGPInside{{UID: n.uid, Prefixes: prefixes("10.244.0.0/16"), MaxPrefixes: 2}}
	change(part)
	eventually(t, zone("10.244.1.0/26"))

	stop() // the guest goes
	eventually(t, zone())
	g.calico("", noGrace, "10.244.1.0/26", "10.244.2.0/26", "10.244.3.0/26") // one too many
	eventually(t, zone("10.244.1.0/26", "10.244.2.0/26"), func() error {
		if s, err := speaks.Status(context.Background()); err != nil || !strings.Contains(s.Line(), "1 prefixes more") {
			return fmt.Errorf("the speaker says %s (%v)", s.Line(), err)
		}
		return nil
	})
}

// bird runs a router of the zone, a client of its reflector.
func (f *fabric) bird(at place, self, reflector netip.Addr) {
	t := f.t
	t.Helper()
	if _, err := exec.LookPath("bird"); err != nil {
		t.Skip("bird is not installed: see lab/deps")
	}
	conf := fmt.Sprintf(`router id %s;
protocol device { scan time 2; }
protocol kernel { ipv4 { import none; export all; }; }
protocol bgp zone {
 local %[1]s as 64601; neighbor %s as 64601; direct; ttl security on;
 connect delay time 1; connect retry time 1; error wait time 1,2;
 ipv4 { import all; export none; };
}
`, self, reflector)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	defer func() { _ = log.Close() }()
	p := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(at.ns)), "bird", "-f", "-c", filepath.Join(dir, "conf"), "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid"))
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, p.Start())
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("log of bird:\n%s", text)
		}
	})
}

// What is behind guests leaves a Network behind its host, or not at all: nobody
// outside knows those addresses, and they may be somebody else's there.
func TestPeeringSourcesStayInside(t *testing.T) {
	for _, c := range []struct {
		masquerade, advertise, want bool
		told                        bool
	}{{true, false, true, false}, {true, true, true, false}, {false, true, false, false}, {false, true, true, true}, {false, false, false, true}} {
		n := network{vni: 101, lease: netip.MustParsePrefix("10.5.1.0/24"), cidrs: prefixes("10.5.0.0/16"),
			masquerade: c.masquerade, advertise: c.advertise, peering: peeringOf("198.18.8.0/24")}
		n.peering.Advertise = c.told
		leaves := false
		for _, chain := range tenantRules(n).Chains {
			for _, r := range chain.Rules {
				var text string
				for _, term := range r {
					text += term.Text + " "
				}
				leaves = leaves || strings.Contains(text, "oifname "+egressInside) && strings.Contains(text, "saddr 198.18.8.0/24") && strings.Contains(text, "accept")
			}
		}
		if leaves != c.want {
			t.Errorf("%+v: it leaves: %v", c, leaves)
		}
	}
}

func dial179(from *testGuest, to netip.Addr) error {
	return within(from.ns, func() error {
		c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(to, bgpPort).String(), 500*time.Millisecond)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Speaker and agent end at any time, and no packet is lost; a Network that does
// not peer any more is as if it never had.
func TestSpeakerEnds(t *testing.T) {
	f := newFabric(t, 2, false)
	n := red()
	u := []*insideUnits{f.hosts[0].runSpeakers(t), f.hosts[1].runSpeakers(t)}
	f.reconcile(n)
	plain := f.hosts[0].tenant(n).everything(t)
	f.peer(n)
	a, b := f.plugIn(n, 1, 8), f.plugIn(n, 2, 8)
	f.peer(n)
	podA, podB := a.pod("10.244.1.5"), b.pod("10.244.2.5")
	stopA := a.calico("", "", "10.244.1.0/26")
	b.calico("", "", "10.244.2.0/26")
	eventually(t, f.hosts[0].hasRoute(n, "10.244.2.0/26", "10.5.2.0"), f.hosts[1].hasRoute(n, "10.244.1.0/26", "10.5.1.0"), reaches(t, a.place, podA, podB))

	// Pings in both directions, each of which is answered.
	ctx, cancel := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	lost, sent := make([]int, 2), make([]int, 2)
	for i, way := range []struct {
		from     *testGuest
		src, dst netip.Addr
	}{{a, podA, podB}, {b, podB, podA}} {
		p := newPinger(t, way.from.ns, way.src)
		traffic.Go(func() {
			for ctx.Err() == nil {
				sent[i]++
				if p.ping(way.dst, 56, patience) != nil {
					lost[i]++
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for i, h := range f.hosts {
		pid := u[i].status(n).PID
		u[i].kill(n.uid)
		h.restart() // a new agent, too
		h.overlay.SetPorts(h.ports)
		f.peer(n)
		eventually(t, func() error {
			s := u[i].status(n)
			up := slices.ContainsFunc(s.Sessions, func(s bgp.Session) bool { return s.Role == api.BGPGuest && s.Established() })
			if s.PID == pid || !up || !s.Settled {
				return fmt.Errorf("%s: %s", h.name, s.Line())
			}
			return nil
		})
	}
	starts := u[0].starts
	for range 3 {
		f.hosts[0].restart() // the agent alone
		f.hosts[0].reconcile(f.peeringParts(1, n)...)
		f.hosts[0].overlay.SetPorts(f.hosts[0].ports)
		f.peer(n)
	}
	cancel()
	traffic.Wait()
	if lost[0]+lost[1] > 0 || sent[0] < 100 || sent[1] < 100 {
		t.Errorf("lost %v of %v", lost, sent)
	}
	if u[0].starts != starts {
		t.Errorf("a new agent has started %d speakers", u[0].starts-starts)
	}

	// A guest that is unplugged takes its routes along.
	stopA()
	a.stop()
	f.hosts[0].ports = nil
	f.hosts[0].overlay.SetPorts(nil)
	f.peer(n)
	if len(u[0].processes) > 0 {
		t.Error("a speaker runs where no guest is")
	}
	eventually(t, f.hosts[0].lacksRoute(n, "10.244.1.0/26"), f.hosts[0].lacksRoute(n, "10.244.2.0/26"))
	f.reconcile(n)
	if after := f.hosts[0].tenant(n).everything(t); after != plain {
		t.Errorf("before:\n%s\nafter:\n%s", plain, after)
	}
	if len(u[1].processes) > 0 {
		t.Error("a speaker runs in a Network whose guests do not peer")
	}
	if left := f.hosts[1].guestRoutes(n); left != "" {
		t.Errorf("routes are left:\n%s", left)
	}
}
