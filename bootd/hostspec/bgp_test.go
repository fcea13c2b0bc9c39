package hostspec

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
)

var update = flag.Bool("update", false, "write the golden parts anew")

// newZone is a rack whose hosts have bgp parts: the first two are reflectors,
// and each has leases of the advertised Networks blue and green, of green
// outside of the Zone's prefixes.
func newZone(t testing.TB, hosts int) *rack {
	t.Helper()
	r := &rack{bench: &bench{Site: testsite.Open(t), t: t}}
	r.keys = &zone.Keys{
		Key: func(one, other string) string { return "key" },
		Secret: func(ctx context.Context, name string, use api.SecretUse) (map[string]string, error) {
			return store.OpenSecret(ctx, r.Store, name, use)
		},
	}
	yellow := &api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601, Prefixes: testsite.Prefixes("10.5.0.0/16", "fd00:5::/48"),
		BGP: api.ZoneBGP{GracefulRestart: api.Duration(time.Minute), BMP: []netip.AddrPort{netip.MustParseAddrPort("198.18.0.250:11019")}},
		Uplinks: []api.Uplink{
			{Address: netip.MustParseAddr("198.18.0.254"), ASN: 64600, Secret: "leaf", Import: []api.PrefixFilter{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}},
			{Address: netip.MustParseAddr("192.0.2.1"), ASN: 64600, Hops: 3, KeepNextHop: true, Export: []api.PrefixFilter{{Prefix: netip.MustParsePrefix("10.5.0.0/16"), LE: 24}}},
		}}}
	r.Create(&api.Site{Base: testsite.Named("site")}, yellow, &api.Zone{Base: testsite.Named("red"), Spec: api.ZoneSpec{ASN: 64602}},
		&api.Secret{Base: testsite.Named("leaf"), Spec: api.SecretSpec{Data: map[string]string{"password": "hush"}}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.0.0/24", "fd00:8::/64")}},
		&api.Subnet{Base: testsite.Named("far"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.1.0/24")}},
		&api.Subnet{Base: testsite.Named("redprod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "red", Prefixes: testsite.Prefixes("198.18.2.0/24"), Gateway: netip.MustParseAddr("198.18.2.1")}},
		&api.Network{Base: testsite.Named("blue"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/17", "fd00:5::/56"), Advertise: true}},
		&api.Network{Base: testsite.Named("green"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.9.0.0/16"), Advertise: true}},
		&api.Network{Base: testsite.Named("quiet"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.128.0/17")}})
	for i := range hosts {
		m := newMachine(i + 1)
		m.Spec.Links[0].Addresses = append(m.Spec.Links[0].Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:8::%d", i+1)))
		r.Create(m)
	}
	r.reflect(1, 2)
	r.start()
	r.settled([]string{"blue", "green", "quiet"}, hosts)
	return r
}

// reflect makes hosts the Zone's reflectors.
func (r *rack) reflect(hosts ...int) {
	r.t.Helper()
	r.editZone(func(z *api.Zone) {
		z.Status.Reflectors = nil
		for _, i := range hosts {
			m := r.Machine(hostName(i))
			z.Status.Reflectors = append(z.Status.Reflectors, api.ReflectorStatus{Machine: m.Metadata.Name, UID: m.Metadata.UID, State: api.ReflectorServing})
		}
	})
}

func (r *rack) editZone(fn func(*api.Zone)) {
	r.t.Helper()
	if _, err := store.Mutate(r.t.Context(), r.Store, "yellow", func(z *api.Zone) error { fn(z); return nil }); err != nil {
		r.t.Fatal(err)
	}
	r.Sync()
}

func (r *rack) part(i int) *api.BGPPart {
	r.t.Helper()
	p, err := r.zones.Part(r.t.Context(), r.Machine(hostName(i)))
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rack) encoded(i int) string {
	r.t.Helper()
	raw, err := api.EncodePart(r.part(i))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(raw)
}

// TestBGPPart compares whole parts with those in testdata.
func TestBGPPart(t *testing.T) {
	r := newZone(t, 4)
	r.Change(hostName(4), func(m *api.Machine) { // in another row, behind routers
		m.Spec.Links[0].Subnet, m.Spec.Links[0].Addresses = "far", []netip.Addr{netip.MustParseAddr("198.18.1.4")}
		m.Metadata.Annotations = map[string]string{zone.ShutdownAnnotation: "true"}
	})
	for i, name := range map[int]string{1: "reflector", 3: "client", 4: "far"} {
		got := new(bytes.Buffer)
		if err := json.Indent(got, []byte(r.encoded(i)), "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		path := filepath.Join("testdata", "bgp-"+name+".json")
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s is\n%s", path, got)
		}
	}
}

// TestBGPPartEVPN: all hosts of the Zone know the family before they speak it with
// an uplink, and no uplink has it that does not say so.
func TestBGPPartEVPN(t *testing.T) {
	r := newZone(t, 3)
	families := func() (lists [][]string) {
		for _, n := range r.part(1).Neighbors {
			if n.Role == api.BGPUplink {
				lists = append(lists, n.Families)
			}
		}
		return lists
	}
	if got := families(); r.part(1).EVPN || r.part(3).EVPN || len(got) != 2 || got[0] != nil {
		t.Errorf("EVPN is not off: %v", got)
	}
	r.editZone(func(z *api.Zone) { z.Spec.BGP.EVPN, z.Spec.Uplinks[1].EVPN = true, true })
	if got := families(); !r.part(1).EVPN || !r.part(3).EVPN || got[0] != nil || !slices.Contains(got[1], api.FamilyEVPN) {
		t.Errorf("EVPN is not on, with the second uplink alone: %v", got)
	}
}

// TestBGPPartsStay: what one host does changes the parts of those alone that
// have to do with it.
func TestBGPPartsStay(t *testing.T) {
	r := newZone(t, 5)
	for _, c := range []struct {
		name   string
		change func()
		want   string // the hosts whose parts are others then
	}{
		{"a client's rack", func() { r.Change(hostName(3), func(m *api.Machine) { m.Spec.Location.Rack = "r9" }) }, ""},
		{"a client is re-provisioned", func() { r.Change(hostName(3), func(m *api.Machine) { m.Status.Phase = api.PhaseProvisioning }) }, ""},
		{"a client's address", func() {
			r.Change(hostName(3), func(m *api.Machine) { m.Spec.Links[0].Addresses[0] = netip.MustParseAddr("198.18.0.99") })
		}, "1 2 3"},
		{"a client is drained", func() {
			r.Change(hostName(4), func(m *api.Machine) { m.Metadata.Annotations = map[string]string{zone.ShutdownAnnotation: "true"} })
		}, "4"},
		{"a reflector moves on", func() { r.editZone(func(z *api.Zone) { z.Status.Reflectors[0].State = api.ReflectorLeaving }) }, ""},
		{"a reflector leaves its uplinks", func() { r.editZone(func(z *api.Zone) { z.Status.Reflectors[0].State = api.ReflectorWithdrawn }) }, "1"},
		{"it stays", func() { r.editZone(func(z *api.Zone) { z.Status.Reflectors[0].State = api.ReflectorServing }) }, "1"},
		{"a service of labels that no host has", func() {
			r.editZone(func(z *api.Zone) {
				z.Spec.Services = []api.Service{{Name: "dns", Addresses: []netip.Addr{netip.MustParseAddr("10.5.254.53")}, Hosts: map[string]string{"tier": "edge"}}}
			})
		}, ""},
		{"a client comes to have it", func() {
			r.Change(hostName(4), func(m *api.Machine) { m.Metadata.Labels = map[string]string{"tier": "edge"} })
		}, "1 2 4"},
		{"a client's loopback", func() {
			r.editZone(func(z *api.Zone) {
				m := r.Machine(hostName(3))
				z.Status.Loopbacks = []api.LoopbackStatus{{Machine: m.Metadata.Name, UID: m.Metadata.UID, Addresses: []netip.Addr{netip.MustParseAddr("10.5.255.3"), netip.MustParseAddr("192.0.2.1")}}}
			})
		}, "1 2 3"},
		{"it pins another", func() {
			r.Change(hostName(3), func(m *api.Machine) { m.Spec.Loopbacks = []netip.Addr{netip.MustParseAddr("10.5.255.99")} })
		}, "1 2 3"},
		{"one more reflector", func() { r.reflect(1, 2, 5) }, "1 2 3 4 5"},
		{"an uplink's export", func() {
			r.editZone(func(z *api.Zone) { z.Spec.Uplinks[1].Export[0].LE = 28 })
		}, "1 2 5"},
	} {
		var before, after [6]string
		for i := 1; i <= 5; i++ {
			before[i] = r.encoded(i)
		}
		c.change()
		var changed []string
		for i := 1; i <= 5; i++ {
			if after[i] = r.encoded(i); after[i] != before[i] {
				changed = append(changed, fmt.Sprint(i))
			}
		}
		if got := strings.Join(changed, " "); got != c.want {
			t.Errorf("%s: the parts of %q change, want %q", c.name, got, c.want)
		}
	}
}

// TestUplinkSecret: an uplink is never told of without its key.
func TestUplinkSecret(t *testing.T) {
	r := newZone(t, 2)
	password := func() string {
		for _, n := range r.part(1).Neighbors {
			if n.Address == netip.MustParseAddr("198.18.0.254") {
				return "with " + n.Password
			}
		}
		return "none"
	}
	if got := password(); got != "with hush" {
		t.Error(got)
	}
	set := func(data map[string]string) {
		t.Helper()
		_, err := store.Mutate(t.Context(), r.Store, "leaf", func(s *api.Secret) error { s.Spec.Data = data; return nil })
		if err != nil {
			t.Fatal(err)
		}
		r.Sync()
	}
	set(map[string]string{"password": "other"})
	if got := password(); got != "with other" {
		t.Error(got)
	}
	set(map[string]string{"token": "x"})
	if got := password(); got != "none" {
		t.Error(got)
	}
	set(map[string]string{"password": strings.Repeat("x", 81)})
	if _, err := r.zones.Part(t.Context(), r.Machine(hostName(1))); err == nil || !strings.Contains(err.Error(), "80 at most") {
		t.Errorf("%v", err)
	}
	// The HostSpec that people see has no key in it.
	set(map[string]string{"password": "other"})
	spec, err := r.hub.Compiler.Compile(t.Context(), r.Machine(hostName(1)))
	if err != nil {
		t.Fatal(err)
	}
	if shown := string(spec.Parts[api.PartBGP]); strings.Contains(shown, "other") || strings.Contains(shown, `"key"`) || !strings.Contains(shown, "(not shown)") {
		t.Error(shown)
	}
	noGuess(t, r, hostName(1), api.PartBGP, "other", "key")
}

// noGuess fails when the digest of a part, which the Machine's status shows, confirms guesses of the part's passwords:
// all that a viewer cannot read is put back into the shown part, but the salt.
func noGuess(t *testing.T, r *rack, host, name string, guesses ...string) {
	t.Helper()
	given, err := r.hub.Compiler.compile(t.Context(), r.Machine(host))
	if err != nil {
		t.Fatal(err)
	}
	shown, err := r.hub.Compiler.Compile(t.Context(), r.Machine(host))
	if err != nil {
		t.Fatal(err)
	}
	text := []string{string(shown.Parts[name])}
	for range strings.Count(text[0], api.NotShown) {
		var next []string
		for _, one := range text {
			for _, guess := range guesses {
				next = append(next, strings.Replace(one, api.NotShown, guess, 1))
			}
		}
		text = next
	}
	for _, guess := range text {
		if api.PartDigest(api.Part(guess)) == given.Parts[name].Digest() {
			t.Errorf("the digest of part %s confirms %s", name, guess)
		}
	}
}

// TestAdvertisedPeering: a host tells of what its guests announce, and its
// reflectors take that, where the Network says so.
func TestAdvertisedPeering(t *testing.T) {
	r := newZone(t, 4)
	for _, advertise := range []bool{false, true, false} {
		_, err := store.Mutate(t.Context(), r.Store, "blue", func(n *api.Network) error {
			n.Spec.Peering = &api.Peering{ASN: 64512, Prefixes: testsite.Prefixes("10.5.128.0/20", "10.244.0.0/16"), MaxPrefixes: 8, Advertise: advertise}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r.Sync()
		inside, within := "", "[] 0"
		if advertise { // 10.244.0.0/16 is not the Zone's
			inside, within = "[10.5.128.0/20] 8 ", "[10.5.128.0/20] 8"
		}
		var told string
		for _, x := range r.part(4).Inside {
			told += fmt.Sprint(x.Prefixes, " ", x.MaxPrefixes, " ")
		}
		if told != inside {
			t.Errorf("advertise %v: the host tells of %s, not of %s", advertise, told, inside)
		}
		for _, a := range r.part(1).Accept {
			if got := fmt.Sprint(a.Within, " ", a.MaxWithin); a.Client == hostName(4) && got != within {
				t.Errorf("advertise %v: of the host is taken %s, not %s", advertise, got, within)
			}
		}
	}
}

// TestPeering: a Network's hosts get the guests' key, and people do not see it.
func TestPeering(t *testing.T) {
	r := newZone(t, 2)
	peering := func() string {
		t.Helper()
		s, err := r.hub.Compiler.compile(t.Context(), r.Machine(hostName(1)))
		if err != nil {
			t.Fatal(err)
		}
		part, there := s.Parts["network/quiet"]
		if !there {
			return "no part"
		}
		var p api.NetworkPart
		if err := json.Unmarshal(part.Value(), &p); err != nil {
			t.Fatal(err)
		}
		if p.Peering == nil {
			return "none"
		}
		return fmt.Sprintf("%d %d %v %s %q", p.Peering.ASN, p.Peering.GuestASN, p.Peering.Prefixes, p.Peering.Community, p.Peering.Password)
	}
	change := func(fn func(*api.Network)) {
		t.Helper()
		if _, err := store.Mutate(t.Context(), r.Store, "quiet", func(n *api.Network) error { fn(n); return nil }); err != nil {
			t.Fatal(err)
		}
		r.Sync()
	}
	expect := func(want string) {
		t.Helper()
		if got := peering(); got != want {
			t.Errorf("peering is %s, not %s", got, want)
		}
	}
	expect("none")
	change(func(n *api.Network) {
		n.Spec.Peering = &api.Peering{ASN: 64512, Prefixes: testsite.Prefixes("10.244.0.0/16")}
	})
	expect(`64601 64512 [10.244.0.0/16] 64601:1:1 ""`)
	change(func(n *api.Network) { n.Spec.Peering.Secret = "guests" })
	expect("none") // never without its key
	r.Create(&api.Secret{Base: testsite.Named("guests"), Spec: api.SecretSpec{Data: map[string]string{"password": "whisper"}}})
	r.Sync()
	expect(`64601 64512 [10.244.0.0/16] 64601:1:1 "whisper"`)
	shown, err := r.hub.Compiler.Compile(t.Context(), r.Machine(hostName(1)))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(shown.Parts["network/quiet"]); strings.Contains(text, "whisper") || !strings.Contains(text, api.NotShown) || !strings.Contains(text, hostName(2)) {
		t.Error(text)
	}
	noGuess(t, r, hostName(1), "network/quiet", "whisper")
	for _, networks := range [][]string{{"loud"}, {"quiet"}} {
		if _, err := store.Mutate(t.Context(), r.Store, "guests", func(s *api.Secret) error { s.Spec.Uses = &api.SecretUses{Networks: networks}; return nil }); err != nil {
			t.Fatal(err)
		}
		r.Sync()
		if networks[0] == "quiet" {
			expect(`64601 64512 [10.244.0.0/16] 64601:1:1 "whisper"`)
		} else {
			expect("none")
		}
	}
	change(func(n *api.Network) { n.Spec.Peering.Secret = "leaf" })
	if _, err := store.Mutate(t.Context(), r.Store, "leaf", func(s *api.Secret) error {
		s.Spec.Data = map[string]string{"password": strings.Repeat("x", 81)}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.Sync()
	expect("no part") // what the host has goes on
}

// TestBGPStream connects hosts and looks at who is told of what.
func TestBGPStream(t *testing.T) {
	r := newZone(t, 3)
	reflector, client := r.dial(1, &api.Hello{}), r.dial(3, &api.Hello{})
	var one, three cached
	one.follow(reflector, func() bool { return one.parts[api.PartBGP] != nil })
	// It originates its subnet as soon as that is cut; after that nothing here concerns it.
	three.follow(client, func() bool { return strings.Contains(string(three.parts[api.PartBGP]), `"originate"`) })
	if !strings.Contains(string(one.parts[api.PartBGP]), `"password":"hush"`) {
		t.Errorf("the host is not given its key: %s", one.parts[api.PartBGP])
	}

	// A host joins: the reflector accepts what it is given, as soon as it is.
	r.Create(newMachine(4))
	accepts := func() bool {
		var p api.BGPPart
		if err := json.Unmarshal(one.parts[api.PartBGP], &p); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(p.Accept, func(a api.BGPAccept) bool { return a.Client == hostName(4) })
		return i >= 0 && len(p.Accept[i].Prefixes) == 1 && network.Overlap(p.Accept[i].Prefixes, testsite.Prefixes("10.5.0.0/17"))
	}
	before := string(three.parts[api.PartBGP])
	one.follow(reflector, accepts)
	if got := r.encoded(3); got != before {
		t.Errorf("the client's part changed:\n%s\n%s", before, got)
	}

	// It is given labels by which it has a service, and another an address of its own.
	r.editZone(func(z *api.Zone) {
		z.Spec.Services = []api.Service{{Name: "dns", Addresses: []netip.Addr{netip.MustParseAddr("10.5.254.53")}, Hosts: map[string]string{"tier": "edge"}}}
	})
	r.Change(hostName(4), func(m *api.Machine) { m.Metadata.Labels = map[string]string{"tier": "edge"} })
	one.follow(reflector, func() bool { return strings.Contains(string(one.parts[api.PartBGP]), `"10.5.254.53/32"`) })
	r.editZone(func(z *api.Zone) {
		m := r.Machine(hostName(3))
		z.Status.Loopbacks = []api.LoopbackStatus{{Machine: m.Metadata.Name, UID: m.Metadata.UID, Addresses: []netip.Addr{netip.MustParseAddr("10.5.255.3")}}}
	})
	three.follow(client, func() bool { return strings.Contains(string(three.parts[api.PartBGP]), `"loopbacks":["10.5.255.3"]`) })
	one.follow(reflector, func() bool { return strings.Contains(string(one.parts[api.PartBGP]), `"10.5.255.3/32"`) })

	// A client's report stays in memory, and what it received goes to the reflector.
	// Its clock is an hour ahead.
	r.Change(hostName(3), func(m *api.Machine) {
		m.Status.Host = &api.HostStatus{UID: m.Metadata.UID, ClockSkew: api.Duration(time.Hour)}
	})
	since := time.Now().Add(-time.Minute)
	client.send(api.HostFrame{BGP: &api.BGPStatus{Role: "client", Sessions: []api.BGPSession{
		{Peer: hostName(1), Role: api.BGPReflector, State: api.BGPEstablished, Since: since.Add(time.Hour), Received: 7, Digest: "abc", Digested: since, LastError: strings.Repeat("x", 1000)}, {Peer: hostName(2), Role: api.BGPReflector, State: "idle", Digest: "abc"}}}})
	frames := reflector.until(func(f api.ServerFrame) bool { return f.Audit != nil })
	if a := frames[len(frames)-1].Audit; a.Neighbor != hostName(3) || a.Received != 7 || a.Digest != "abc" || !a.Digested.Equal(since) {
		t.Errorf("%+v", a)
	}
	status := r.hub.BGP(hostName(3))
	if status == nil || len(status.Sessions) != 2 || len(status.Sessions[0].LastError) > 260 || status.Reported.IsZero() {
		t.Errorf("%+v", status)
	}
	if status != nil && !status.Sessions[0].Since.Equal(since) {
		t.Errorf("a session is up since %s, want %s", status.Sessions[0].Since, since)
	}
	if m := r.Machine(hostName(3)); m.Status.Host != nil && m.Status.Host.BGP != nil {
		t.Errorf("it is stored: %+v", m.Status.Host.BGP)
	}
	if r.hub.BGP(hostName(2)) != nil {
		t.Error("a host that is not connected has sessions")
	}
}

// BenchmarkBGPPart compiles what a change of a Zone of 100 hosts makes due: the
// part of each host, and that of a reflector alone.
func BenchmarkBGPPart(b *testing.B) {
	const hosts = 100
	r := newZone(b, hosts)
	machines := store.CachedList[api.Machine](r.Cache)
	for name, some := range map[string][]*api.Machine{"reflector": machines[:1], "all": machines} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				for _, m := range some {
					if _, err := r.zones.Part(b.Context(), m); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// A reflector forwards before uplinks have a session with it, and until these have
// followed to others: what they send by it meanwhile must not be lost. The host is
// told of each step.
func TestForwardsBeforeAndAfterUplinks(t *testing.T) {
	r := newZone(t, 3)
	kind, err := api.LookupKind("Zone")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		state   api.ReflectorState
		uplinks int
	}{
		{api.ReflectorStarting, 0}, {api.ReflectorJoining, 2}, {api.ReflectorServing, 2}, {api.ReflectorLeaving, 2}, {api.ReflectorWithdrawn, 0},
	} {
		before, err := store.Get[api.Zone](t.Context(), r.Store, "yellow")
		if err != nil {
			t.Fatal(err)
		}
		r.editZone(func(z *api.Zone) { z.Status.Reflectors[0].State = step.state })
		after, err := store.Get[api.Zone](t.Context(), r.Store, "yellow")
		if err != nil {
			t.Fatal(err)
		}
		had := before.Status.Reflectors[0].State.HasUplinks()
		if told := r.hub.Compiler.parts().concerns(store.Change{Kind: kind, Name: "yellow", Old: before, New: after}).All; told != (had != (step.uplinks > 0)) {
			t.Errorf("%s, from %s: hosts are told: %v", step.state, before.Status.Reflectors[0].State, told)
		}
		p := r.part(1)
		got := 0
		for _, n := range p.Neighbors {
			if n.Role == api.BGPUplink {
				got++
			}
		}
		if got != step.uplinks || p.Role != api.BGPReflector || len(p.Accept) != 1 {
			t.Errorf("%s: %d uplinks, want %d; %s with %d clients", step.state, got, step.uplinks, p.Role, len(p.Accept))
		}
		if forwards := r.transit(1); forwards != "[10.5.0.0/16]" || len(p.Aggregates) == 0 {
			t.Errorf("%s: it forwards to %s, and throws away the rest of %s", step.state, forwards, p.Aggregates)
		}
	}
}

// transit is what a host forwards to.
func (r *rack) transit(i int) string {
	r.t.Helper()
	s, err := r.hub.Compiler.compile(r.t.Context(), r.Machine(hostName(i)))
	if err != nil {
		r.t.Fatal(err)
	}
	var b api.BasePart
	if err := json.Unmarshal(s.Parts[api.PartBase].Value(), &b); err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprint(b.Underlay.Transit)
}

// TestTransit: a reflector forwards to the Zone's prefixes, where uplinks are told
// of it as the next hop.
func TestTransit(t *testing.T) {
	r := newZone(t, 3)
	for i, want := range map[int]string{1: "[10.5.0.0/16]", 2: "[10.5.0.0/16]", 3: "[]"} {
		if got := r.transit(i); got != want {
			t.Errorf("%s forwards to %s, want %s", hostName(i), got, want)
		}
	}
	r.editZone(func(z *api.Zone) { z.Spec.Uplinks = z.Spec.Uplinks[1:] })
	if got := r.transit(1); got != "[]" {
		t.Errorf("the one uplink left is told of each host, and %s forwards to %s", hostName(1), got)
	}
}
