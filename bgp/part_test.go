package bgp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

const reflectorPart = `{"zone":"yellow","asn":64601,"routerID":"198.18.9.1","role":"reflector","community":"64601:1:1","listen":["198.18.9.1"],
"nextHops":["198.18.9.1"],"zoneNextHops":["198.18.9.0/24"],
"neighbors":[{"name":"c1","address":"198.18.9.11","asn":64601,"role":"client","passive":true},{"name":"leaf","address":"198.18.9.201","asn":64600,"role":"uplink"}],
"accept":[{"client":"c1","prefixes":["198.19.11.0/24","198.19.12.0/24","198.19.13.0/24","198.19.14.0/24"],"nextHops":["198.18.9.11"]}]}`

func TestParsePart(t *testing.T) {
	p, err := parsePart([]byte(reflectorPart))
	if err != nil {
		t.Fatal(err)
	}
	c1, leaf := p.Neighbors[0], p.Neighbors[1]
	if p.Port != 179 || p.Table != 254 || p.Metric != 4096 || time.Duration(p.GracefulRestart) != 2*time.Minute || p.ClusterID != p.RouterID ||
		c1.HoldTime != api.Duration(90*time.Second) || c1.KeepAlive != api.Duration(30*time.Second) || c1.MaxPrefixes != 512 || c1.Hops != 1 ||
		leaf.HoldTime != api.Duration(9*time.Second) || leaf.KeepAlive != api.Duration(3*time.Second) || leaf.MaxPrefixes != 10000 {
		t.Errorf("the defaults are %+v", p)
	}
	for _, c := range []struct{ from, to, want string }{
		{`64601,"routerID"`, `0,"routerID"`, "the ASN is missing"},
		{`"198.18.9.1","role"`, `"2001:db8::1","role"`, "want an IPv4 address"},
		{`"role":"reflector"`, `"role":"boss"`, `role "boss"`},
		{`"role":"reflector"`, `"role":"client"`, "only a reflector has clients"},
		{`64601:1:1`, `64601:1`, "want a large community"},
		{`"asn":64600`, `"asn":64601`, "an ASN of its own"},
		{`"name":"leaf"`, `"name":"c1"`, "two neighbors are called"},
		{`198.18.9.201`, `198.18.9.11`, "two neighbors have the address"},
		{`198.19.12.0/24`, `198.19.12.1/24`, "want a masked prefix"},
		{`"passive":true`, `"holdTime":"2s"`, "holdTime 2s"},
		{`"passive":true`, `"password":"` + strings.Repeat("x", 81) + `"`, "longer than 80 bytes"},
		{`"passive":true`, `"families":["evpn"]`, "invalid family evpn"},
		{`"passive":true`, `"families":["vpls"]`, `family "vpls"`},
		{`{"zone"`, `{"gracefulRestart":"5000s","zone"`, "gracefulRestart"},
		{`{"zone"`, `{"loopbacks":["198.19.1.1"],"services":[{"name":"dns","addresses":["198.19.1.1"]}],"zone"`, "originated twice"},
		{`{"zone"`, `{"loopbacks":["::ffff:198.19.1.1"],"zone"`, "invalid address"},
		{`{"zone"`, `{"services":[{"name":"dns","addresses":["198.19.1.1"],"check":{"type":"tcp","port":53}}],"zone"`, "want all fields"},
		{`{"zone"`, `{"zone":7,"zone"`, "decode"},
	} {
		_, err := parsePart([]byte(strings.Replace(reflectorPart, c.from, c.to, 1)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %s: %v; want %q", c.to, err, c.want)
		}
	}
}

// A host that gets a lease must not have its session's limit changed by it.
func TestClientLimit(t *testing.T) {
	for accepted, want := range map[int]int{0: 512, 2: 512, 251: 512, 252: 1024, 5000: 16384} {
		if got := clientLimit(accepted); got != want {
			t.Errorf("of %d prefixes: %d, want %d", accepted, got, want)
		}
	}
}

func FuzzParsePart(f *testing.F) {
	f.Add([]byte(reflectorPart))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parsePart(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(p)
		must(t, err)
		q, err := parsePart(again)
		must(t, err)
		if !reflect.DeepEqual(compilePolicy(p).in, compilePolicy(q).in) {
			t.Errorf("a part with its defaults filled in is another part")
		}
	})
}

// GoBGP looks at the longest entry of a set alone.
func TestFlatten(t *testing.T) {
	filters := []api.PrefixFilter{{Prefix: netip.MustParsePrefix("198.19.0.0/16"), LE: 24}, {Prefix: netip.MustParsePrefix("198.19.1.0/24"), LE: 32},
		{Prefix: netip.MustParsePrefix("198.19.2.0/24")}, {Prefix: netip.MustParsePrefix("0.0.0.0/0")}}
	got := map[string]bool{}
	for _, p := range flatten(filters) {
		got[fmt.Sprintf("%s %d-%d", p.IpPrefix, p.MaskLengthMin, p.MaskLengthMax)] = true
	}
	want := map[string]bool{"0.0.0.0/0 0-0": true, "198.19.0.0/16 16-24": true, "198.19.1.0/24 24-32": true, "198.19.1.0/24 24-24": true, "198.19.2.0/24 24-24": true}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestOnlyPublic(t *testing.T) {
	re := regexp.MustCompile(onlyPublic([]uint32{64600, 4200000001}))
	for asn := uint32(1); asn < 100000; asn++ {
		if want := !private(asn) || asn == 64600; re.MatchString(fmt.Sprint("64600 ", asn)) != want {
			t.Fatalf("a path with %d: want %v", asn, want)
		}
	}
	for _, asn := range []uint32{100000, 999999999, 1000000000, 4199999999, 4200000000, 4200000001, 4200000002, 4294967294, 4294967295} {
		if want := !private(asn) || asn == 4200000001; re.MatchString(fmt.Sprint("64600 ", asn, " 3320")) != want {
			t.Errorf("a path with %d: want %v", asn, want)
		}
	}
	for _, path := range []string{"", "64600 {64700}", "64600 {3320}"} {
		if re.MatchString(path) {
			t.Errorf("the path %q passes", path)
		}
	}
}
