package e2e

import (
	"context"
	"errors"
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

// zoneSite is two Zones of one bootd: each has its hosts, and its VRF on border
// leafs; between the VRFs is the core's firewall alone.
type zoneSite struct {
	*desk
	yellow, red *deskZone
	core        string // the firewall's namespace
}

// deskZone is one of the Zones. Host N has 198.18.SEGMENT.N.
type deskZone struct {
	name          string
	asn, segment  int
	prefix, loops string
	members       []*deskHost
	leafs         []*deskLeaf
}

// deskLeaf is a VRF on a border leaf: FRR in a namespace.
type deskLeaf struct{ ns, address string }

const coreASN = 64600

func newZoneSite(t *testing.T) *zoneSite {
	t.Helper()
	for _, name := range []string{"/usr/lib/frr/bgpd", "/usr/lib/frr/zebra", "nft", "ping"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed: run lab/deps", name)
		}
	}
	s := &zoneSite{desk: newDesk(t),
		yellow: &deskZone{name: "yellow", asn: 64601, segment: 8, prefix: "198.18.64.0/18", loops: "198.18.127.0/24"},
		red:    &deskZone{name: "red", asn: 64602, segment: 9, prefix: "198.18.128.0/18", loops: "198.18.191.0/24"}}
	s.core = s.namespace("core")
	s.in(s.core, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	for _, z := range []*deskZone{s.yellow, s.red} {
		s.segment(z.name, "")
	}
	for i := range 4 {
		s.member(s.yellow, i+11)
	}
	for i := range 3 {
		s.member(s.red, i+21)
	}
	s.leaf(s.yellow, 201)
	s.leaf(s.yellow, 202)
	s.leaf(s.red, 203)
	return s
}

// member adds a host, which is told of its MACs and racks by machine.
func (s *zoneSite) member(z *deskZone, number int) {
	s.t.Helper()
	h := s.host(fmt.Sprintf("%s%d", z.name[:1], number%10), number)
	s.wire(h.ns, "prod", h.mac(1), z.name, fmt.Sprintf("198.18.%d.%d/24", z.segment, number))
	z.members = append(z.members, h)
}

// leaf adds a VRF: FRR, which any host of the Zone may come to peer with, and a
// link to the core.
func (s *zoneSite) leaf(z *deskZone, number int) {
	s.t.Helper()
	name := fmt.Sprintf("leaf%d", number)
	l := &deskLeaf{ns: s.namespace(name), address: fmt.Sprintf("198.18.%d.%d", z.segment, number)}
	z.leafs = append(z.leafs, l)
	s.wire(l.ns, "prod", fmt.Sprintf("52:54:00:02:00:%02x", number), z.name, l.address+"/24")
	near, far := fmt.Sprintf("198.18.%d.2", number), fmt.Sprintf("198.18.%d.1", number)
	s.run("ip", "-n", l.ns, "link", "add", "core", "type", "veth", "peer", "name", name, "netns", s.core)
	s.run("ip", "-n", s.core, "addr", "add", far+"/30", "dev", name)
	s.run("ip", "-n", s.core, "link", "set", name, "up")
	s.run("ip", "-n", l.ns, "addr", "add", near+"/30", "dev", "core")
	s.run("ip", "-n", l.ns, "link", "set", "core", "up")
	s.run("ip", "-n", l.ns, "route", "add", "default", "via", far)
	s.run("ip", "-n", s.core, "route", "add", z.prefix, "via", near, "metric", strconv.Itoa(number))
	s.in(l.ns, "sysctl", "-qw", "net.ipv4.ip_forward=1")

	dir, err := os.MkdirTemp("", "leaf") // which zebra, as frr, reaches
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var conf strings.Builder
	fmt.Fprintf(&conf, "router bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n no bgp network import-check\n", coreASN, l.address)
	var activate strings.Builder
	for _, h := range z.members {
		peer := fmt.Sprintf("198.18.%d.%d", z.segment, h.number)
		fmt.Fprintf(&conf, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 1\n neighbor %[1]s ttl-security hops 1\n neighbor %[1]s password %[3]s-key\n", peer, z.asn, z.name)
		fmt.Fprintf(&activate, "  neighbor %s activate\n", peer)
	}
	fmt.Fprintf(&conf, " address-family ipv4 unicast\n  network 0.0.0.0/0\n  network 198.18.250.0/24\n  maximum-paths 4\n%s exit-address-family\n", activate.String())
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			s.t.Fatal(err)
		}
		return path
	}
	zserv := filepath.Join(dir, "zserv")
	common := []string{"--vty_socket", dir, "-P", "0", "--log", "stdout", "-z", zserv}
	s.start(l.ns, name+"-zebra", append([]string{"/usr/lib/frr/zebra", "-f", file("empty.conf", ""), "-i", filepath.Join(dir, "zebra.pid")}, common...)...)
	s.wait("zebra listens", func(context.Context) error { _, err := os.Stat(zserv); return err })
	s.start(l.ns, name+"-bgpd", append([]string{"/usr/lib/frr/bgpd", "-S", "-f", file("bgpd.conf", conf.String()), "-i", filepath.Join(dir, "bgpd.pid")}, common...)...)
}

func (z *deskZone) manifest(more string) string {
	text := fmt.Sprintf(`
apiVersion: rackweft/v1alpha1
kind: Zone
metadata: {name: %s}
spec:
  asn: %d
  prefixes: [%s]
  loopbacks: [%s]
  bgp: {gracefulRestart: 1m}
%s  uplinks:
`, z.name, z.asn, z.prefix, z.loops, more)
	for _, l := range z.leafs {
		text += fmt.Sprintf("    - {address: %s, asn: %d, secret: %s-leaf, import: [{prefix: 0.0.0.0/0}]}\n", l.address, coreASN, z.name)
	}
	return text
}

// manifests are of everything.
func (s *zoneSite) manifests() string {
	text := deskBasics + s.imageOS(nil, []byte("a kernel"), []byte("an initrd"))
	for _, z := range []*deskZone{s.yellow, s.red} {
		lease, _, _ := strings.Cut(z.prefix, "/")
		text += "---" + z.manifest("") + fmt.Sprintf(`---
apiVersion: rackweft/v1alpha1
kind: Secret
metadata: {name: %[1]s-leaf}
spec: {data: {password: %[1]s-key}, uses: {uplinks: [%[1]s]}}
---
apiVersion: rackweft/v1alpha1
kind: Subnet
metadata: {name: %[1]s-prod}
spec: {purpose: production, zone: %[1]s, prefixes: [198.18.%[2]d.0/24]}
---
apiVersion: rackweft/v1alpha1
kind: Network
metadata: {name: %[1]s-tenants}
spec: {zone: %[1]s, cidrs: [%[3]s/20], hostPrefix: 24, advertise: true}
`, z.name, z.segment, lease)
		for _, h := range z.members {
			text += "---" + z.machine(h, z.name, z.name)
		}
	}
	return text
}

// machine is h, of a Zone, with its production link on a Zone's Subnet.
func (z *deskZone) machine(h *deskHost, zone, subnet string) string {
	return fmt.Sprintf(`
apiVersion: rackweft/v1alpha1
kind: Machine
metadata: {name: %s}
spec:
  zone: %s
  location: {rack: rack%d}
  profile: worker
  links:
    - {name: pxe, mac: "%s", subnet: pxe}
    - {name: prod, mac: "%s", subnet: %s-prod, addresses: [198.18.%d.%d]}
  boot: {unsolicited: allow}
  state: Active
`, h.name, zone, h.number, h.mac(0), h.mac(1), subnet, z.segment, h.number)
}

func (s *zoneSite) zone(z *deskZone) (*api.Zone, error) {
	return api.Get[api.Zone](s.t.Context(), s.client, z.name)
}

// loopback is the address that bootd has chosen for a host.
func (s *zoneSite) loopback(z *deskZone, h *deskHost) netip.Addr {
	s.t.Helper()
	zone, err := s.zone(z)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range zone.Status.Loopbacks {
		if l.Machine == h.name && len(l.Addresses) > 0 {
			return l.Addresses[0]
		}
	}
	s.t.Fatalf("Zone %s has no loopback for %s: %+v", z.name, h.name, zone.Status.Loopbacks)
	return netip.Addr{}
}

// reflectors are those of a Zone, and whether all of them serve.
func (s *zoneSite) reflectors(z *deskZone) (names []string, serve bool, err error) {
	zone, err := s.zone(z)
	if err != nil {
		return nil, false, err
	}
	serve = true
	for _, r := range zone.Status.Reflectors {
		names = append(names, r.Machine)
		serve = serve && r.State == api.ReflectorServing
	}
	slices.Sort(names)
	return names, serve, nil
}

func (h *deskHost) routes() string { return h.in(h.ns, "ip", "route", "show", "proto", "217") }

// whole wants these reflectors, any two without, every session up as both ends
// see it, and in every host's kernel all others' loopbacks, and the ways out.
func (s *zoneSite) whole(z *deskZone, reflectors ...string) func(context.Context) error {
	return func(context.Context) error {
		names, serve, err := s.reflectors(z)
		if err != nil || !serve || len(names) != 2 || len(reflectors) > 0 && !slices.Equal(names, reflectors) {
			return errors.Join(err, fmt.Errorf("the reflectors of %s are %v, all serving: %v", z.name, names, serve))
		}
		v, err := s.client.ZoneSessions(s.t.Context(), z.name)
		if err != nil {
			return err
		}
		for _, x := range v.Sessions {
			if x.Session.State != api.BGPEstablished {
				return fmt.Errorf("the session of %s and %s is %q: %s %s", x.Host, x.Session.Peer, x.Session.State, x.Session.LastError, x.Message)
			}
		}
		clients := len(z.members) - 2
		if want := 2*clients + 1 + 2*len(z.leafs); len(v.Sessions) != want {
			return fmt.Errorf("%d sessions, want %d: %+v", len(v.Sessions), want, v.Sessions)
		}
		for _, h := range z.members {
			routes := h.routes()
			for _, other := range z.members {
				line := fmt.Sprintf("%s via 198.18.%d.%d ", s.loopback(z, other), z.segment, other.number)
				if other != h && !strings.Contains("\n"+routes, "\n"+line) {
					return fmt.Errorf("%s lacks %q:\n%s", h.name, line, routes)
				}
			}
			for _, l := range z.leafs {
				if !regexp.MustCompile(`(?m)^(default|\s+nexthop) via ` + regexp.QuoteMeta(l.address) + " ").MatchString(routes) {
					return fmt.Errorf("%s has no default by %s:\n%s", h.name, l.address, routes)
				}
			}
		}
		return nil
	}
}

// contained wants no route in any host's kernel but of its own Zone, and the
// default that uplinks are let tell.
func (s *zoneSite) contained(z *deskZone) {
	s.t.Helper()
	prefix := netip.MustParsePrefix(z.prefix)
	for _, h := range z.members {
		for line := range strings.Lines(h.routes()) {
			words := strings.Fields(strings.TrimPrefix(line, "blackhole "))
			if len(words) == 0 || words[0] == "default" || words[0] == "nexthop" {
				continue
			}
			p, err := netip.ParsePrefix(words[0])
			if a, bad := netip.ParseAddr(words[0]); bad == nil {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
			if err != nil || p.Bits() < prefix.Bits() || !prefix.Contains(p.Addr()) {
				s.t.Errorf("%s of Zone %s has %q", h.name, z.name, line)
			}
		}
	}
}

// TestZones has one bootd make two Zones of seven hosts, which run the real agent
// and speaker, with FRR for the border leafs' VRFs and a firewall between these.
func TestZones(t *testing.T) {
	t.Parallel()
	s := newZoneSite(t)
	yellow, red := s.yellow, s.red
	s.apply(s.manifests())
	for _, h := range s.hosts {
		h.boot()
	}
	s.wait("yellow is whole", s.whole(yellow))
	s.wait("red is whole", s.whole(red))
	named, _, err := s.reflectors(yellow)
	if err != nil {
		t.Fatal(err)
	}
	var clients []*deskHost
	byName := map[string]*deskHost{}
	loop := map[*deskHost]netip.Addr{}
	for _, z := range []*deskZone{yellow, red} {
		for _, h := range z.members {
			byName[h.name], loop[h] = h, s.loopback(z, h)
			if z == yellow && !slices.Contains(named, h.name) {
				clients = append(clients, h)
			}
		}
	}
	reflector, far := byName[named[0]], red.members[2]
	s.firewall(loop[clients[0]], loop[far])
	streams := func(t *testing.T) []*stream {
		return []*stream{
			startStream(t, clients[0], loop[clients[0]], loop[clients[1]]),
			startStream(t, clients[1], loop[clients[1]], loop[reflector]),
			startStream(t, clients[0], loop[clients[0]], loop[far]), // in by a reflector of each Zone
		}
	}
	since := func() map[string]time.Time {
		v, err := s.client.ZoneSessions(t.Context(), "yellow")
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]time.Time{}
		for _, x := range v.Sessions {
			all[x.Host+" "+x.Session.Peer] = x.Session.Since
		}
		return all
	}

	t.Run("in a Zone all reach all", func(t *testing.T) {
		for _, z := range []*deskZone{yellow, red} {
			for _, a := range z.members {
				for _, b := range z.members {
					if a == b {
						continue
					}
					if err := pingOnce(a, loop[a], loop[b]); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
	t.Run("between Zones by the firewall alone", func(t *testing.T) {
		s.contained(yellow)
		s.contained(red)
		s.wait("what is permitted passes", func(context.Context) error { return pingOnce(clients[0], loop[clients[0]], loop[far]) })
		permitted, denied := s.counted("permitted"), s.counted("denied")
		if err := pingOnce(clients[0], loop[clients[0]], loop[far]); err != nil || s.counted("permitted") != permitted+2 {
			t.Errorf("what is permitted does not pass the firewall: %v, %d packets there, then %d", err, permitted, s.counted("permitted"))
		}
		for _, pair := range [][2]*deskHost{{clients[1], far}, {clients[0], red.members[0]}} {
			if pingOnce(pair[0], loop[pair[0]], loop[pair[1]]) == nil {
				t.Errorf("%s reaches %s", pair[0].name, pair[1].name)
			}
		}
		if got := s.counted("denied"); got != denied+2 {
			t.Errorf("the firewall has denied %d packets, then %d", denied, got)
		}
	})
	t.Run("leases are told to the leafs as aggregates", func(t *testing.T) {
		s.wait("leases in the Zone", func(ctx context.Context) error {
			v, err := s.client.ZoneRoutes(ctx, "yellow")
			if err != nil {
				return err
			}
			leases := 0
			for _, r := range v.Routes {
				if r.Network == "yellow-tenants" && len(r.At) == 2 {
					leases++
				}
			}
			if leases != len(yellow.members) {
				return fmt.Errorf("%d leases at both reflectors: %+v", leases, v.Routes)
			}
			return nil
		})
		for _, l := range yellow.leafs {
			s.wait("the leaf at "+l.address+" has the aggregate", func(context.Context) error {
				got := s.in(l.ns, "ip", "route", "show", "proto", "bgp")
				if !strings.HasPrefix(got, yellow.prefix+" ") || strings.Count(got, "/") != 1 {
					return fmt.Errorf("it has\n%s", got)
				}
				return nil
			})
		}
	})
	t.Run("people see it", func(t *testing.T) {
		for args, want := range map[string][]string{
			"bgp sessions yellow":                {reflector.name, clients[0].name, yellow.leafs[1].address, "established"},
			"bgp routes yellow":                  {loop[clients[0]].String() + "/32", "yellow-tenants", "0.0.0.0/0", clients[1].name},
			"get zones":                          {"yellow", "64601", "red"},
			"describe zone yellow":               {named[0], named[1], "Serving"},
			"describe machine " + reflector.name: {"bgp Applied", "sessions up"},
		} {
			s.wait("weftctl "+args, func(context.Context) error {
				code, out, said := s.weftctl(strings.Fields(args)...)
				for _, w := range want {
					if code != 0 || !strings.Contains(out, w) {
						return fmt.Errorf("it says nothing of %q: %d\n%s%s", w, code, out, said)
					}
				}
				t.Logf("weftctl %s\n%s", args, out)
				return nil
			})
		}
	})
	t.Run("what is foreign is not taken", func(t *testing.T) {
		for args, want := range map[string]int{
			"policy-test 198.18.250.0/24 --zone yellow --from " + yellow.leafs[0].address: 1,
			"policy-test 0.0.0.0/0 --zone yellow --from " + yellow.leafs[0].address:       0,
			"policy-test " + red.prefix + " --from " + clients[0].name:                    1,
		} {
			if code, out, said := s.weftctl(append([]string{"bgp"}, strings.Fields(args)...)...); code != want {
				t.Errorf("weftctl bgp %s: %d\n%s%s", args, code, out, said)
			}
		}
	})
	t.Run("what would let two Zones meet is refused", func(t *testing.T) {
		for what, manifest := range map[string]string{
			"a host of red on yellow's Subnet": yellow.machine(clients[0], "red", "yellow"),
			"one ASN for both":                 strings.Replace(red.manifest(""), "64602", "64601", 1),
			"prefixes that overlap":            strings.NewReplacer(red.prefix, yellow.prefix, red.loops, yellow.loops).Replace(red.manifest("")),
		} {
			if code, _, said := s.weftctl("apply", "-f", s.write("refused.yaml", manifest)); code != 1 || !strings.Contains(said, "yellow") {
				t.Errorf("%s: %d %s", what, code, said)
			}
		}
	})
	t.Run("an apply says before what it drops", func(t *testing.T) {
		dry := func(manifest string) string {
			code, out, said := s.weftctl("apply", "--dry-run", "-f", s.write("dry.yaml", manifest))
			if code != 0 {
				t.Errorf("dry run: %d %s", code, said)
			}
			return out + said
		}
		if said := dry(strings.Replace(yellow.manifest(""), "gracefulRestart: 1m", "gracefulRestart: 3m", 1)); !strings.Contains(said, "drop") {
			t.Errorf("a change of graceful restart: %s", said)
		}
		if said := dry(yellow.manifest("  reflectors: {machines: [" + clients[0].name + ", " + clients[1].name + "]}\n")); strings.Contains(said, clients[0].name+" and "+clients[1].name) {
			t.Errorf("other reflectors: %s", said)
		}
	})
	t.Run("agents are killed", func(t *testing.T) {
		before, flows := since(), streams(t)
		for _, h := range []*deskHost{clients[0], reflector} {
			h.agent.kill()
		}
		time.Sleep(2 * time.Second)
		for _, h := range []*deskHost{clients[0], reflector} {
			h.startAgent()
		}
		s.wait("yellow is whole", s.whole(yellow, named...))
		for _, f := range flows {
			f.lost(t)
		}
		if after := since(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("sessions since\n%v\nbefore\n%v", after, before)
		}
	})
	t.Run("bootd is killed", func(t *testing.T) {
		flows := streams(t)
		s.bootd.kill()
		time.Sleep(3 * time.Second)
		s.startBootd()
		s.wait("yellow is whole", s.whole(yellow, named...))
		for _, f := range flows {
			f.lost(t)
		}
	})
	t.Run("speakers are restarted and killed", func(t *testing.T) {
		for signal, h := range map[syscall.Signal]*deskHost{syscall.SIGTERM: clients[0], syscall.SIGKILL: reflector} {
			flows := streams(t)
			killed := time.Now()
			h.speaker.end(signal)
			time.Sleep(500 * time.Millisecond) // as its unit has it
			h.startSpeaker()
			s.wait("its sessions are new", func(context.Context) error {
				for name, at := range since() {
					if strings.Contains(" "+name+" ", " "+h.name+" ") && at.Before(killed) {
						return fmt.Errorf("%s: since %s", name, at)
					}
				}
				return nil
			})
			s.wait("yellow is whole", s.whole(yellow, named...))
			for _, f := range flows {
				f.lost(t)
			}
			s.wait("the flap is told with its reason", func(context.Context) error {
				code, out, said := s.weftctl("describe", "machine", h.name)
				if code != 0 || !strings.Contains(out, "is down: the speaker restarted") {
					return fmt.Errorf("%d %s%s", code, out, said)
				}
				return nil
			})
		}
	})
	t.Run("both reflectors are replaced", func(t *testing.T) {
		want := []string{clients[0].name, clients[1].name}
		slices.Sort(want)
		flows := streams(t)
		// From and to the other Zone by whatever way the leafs' hashes choose.
		s.permit(yellow.loops, red.loops)
		for _, h := range yellow.members {
			for _, other := range red.members {
				flows = append(flows, startStream(t, h, loop[h], loop[other]))
			}
		}
		time.Sleep(time.Second)
		s.apply(yellow.manifest("  reflectors: {machines: [" + strings.Join(want, ", ") + "]}\n"))
		s.wait("the others reflect", s.whole(yellow, want...))
		time.Sleep(time.Second)
		for _, f := range flows {
			f.lost(t)
		}
		s.contained(yellow)
	})
	t.Run("a host is drained", func(t *testing.T) {
		if code, _, said := s.weftctl("bgp", "drain", clients[0].name); code != 0 {
			t.Fatalf("drain: %s", said)
		}
		s.wait("the drain is told", func(context.Context) error {
			code, out, said := s.weftctl("get", "machine", clients[0].name, "-o", "yaml")
			if code != 0 || !strings.Contains(out, "rackweft/bgp-drain") {
				return fmt.Errorf("%d %s%s", code, out, said)
			}
			return nil
		})
		if err := pingOnce(clients[1], loop[clients[1]], loop[clients[0]]); err != nil {
			t.Errorf("a drained host is still reached, by no other way: %v", err)
		}
		if code, _, said := s.weftctl("bgp", "undrain", clients[0].name); code != 0 {
			t.Fatalf("undrain: %s", said)
		}
	})
}
