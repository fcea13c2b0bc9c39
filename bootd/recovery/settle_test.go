package recovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// add creates an object, and waits until the cache has it.
func (k *Keeper) add(t *testing.T, o api.Object) {
	t.Helper()
	o.SetDefaults()
	if err := k.Store.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := k.Cache.WaitRevision(t.Context(), store.RevisionOf(o)); err != nil {
		t.Fatal(err)
	}
}

// machine adds one that is wanted Active and is in Zone yellow.
func (k *Keeper) machine(t *testing.T, name string) *api.Machine {
	t.Helper()
	m := &api.Machine{}
	m.Metadata.Name, m.Spec.Zone, m.Status.HostKey = name, "yellow", "key of "+name
	k.add(t, m)
	return m
}

// says has a host report.
func (k *Keeper) says(t *testing.T, m *api.Machine, r api.Recount) {
	t.Helper()
	if err := k.Reported(t.Context(), m.Metadata.Name, m.Metadata.UID, r); err != nil {
		t.Fatal(err)
	}
}

// settled settles everything, which does not wait, and returns the record.
func (k *Keeper) settled(t *testing.T) *api.Recovery {
	t.Helper()
	last, err := store.Get[api.Site](t.Context(), k.Store, api.SiteName)
	if err != nil {
		t.Fatal(err)
	}
	ms, rev, err := store.List[api.Machine](t.Context(), k.Store)
	if err != nil || len(ms) == 0 {
		t.Fatal(err)
	}
	if err := k.Cache.WaitRevision(t.Context(), max(rev, store.RevisionOf(last))); err != nil {
		t.Fatal(err)
	}
	for range 2 { // each step may be repeated
		if err := k.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return store.Recovery(k.Cache)
}

func get[T any, P interface {
	*T
	api.Object
}](t *testing.T, k *Keeper, name string) P {
	t.Helper()
	o, err := store.Get[T, P](t.Context(), k.Store, name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func heldNetwork(name, uid string, vni uint32, lease string) api.HeldNetwork {
	return api.HeldNetwork{Name: name, UID: uid, VNI: vni, Lease: netip.MustParsePrefix(lease)}
}

// TestSettleZones has hosts keep the loopbacks and the role of a reflector that they got after the backup.
func TestSettleZones(t *testing.T) {
	k := newKeeper(t)
	b, c := k.machine(t, "b"), k.machine(t, "c")
	first, second := netip.MustParseAddr("198.18.127.1"), netip.MustParseAddr("198.18.127.2")
	// d and e both claim third: it is d's, as it was.
	d, e, third := k.machine(t, "d"), k.machine(t, "e"), netip.MustParseAddr("198.18.127.3")
	z := &api.Zone{}
	z.Metadata.Name = "yellow"
	z.Status.Loopbacks = []api.LoopbackStatus{{Machine: "b", UID: b.Metadata.UID, Addresses: []netip.Addr{first}}, {Machine: "d", UID: d.Metadata.UID, Addresses: []netip.Addr{third}}}
	z.Status.Reflectors = []api.ReflectorStatus{{Machine: "b", UID: b.Metadata.UID, State: api.ReflectorServing}}
	k.add(t, z)
	k.says(t, b, api.Recount{Loopbacks: []netip.Addr{second}})
	k.says(t, c, api.Recount{Loopbacks: []netip.Addr{first}, Reflector: true})
	k.says(t, d, api.Recount{Loopbacks: []netip.Addr{third}})
	k.says(t, e, api.Recount{Loopbacks: []netip.Addr{third}})
	k.says(t, m(t, k), api.Recount{})
	r := k.settled(t)
	if len(r.Conflicts) != 1 || !strings.Contains(r.Conflicts[0], "host e has loopback 198.18.127.3") {
		t.Errorf("the conflicts are %q", r.Conflicts)
	}
	now := get[api.Zone](t, k, "yellow").Status
	var loopbacks, reflectors []string
	for _, l := range now.Loopbacks {
		loopbacks = append(loopbacks, fmt.Sprint(l.Machine, " ", l.Addresses))
	}
	for _, r := range now.Reflectors {
		reflectors = append(reflectors, r.Machine)
	}
	if want := []string{"b [198.18.127.2]", "c [198.18.127.1]", "d [198.18.127.3]"}; !slices.Equal(loopbacks, want) {
		t.Errorf("the loopbacks are %q, want %q", loopbacks, want)
	}
	if want := []string{"b", "c"}; !slices.Equal(reflectors, want) {
		t.Errorf("the reflectors are %q, want %q", reflectors, want)
	}
}

// TestSettleVNIs has a VNI stay with the Network that has a right to it, and with no other.
func TestSettleVNIs(t *testing.T) {
	for _, c := range []struct {
		name     string
		claimed  string // the Network that the backup gives VNI 100 to; it has the uid "u-NAME"
		b, c     []api.HeldNetwork
		owner    string // of VNI 100
		networks string // VNIs by Network, of which those that the store does not have are unknown
		conflict string
	}{
		{"as the backup has it", "blue", []api.HeldNetwork{heldNetwork("blue", "u-blue", 100, "10.5.1.0/24")}, nil, "u-blue", "blue=100", ""},
		{"of a Network that is younger", "", []api.HeldNetwork{heldNetwork("green", "g", 100, "10.5.1.0/24")}, nil, "g", "green=100", ""},
		{"of a Network that has gone since", "blue", []api.HeldNetwork{heldNetwork("green", "g", 100, "10.5.1.0/24")}, nil, "g", "blue=0 green=100",
			"Network blue of the backup had VNI 100, which hosts now have for Network green"},
		{"claimed by one host of another's Network", "blue", []api.HeldNetwork{heldNetwork("blue", "u-blue", 100, "10.5.1.0/24")}, []api.HeldNetwork{heldNetwork("zulu", "x", 100, "10.6.1.0/24")},
			"u-blue", "blue=100 zulu=0", "hosts have VNI 100 for Network zulu"},
		{"claimed by one host of what two have", "", []api.HeldNetwork{heldNetwork("alien", "a", 100, "10.6.1.0/24"), heldNetwork("green", "g", 100, "10.5.1.0/24")},
			[]api.HeldNetwork{heldNetwork("green", "g", 100, "10.5.2.0/24")}, "g", "alien=0 green=100", "hosts have VNI 100 for Network alien"},
		{"two Networks of one name", "", []api.HeldNetwork{heldNetwork("green", "g", 100, "10.5.1.0/24")}, []api.HeldNetwork{heldNetwork("green", "h", 101, "10.5.1.0/24")},
			"g", "green=100", "host c has another Network green (uid h)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKeeper(t)
			b, other := k.machine(t, "b"), k.machine(t, "c")
			if c.claimed != "" {
				n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}}, Status: api.NetworkStatus{VNI: 100}}
				n.Metadata.Name = c.claimed
				n.SetDefaults()
				if err := k.Store.CreateAs(t.Context(), n, "u-"+c.claimed); err != nil {
					t.Fatal(err)
				}
				if err := k.Store.VNIs.Put(t.Context(), store.VNIClaim{}, store.VNIClaim{VNI: 100, Network: c.claimed, UID: "u-" + c.claimed}); err != nil {
					t.Fatal(err)
				}
			}
			k.says(t, m(t, k), api.Recount{})
			k.says(t, b, api.Recount{Networks: c.b})
			k.says(t, other, api.Recount{Networks: c.c})
			r := k.settled(t)
			claims, err := k.Store.VNIs.List(t.Context())
			if err != nil || claims[100].UID != c.owner {
				t.Errorf("VNI 100 is that of %+v, want %s; %v", claims[100], c.owner, err)
			}
			var networks []string
			stored, _, err := store.List[api.Network](t.Context(), k.Store)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range stored {
				networks = append(networks, fmt.Sprintf("%s=%d", n.Metadata.Name, n.Status.VNI))
			}
			for _, p := range r.Unknown {
				networks = append(networks, fmt.Sprintf("%s=%d", p.Name, p.VNI))
			}
			slices.Sort(networks)
			if got := strings.Join(networks, " "); got != c.networks {
				t.Errorf("the Networks have %s, want %s", got, c.networks)
			}
			if got := strings.Join(r.Conflicts, "\n"); (got == "") != (c.conflict == "") || !strings.Contains(got, c.conflict) {
				t.Errorf("the conflicts are %q, want %q", got, c.conflict)
			}
		})
	}
}

// TestSettleWithoutPower has a Machine without power be accounted for: nothing of what it said once counts.
func TestSettleWithoutPower(t *testing.T) {
	k := newKeeper(t)
	off := k.machine(t, "off")
	k.says(t, off, api.Recount{Guests: []api.HeldGuest{{Name: "web", UID: "u", Network: "blue", State: "Running"}}})
	k.says(t, m(t, k), api.Recount{})
	if _, err := store.Mutate(t.Context(), k.Store, "off", func(m *api.Machine) error {
		m.Status.Conditions.Set(m.Metadata.CreationTimestamp, api.CondAccounted, api.True, api.AccountedOff, "its BMC says that it has no power")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if r := k.settled(t); r.Held || len(r.Unknown) != 0 {
		t.Errorf("%+v", r)
	}
}
