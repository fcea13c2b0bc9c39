package hostspec

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// keyOf is a public key like another: bootd knows nothing of its mathematics.
func keyOf(b byte) string { return base64.StdEncoding.EncodeToString(slices.Repeat([]byte{b}, 32)) }

func (r *rack) encrypt(mode string) {
	r.t.Helper()
	_, err := store.Mutate(r.t.Context(), r.Store, "yellow", func(z *api.Zone) error { z.Spec.Encryption = mode; return nil })
	if err != nil {
		r.t.Fatal(err)
	}
	r.Sync()
}

// baseUntil reads frames until the host's base part is as done wants it.
func (h *host) baseUntil(done func(*api.BasePart) bool) *api.BasePart {
	h.t.Helper()
	var base *api.BasePart
	h.until(func(f api.ServerFrame) bool {
		if f.Part == nil || f.Part.Name != api.PartBase {
			return false
		}
		v, err := api.DecodePart(f.Part.Name, f.Part.Value)
		if err != nil {
			h.t.Fatal(err)
		}
		base = v.(*api.BasePart)
		return done(base)
	})
	return base
}

func hostsOf(b *api.BasePart) (names []string) {
	if b.Underlay.Encryption != nil {
		for _, p := range b.Underlay.Encryption.Peers {
			names = append(names, p.Host)
		}
	}
	return names
}

func knows(names ...string) func(*api.BasePart) bool {
	return func(b *api.BasePart) bool { return slices.Equal(hostsOf(b), names) }
}

func TestHostsOfAnEncryptedZoneKnowEachOther(t *testing.T) {
	r := newRack(t, 3, "customer-a")
	r.settled([]string{"customer-a"}, 3)
	a := r.dial(0, &api.Hello{})
	if b := a.baseUntil(knows()); b.Underlay.Encryption != nil {
		t.Errorf("a Zone without encryption: %+v", b.Underlay.Encryption)
	}
	a.send(api.HostFrame{Status: &api.HostStatus{WireGuardKey: keyOf(1)}})
	r.encrypt(api.EncryptionWireGuard)
	if b := a.baseUntil(func(b *api.BasePart) bool { return b.Underlay.Encryption != nil }); b.Underlay.Encryption.Port != 51820 || len(hostsOf(b)) != 0 {
		t.Errorf("no host has a key: %+v", b.Underlay.Encryption)
	}

	// Each that reports a key is told of to the others, by all of its addresses.
	b := r.dial(1, &api.Hello{})
	b.baseUntil(knows(hostName(0)))
	b.send(api.HostFrame{Status: &api.HostStatus{WireGuardKey: keyOf(2)}})
	base := a.baseUntil(knows(hostName(1)))
	if p := base.Underlay.Encryption.Peers[0]; p.PublicKey != keyOf(2) || !slices.Equal(p.Addresses, []netip.Addr{netip.MustParseAddr("198.18.0.1")}) {
		t.Errorf("it is told of as %+v", p)
	}
	b.send(api.HostFrame{Status: &api.HostStatus{WireGuardKey: keyOf(3)}})
	a.baseUntil(func(b *api.BasePart) bool { return b.Underlay.Encryption.Peers[0].PublicKey == keyOf(3) })

	// A key that is another's, or none, counts for nothing.
	c := r.dial(2, &api.Hello{})
	c.baseUntil(knows(hostName(0), hostName(1)))
	topBit := slices.Repeat([]byte{3}, 32)
	topBit[31] |= 0x80
	for _, key := range []string{keyOf(3), "c2hvcnQ=", keyOf(3)[:42] + "N=", base64.StdEncoding.EncodeToString(topBit)} {
		c.send(api.HostFrame{Status: &api.HostStatus{WireGuardKey: key, BootID: key}})
		r.eventually("the report is taken", func() bool { h := r.Machine(hostName(2)).Status.Host; return h != nil && h.BootID == key })
		if got := r.Machine(hostName(2)).Status.Host.WireGuardKey; got != "" {
			t.Errorf("%q is taken for its key", got)
		}
	}
	if !slices.ContainsFunc(r.Events(), func(e api.Event) bool {
		return e.Reason == "KeyRefused" && strings.Contains(e.Message, "is that of host "+hostName(1))
	}) {
		t.Errorf("nobody is told of a key that is another's: %+v", r.Events())
	}

	// The encryption takes of the MTU.
	m, _ := store.Cached[api.Machine](r.Cache, hostName(0))
	spec, err := r.hub.Compiler.Compile(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	v, err := api.DecodePart("network/customer-a", spec.Parts["network/customer-a"])
	if err != nil || v.(*api.NetworkPart).MTU != 9000-50-60 {
		t.Errorf("%+v, %v, want MTU %d", v, err, 9000-50-60)
	}
	r.encrypt(api.EncryptionNone)
	a.baseUntil(func(b *api.BasePart) bool { return b.Underlay.Encryption == nil })
}

// A host says itself what addresses it has, where its spec pins none: it cannot
// take another's.
func TestMeshGivesEachAddressToOne(t *testing.T) {
	s := testsite.Open(t)
	s.Create(&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601, Encryption: api.EncryptionWireGuard}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("2001:db8::/64")}}})
	machine := func(i int, zone, key string, pinned bool, reported ...string) {
		m := newMachine(i)
		m.Spec.Zone = zone
		m.Status.Host = &api.HostStatus{WireGuardKey: key, NICs: []api.HostNIC{{Name: "prod0"}}}
		for _, a := range reported {
			m.Status.Host.NICs[0].Addresses = append(m.Status.Host.NICs[0].Addresses, netip.MustParsePrefix(a))
		}
		if !pinned {
			m.Spec.Links[0].Addresses = nil
		}
		s.Create(m)
	}
	machine(1, "yellow", keyOf(1), false, "198.18.0.3/16", "198.18.0.1/16", "2001:db8::1/64", "fe80::1/64") // .3 is another's
	machine(2, "yellow", keyOf(2), false, "198.18.0.22/16")                                                 // so does the next
	machine(7, "yellow", keyOf(7), false, "198.18.0.22/16")
	machine(3, "yellow", keyOf(3), true)
	machine(4, "yellow", keyOf(3), true)
	machine(5, "red", keyOf(5), true)
	machine(6, "yellow", "", true)
	want := []api.EncryptionPeer{
		{Host: hostName(1), PublicKey: keyOf(1), Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:db8::1")}},
		{Host: hostName(3), PublicKey: keyOf(3), Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.3")}},
	}
	got := mesh(s.Cache, "yellow")
	if !slices.EqualFunc(got, want, func(a, b api.EncryptionPeer) bool {
		return a.Host == b.Host && a.PublicKey == b.PublicKey && slices.Equal(a.Addresses, b.Addresses)
	}) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}

// BenchmarkMesh is what a join costs bootd for every other host of the Zone.
func BenchmarkMesh(b *testing.B) {
	r := newRack(b, 500)
	for i := range 500 {
		r.Change(hostName(i), func(m *api.Machine) {
			m.Status.Host = &api.HostStatus{WireGuardKey: base64.StdEncoding.EncodeToString(append(slices.Repeat([]byte{1}, 30), byte(i>>8), byte(i)))}
		})
	}
	r.encrypt(api.EncryptionWireGuard)
	m, _ := store.Cached[api.Machine](r.Cache, hostName(7))
	for b.Loop() {
		r.hub.Compiler.Cache = r.Cache.With(m) // none of what was derived
		for range 500 {
			if _, err := r.hub.Compiler.compile(b.Context(), m); err != nil {
				b.Fatal(err)
			}
		}
	}
}
