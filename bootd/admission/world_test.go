package admission

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// crowd makes objects out of few values, so that they get in each other's way.
type crowd struct{ *rand.Rand }

func (r crowd) of(words ...string) string { return words[r.IntN(len(words))] }
func (r crowd) name(kind string) string   { return fmt.Sprintf("%s%d", kind, r.IntN(4)) }
func (r crowd) maybe() bool               { return r.IntN(3) == 0 }

func (r crowd) addr() netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", r.IntN(2), r.IntN(2), r.IntN(3)))
}

func (r crowd) addrs() []netip.Addr {
	var list []netip.Addr
	for range r.IntN(3) {
		list = append(list, r.addr())
	}
	return list
}

func (r crowd) prefixes() []netip.Prefix {
	list := []netip.Prefix{netip.PrefixFrom(r.addr(), 14+r.IntN(12)).Masked()}
	if r.maybe() {
		list = append(list, netip.PrefixFrom(r.addr(), 14+r.IntN(12)).Masked())
	}
	return list
}

func (r crowd) machine() api.Object {
	m := testsite.NewMachine(r.name("m"))
	for i := range r.IntN(3) {
		l := api.Link{Name: fmt.Sprintf("eth%d", i), MAC: api.MAC(r.of("52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03")), Subnet: r.name("s"), Addresses: r.addrs()}
		if r.maybe() {
			l.MAC, l.Bond = "", &api.Bond{Members: []api.MAC{l.MAC}}
		}
		m.Spec.Links = append(m.Spec.Links, l)
	}
	m.Spec.Zone, m.Spec.Loopbacks = r.of("", "z0", "z1", "z2"), r.addrs()
	if r.maybe() {
		m.Spec.BMC = &api.BMC{Address: r.of("https://10.9.0.1", "https://10.9.0.1:443/", "https://10.9.0.2"), Credentials: r.name("k")}
	}
	if r.maybe() {
		m.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true"}
		m.Status.Phase = api.PhaseDiscovered
	}
	return m
}

func (r crowd) subnet() api.Object {
	s := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.SubnetPurpose(r.of(string(api.Production), string(api.Provisioning), string(api.Management))), Prefixes: r.prefixes()}}
	s.Metadata.Name = r.name("s")
	s.Spec.Zone, s.Spec.Interface = r.of("", "z0", "z1"), r.of("", "eth1", "eth2")
	return s
}

func (r crowd) zone() api.Object {
	z := &api.Zone{Spec: api.ZoneSpec{ASN: uint32(64601 + r.IntN(3)), Prefixes: r.prefixes()}}
	z.Metadata.Name = r.name("z")
	if r.maybe() {
		z.Spec.Uplinks = []api.Uplink{{Address: r.addr(), ASN: uint32(64601 + r.IntN(5)), Secret: r.name("k")}}
	}
	if r.maybe() {
		z.Spec.Loopbacks = r.prefixes()
		z.Status.Loopbacks = []api.LoopbackStatus{{Machine: r.name("m"), Addresses: r.addrs()}}
	}
	if r.maybe() {
		z.Spec.Services = []api.Service{{Name: "dns", Addresses: r.addrs()}}
	}
	return z
}

func (r crowd) network() api.Object {
	n := &api.Network{Spec: api.NetworkSpec{Zone: r.name("z"), CIDRs: r.prefixes(), HostPrefix: 30, VNI: uint32(r.IntN(3)), Advertise: r.maybe(), Direct: r.maybe()}}
	n.Metadata.Name, n.Status.VNI = r.name("n"), uint32(r.IntN(4))
	if r.maybe() {
		n.Spec.Allow = []string{r.name("n"), r.name("n")}
	}
	if r.maybe() {
		n.Spec.Peering = &api.Peering{ASN: uint32(64601 + r.IntN(3)), Prefixes: r.prefixes(), Secret: r.name("k"), Advertise: r.maybe()}
	}
	return n
}

func (r crowd) secret() api.Object {
	s := &api.Secret{Spec: api.SecretSpec{Data: map[string]string{r.of("password", "token"): "x"}}}
	s.Metadata.Name = r.name("k")
	if r.maybe() {
		s.Status.Digests = map[string]string{"password": "d"}
	}
	return s
}

func (r crowd) object() api.Object {
	makers := []func() api.Object{r.machine, r.subnet, r.zone, r.network, r.secret}
	return makers[r.IntN(len(makers))]()
}

// blind is a World in which every index finds everything: the rules look at all
// objects, of which the indexes must not have kept any back.
func blind(all map[id]api.Object, judged api.Object) *World {
	w := NewWorld()
	values := map[string]bool{}
	whats := []string{byMAC, byAddress, byBMC, byLoopbacks, byInterface, byASN, byUplinkASN, byUplink, byChosen, byVNI}
	for _, k := range api.Kinds() {
		whats = append(whats, referrer+k.Name)
	}
	for _, o := range all {
		w.Set(api.KindOf(o).Name, o.Meta().Name, o)
	}
	for _, o := range append(slices.Collect(mapValues(all)), judged) {
		values[o.Meta().Name] = true
		for _, k := range rulesOf(api.KindOf(o).Name).allKeys(o) {
			values[k.value] = true
		}
	}
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for at := range all {
		for _, what := range whats {
			for value := range values {
				w.keyed.Add(key{what, value}, at)
			}
		}
		for _, x := range w.over {
			for _, p := range everywhere {
				x.Add(p, at)
			}
		}
	}
	return w
}

func mapValues(m map[id]api.Object) func(func(api.Object) bool) {
	return func(yield func(api.Object) bool) {
		for _, o := range m {
			if !yield(o) {
				return
			}
		}
	}
}

// TestIndexesKeepNothingBack judges objects by a World whose objects come, change
// and go, and by one in which rules look at everything.
func TestIndexesKeepNothingBack(t *testing.T) {
	r := crowd{rand.New(rand.NewPCG(11, 7))}
	all := map[id]api.Object{}
	w := NewWorld()
	refused, taken := 0, 0
	for range 1500 {
		o := r.object()
		at := id{api.KindOf(o).Name, o.Meta().Name}
		if r.IntN(4) == 0 {
			delete(all, at)
			w.Set(at.kind, at.name, nil)
			continue
		}
		got, want := Judge(w, o, all[at]), Judge(blind(all, o), o, all[at])
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s %s (-all +indexed): %s", at.kind, at.name, diff)
		}
		if len(got.Errors) > 0 {
			refused++
		} else {
			taken++
		}
		// What was refused is stored, too: the rules see more of each other so.
		all[at] = o
		w.Set(at.kind, at.name, o)
	}
	if refused < 150 || taken < 150 {
		t.Errorf("%d were refused and %d taken: that compares little", refused, taken)
	}
	for at := range all {
		w.Set(at.kind, at.name, nil)
	}
	if len(w.objects) > 0 || !w.keyed.Empty() {
		t.Errorf("an empty World keeps %d objects and keys of some", len(w.objects))
	}
}
