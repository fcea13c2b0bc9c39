package zone

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// bench is a Site with a Zone, and a Controller that runs on it.
type bench struct {
	*testsite.Site
	t     *testing.T
	parts *Parts

	mu       sync.Mutex
	sessions map[string]*api.BGPStatus
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t, sessions: map[string]*api.BGPStatus{}}
	b.Create(&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601, Prefixes: testsite.Prefixes("10.5.0.0/16")}},
		&api.Zone{Base: testsite.Named("red"), Spec: api.ZoneSpec{ASN: 64602}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/24")}})
	b.parts = &Parts{Cache: b.Cache, Keys: &Keys{
		Key: func(one, other string) string { return "key" },
		Secret: func(ctx context.Context, name string, use api.SecretUse) (map[string]string, error) {
			return store.OpenSecret(ctx, b.Store, name, use)
		},
	}}
	c := &Controller{Env: b.Env(), Parts: b.parts, Sessions: b.reported}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = c.Control().Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return b
}

func (b *bench) reported(host string) *api.BGPStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sessions[host]
}

// host adds an Active host, r1u07 for rack 1 and unit 7.
func (b *bench) host(rack, unit int, change ...func(*api.Machine)) string {
	b.t.Helper()
	name := fmt.Sprintf("r%du%02d", rack, unit)
	m := &api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Zone: "yellow", Location: api.Location{Rack: fmt.Sprintf("r%d", rack), Unit: unit},
		Links: []api.Link{{Name: "prod0", MAC: api.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", rack, unit)), Subnet: "prod", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 8, byte(rack*20 + unit)})}}}}}
	m.Status.Phase = api.PhaseActive
	m.Status.Conditions.Set(time.Now().Add(-time.Hour), api.CondConnected, api.True, "Connected", "")
	for _, fn := range change {
		fn(m)
	}
	b.Create(m)
	return name
}

// apply has a host report what it should be, and its sessions with all others.
func (b *bench) apply(name string) {
	b.t.Helper()
	b.applyAndTell(name, 1)
}

// applyAndTell is apply of a host that tells each uplink so many routes.
func (b *bench) applyAndTell(name string, routes int) {
	b.t.Helper()
	m := b.Machine(name)
	part, err := b.parts.Part(b.t.Context(), m)
	if err != nil {
		b.t.Fatal(err)
	}
	raw, err := api.EncodePart(part)
	if err != nil {
		b.t.Fatal(err)
	}
	status := &api.BGPStatus{Role: part.Role}
	for _, n := range part.Neighbors {
		session := api.BGPSession{Peer: n.Name, Role: n.Role, State: api.BGPEstablished}
		if n.Role == api.BGPUplink {
			session.Accepted, session.Advertised = 1, routes
		}
		status.Sessions = append(status.Sessions, session)
	}
	b.mu.Lock()
	b.sessions[name] = status
	b.mu.Unlock()
	b.Change(name, func(m *api.Machine) {
		m.Status.Host = &api.HostStatus{UID: m.Metadata.UID, Parts: map[string]api.PartStatus{api.PartBGP: {State: api.PartApplied, Digest: api.PartDigest(raw)}}}
	})
}

func (b *bench) zone(name string) *api.Zone {
	b.t.Helper()
	z, err := store.Get[api.Zone](b.t.Context(), b.Store, name)
	if err != nil {
		b.t.Fatal(err)
	}
	return z
}

// settled waits until the reflectors are as written, such as "r1u01 r2u01:Starting".
func (b *bench) settled(want string) *api.Zone {
	b.t.Helper()
	var z *api.Zone
	ok := waittest.Soon(8*time.Second, func() bool {
		z = b.zone("yellow")
		return written(z.Status.Reflectors) == want
	})
	if !ok {
		b.t.Fatalf("reflectors: %s, want %s\n%+v\n%s", written(z.Status.Reflectors), want, z.Status.Conditions, b.Text())
	}
	b.Sync()
	return z
}

// condition waits for one of that reason.
func (b *bench) condition(typ, reason string) string {
	b.t.Helper()
	var c *api.Condition
	ok := waittest.Soon(8*time.Second, func() bool {
		c = b.zone("yellow").Status.Conditions.Get(typ)
		return c != nil && c.Reason == reason
	})
	if !ok {
		b.t.Fatalf("%s never is %s: %+v", typ, reason, c)
	}
	return c.Message
}

func (b *bench) edit(fn func(*api.Zone)) {
	b.t.Helper()
	if _, err := store.Mutate(b.t.Context(), b.Store, "yellow", func(z *api.Zone) error { fn(z); return nil }); err != nil {
		b.t.Fatal(err)
	}
	b.Sync()
}

func (b *bench) serving(names ...string) {
	b.t.Helper()
	for _, n := range names {
		b.apply(n)
	}
	b.settled(strings.Join(names, " "))
}

// TestReplacement takes a Zone's reflectors through all that ends one, and
// looks at the hosts' parts in between: until the new one serves, the old one
// is every host's peer.
func TestReplacement(t *testing.T) {
	b := newBench(t)
	for i := range 3 {
		b.host(1+i, 1)
	}
	b.settled("r1u01:Starting r2u01:Starting")
	b.serving("r1u01", "r2u01")
	b.condition(api.CondReady, "Serving")
	client := b.host(2, 9)

	peers := func() string {
		part, err := b.parts.Part(t.Context(), b.Machine(client))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, n := range part.Neighbors {
			names = append(names, n.Name)
		}
		return strings.Join(names, " ")
	}
	replace := func(old, middle, after string, change func(*api.Machine)) {
		t.Helper()
		b.Change(old, change)
		b.settled(middle)
		if got := peers(); got != "r1u01 r2u01 r3u01" {
			t.Errorf("peers of a client: %s", got)
		}
		names := strings.Fields(after)
		for _, n := range names {
			b.apply(n)
		}
		b.settled(after)
		if got := peers(); got != after {
			t.Errorf("peers of a client: %s, want %s", got, after)
		}
	}
	well := func(m *api.Machine) {
		m.Spec.State, m.Status.Phase, m.Metadata.Annotations = api.StateActive, api.PhaseActive, nil
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "", "")
		m.Status.Conditions.Set(time.Now().Add(-time.Hour), api.CondConnected, api.True, "Connected", "")
	}
	replace("r1u01", "r1u01:Leaving r2u01 r3u01:Starting", "r2u01 r3u01", func(m *api.Machine) { m.Metadata.Annotations = map[string]string{ShutdownAnnotation: "true"} })
	b.apply("r1u01")
	b.Change("r1u01", well)
	replace("r2u01", "r1u01:Starting r2u01:Leaving r3u01", "r1u01 r3u01", func(m *api.Machine) { m.Spec.State = api.StateMaintenance })
	b.apply("r2u01")
	b.Change("r2u01", well)
	replace("r3u01", "r1u01 r2u01:Starting r3u01:Leaving", "r1u01 r2u01", func(m *api.Machine) { m.Status.Phase = api.PhaseProvisioning })
	b.apply("r3u01")
	b.Change("r3u01", well)
	replace("r1u01", "r1u01:Leaving r2u01 r3u01:Starting", "r2u01 r3u01", func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now().Add(-11*time.Minute), api.CondConnected, api.False, "Silent", "")
	})
	b.apply("r1u01")
	b.Change("r1u01", well)

	// Into another Zone, it goes at once.
	b.Change("r2u01", func(m *api.Machine) { m.Spec.Zone, m.Spec.Links[0].Subnet = "red", "" })
	b.settled("r1u01:Starting r3u01")
	if got := peers(); got != "r1u01 r3u01" {
		t.Errorf("peers of a client: %s", got)
	}
	for reason, n := range map[string]int{"ReflectorChosen": 7, "ReflectorServing": 6, "ReflectorRemoved": 4, "ReflectorGone": 1} {
		if got := b.Happened(reason); got != n {
			t.Errorf("%d events %s, want %d: %+v", got, reason, n, b.Events())
		}
	}
}

// A reflector leaves its uplinks when another carries what comes by them, as both
// report, and says meanwhile what it waits for.
func TestReplacementCarries(t *testing.T) {
	b := newBench(t)
	b.edit(func(z *api.Zone) {
		z.Spec.Reflectors.Machines = []string{"r1u01"}
		z.Spec.Uplinks = []api.Uplink{{Address: netip.MustParseAddr("198.18.8.1"), ASN: 64600}}
	})
	b.host(1, 1)
	b.host(2, 1)
	b.settled("r1u01:Starting")
	b.apply("r1u01")
	b.settled("r1u01:Joining")
	b.apply("r1u01")
	b.settled("r1u01")
	b.edit(func(z *api.Zone) { z.Spec.Reflectors.Machines = []string{"r2u01"} })
	b.settled("r1u01:Leaving r2u01:Starting")
	b.apply("r2u01")
	b.settled("r1u01:Leaving r2u01:Joining")
	b.applyAndTell("r2u01", 0)
	// It has had its time, and the uplink sends it nothing.
	b.edit(func(z *api.Zone) { z.Status.Reflectors[1].Since = time.Now().Add(-2 * joining) })
	b.settled("r1u01:Leaving r2u01")
	const want = "r1u01 leaves (NotNamed) once r2u01 has routes advertised to uplink 198.18.8.1"
	waittest.Until(t, time.Minute, want, func() bool { return strings.Contains(b.condition(api.CondReady, "Changing"), want) })
	b.apply("r2u01")
	b.settled("r1u01:Withdrawn r2u01")
	b.edit(func(z *api.Zone) { z.Status.Reflectors[0].Since = time.Now().Add(-following) })
	b.apply("r1u01")
	b.settled("r2u01")
}

// TestNothingChangesWithoutNeed: restarts of hosts' streams, newcomers and a
// host that reports leave the reflectors and the Zone as they are.
func TestNothingChangesWithoutNeed(t *testing.T) {
	b := newBench(t)
	b.host(1, 1)
	b.host(2, 1)
	b.settled("r1u01:Starting r2u01:Starting")
	b.serving("r1u01", "r2u01")
	b.condition(api.CondReady, "Serving")
	before := b.zone("yellow")
	b.Change("r1u01", func(m *api.Machine) { m.Status.Conditions.Set(time.Now(), api.CondConnected, api.False, "Silent", "") })
	b.Change("r1u01", func(m *api.Machine) {
		m.Status.Conditions.Set(time.Now(), api.CondConnected, api.True, "Connected", "")
	})
	for i := range 5 {
		b.host(3, i+1)
	}
	b.condition(Members, "Complete")
	waittest.Until(t, time.Minute, "7 members", func() bool { return strings.HasPrefix(b.condition(Members, "Complete"), "7 ") })
	b.apply("r1u01")
	after := b.zone("yellow")
	if !sameReflectors(before.Status.Reflectors, after.Status.Reflectors) {
		t.Errorf("%+v became %+v", before.Status.Reflectors, after.Status.Reflectors)
	}
}

func TestConditions(t *testing.T) {
	b := newBench(t)
	if text := b.condition(api.CondReady, "NotEnoughHosts"); !strings.Contains(text, "no other Machine") {
		t.Error(text)
	}
	b.host(1, 1)
	b.host(1, 2, func(m *api.Machine) { m.Spec.Links[0].Addresses = nil })
	b.host(1, 3, func(m *api.Machine) { m.Status.Phase = api.PhaseProvisioning })
	b.settled("r1u01:Starting")
	const why = "r1u02 (its link prod0 has no IPv4 address: pin one from Subnet prod), r1u03 (Provisioning)"
	waittest.Until(t, time.Minute, why, func() bool { return strings.Contains(b.condition(api.CondReady, "NotEnoughHosts"), why) })
	if text := b.condition(Members, "NoUnderlay"); !strings.Contains(text, "1 of 3") || !strings.Contains(text, "r1u02: ") {
		t.Error(text)
	}
	b.host(1, 4)
	b.settled("r1u01:Starting r1u04:Starting")
	b.serving("r1u01", "r1u04")
	if text := b.condition(Spread, "SameRack"); !strings.Contains(text, "r1u01, r1u04 share") {
		t.Error(text)
	}
	b.host(2, 1) // it has been connected for an hour
	b.settled("r1u01 r1u04:Leaving r2u01:Starting")
	b.apply("r2u01")
	b.settled("r1u01 r2u01")
	b.condition(Spread, "Spread")

	b.edit(func(z *api.Zone) { z.Spec.Reflectors.Machines = []string{"r1u01", "r9u09"} })
	b.condition(api.CondReady, "NamedMissing")
	b.host(9, 9, func(m *api.Machine) { m.Spec.Zone, m.Spec.Links[0].Subnet = "red", "" })
	if text := b.condition(api.CondReady, "NamedElsewhere"); !strings.Contains(text, "Zone red") {
		t.Error(text)
	}
	b.edit(func(z *api.Zone) { z.Spec.Reflectors.Machines = []string{"r1u01", "r1u02"} })
	b.condition(api.CondReady, "NoUnderlay")
	b.edit(func(z *api.Zone) {
		z.Spec.Reflectors.Machines = nil
		z.Spec.Uplinks = []api.Uplink{{Address: netip.MustParseAddr("198.18.8.1"), ASN: 64600, Secret: "leaf"}}
	})
	b.condition(Uplinks, "SecretMissing")
	secret := &api.Secret{Base: testsite.Named("leaf"), Spec: api.SecretSpec{Data: map[string]string{"password": "hush"}}}
	b.Create(secret)
	b.condition(Uplinks, "Down")
	uses := func(u *api.SecretUses) {
		t.Helper()
		_, err := store.Mutate(t.Context(), b.Store, "leaf", func(s *api.Secret) error { s.Spec.Uses = u; return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	uses(&api.SecretUses{Uplinks: []string{"red"}})
	b.condition(Uplinks, "SecretNotPermitted")
	uses(&api.SecretUses{Uplinks: []string{"yellow"}})
	b.condition(Uplinks, "Down")
	names := []string{"r1u01", "r2u01"}
	for _, n := range names {
		b.apply(n)
	}
	b.Create(&api.Secret{Base: testsite.Named("other")}) // makes the Zone due
	b.condition(Uplinks, "Established")
	part, err := b.parts.Part(t.Context(), b.Machine("r1u01"))
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(part.Neighbors, func(n api.BGPNeighbor) bool { return n.Role == api.BGPUplink })
	if at < 0 || part.Neighbors[at].Password != "hush" {
		t.Errorf("%+v", part.Neighbors)
	}
}
