package bgp

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
)

// nextHops are those of a prefix in the host's kernel, sorted.
func (h *host) nextHops(prefix string) string {
	h.rig.t.Helper()
	family := "-4"
	if strings.Contains(prefix, ":") {
		family = "-6"
	}
	var hops []string
	for _, m := range regexp.MustCompile(`via (\S+)`).FindAllStringSubmatch(h.in("ip", family, "route", "show", "exact", prefix, "proto", "217"), -1) {
		hops = append(hops, m[1])
	}
	slices.Sort(hops)
	return strings.Join(slices.Compact(hops), " ")
}

func (h *host) goes(prefix string, by ...*host) func() error {
	return func() error {
		var want []string
		for _, b := range by {
			if strings.Contains(prefix, ":") {
				want = append(want, b.v6().String())
			} else {
				want = append(want, b.address.String())
			}
		}
		slices.Sort(want)
		if got := h.nextHops(prefix); got != strings.Join(want, " ") {
			return fmt.Errorf("%s goes to %s by %q, and not by %q", h.name, prefix, got, want)
		}
		return nil
	}
}

func (h *host) serves(state string) func() error {
	return func() error {
		for _, s := range h.status().Services {
			if s.State != state {
				return fmt.Errorf("on %s %s is %s (%s), and not %s", h.name, s.Address, s.State, s.LastError, state)
			}
		}
		return nil
	}
}

// A service of two hosts, as clients of all makes see it.
func TestServices(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	z := newZone(t, 5)
	r1, c1, c2, c3, bird, frr := z.reflectors[0], z.clients[0], z.clients[1], z.clients[2], z.clients[3], z.clients[4]
	const vip, vip6, own = "198.19.200.1", "2001:db8:200::1", "198.19.250.1"
	services := []api.BGPService{{Name: "web", Addresses: []netip.Addr{netip.MustParseAddr(vip), netip.MustParseAddr(vip6)},
		Check: &api.ServiceCheck{Type: api.CheckHTTP, Port: 8080, Path: "/", Interval: api.Duration(200 * time.Millisecond), Timeout: api.Duration(200 * time.Millisecond), Rise: 2, Fall: 2}}}
	z.extra = func(h *host, p *api.BGPPart) {
		if h == c1 || h == c2 {
			p.Services = services
		}
		if h == c1 {
			p.Loopbacks = []netip.Addr{netip.MustParseAddr(own)}
		}
		for i, a := range p.Accept {
			if a.Client == "c1" || a.Client == "c2" {
				p.Accept[i].Prefixes = append(slices.Clone(a.Prefixes), prefixes(vip+"/32", vip6+"/128")...)
			}
			if a.Client == "c1" {
				p.Accept[i].Prefixes = append(p.Accept[i].Prefixes, prefixes(own+"/32")...)
			}
		}
		for i := range p.Neighbors {
			if p.Neighbors[i].Role == api.BGPReflector {
				p.Neighbors[i].Import = append(p.Neighbors[i].Import, api.PrefixFilter{Prefix: netip.MustParsePrefix("2001:db8::/32"), LE: 128})
			}
		}
	}
	c1.in("ip", "addr", "add", "198.19.201.1/32", "dev", "lo") // a person's
	stop1, stop2 := c1.web(), c2.web()
	z.tell()
	for _, h := range []*host{r1, z.reflectors[1], c1, c2, c3} {
		h.speak()
	}
	// One who has no part in the service says that it has.
	z.bird(bird, "route 198.19.14.0/24 via "+bird.address.String()+"; route "+vip+"/32 via "+bird.address.String()+";")
	z.frrClient(frr, "bgp graceful-restart")

	t.Run("all clients share packets between its hosts", func(t *testing.T) {
		eventually(t, c3.goes(vip, c1, c2), c3.goes(vip6, c1, c2), r1.goes(vip, c1, c2), c3.goes(own, c1), c2.goes(own, c1),
			c1.serves(api.ServiceAnnounced), c2.serves(api.ServiceAnnounced), z.foreignersHave(bird, frr, vip, c1, c2))
		if !answers(c3, vip) || !answers(c3, "["+vip6+"]") {
			t.Error("the service does not answer")
		}
		if got := c1.status().Loopbacks; fmt.Sprint(got) != "["+own+"]" {
			t.Errorf("of its own addresses c1 announces %v", got)
		}
		// It is told of by each reflector once for each host, in no way twice.
		for _, r := range z.reflectors {
			eventually(t, func() error {
				all, err := c3.client().Routes(t.Context(), "in", r.name)
				others := slices.DeleteFunc(all, func(x Route) bool { return x.Prefix.Addr().String() != vip })
				if err == nil && len(others) != 2 {
					err = fmt.Errorf("%s tells c3 of the paths to %s %+v", r.name, vip, others)
				}
				return err
			})
		}
		if got := c3.in("ip", "addr", "show", "dev", "lo"); strings.Contains(got, vip) {
			t.Errorf("c3 has it, too:\n%s", got)
		}
	})
	t.Run("it fails on one", func(t *testing.T) {
		before := c2.status().Services[0].Failures // it may have looked before the web server was there
		stop2()
		eventually(t, c3.goes(vip, c1), c3.goes(vip6, c1), r1.goes(vip, c1), c2.goes(vip), c2.serves(api.ServiceWithdrawn), z.foreignersHave(bird, frr, vip, c1))
		if s := c2.status(); s.Services[0].Failures != before+1 || !strings.Contains(s.Services[0].LastError, "refused") || !strings.Contains(s.Line(), "withdrawn") {
			t.Errorf("c2 shows %+v, %s", s.Services, s.Line())
		}
		if got := c2.in("ip", "addr", "show", "dev", "lo"); !strings.Contains(got, vip+"/32") {
			t.Errorf("where it fails it is looked for at no address:\n%s", got)
		}
		if !answers(c3, vip) {
			t.Error("the service does not answer")
		}
	})
	t.Run("kill -9 of the speaker that announces it", func(t *testing.T) {
		f := flowTo(t, c3, vip)
		c1.kill()
		time.Sleep(time.Second)
		c1.speak()
		eventually(t, up(c1, "r1"), up(c1, "r2"), c1.serves(api.ServiceAnnounced))
		if n := f.lost(); n > 0 {
			t.Errorf("%d packets are lost", n)
		}
	})
	t.Run("it comes back", func(t *testing.T) {
		stop2 = c2.web()
		eventually(t, c3.goes(vip, c1, c2), c2.serves(api.ServiceAnnounced), z.foreignersHave(bird, frr, vip, c1, c2))
	})
	t.Run("as a last resort", func(t *testing.T) {
		services[0].LastResort = true
		z.tell()
		stop1()
		eventually(t, c3.goes(vip, c2), r1.goes(vip, c2), c1.serves(api.ServiceLastResort))
		stop2()
		eventually(t, c3.goes(vip, c1, c2), r1.goes(vip, c1, c2), c2.serves(api.ServiceLastResort))
		stop2 = c2.web()
		eventually(t, c3.goes(vip, c2))
	})
	t.Run("it ends", func(t *testing.T) {
		services = nil
		z.tell()
		eventually(t, c3.goes(vip), c3.goes(vip6), c3.goes(own, c1), func() error {
			got := c1.in("ip", "addr", "show", "dev", "lo")
			if strings.Contains(got, vip) || strings.Contains(got, vip6) || !strings.Contains(got, own) || !strings.Contains(got, "198.19.201.1") {
				return fmt.Errorf("lo of c1 has\n%s", got)
			}
			return nil
		})
	})
	stop2()
}

// ask runs a command on the host that may fail, for its daemon is coming up.
func (h *host) ask(args ...string) (string, error) {
	out, err := command.Output(exec.Command("ip", append([]string{"netns", "exec", h.rig.id + h.name}, args...)...))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func answers(from *host, at string) bool {
	return exec.Command("ip", "netns", "exec", from.rig.id+from.name, "curl", "-fsS", "-m", "5", "-g", "http://"+at+":8080/").Run() == nil
}

// foreignersHave reports whether BIRD and FRR know of just these ways to an address.
func (z *zone) foreignersHave(bird, frr *host, address string, by ...*host) func() error {
	return func() error {
		birds, err := bird.ask("birdc", "-s", bird.dir+"/ctl", "show", "route", "for", address, "all")
		if err != nil {
			return err
		}
		frrs, err := frr.ask("vtysh", "--vty_socket", frr.dir, "-c", "show bgp ipv4 unicast "+address+"/32")
		if err != nil {
			return err
		}
		for _, h := range z.clients {
			want := slices.Contains(by, h)
			if got := regexp.MustCompile(`BGP.next_hop: `+regexp.QuoteMeta(h.address.String())+`\b`).MatchString(birds) || strings.Contains(birds, "via "+h.address.String()+" ") && h != bird; got != want {
				return fmt.Errorf("BIRD knows %s as a way to %s: %v\n%s", h.name, address, got, birds)
			}
			if got := regexp.MustCompile(`(?m)^\s+` + regexp.QuoteMeta(h.address.String()) + ` `).MatchString(frrs); got != want {
				return fmt.Errorf("FRR knows %s as a way to %s: %v\n%s", h.name, address, got, frrs)
			}
		}
		return nil
	}
}
