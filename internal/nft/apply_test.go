package nft

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/rackweft/rackweft/internal/nstest"
)

// rig is a network namespace with a table in it.
type rig struct {
	t     *testing.T
	ns    netns.NsHandle
	table Table
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed: see lab/deps")
	}
	nstest.Enter(t)
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return &rig{t, ns, Table{INet, "ours"}}
}

func (r *rig) apply(want Ruleset) Result {
	r.t.Helper()
	done, err := Apply(r.ns, r.table, want)
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

func (r *rig) nft(line string) string {
	r.t.Helper()
	return nstest.Run(r.t, "nft", line)
}

// list is the table, but for the order of its lines.
func (r *rig) list() string {
	r.t.Helper()
	lines := strings.Split(r.nft("list table inet ours"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func elements(keys ...[]byte) map[string]bool {
	all := map[string]bool{}
	for _, k := range keys {
		all[string(k)] = true
	}
	return all
}

// rules asks for every kind of thing that a table has.
func rules() Ruleset {
	return Ruleset{
		Sets: []Set{
			{Name: "links", Key: []Type{InterfaceName}, Elements: elements(InterfaceKey("eth0"), InterfaceKey("eth1")), Element: "link"},
			{Name: "others", Key: []Type{IPv4Address}, Interval: true},
			{Name: "pairs", Key: []Type{IPv4Address, Mark}},
			{Name: "pairs6", Key: []Type{IPv6Address, Mark}},
		},
		Counters: []string{"dropped"},
		Chains: []Chain{
			{Name: "input", Hook: Input(), Policy: PolicyAccept, Rules: []Rule{
				{IIF("eth*"), UDP(53), From(netip.MustParsePrefix("10.0.0.0/8")), Accept()},
				{To(netip.MustParsePrefix("fd00::/8")), Counted("dropped"), Drop()},
				{IPv4(), InSet("others", NetworkField(IPv4Source, 4)), Accept()},
				{IPv4(), InSet("pairs", NetworkField(IPv4Source, 4), TransportField(12, 3)), Accept()},
				{IPv6(), InSet("pairs6", NetworkField(IPv6Source, 16), TransportField(12, 3)), Accept()},
				{Answers(), TowardsOpener(), TTL(255), Above(1000, 100), Drop()},
			}},
			{Name: "early", Hook: Output().Raw(), Policy: PolicyDrop, Rules: []Rule{{NotOIF("lo"), Redirect(), Drop()}}},
			{Name: "nat", Hook: SourceNAT(), Policy: PolicyAccept, Rules: []Rule{{OIF("eth0"), Masquerade()}}},
		},
	}
}

func TestApply(t *testing.T) {
	r := newRig(t)
	r.nft("add table inet theirs")
	if done := r.apply(Ruleset{}); len(done.Changes)+len(done.Removals) > 0 {
		t.Errorf("nothing is wanted, and this is done: %q %q", done.Changes, done.Removals)
	}
	if done := r.apply(rules()); len(done.Changes) == 0 {
		t.Error("nothing is done")
	}
	made := r.list()
	settled := func(what string) {
		t.Helper()
		if done := r.apply(rules()); len(done.Changes)+len(done.Removals) > 0 {
			t.Errorf("%s: a second pass does %q %q", what, done.Changes, done.Removals)
		}
	}
	settled("at first")
	for _, c := range []struct {
		breakIt string
		removed bool // what is mended is mended by taking away
	}{
		{"delete table inet ours", false},
		{"flush chain inet ours input", false},
		{"insert rule inet ours input accept", false},
		{"add rule inet ours nat accept", false},
		{"add chain inet ours more", true},
		{"chain inet ours input { policy drop; }", false},
		{"delete element inet ours links { \"eth0\" }", false},
		{"add element inet ours links { \"eth2\" }", true},
	} {
		r.nft(c.breakIt)
		done := r.apply(rules())
		if len(done.Changes) == 0 != c.removed || len(done.Removals) > 0 != c.removed {
			t.Errorf("%s: %q %q", c.breakIt, done.Changes, done.Removals)
		}
		if got := r.list(); got != made {
			t.Errorf("%s: it is\n%s\nwant\n%s", c.breakIt, got, made)
		}
		settled(c.breakIt)
	}
	if done := r.apply(Ruleset{}); len(done.Removals) != 1 {
		t.Errorf("nothing is wanted any more, and this is done: %q", done.Removals)
	}
	if got := strings.TrimSpace(r.nft("list tables")); got != "table inet theirs" {
		t.Errorf("tables: %s", got)
	}
}

func TestKeep(t *testing.T) {
	r := newRig(t)
	r.apply(rules())
	r.nft("add set inet ours memory { type ifname; }")
	r.nft("add element inet ours memory { \"eth7\" }")
	r.nft("add set inet ours stray { type ifname; }")
	want := rules()
	want.Keep = func(name string) bool { return name == "memory" }
	want.Sets[0].Keep = func(key []byte) bool { return string(key) == string(InterfaceKey("eth2")) }
	r.nft("add element inet ours links { \"eth2\", \"eth3\" }")
	if done := r.apply(want); len(done.Changes) != 0 || len(done.Removals) != 1 {
		t.Errorf("done: %q %q", done.Changes, done.Removals)
	}
	c, err := Open(r.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	names, err := c.Sets(r.table)
	if want := []string{"links", "memory", "others", "pairs", "pairs6"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("sets %q, want %q: %v", names, want, err)
	}
	for set, want := range map[string]int{"links": 3, "memory": 1, "nowhere": 0} {
		keys, err := c.Elements(r.table, Set{Name: set, Key: []Type{InterfaceName}})
		if err != nil || len(keys) != want {
			t.Errorf("set %s has %q, want %d: %v", set, keys, want, err)
		}
	}
	// What is kept keeps the table.
	if done := r.apply(Ruleset{Keep: want.Keep}); len(done.Removals) != 3 {
		t.Errorf("only what is kept stays: %q", done.Removals)
	}
	if got := r.list(); !strings.Contains(got, "eth7") || strings.Contains(got, "chain") || strings.Contains(got, "counter") {
		t.Errorf("left:\n%s", got)
	}
}

// Taps are filtered by their devices, with counters that outlive a change.
func TestDevices(t *testing.T) {
	r := newRig(t)
	r.table.Family = NetDev
	nstest.Run(t, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
	nstest.Run(t, "ip", "link", "set", "near", "up")
	nstest.Run(t, "ip", "link", "set", "far", "up")
	want := Ruleset{Counters: []string{"heard"}, Chains: []Chain{
		{Name: "in", Hook: Ingress("far"), Policy: PolicyAccept, Rules: []Rule{{Ether(0x0806), Counted("heard")}}},
		{Name: "out", Hook: Egress("far"), Policy: PolicyDrop},
	}}
	r.apply(want)
	nstest.Run(t, "ip", "address", "add", "198.18.0.1/24", "dev", "near")
	_ = exec.Command("ping", "-c", "1", "-W", "1", "198.18.0.2").Run() // asks for it by ARP
	want.Chains[1].Policy = PolicyAccept
	if done := r.apply(want); done.Counters["heard"] == 0 || len(done.Changes) != 1 {
		t.Errorf("%+v", done)
	}
	if done := r.apply(want); done.Counters["heard"] == 0 || len(done.Changes)+len(done.Removals) != 0 {
		t.Errorf("%+v", done)
	}
	nstest.Run(t, "ip", "link", "del", "near") // the chains go with their device
	if done := r.apply(Ruleset{}); len(done.Removals) != 1 {
		t.Errorf("%+v", done)
	}
}
