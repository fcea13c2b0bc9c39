package bgp

import (
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

const (
	zoneASN = 64601
	mark    = "64601:1:7"
)

// zone is a rig with two reflectors and clients; host number N may originate
// 198.19.N.0/24 and 2001:db8:N::/48.
type zone struct {
	*rig
	reflectors, clients []*host
	uplinks             map[string][]api.BGPNeighbor // by reflector
	extra               func(*host, *api.BGPPart)
}

func newZone(t testing.TB, clients int) *zone {
	z := &zone{rig: newRig(t), uplinks: map[string][]api.BGPNeighbor{}}
	for i := range 2 {
		z.reflectors = append(z.reflectors, z.host(fmt.Sprintf("r%d", i+1), byte(i+1)))
	}
	for i := range clients {
		z.clients = append(z.clients, z.host(fmt.Sprintf("c%d", i+1), byte(i+11)))
	}
	return z
}

func (h *host) own() []netip.Prefix {
	n := h.address.As4()[3]
	return prefixes(fmt.Sprintf("198.19.%d.0/24", n), fmt.Sprintf("2001:db8:%d::/48", n))
}

// key is the MD5 key of a session.
func key(a, b *host) string { return a.name + b.name }

func (z *zone) part(h *host) api.BGPPart {
	p := api.BGPPart{Zone: "yellow", ASN: zoneASN, RouterID: h.address, Role: api.BGPClient, Community: mark,
		NextHops: []netip.Addr{h.address, h.v6()}, ZoneNextHops: prefixes("198.18.9.0/24", "2001:db8::/64"),
		Originate: h.own(), GracefulRestart: api.Duration(40 * time.Second), AllPaths: true}
	if slices.Contains(z.reflectors, h) {
		p.Role, p.Listen = api.BGPReflector, []netip.Addr{h.address}
		p.Neighbors = append(p.Neighbors, z.uplinks[h.name]...)
		for _, c := range z.clients {
			p.Neighbors = append(p.Neighbors, api.BGPNeighbor{Name: c.name, Address: c.address, ASN: zoneASN, Role: api.BGPClient,
				Passive: true, Password: key(h, c), HoldTime: api.Duration(30 * time.Second)})
			p.Accept = append(p.Accept, api.BGPAccept{Client: c.name, Prefixes: c.own(), NextHops: []netip.Addr{c.address, c.v6()}})
		}
	} else {
		for _, r := range z.reflectors {
			p.Neighbors = append(p.Neighbors, api.BGPNeighbor{Name: r.name, Address: r.address, ASN: zoneASN, Role: api.BGPReflector,
				Password: key(r, h), HoldTime: api.Duration(30 * time.Second),
				Import: []api.PrefixFilter{{Prefix: netip.MustParsePrefix("198.19.0.0/16"), LE: 32}, {Prefix: netip.MustParsePrefix("2001:db8::/32"), LE: 64},
					{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}})
		}
	}
	if z.extra != nil {
		z.extra(h, &p)
	}
	return p
}

// tell gives every host its part.
func (z *zone) tell() {
	for _, h := range slices.Concat(z.reflectors, z.clients) {
		z.t.Helper()
		h.give(z.part(h))
	}
}

// bird makes h a client that runs BIRD, which exports what routes say.
func (z *zone) bird(h *host, routes string) {
	z.t.Helper()
	need(z.t, "bird")
	text := fmt.Sprintf("log stderr all;\nrouter id %s;\nprotocol device { scan time 1; }\nprotocol direct { ipv4; }\nprotocol kernel { ipv4 { export where source = RTS_BGP; }; }\nprotocol static { ipv4; %s }\n", h.address, routes)
	for _, r := range z.reflectors {
		text += fmt.Sprintf(`protocol bgp %s {
  local %s as %d; neighbor %s as %d; password "%s"; ttl security on; graceful restart on; connect delay time 1; connect retry time 3; error wait time 2, 4;
  ipv4 { import all; export where source = RTS_STATIC; next hop keep; add paths rx; };
}
`, r.name, h.address, zoneASN, r.address, zoneASN, key(r, h))
	}
	h.begin(nil, "bird", "-f", "-c", write(z.t, filepath.Join(h.dir, "bird.conf"), text), "-s", filepath.Join(h.dir, "ctl"))
}

// frrClient makes h a client that runs FRR, without a kernel to program. restarts
// is what it makes of graceful ones.
func (z *zone) frrClient(h *host, restarts string) {
	z.t.Helper()
	bgpd := need(z.t, "/usr/lib/frr/bgpd")
	text := fmt.Sprintf("router bgp %d\n bgp router-id %s\n %s\n", zoneASN, h.address, restarts)
	for _, r := range z.reflectors {
		text += fmt.Sprintf(" neighbor %[1]s remote-as %[2]d\n neighbor %[1]s timers connect 3\n neighbor %[1]s ttl-security hops 1\n neighbor %[1]s password %[3]s\n", r.address, zoneASN, key(r, h))
	}
	h.begin(nil, bgpd, "-Z", "-S", "-n", "-f", write(z.t, filepath.Join(h.dir, "bgpd.conf"), text), "-i", filepath.Join(h.dir, "pid"), "--vty_socket", h.dir, "-P", "0", "--log", "stdout")
}

// frr makes h a border leaf of AS 64600 that runs FRR.
func (z *zone) frr(h, reflector *host) {
	z.t.Helper()
	bgpd := need(z.t, "/usr/lib/frr/bgpd")
	conf := write(z.t, filepath.Join(h.dir, "bgpd.conf"), fmt.Sprintf(`router bgp 64600
 bgp router-id %[1]s
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor %[2]s remote-as %[3]d
 neighbor %[2]s timers 3 9
 neighbor %[2]s timers connect 3
 neighbor %[2]s ttl-security hops 1
 neighbor %[2]s password leaf
 address-family ipv4 unicast
  network 0.0.0.0/0
  network 198.18.200.0/24
  network 198.19.11.0/24
  neighbor %[2]s activate
 exit-address-family
`, h.address, reflector.address, zoneASN))
	h.begin(nil, bgpd, "-Z", "-S", "-n", "-f", conf, "-i", filepath.Join(h.dir, "pid"), "--vty_socket", h.dir, "-P", "0", "--log", "stdout")
	z.uplinks[reflector.name] = append(z.uplinks[reflector.name], leaf(h, "leaf"))
}

// gobgpd makes h a border leaf of AS 64600 that runs gobgpd.
func (z *zone) gobgpd(h, reflector *host) {
	z.t.Helper()
	need(z.t, "gobgpd")
	conf := write(z.t, filepath.Join(h.dir, "gobgpd.toml"), fmt.Sprintf(`[global.config]
  as = 64600
  router-id = "%s"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "%s"
    peer-as = %d
    auth-password = "leaf"
  [neighbors.ttl-security.config]
    enabled = true
    ttl-min = 255
  [neighbors.timers.config]
    connect-retry = 3
    hold-time = 9
    keepalive-interval = 3
`, h.address, reflector.address, zoneASN))
	h.begin(nil, "gobgpd", "-f", conf, "--api-hosts", "127.0.0.1:50051")
	eventually(z.t, func() error {
		return exec.Command("ip", "netns", "exec", z.id+h.name, "gobgp", "global", "rib", "add", "0.0.0.0/0", "nexthop", h.address.String(), "origin", "igp", "med", "0").Run()
	})
	z.uplinks[reflector.name] = append(z.uplinks[reflector.name], leaf(h, "leaf"))
}

func leaf(h *host, password string) api.BGPNeighbor {
	return api.BGPNeighbor{Name: h.name, Address: h.address, ASN: 64600, Role: api.BGPUplink, Password: password,
		Import: exact("0.0.0.0/0"), Export: exact("198.19.0.0/16", "198.19.12.0/24")}
}

func need(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed: see lab/deps", name)
	}
	return path
}

// A Zone whole: everybody's routes reach everybody's kernel, and nothing else.
func TestZone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	z := newZone(t, 4)
	c1, c2, c3, foreign := z.clients[0], z.clients[1], z.clients[2], z.clients[3]
	r1, r2 := z.reflectors[0], z.reflectors[1]
	leaf1, leaf2 := z.host("l1", 201), z.host("l2", 202)
	z.frr(leaf1, r1)
	z.gobgpd(leaf2, r2)
	z.extra = func(h *host, p *api.BGPPart) {
		if p.Role == api.BGPReflector {
			p.Aggregates = prefixes("198.19.0.0/16")
		}
	}
	z.tell()
	for _, h := range []*host{r1, r2, c1, c2, c3} {
		h.speak()
	}
	// Of what the foreign client says, one route may be told.
	z.bird(foreign, `route 198.19.14.0/24 via `+foreign.address.String()+`;
		route 198.19.12.128/25 via `+foreign.address.String()+`;
		route 198.19.99.0/24 via `+foreign.address.String()+`;
		route 0.0.0.0/0 via `+foreign.address.String()+`;
		route 169.254.7.0/24 via `+foreign.address.String()+`;`)

	t.Run("routes", func(t *testing.T) {
		eventually(t,
			c1.has("198.19.12.0/24", c2.address.String()), c2.has("198.19.11.0/24", c1.address.String()),
			c3.has("198.19.11.0/24", c1.address.String()), c3.has("198.19.14.0/24", foreign.address.String()),
			c1.has("2001:db8:12::/48", "2001:db8::12"), r1.has("198.19.11.0/24", c1.address.String()),
			r1.has("default", leaf1.address.String()), r2.has("default", leaf2.address.String()),
			func() error {
				got := foreign.in("ip", "route")
				if !strings.Contains(got, "198.19.11.0/24 via "+c1.address.String()) {
					return fmt.Errorf("BIRD's kernel lacks c1's prefix:\n%s", got)
				}
				return nil
			})
	})
	t.Run("ECMP by two leafs", func(t *testing.T) {
		eventually(t, func() error {
			got := c1.routes()
			for _, l := range []*host{leaf1, leaf2} {
				if !regexp.MustCompile(`default .*\n(\s+nexthop .*\n)*\s+nexthop via ` + regexp.QuoteMeta(l.address.String())).MatchString(got) {
					return fmt.Errorf("no default by %s:\n%s", l.name, got)
				}
			}
			return nil
		})
	})
	t.Run("containment", func(t *testing.T) {
		for _, h := range []*host{c1, c3, r1, r2} {
			for _, p := range []string{"198.19.12.128/25", "198.19.99.0/24", "169.254.7.0/24", "198.18.200.0/24"} {
				must(t, h.lacks(p)())
			}
		}
		must(t, c3.has("198.19.11.0/24", c1.address.String())()) // the leaf says so, too
		if got := r1.routes(); strings.Contains(got, "default via "+foreign.address.String()) {
			t.Errorf("a client's default is taken:\n%s", got)
		}
	})
	t.Run("the policy test says the same", func(t *testing.T) {
		for _, q := range []struct {
			Question
			want bool
		}{
			{Question{From: "c4", Prefix: netip.MustParsePrefix("198.19.14.0/24")}, true},
			{Question{From: "c4", Prefix: netip.MustParsePrefix("198.19.99.0/24")}, false},
			{Question{From: "c4", Prefix: netip.MustParsePrefix("198.19.14.0/24"), NextHop: c1.address}, false},
			{Question{From: "l1", Prefix: netip.MustParsePrefix("0.0.0.0/0"), ASPath: []uint32{64600}}, true},
			{Question{From: "l1", Prefix: netip.MustParsePrefix("198.18.200.0/24"), ASPath: []uint32{64600}}, false},
			{Question{From: "l1", Prefix: netip.MustParsePrefix("0.0.0.0/0"), ASPath: []uint32{64600, 64700}}, false},
			{Question{From: "c9", Prefix: netip.MustParsePrefix("198.19.14.0/24")}, false},
		} {
			v, err := r1.client().Test(t.Context(), q.Question)
			if err != nil || v.Accepted != q.want || v.Reason == "" {
				t.Errorf("%+v: %+v, %v; want %v", q.Question, v, err, q.want)
			}
		}
	})
	t.Run("uplink", func(t *testing.T) {
		eventually(t, func() error {
			got := leaf2.in("gobgp", "global", "rib")
			if !strings.Contains(got, "198.19.0.0/16") || !strings.Contains(got, "198.19.12.0/24") {
				return fmt.Errorf("the leaf lacks the aggregate or what is listed:\n%s", got)
			}
			if strings.Contains(got, "198.19.11.0/24") || strings.Contains(got, leaf1.address.String()) {
				return fmt.Errorf("the leaf is told too much:\n%s", got)
			}
			return nil
		})
		if got := r2.routes(); !strings.Contains(got, "blackhole 198.19.0.0/16") {
			t.Errorf("the aggregate has no blackhole:\n%s", got)
		}
		must(t, c1.lacks("198.19.0.0/16")())
	})
	t.Run("what each neighbour is told is counted", func(t *testing.T) {
		for _, h := range []*host{r1, r2, c1} {
			eventually(t, func() error {
				for _, n := range h.status().Sessions {
					told, err := h.client().Routes(t.Context(), "out", n.Name)
					if err != nil {
						return err
					}
					if n.Advertised != len(told) || n.Advertised == 0 {
						return fmt.Errorf("%s tells %s of %d paths, and counts %d", h.name, n.Name, len(told), n.Advertised)
					}
				}
				return nil
			})
		}
	})
	t.Run("audit", func(t *testing.T) {
		var mine Session
		eventually(t, func() error { // what changed last is on its way
			status, err := c2.client().StatusWithDigests(t.Context())
			if err != nil {
				return err
			}
			mine = status.Sessions[0]
			told, err := r1.client().Routes(t.Context(), "out", "c2")
			if err == nil && (mine.Name != "r1" || mine.Digest == "" || mine.Received != len(told)) {
				err = fmt.Errorf("r1 tells c2 of %d paths, and that has %+v", len(told), mine)
			}
			return err
		})
		a, err := r1.client().Audit(t.Context(), "c2", mine.Digest)
		if err != nil || a.Healed || a.Count != mine.Received {
			t.Errorf("what c2 has received does not match: %+v, %v, c2 has %+v", a, err, mine)
		}
		if a, err = r1.client().Audit(t.Context(), "c2", "something else"); err != nil || !a.Healed || r1.status().Healed != 1 {
			t.Errorf("a difference is not healed: %+v, %v", a, err)
		}
	})
	t.Run("a change of members drops no session", func(t *testing.T) {
		before := r1.status().Sessions
		z.clients = append(z.clients, z.host("c5", 15))
		z.clients = slices.Delete(z.clients, 2, 3) // c3 leaves
		z.tell()
		z.clients[len(z.clients)-1].speak()
		eventually(t, z.clients[len(z.clients)-1].has("198.19.11.0/24", c1.address.String()),
			c1.has("198.19.15.0/24", "198.18.9.15"), c1.lacks("198.19.13.0/24"))
		for _, was := range before {
			if is := r1.session(was.Name); was.Name != "c3" && was.Established() && is.Since != was.Since {
				t.Errorf("%s: session since %s, before %s (%s)", was.Name, is.Since, was.Since, is.Reason)
			}
		}
	})
	t.Run("what a client may originate changes", func(t *testing.T) {
		since := r1.session("c2").Since
		z.extra = func(h *host, p *api.BGPPart) {
			for i, a := range p.Accept {
				if a.Client == "c2" {
					p.Accept[i].Prefixes = prefixes("2001:db8:12::/48")
				}
			}
		}
		z.tell()
		eventually(t, c1.lacks("198.19.12.0/24"), r1.lacks("198.19.12.0/24"))
		z.extra = nil
		z.tell()
		eventually(t, c1.has("198.19.12.0/24", c2.address.String()))
		if got := r1.session("c2"); got.Since != since {
			t.Errorf("the session with c2 dropped: %+v", got)
		}
	})
	t.Run("drain", func(t *testing.T) {
		z.extra = func(h *host, p *api.BGPPart) { p.Drain = h == c2 }
		z.tell()
		eventually(t, func() error {
			routes, err := c1.client().Routes(t.Context(), "", "")
			must(t, err)
			for _, r := range routes {
				if r.Prefix == c2.own()[0] && (r.LocalPref != 1 || !slices.Contains(r.Communities, gracefulShutdown)) {
					return fmt.Errorf("c2 drains, and c1 has %+v", r)
				}
			}
			return nil
		})
		z.extra = nil
		z.tell()
	})
	t.Run("kill -9 of a client", func(t *testing.T) { killClient(t, c1, c2) })
	t.Run("kill -9 of a reflector", func(t *testing.T) {
		r1.kill()
		time.Sleep(2 * time.Second)
		must(t, c1.has("198.19.12.0/24", c2.address.String())())
		eventually(t, func() error {
			if s := c1.session("r1"); s.Established() || s.Reason == "" || s.Flaps() == 0 {
				return fmt.Errorf("r1 is dead, and c1 says %+v", s)
			}
			return nil
		})
		r1.speak()
		eventually(t, up(c1, "r1"), up(c2, "r1"), c1.has("198.19.12.0/24", c2.address.String()))
	})
	t.Run("kill -9 of all reflectors", func(t *testing.T) {
		r1.kill()
		r2.kill()
		eventually(t, func() error {
			if c1.status().HeldSince.IsZero() {
				return fmt.Errorf("%s", c1.status().Line())
			}
			return nil
		})
		must(t, c1.has("198.19.12.0/24", c2.address.String())())
		r1.speak()
		r2.speak()
		eventually(t, up(c1, "r1"), up(c1, "r2"), c1.has("198.19.12.0/24", c2.address.String()))
	})
}

// killClient kills c1's speaker while c2 pings an address of c1's prefix.
func killClient(t *testing.T, c1, c2 *host) {
	c1.in("ip", "addr", "add", "198.19.11.1/32", "dev", "lo")
	c2.in("ip", "addr", "add", "198.19.12.1/32", "dev", "lo")
	f := flow(t, [2]*host{c2, c1})
	before := c1.routes()
	c1.kill()
	if got := c1.routes(); got != before {
		t.Errorf("the kernel's routes went with the speaker:\n%s\nbefore:\n%s", got, before)
	}
	time.Sleep(time.Second)
	c1.speak()
	eventually(t, up(c1, "r1"), up(c1, "r2"))
	eventually(t, func() error {
		if !c1.status().Settled {
			return fmt.Errorf("c1 does not settle: %s", c1.status().Line())
		}
		if got := c1.routes(); got != before {
			return fmt.Errorf("after the restart the kernel has:\n%s\nbefore:\n%s", got, before)
		}
		return nil
	})
	if n := f.lost(); n > 0 {
		t.Errorf("%d packets are lost", n)
	}
}
