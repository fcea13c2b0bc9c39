package loopback

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/internal/nstest"
)

func ip(t *testing.T, line string) string {
	t.Helper()
	return nstest.Run(t, "ip", strings.Fields(line)...)
}

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestSync(t *testing.T) {
	nstest.Enter(t)
	ip(t, "addr add 198.19.0.9/32 dev lo") // a person's
	ip(t, "addr add 198.19.0.1/24 dev lo")
	has := func(words ...string) {
		t.Helper()
		got := ip(t, "addr show dev lo")
		for _, w := range words {
			if not, ok := strings.CutPrefix(w, "!"); ok && strings.Contains(got, not+"/") || !ok && !strings.Contains(got, w+"/") {
				t.Errorf("%s: lo has\n%s", w, got)
			}
		}
	}
	for range 2 {
		if err := Sync(addresses("198.19.0.1", "198.19.0.2", "2001:db8::1")); err != nil {
			t.Fatal(err)
		}
		has("198.19.0.9", "198.19.0.1", "198.19.0.2", "2001:db8::1", "127.0.0.1", "::1")
	}
	if got := ip(t, "addr show dev lo"); strings.Contains(got, "tentative") {
		t.Errorf("lo has\n%s", got)
	}
	if err := Sync(addresses("198.19.0.3")); err != nil {
		t.Fatal(err)
	}
	has("198.19.0.9", "198.19.0.1", "198.19.0.3", "!198.19.0.2", "!2001:db8::1", "127.0.0.1", "::1")
	if err := Sync(nil); err != nil {
		t.Fatal(err)
	}
	has("198.19.0.9", "198.19.0.1", "!198.19.0.3", "127.0.0.1", "::1")
}

func FuzzParse(f *testing.F) {
	// 198.19.0.2/32 on link 1, of protocol 217, as the kernel told it.
	f.Add([]byte{2, 32, 0x80, 0, 1, 0, 0, 0, 8, 0, 1, 0, 198, 19, 0, 2, 8, 0, 2, 0, 198, 19, 0, 2, 5, 0, 11, 0, 217, 0, 0, 0})
	f.Fuzz(func(t *testing.T, m []byte) {
		if a, _, err := parse(m); err == nil && a.ours && len(m) < 13 {
			t.Errorf("%x is read as %+v", m, a)
		}
	})
}
