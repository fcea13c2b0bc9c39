package overlay

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/nodeagent"
)

// kernel is what ip(8) and nft(8) would show of a namespace, and its sysctls;
// without counters, times and what the kernel learns by itself.
func (p place) kernel(t testing.TB) string {
	t.Helper()
	const script = `ip -d -o link; ip -o address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
		ip nexthop; bridge fdb; ip neighbour show nud permanent; cd /proc/sys/net
		grep -rs "" ipv4/ip_forward ipv4/conf ipv6/conf || true # some can only be written`
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), int(p.ns)), "sh", "-c", script)
	out, err := command.Output(cmd)
	if err != nil {
		t.Fatalf("look at the namespace: %v\n%s", err, out)
	}
	lines := strings.Split(regexp.MustCompile(`(?m) (expires|valid_lft|preferred_lft) \w+`).ReplaceAllString(string(out), ""), "\n")
	lines = append(lines, p.tables(t)...)
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// All that Networks can have leaves nothing behind: guests on taps that are
// served, IPv6, limits, egress, passages, direct routes; nor does an agent that
// died in between.
func TestResidue(t *testing.T) {
	f := newFabric(t, 2, false)
	f.router()
	a, b, c := shop(), base(), plain()
	b.egress, b.v6 = "masquerade", false // egress is IPv4's
	g := grants{"base": {a}, "shop": {b}}
	run := func(i int) func() {
		h := f.hosts[i]
		h.overlay.env = t.TempDir()
		return h.run()
	}
	parts := func(i int) []nodeagent.Part {
		limited := f.grantedPart(a, i+1, g)
		value := limited.Value.(*api.NetworkPart)
		value.Limits.Inbound, value.GuestLimits.Outbound = api.Bytes(100<<20), api.Bytes(10<<20)
		return []nodeagent.Part{limited, f.grantedPart(b, i+1, g), f.directPart(c, i+1)}
	}
	var before []string
	for _, h := range f.hosts {
		soon(t, "the underlay's own addresses are settled", func() bool { return !strings.Contains(h.kernel(t), " tentative") })
		before = append(before, h.kernel(t))
	}
	for round := range 2 {
		for i, h := range f.hosts {
			run(i)
			h.reconcile(parts(i)...)
		}
		var guests []*testGuest
		for i := range f.hosts {
			guests = append(guests, f.plugIn(a, i+1, 8, a.guest6(i+1, 8)), f.plugIn(b, i+1, 8), f.plugIn(c, i+1, 8))
		}
		for i, h := range f.hosts {
			h.reconcile(parts(i)...)
		}
		guests[0].reaches(guests[1]) // by a passage
		guests[0].reaches(guests[3]) // by VXLAN
		guests[2].reaches(guests[5]) // directly
		for i, h := range f.hosts {
			if h.kernel(t) == before[i] {
				t.Fatal("nothing was made")
			}
		}
		for _, g := range guests {
			if round == 0 { // else the Networks go first
				g.stop()
			}
		}
		for i, h := range f.hosts {
			env := h.overlay.env
			if round == 1 {
				h.restart()
				h.overlay.env = env
			}
			h.ports = nil
			h.overlay.SetPorts(nil)
			h.reconcile(removed(a), removed(b), removed(c))
			unchanged(t, before[i], h.kernel(t))
			for _, dir := range []string{h.dir, env} {
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("left in %s: %v %v", dir, left, err)
				}
			}
		}
	}
}
