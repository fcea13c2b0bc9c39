package index

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
)

// TestPrefixes compares the index with a look at every prefix, while prefixes
// come and go.
func TestPrefixes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Prefix {
		if r.IntN(2) == 0 {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), byte(r.IntN(4) << 6), byte(r.IntN(8))}), r.IntN(33))
		}
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(r.IntN(3)), 15: byte(r.IntN(8))}), r.IntN(129))
	}
	type entry struct {
		p netip.Prefix
		v int
	}
	var x Prefixes[int]
	var all []entry
	for range 5000 {
		if len(all) > 0 && r.IntN(5) < 2 {
			i := r.IntN(len(all))
			x.Remove(all[i].p, all[i].v)
			all = append(all[:i], all[i+1:]...)
		} else if len(all) < 40 {
			e := entry{random(), r.IntN(10)}
			x.Add(e.p, e.v)
			all = append(all, e)
		}
		q := random()
		want, got := map[int]struct{}{}, map[int]struct{}{}
		for _, e := range all {
			if e.p.Overlaps(q) {
				want[e.v] = struct{}{}
			}
		}
		if x.Collect(q, got); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s overlaps %v, want %v of %v", q, got, want, all)
		}
	}
	for _, e := range all {
		x.Remove(e.p, e.v)
	}
	if x.v4.children != [2]*node[int]{} || x.v6.children != [2]*node[int]{} || len(x.v4.values)+len(x.v6.values) > 0 {
		t.Errorf("an index without values keeps nodes: %+v", x)
	}
}

func TestPrefixThatIsNotThere(t *testing.T) {
	var x Prefixes[int]
	x.Remove(netip.MustParsePrefix("0.0.0.0/0"), 1)
	x.Remove(netip.MustParsePrefix("10.0.0.0/8"), 1)
	x.Add(netip.Prefix{}, 1)
	x.Remove(netip.Prefix{}, 1)
	got := map[int]struct{}{}
	if x.Collect(netip.Prefix{}, got); len(got) > 0 {
		t.Errorf("%v", got)
	}
}

func TestKeyed(t *testing.T) {
	var x Keyed[string, int]
	find := func(k string) map[int]struct{} {
		got := map[int]struct{}{}
		x.Collect(k, got)
		return got
	}
	x.Remove("a", 1)
	x.Add("a", 1)
	x.Add("a", 1)
	x.Add("a", 2)
	x.Add("b", 3)
	if got := find("a"); !reflect.DeepEqual(got, map[int]struct{}{1: {}, 2: {}}) {
		t.Errorf("%v", got)
	}
	x.Remove("a", 1)
	x.Remove("a", 2)
	if got := find("a"); len(got) > 0 || len(x.sets) != 1 {
		t.Errorf("%v of %v", got, x.sets)
	}
}
