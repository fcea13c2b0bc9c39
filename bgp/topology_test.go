package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// site is two Zones, each a segment with reflectors, clients and border leafs,
// and a firewall that is all that the leafs' VRFs have in common.
type site struct {
	yellow, red *domain
	core        *host
}

// domain is one Zone; its parts are of the shape that bootd compiles
// (bootd/hostspec/testdata).
type domain struct {
	*rig
	name       string
	asn        uint32
	prefix     netip.Prefix // of all that its hosts originate
	members    []*host
	reflectors []*host
	leafs      []*host
	strays     []*host // that reflectors take for clients of theirs
}

const leafASN = 64600

func newSite(t *testing.T) *site {
	s := &site{}
	s.yellow = newDomain(t, "yellow", 9, 64601, "198.19.0.0/18", 11)
	s.red = newDomain(t, "red", 10, 64602, "198.19.64.0/18", 101)
	s.core = s.yellow.bare("core")
	for i, leaf := range []struct {
		d    *domain
		last byte
	}{{s.yellow, 201}, {s.yellow, 202}, {s.red, 203}} {
		s.leaf(leaf.d, i, leaf.last)
	}
	s.firewall()
	return s
}

// newDomain has hosts numbered from first on, of which the first two reflect.
func newDomain(t *testing.T, name string, segment byte, asn uint32, prefix string, first int) *domain {
	d := &domain{rig: newRig(t), name: name, asn: asn, prefix: netip.MustParsePrefix(prefix)}
	d.segment = segment
	for i := range 5 {
		if name == "red" && i == 4 {
			break
		}
		h := d.host(fmt.Sprintf("%s%d", name[:1], i+1), byte(first+i))
		h.in("sysctl", "-qw", "net.ipv4.ip_forward=1")
		h.in("ip", "addr", "add", h.service()+"/32", "dev", "lo")
		d.members = append(d.members, h)
	}
	d.reflectors = d.members[:2]
	return d
}

// bare is a namespace without the segment.
func (r *rig) bare(name string) *host {
	r.t.Helper()
	r.namespace(name)
	h := &host{rig: r, name: name, dir: r.t.TempDir()}
	h.in("sysctl", "-qw", "net.ipv4.ip_forward=1")
	return h
}

// service is an address that the host originates.
func (h *host) service() string { return fmt.Sprintf("198.19.%d.1", h.address.As4()[3]) }

func (h *host) lease() netip.Prefix { return netip.MustParsePrefix(h.service() + "/24").Masked() }

// leaf adds the VRF of a Zone on a border leaf: FRR, with a link to the core.
func (s *site) leaf(d *domain, number int, last byte) {
	h := d.host(fmt.Sprintf("leaf%d", number+1), last)
	d.leafs = append(d.leafs, h)
	h.in("sysctl", "-qw", "net.ipv4.ip_forward=1")
	d.run("ip", "-n", d.id+h.name, "link", "add", "core", "type", "veth", "peer", "name", h.name, "netns", s.core.rig.id+"core")
	near, far := fmt.Sprintf("198.18.%d.2", 100+number), fmt.Sprintf("198.18.%d.1", 100+number)
	for _, line := range []string{"addr add " + near + "/30 dev core", "link set core up", "route add default via " + far} {
		if strings.HasPrefix(line, "route") {
			s.core.in("ip", "addr", "add", far+"/30", "dev", h.name)
			s.core.in("ip", "link", "set", h.name, "up")
		}
		h.in(append([]string{"ip"}, strings.Fields(line)...)...)
	}
	s.core.in("ip", "route", "add", d.prefix.String(), "via", near, "metric", strconv.Itoa(10+number))

	var conf strings.Builder
	_, _ = fmt.Fprintf(&conf, "router bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp network import-check\n", leafASN, h.address)
	for _, m := range d.members { // any of them may come to reflect
		_, _ = fmt.Fprintf(&conf, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 1\n neighbor %[1]s ttl-security hops 1\n neighbor %[1]s password %[3]s\n", m.address, d.asn, d.name)
	}
	_, _ = fmt.Fprintf(&conf, " address-family ipv4 unicast\n  network 0.0.0.0/0\n  network 198.19.77.0/24\n  maximum-paths 4\n")
	for _, m := range d.members {
		_, _ = fmt.Fprintf(&conf, "  neighbor %s activate\n", m.address)
	}
	h.frr(conf.String() + " exit-address-family\n")
}

// firewall lets one pair of hosts of the two Zones through, and counts.
func (s *site) firewall() {
	a, b := s.yellow.members[2].service(), s.red.members[2].service()
	need(s.core.rig.t, "nft")
	file := write(s.core.rig.t, filepath.Join(s.core.dir, "nft"), fmt.Sprintf(`table inet fw {
 counter permitted {}
 counter denied {}
 chain forward {
  type filter hook forward priority filter; policy drop;
  ip saddr %[1]s ip daddr %[2]s counter name permitted accept
  ip saddr %[2]s ip daddr %[1]s counter name permitted accept
  counter name denied drop
 }
}
`, a, b))
	s.core.in("nft", "-f", file)
}

// counted is how many packets the firewall has counted.
func (s *site) counted(counter string) int {
	out := s.core.in("nft", "list", "counter", "inet", "fw", counter)
	m := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	if m == nil {
		s.core.rig.t.Fatalf("no packets in %q", out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func pairKey(a, b *host) string { return min(a.name, b.name) + max(a.name, b.name) }

// neighbor is other to h, as hostspec's bgpCompiler.host has it.
func (d *domain) neighbor(h, other *host, role string) api.BGPNeighbor {
	n := api.BGPNeighbor{Name: other.name, Address: other.address, Source: h.address, ASN: d.asn, Role: role, Password: pairKey(h, other),
		Passive: role == api.BGPClient || slices.Contains(d.reflectors, h) && h.name > other.name}
	if role == api.BGPReflector {
		n.Import = []api.PrefixFilter{{Prefix: d.prefix, LE: 32}, {Prefix: netip.MustParsePrefix("0.0.0.0/0")}}
	}
	return n
}

func (d *domain) part(h *host) api.BGPPart {
	p := api.BGPPart{Zone: d.name, ASN: d.asn, RouterID: h.address, Role: api.BGPClient, Community: fmt.Sprintf("%d:1:1", d.asn),
		Listen: []netip.Addr{h.address}, NextHops: []netip.Addr{h.address}, ZoneNextHops: prefixes(fmt.Sprintf("198.18.%d.0/24", d.segment)),
		Originate: []netip.Prefix{h.lease()}, GracefulRestart: api.Duration(time.Minute), AllPaths: true}
	if !slices.Contains(d.reflectors, h) {
		for _, r := range d.reflectors {
			p.Neighbors = append(p.Neighbors, d.neighbor(h, r, api.BGPReflector))
		}
		return p
	}
	p.Role, p.ClusterID, p.Aggregates = api.BGPReflector, h.address, []netip.Prefix{d.prefix}
	for _, other := range slices.Concat(d.members, d.strays) {
		switch {
		case other == h:
		case slices.Contains(d.reflectors, other):
			p.Neighbors = append(p.Neighbors, d.neighbor(h, other, api.BGPReflector))
		default:
			p.Neighbors = append(p.Neighbors, d.neighbor(h, other, api.BGPClient))
			p.Accept = append(p.Accept, api.BGPAccept{Client: other.name, Prefixes: []netip.Prefix{other.lease()}, NextHops: []netip.Addr{other.address}})
		}
	}
	for _, l := range d.leafs {
		p.Neighbors = append(p.Neighbors, api.BGPNeighbor{Name: l.address.String(), Address: l.address, Source: h.address, ASN: leafASN, Role: api.BGPUplink,
			Password: d.name, Import: exact("0.0.0.0/0"), Export: exactly([]netip.Prefix{d.prefix})})
	}
	return p
}

// tell gives every host its part, one after the other: bootd's streams are not
// in step either.
func (d *domain) tell(order ...*host) {
	d.t.Helper()
	for _, h := range order {
		h.give(d.part(h))
		time.Sleep(300 * time.Millisecond)
	}
}

// whole reports whether every session that there should be is up, and every
// host's kernel leads to all others' leases and out.
func (d *domain) whole() error {
	for _, h := range d.members {
		for _, n := range d.part(h).Neighbors {
			if slices.ContainsFunc(d.strays, func(s *host) bool { return s.name == n.Name }) {
				continue
			}
			if err := up(h, n.Name)(); err != nil {
				return err
			}
		}
		routes := h.routes()
		for _, other := range d.members {
			if line := other.lease().String() + " via " + other.address.String() + " "; other != h && !strings.Contains(routes, line) {
				return fmt.Errorf("%s lacks %s:\n%s", h.name, line, routes)
			}
		}
		// A reflector has a default by each leaf, and tells clients of the best.
		if !strings.HasPrefix(routes, "default ") {
			return fmt.Errorf("%s has no default:\n%s", h.name, routes)
		}
	}
	return nil
}

// contained reports whether no host has a route but of its own Zone, or the
// default that the uplinks are let tell.
func (d *domain) contained() error {
	for _, h := range d.members {
		for _, line := range strings.Split(h.in("ip", "route", "show", "table", "all", "proto", "217"), "\n") {
			words := strings.Fields(strings.TrimPrefix(line, "blackhole "))
			if len(words) == 0 || words[0] == "default" || words[0] == "nexthop" {
				continue
			}
			if p, err := netip.ParsePrefix(words[0]); err != nil || !d.prefix.Contains(p.Addr()) || p.Bits() < d.prefix.Bits() {
				return fmt.Errorf("%s of Zone %s has %q", h.name, d.name, line)
			}
		}
	}
	return nil
}

func pings(from, to *host) bool {
	return exec.Command("ip", "netns", "exec", from.rig.id+from.name, "ping", "-q", "-c", "1", "-W", "2", "-I", from.service(), to.service()).Run() == nil
}

// traffic is packets that flow until they are stopped.
type traffic struct {
	t     testing.TB
	flows map[string]*exec.Cmd
	out   map[string]*strings.Builder
}

// flow begins to send from each first to its second host, 50 a second.
func flow(t testing.TB, pairs ...[2]*host) *traffic {
	t.Helper()
	f := &traffic{t: t, flows: map[string]*exec.Cmd{}, out: map[string]*strings.Builder{}}
	for _, p := range pairs {
		f.add(p[0].name+" to "+p[1].name, p[0], "-I", p[0].service(), p[1].service())
	}
	time.Sleep(300 * time.Millisecond)
	return f
}

// flowTo begins to send from a host to an address.
func flowTo(t testing.TB, from *host, to string) *traffic {
	t.Helper()
	f := &traffic{t: t, flows: map[string]*exec.Cmd{}, out: map[string]*strings.Builder{}}
	f.add(from.name+" to "+to, from, to)
	time.Sleep(300 * time.Millisecond)
	return f
}

func (f *traffic) add(name string, from *host, args ...string) {
	f.t.Helper()
	c := exec.Command("ip", append([]string{"netns", "exec", from.rig.id + from.name, "ping", "-n", "-q", "-i", "0.02"}, args...)...)
	f.out[name] = &strings.Builder{}
	c.Stdout, c.Stderr = f.out[name], f.out[name]
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(f.t, c.Start())
	f.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	f.flows[name] = c
}

// lost ends the traffic and tells how many packets came to nothing. The last
// may still have been on its way.
func (f *traffic) lost() int {
	f.t.Helper()
	all := 0
	for name, c := range f.flows {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
		m := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(f.out[name].String())
		if m == nil {
			f.t.Fatalf("ping %s says:\n%s", name, f.out[name])
		}
		sent, _ := strconv.Atoi(m[1])
		received, _ := strconv.Atoi(m[2])
		lost := sent - received
		f.t.Logf("%s: %d of %d packets lost", name, lost, sent)
		if lost > 1 {
			all += lost
		}
	}
	return all
}

// Two Zones, whole: what is in a Zone reaches all of it, and nothing passes
// between Zones but by the firewall.
func TestTopology(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel()
	s := newSite(t)
	yellow, red := s.yellow, s.red
	y1, y2, y3, y4, y5 := yellow.members[0], yellow.members[1], yellow.members[2], yellow.members[3], yellow.members[4]
	r3 := red.members[2]
	stray := red.host("stray", 166)
	red.strays = []*host{stray}
	for _, d := range []*domain{yellow, red} {
		for _, h := range d.members {
			h.give(d.part(h))
			h.speak()
		}
	}
	// The stray stands in red and has a part of yellow, with red's reflectors in it.
	wrong := yellow.part(y3)
	wrong.RouterID, wrong.Listen, wrong.NextHops, wrong.Originate = stray.address, []netip.Addr{stray.address}, []netip.Addr{stray.address}, []netip.Prefix{stray.lease()}
	wrong.ZoneNextHops = prefixes("198.18.10.0/24")
	wrong.Neighbors = nil
	for _, r := range red.reflectors {
		n := red.neighbor(stray, r, api.BGPReflector)
		n.ASN, n.Import = yellow.asn, append(n.Import, yellow.neighbor(y3, y1, api.BGPReflector).Import...)[1:]
		wrong.Neighbors = append(wrong.Neighbors, n)
	}
	stray.give(wrong)
	stray.speak()
	step := time.Now()
	took := func(what string) { t.Logf("%s: %.1f s", what, time.Since(step).Seconds()); step = time.Now() }

	eventually(t, yellow.whole, red.whole)
	took("all up")
	t.Run("within a Zone all reach all", func(t *testing.T) {
		for _, d := range []*domain{yellow, red} {
			for _, a := range d.members {
				for _, b := range d.members {
					if a != b && !pings(a, b) {
						t.Errorf("%s does not reach %s", a.name, b.name)
					}
				}
			}
		}
	})
	t.Run("between Zones only what the firewall lets through", func(t *testing.T) {
		must(t, yellow.contained())
		must(t, red.contained())
		eventually(t, func() error {
			if !pings(y3, r3) {
				return fmt.Errorf("what the firewall permits does not come through; leafs and core have\n%s\n%s\n%s", yellow.leafs[0].in("ip", "route"), red.leafs[0].in("ip", "route"), s.core.in("ip", "route"))
			}
			return nil
		})
		permitted := s.counted("permitted")
		if !pings(y3, r3) || s.counted("permitted") != permitted+2 {
			t.Errorf("what is permitted does not pass the firewall: %d packets there, then %d", permitted, s.counted("permitted"))
		}
		denied := s.counted("denied")
		if pings(y4, r3) || pings(y3, red.members[3]) || s.counted("denied") != denied+2 {
			t.Errorf("what is denied: %d packets at the firewall, then %d", denied, s.counted("denied"))
		}
	})
	t.Run("a host with another Zone's part", func(t *testing.T) {
		for _, r := range red.reflectors {
			if got := r.session(stray.name); got.Name == "" || got.Established() {
				t.Errorf("%s's session with the stray: %+v", r.name, got)
			}
			if got := stray.session(r.name); got.Name == "" || got.Established() {
				t.Errorf("the stray's session with %s: %+v", r.name, got)
			}
		}
		if got := stray.routes(); got != "" {
			t.Errorf("the stray has\n%s", got)
		}
		for _, h := range red.members {
			must(t, h.lacks(stray.lease().String())())
		}
	})
	took("reach")
	t.Run("kill -9 of a speaker", func(t *testing.T) {
		f := flow(t, [2]*host{y3, y4}, [2]*host{y3, r3})
		y3.kill()
		time.Sleep(time.Second)
		y3.speak()
		eventually(t, yellow.whole)
		if n := f.lost(); n > 0 {
			t.Errorf("%d packets are lost", n)
		}
	})
	took("kill")
	t.Run("a reflector dies, then all", func(t *testing.T) {
		f := flow(t, [2]*host{y3, y4}, [2]*host{y4, y2}, [2]*host{y3, r3})
		y1.kill()
		time.Sleep(2 * time.Second)
		y2.kill()
		time.Sleep(2 * time.Second)
		eventually(t, func() error {
			if s := y3.status(); s.HeldSince.IsZero() {
				return fmt.Errorf("y3 does not hold its routes: %s", s.Line())
			}
			return nil
		})
		y1.speak()
		y2.speak()
		eventually(t, yellow.whole)
		if n := f.lost(); n > 0 {
			t.Errorf("%d packets are lost", n)
		}
	})
	took("reflectors")
	t.Run("rolling replacement of both reflectors", func(t *testing.T) {
		f := flow(t, [2]*host{y3, y4}, [2]*host{y3, y5}, [2]*host{y5, y1}, [2]*host{y1, y2}, [2]*host{y3, r3})
		yellow.reflectors = []*host{y1, y2, y4, y5}
		yellow.tell(y4, y1, y3, y2, y5)
		eventually(t, yellow.whole)
		took("both new reflect")
		yellow.reflectors = []*host{y4, y5}
		yellow.tell(y1, y3, y4, y2, y5)
		eventually(t, yellow.whole)
		must(t, yellow.contained())
		if n := f.lost(); n > 0 {
			t.Errorf("%d packets are lost", n)
		}
	})
	took("replacement")
	t.Run("kill -9 of a new reflector", func(t *testing.T) {
		// Who connects has changed, too: y1 to y4 now.
		f := flow(t, [2]*host{y3, y4}, [2]*host{y1, y4}, [2]*host{y1, y2})
		y4.kill()
		time.Sleep(2 * time.Second)
		y4.speak()
		eventually(t, yellow.whole)
		if n := f.lost(); n > 0 {
			t.Errorf("%d packets are lost", n)
		}
	})
	took("new reflector")
	t.Run("both uplinks are used", func(t *testing.T) {
		eventually(t, func() error {
			routes := y3.routes()
			for _, l := range yellow.leafs {
				if !strings.Contains(routes, "nexthop via "+l.address.String()+" ") {
					return fmt.Errorf("y3 does not go by %s:\n%s", l.name, routes)
				}
			}
			return nil
		})
		sent := func(leaf *host) int {
			n, err := strconv.Atoi(strings.TrimSpace(leaf.in("cat", "/sys/class/net/core/statistics/tx_packets")))
			must(t, err)
			return n
		}
		before := []int{sent(yellow.leafs[0]), sent(yellow.leafs[1])}
		// By which leaf it goes depends on the address; the firewall denies them all.
		y3.in("sh", "-c", "for i in $(seq 64); do ping -q -c 1 -w 1 -I "+y3.service()+" 198.19.90.$i & done; wait")
		for i, l := range yellow.leafs {
			if n := sent(l) - before[i]; n < 8 {
				t.Errorf("of packets to 64 addresses %d went by %s", n, l.name)
			}
		}
	})
	took("both uplinks")
	t.Run("an uplink is lost", func(t *testing.T) {
		f := flow(t, [2]*host{y3, r3})
		leaf := yellow.leafs[0]
		leaf.in("ip", "link", "set", "eth0", "down")
		s.core.in("ip", "link", "set", leaf.name, "down")
		eventually(t, func() error {
			if got := y3.routes(); strings.Contains(got, leaf.address.String()) {
				return fmt.Errorf("y3 still goes by %s:\n%s", leaf.name, got)
			}
			return nil
		})
		n := f.lost()
		t.Logf("%d packets lost: %.1f s", n, float64(n)/50)
		if !pings(y3, r3) {
			t.Error("the other uplink does not take over")
		}
	})
	took("uplink")
	must(t, yellow.contained())
	must(t, red.contained())
}
