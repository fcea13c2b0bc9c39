package bgp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// Whatever is handed over, the Zone is told of no more than the part allows.
func TestToldOfGuests(t *testing.T) {
	n := api.BGPInside{UID: "uid", Prefixes: prefixes("10.244.0.0/16"), MaxPrefixes: 2}
	for _, c := range []struct {
		list, want string
		more       int
	}{
		{`["10.244.1.0/26","10.5.0.0/24","0.0.0.0/0","10.244.0.0/15","fd00::/64","10.244.1.0/26"]`, "[10.244.1.0/26]", 0},
		{`["10.244.0.0/16","10.244.1.5/32"]`, "[10.244.0.0/16 10.244.1.5/32]", 0},
		{`["10.244.1.9/26","",null]`, "[]", 0},
		{`["10.244.3.0/26","10.244.2.0/26","10.244.1.0/26"]`, "[10.244.1.0/26 10.244.2.0/26]", 1},
	} {
		var list []netip.Prefix
		if err := json.Unmarshal([]byte(c.list), &list); err != nil {
			t.Fatal(err)
		}
		if told, more := advertisedOf(n, list); fmt.Sprint(told) != c.want || more != c.more {
			t.Errorf("%s: told of %v and %d more", c.list, told, more)
		}
	}
}

// A reflector's kernel must not throw away what leads to its own guests.
func TestThrownAway(t *testing.T) {
	p := api.BGPPart{Inside: []api.BGPInside{{UID: "uid", Prefixes: prefixes("10.244.0.0/16")}}}
	aggregates := prefixes("10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24", "198.18.64.0/18")
	if got, want := thrownAway(p, aggregates), prefixes("10.0.0.0/8", "198.18.64.0/18"); !slices.Equal(got, want) {
		t.Errorf("thrown away is what lies in %v, not in %v", got, want)
	}
}

// What a speaker inside of a Network hands over stays while it restarts.
func TestHandOver(t *testing.T) {
	dir := t.TempDir()
	s := &speaker{options: Options{Part: filepath.Join(dir, "part.json")}}
	file := filepath.Join(dir, GuestsFile)
	for _, c := range []struct {
		announced []netip.Prefix
		keep      bool
		want      []netip.Prefix
	}{
		{prefixes("10.244.1.0/26", "10.244.2.0/26"), false, prefixes("10.244.1.0/26", "10.244.2.0/26")},
		{prefixes("10.244.3.0/26"), true, prefixes("10.244.1.0/26", "10.244.2.0/26", "10.244.3.0/26")},
		{prefixes("10.244.3.0/26"), false, prefixes("10.244.3.0/26")},
		{nil, false, nil},
	} {
		if err := s.handOver(map[string][]netip.Prefix{"tap0": c.announced}, c.keep); err != nil {
			t.Fatal(err)
		}
		if got, err := readGuests(file); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("handed over are %v (%v), not %v", got, err, c.want)
		}
	}
	if err := os.WriteFile(file, []byte("[\"10.244.1.0/2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := readGuests(file); err == nil {
		t.Errorf("half a file is read as %v", got)
	}
	if err := s.handOver(map[string][]netip.Prefix{"tap0": prefixes("10.244.1.0/26")}, true); err != nil {
		t.Errorf("half a file is not written anew: %v", err)
	}
}
