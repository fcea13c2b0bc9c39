package nft

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSpans(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"10.244.0.0/26", "10.244.0.0-10.244.0.64"},
		{"10.244.0.64/26 10.244.0.0/26", "10.244.0.0-10.244.0.128"},
		{"10.244.1.0/24 10.244.1.7/32 10.244.3.255/32 fd00::/64", "10.244.1.0-10.244.2.0 10.244.3.255-10.244.4.0"},
		{"10.255.255.0/24 11.0.0.0/8", "10.255.255.0-12.0.0.0"},
		{"255.255.255.0/24", "255.255.255.0-255.255.255.255"},
		{"0.0.0.0/0", "0.0.0.0-255.255.255.255"},
	} {
		var prefixes []netip.Prefix
		for _, text := range strings.Fields(c.in) {
			prefixes = append(prefixes, netip.MustParsePrefix(text))
		}
		var got []string
		for _, s := range spans(Set{Key: []Type{IPv4Address}}.own(prefixes)) {
			first, _ := netip.AddrFromSlice([]byte(s.first))
			end, _ := netip.AddrFromSlice([]byte(s.end))
			got = append(got, first.String()+"-"+end.String())
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %s, not %s", c.in, text, c.want)
		}
	}
}
