package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

func TestFreeSubnets(t *testing.T) {
	for _, c := range []struct {
		name  string
		cidrs []netip.Prefix
		bits  int
		n     int
		taken []netip.Prefix
		want  []netip.Prefix
	}{
		{"flannel leaves out the first", testsite.Prefixes("10.5.0.0/16"), 24, 2, nil, testsite.Prefixes("10.5.1.0/24", "10.5.2.0/24")},
		{"lowest gap", testsite.Prefixes("10.5.0.0/16"), 24, 3, testsite.Prefixes("10.5.1.0/24", "10.5.3.0/24"), testsite.Prefixes("10.5.2.0/24", "10.5.4.0/24", "10.5.5.0/24")},
		{"a guest's /31 blocks its subnet", testsite.Prefixes("10.5.0.0/16"), 24, 1, testsite.Prefixes("10.5.1.8/31"), testsite.Prefixes("10.5.2.0/24")},
		{"nested", testsite.Prefixes("10.5.0.0/16"), 24, 1, testsite.Prefixes("10.5.1.0/24", "10.5.1.8/31", "10.5.2.0/23"), testsite.Prefixes("10.5.4.0/24")},
		{"larger one that begins before", testsite.Prefixes("10.5.0.0/16"), 26, 1, testsite.Prefixes("10.5.0.0/24"), testsite.Prefixes("10.5.1.0/26")},
		{"full, then the next CIDR", testsite.Prefixes("10.5.0.0/22", "2001:db8::/48", "10.9.0.0/22"), 24, 2, testsite.Prefixes("10.5.1.0/24", "10.5.2.0/24"), testsite.Prefixes("10.5.3.0/24", "10.9.1.0/24")},
		{"exhausted", testsite.Prefixes("10.5.0.0/22"), 24, 9, testsite.Prefixes("10.5.2.0/24"), testsite.Prefixes("10.5.1.0/24", "10.5.3.0/24")},
		{"the last of all addresses", testsite.Prefixes("255.255.252.0/22"), 24, 9, nil, testsite.Prefixes("255.255.253.0/24", "255.255.254.0/24", "255.255.255.0/24")},
		{"elsewhere", testsite.Prefixes("10.5.0.0/22"), 24, 1, testsite.Prefixes("10.4.0.0/16", "10.6.0.0/16", "0.0.0.0/8"), testsite.Prefixes("10.5.1.0/24")},
		{"everything", testsite.Prefixes("10.5.0.0/22"), 24, 1, testsite.Prefixes("0.0.0.0/0"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := freeSubnets(c.cidrs, c.bits, c.n, c.taken)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestFreeSubnetsNeverOverlap checks the rule itself, not examples of it.
func TestFreeSubnetsNeverOverlap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		var taken []netip.Prefix
		for range random.IntN(60) {
			bits := 20 + random.IntN(12)
			taken = append(taken, span{first: uint64(10<<24 + random.IntN(1<<16)), end: 0}.prefix(bits).Masked())
		}
		bits := 22 + random.IntN(8)
		cidrs := testsite.Prefixes("10.0.0.0/17", "10.0.128.0/18")
		got := freeSubnets(cidrs, bits, 1<<20, taken)
		want := 0
		for _, c := range cidrs {
			first := true
			for p := netip.PrefixFrom(c.Addr(), bits); c.Contains(p.Addr()); p = (span{first: spanOf(p).end}).prefix(bits) {
				if !first && !slices.ContainsFunc(taken, p.Overlaps) {
					want++
				}
				first = false
			}
		}
		for i, p := range got {
			if slices.ContainsFunc(taken, p.Overlaps) || slices.ContainsFunc(got[:i], p.Overlaps) || !within(cidrs, p) {
				t.Fatalf("%s is not free among %v", p, taken)
			}
			if overlaps(spans(taken), p) {
				t.Fatalf("overlaps finds %s in %v", p, taken)
			}
		}
		if len(got) != want {
			t.Fatalf("%d of %d free /%d found among %v", len(got), want, bits, taken)
		}
	}
}

func TestFreeVNI(t *testing.T) {
	now := time.Now()
	claims := map[uint32]store.VNIClaim{
		10: {UID: "a"}, 11: {UID: "b", Freed: now.Add(-time.Hour)}, 12: {UID: "c", Freed: now.Add(-cooling)}, 13: {UID: "d"},
	}
	for _, c := range []struct {
		low, high uint32
		want      uint32
		ok        bool
	}{{10, 13, 12, true}, {10, 11, 0, false}, {13, 14, 14, true}, {1, 5, 1, true}, {13, 13, 0, false}, {1<<24 - 1, 1<<24 - 1, 1<<24 - 1, true}} {
		got, ok := freeVNI(api.VNIRange{Low: c.low, High: c.high}, claims, now)
		if got != c.want || ok != c.ok {
			t.Errorf("%d-%d: %d %v, want %d %v", c.low, c.high, got, ok, c.want, c.ok)
		}
	}
}

// TestLeaseValue compares with what flannel v0.26.7 writes and reads, byte for
// byte where it can.
func TestLeaseValue(t *testing.T) {
	v4, v6 := netip.MustParseAddr("198.18.8.7"), netip.MustParseAddr("2001:db8::7")
	got := string(leaseValue(10017, v4, "02:aa:bb:cc:dd:ee"))
	// json.Marshal of flannel's lease.LeaseAttrs
	want := `{"PublicIP":"198.18.8.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":10017,"VtepMAC":"02:aa:bb:cc:dd:ee"}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, a := range []netip.Addr{v4, v6} {
		vtep, mac, ok := parseLease(leaseValue(10017, a, "02:aa:bb:cc:dd:ee"), 10017)
		if !ok || vtep != a || mac != "02:aa:bb:cc:dd:ee" {
			t.Errorf("%s comes back as %s %s %v", a, vtep, mac, ok)
		}
	}
	for name, raw := range map[string]string{
		"another VNI":   `{"PublicIP":"198.18.8.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:aa:bb:cc:dd:ee"}}`,
		"host-gw":       `{"PublicIP":"198.18.8.7","BackendType":"host-gw"}`,
		"no data":       `{"PublicIP":"198.18.8.7","BackendType":"vxlan"}`,
		"no address":    `{"BackendType":"vxlan","BackendData":{"VNI":10017,"VtepMAC":"02:aa:bb:cc:dd:ee"}}`,
		"unspecified":   `{"PublicIP":"0.0.0.0","BackendType":"vxlan","BackendData":{"VNI":10017,"VtepMAC":"02:aa:bb:cc:dd:ee"}}`,
		"multicast":     `{"PublicIP":"224.0.0.1","BackendType":"vxlan","BackendData":{"VNI":10017,"VtepMAC":"02:aa:bb:cc:dd:ee"}}`,
		"group MAC":     `{"PublicIP":"198.18.8.7","BackendType":"vxlan","BackendData":{"VNI":10017,"VtepMAC":"ff:aa:bb:cc:dd:ee"}}`,
		"no MAC":        `{"PublicIP":"198.18.8.7","BackendType":"vxlan","BackendData":{"VNI":10017,"VtepMAC":"x"}}`,
		"not an object": `[]`, "nothing": ``,
	} {
		if vtep, mac, ok := parseLease([]byte(raw), 10017); ok {
			t.Errorf("%s is taken as %s %s", name, vtep, mac)
		}
	}
}

func FuzzParseLease(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"198.18.8.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:aa:bb:cc:dd:ee"}}`))
	f.Add([]byte(`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":7,"VtepMAC":"02-aa-bb-cc-dd-ee"}}`))
	f.Add([]byte(`{"PublicIP":"::ffff:1.2.3.4"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		vtep, mac, ok := parseLease(raw, 7)
		if !ok {
			return
		}
		if len(mac.HardwareAddr()) != 6 || !vtep.IsValid() || vtep.IsUnspecified() || vtep.Is4In6() {
			t.Errorf("%q gives %v %q", raw, vtep, mac)
		}
	})
}

func TestVTEPMAC(t *testing.T) {
	seen := map[api.MAC]string{}
	for host := range 200 {
		for vni := range uint32(20) {
			who := fmt.Sprintf("%d/%d", host, vni)
			mac := VTEPMAC(fmt.Sprint("uid-", host), vni)
			if mac.HardwareAddr()[0] != 2 {
				t.Fatalf("%s is not locally administered", mac)
			}
			if other, taken := seen[mac]; taken {
				t.Fatalf("%s is that of %s and of %s", mac, other, who)
			}
			seen[mac] = who
		}
	}
	// Kept for ever: a host's MAC must not change with an upgrade of bootd.
	if got := VTEPMAC("c7a4c1c8-8a52-4b7e-9f0e-6f2f5c1f9a11", 10017); got != "02:f2:54:b2:f2:27" {
		t.Errorf("the MAC of a known host is now %s", got)
	}
}

func testPeers(n int, seed uint64) []peer {
	random := rand.New(rand.NewPCG(seed, 1))
	var list []peer
	for i := range n {
		p := peer{NetworkPeer: api.NetworkPeer{
			Lease: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			VTEP:  netip.AddrFrom4([4]byte{198, 18, byte(random.IntN(3)), byte(i)}), MAC: VTEPMAC(fmt.Sprint(i), 7),
		}}
		if random.IntN(5) > 0 {
			p.Host, p.uid = fmt.Sprintf("r1u%02d", i), fmt.Sprint("uid-", i)
		}
		if random.IntN(10) == 0 { // a guest that moved away from its host
			p.Lease = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 8}), 31)
			p.uid = fmt.Sprint("uid-", random.IntN(n))
		}
		list = append(list, p)
	}
	random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func partOf(t *testing.T, v *View, uid string) *Part {
	t.Helper()
	p, err := v.NewPart(uid, api.NetworkPart{UID: "u", VNI: 7, MTU: 1450, CIDRs: testsite.Prefixes("10.0.0.0/8"), Lease: netip.MustParsePrefix("10.200.0.0/24"),
		MAC: "02:00:00:00:00:01", Egress: "masquerade"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPartIsWhatJSONMakes compares the part that is cut from a View with the
// plain encoding of the same thing.
func TestPartIsWhatJSONMakes(t *testing.T) {
	for n := range 12 {
		for seed := range uint64(4) {
			v, err := newView(1, testPeers(n, seed))
			if err != nil {
				t.Fatal(err)
			}
			for _, uid := range append([]string{"nobody"}, slices.Sorted(maps.Keys(v.own))...) {
				p := partOf(t, v, uid)
				var plain api.NetworkPart
				if err := json.Unmarshal(p.Value(), &plain); err != nil {
					t.Fatalf("%s: %v", p.Value(), err)
				}
				var want []api.NetworkPeer
				for _, x := range v.peers {
					if x.uid != uid {
						want = append(want, x.NetworkPeer)
					}
				}
				if diff := cmp.Diff(want, plain.Peers, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
					t.Fatal(diff)
				}
				again, err := api.EncodePart(plain)
				if err != nil || !bytes.Equal(again, p.Value()) {
					t.Fatalf("%s\n%s %v", again, p.Value(), err)
				}
				if p.Digest() != api.PartDigest(p.Value()) || p.Digest() != partOf(t, v, uid).Digest() {
					t.Fatal("the digest is not that of the value")
				}
			}
		}
	}
}

func apply(t *testing.T, part api.Part, d *api.PeerDelta) api.Part {
	t.Helper()
	changed, err := d.Apply(part)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// TestDelta applies deltas over wire and back between random Views: the digest
// must be that of the new part.
func TestDelta(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	deltas := 0
	for round := range 200 {
		peers := testPeers(60, uint64(round))
		old, _ := newView(1, slices.Clone(peers))
		for range random.IntN(6) {
			switch i := random.IntN(len(peers)); random.IntN(4) {
			case 0:
				peers = slices.Delete(peers, i, i+1)
			case 1:
				peers[i].VTEP = netip.MustParseAddr("198.18.9.9")
			case 2:
				peers[i].uid, peers[i].Host = "uid-3", "r1u03" // another has it now
			case 3:
				peers = append(peers, peer{NetworkPeer: api.NetworkPeer{Lease: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(round), 0}), 24+len(peers)%4),
					VTEP: netip.MustParseAddr("198.18.7.7"), MAC: "02:00:00:00:00:02"}, uid: "new"})
			}
		}
		now, err := newView(2, slices.CompactFunc(sorted(peers), func(a, b peer) bool { return a.Lease == b.Lease }))
		if err != nil {
			t.Fatal(err)
		}
		for _, uid := range []string{"nobody", "uid-3", "uid-7", "new"} {
			a, b := partOf(t, old, uid), partOf(t, now, uid)
			d := b.Delta(a)
			if d == nil {
				continue
			}
			deltas++
			raw, _ := json.Marshal(d)
			var wire api.PeerDelta
			if err := json.Unmarshal(raw, &wire); err != nil {
				t.Fatal(err)
			}
			if got := api.PartDigest(apply(t, a.Value(), &wire)); got != b.Digest() {
				t.Fatalf("round %d, %s: %s\nfrom %s\nto   %s\ngot  %s", round, uid, raw, a.Value(), b.Value(), apply(t, a.Value(), &wire))
			}
		}
	}
	if deltas < 500 {
		t.Errorf("only %d deltas were tried", deltas)
	}
}

func sorted(peers []peer) []peer {
	list := slices.Clone(peers)
	slices.SortStableFunc(list, func(a, b peer) int { return comparePrefix(a.Lease, b.Lease) })
	return list
}

// TestNoDelta lists what must be sent whole.
func TestNoDelta(t *testing.T) {
	v, _ := newView(1, testPeers(40, 1))
	w, _ := newView(2, testPeers(40, 2)[:3])
	other := partOf(t, v, "a")
	moved, err := v.NewPart("a", api.NetworkPart{UID: "u", VNI: 7, MTU: 8950})
	if err != nil {
		t.Fatal(err)
	}
	empty, _ := newView(3, nil)
	for name, d := range map[string]*api.PeerDelta{
		"nothing before": other.Delta(nil), "another host": other.Delta(partOf(t, v, "b")), "another MTU": moved.Delta(other),
		"nearly all is other": partOf(t, w, "a").Delta(other), "nobody left": partOf(t, empty, "a").Delta(other), "the first": other.Delta(partOf(t, empty, "a")),
	} {
		if d != nil {
			t.Errorf("%s: %+v", name, d)
		}
	}
}
