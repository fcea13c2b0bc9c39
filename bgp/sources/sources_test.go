package sources

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/nstest"
)

func TestSync(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed: see lab/deps")
	}
	nstest.Enter(t)
	nft := func(line string) string {
		t.Helper()
		out, err := command.Output(exec.Command("nft", line))
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	prefixes := func(texts ...string) map[string][]netip.Prefix {
		list := []netip.Prefix{}
		for _, p := range texts {
			list = append(list, netip.MustParsePrefix(p))
		}
		return map[string][]netip.Prefix{"tapa": list}
	}
	if err := Sync(prefixes("10.244.0.0/26"), false); err == nil || !strings.Contains(err.Error(), "tapa is not filtered yet") {
		t.Errorf("without the table: %v", err)
	}
	if err := Sync(nil, false); err != nil {
		t.Errorf("nothing: %v", err)
	}
	nft("add table netdev rackweft; add set netdev rackweft tapa-sources4 { type ipv4_addr; flags interval; }; add set netdev rackweft tapa-sources6 { type ipv6_addr; flags interval; }; " +
		"add set netdev rackweft tapb-sources4 { type ipv4_addr; flags interval; elements = { 10.9.0.0/24 }; }; add set netdev rackweft other { type ipv4_addr; elements = { 10.9.9.9 }; }")
	expect := func(set, want string) {
		t.Helper()
		_, got, _ := strings.Cut(nft("list set netdev rackweft "+set), "elements = { ")
		if got, _, _ = strings.Cut(got, " }"); got != want {
			t.Errorf("%s has %q, not %q", set, got, want)
		}
	}
	sync := func(want map[string][]netip.Prefix, keep bool) {
		t.Helper()
		if err := Sync(want, keep); err != nil {
			t.Fatal(err)
		}
	}
	sync(prefixes("10.244.0.0/26", "10.244.0.0/16", "10.244.9.0/24", "fd00:244::/64"), true)
	expect("tapa-sources4", "10.244.0.0/16")
	expect("tapa-sources6", "fd00:244::/64")
	expect("tapb-sources4", "10.9.0.0/24") // kept
	sync(prefixes("10.244.0.0/26", "10.244.2.0/24"), true)
	expect("tapa-sources4", "10.244.0.0/16")
	sync(prefixes("10.244.0.0/26", "10.244.2.0/24"), false)
	expect("tapa-sources4", "10.244.0.0/26, 10.244.2.0/24")
	expect("tapa-sources6", "")
	expect("tapb-sources4", "")
	expect("other", "10.9.9.9")
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("10.%d.%d.0/25", i/250, i%250))
	}
	sync(prefixes(many...), false)
	if got := strings.Count(nft("list set netdev rackweft tapa-sources4"), "/25"); got != len(many) {
		t.Errorf("%d of %d prefixes", got, len(many))
	}
	sync(nil, false)
	expect("tapa-sources4", "")
}
