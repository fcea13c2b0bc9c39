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
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// newSite is a Zone at rest: reflectors r1u01 and r2u01, clients r3u01 and r3u02,
// two uplinks, and leases of an advertised Network and of one that is not.
func newSite(t *testing.T) (*bench, *Views) {
	t.Helper()
	b := &bench{Site: testsite.Open(t), t: t, sessions: map[string]*api.BGPStatus{}}
	leaf := netip.MustParseAddr("198.18.8.254")
	b.Create(&api.Site{Base: testsite.Named("site")},
		&api.Zone{Base: testsite.Named("yellow"), Spec: api.ZoneSpec{ASN: 64601, Prefixes: testsite.Prefixes("10.5.0.0/16", "10.6.0.0/16"), Uplinks: []api.Uplink{
			{Address: leaf, ASN: 64600, Secret: "leaf", Import: []api.PrefixFilter{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}},
			{Address: leaf.Prev(), ASN: 64600, Export: []api.PrefixFilter{{Prefix: netip.MustParsePrefix("10.5.0.0/16"), LE: 24}}},
		}}},
		&api.Zone{Base: testsite.Named("red"), Spec: api.ZoneSpec{ASN: 64602}},
		&api.Secret{Base: testsite.Named("leaf"), Spec: api.SecretSpec{Data: map[string]string{"password": "hush"}}},
		&api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/24")}},
		&api.Network{Base: testsite.Named("blue"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16"), Advertise: true}},
		&api.Network{Base: testsite.Named("quiet"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.6.0.0/16")}})
	for _, at := range [][2]int{{1, 1}, {2, 1}, {3, 1}, {3, 2}} {
		b.host(at[0], at[1])
	}
	index := network.NewIndex(b.Store, b.Log)
	leases := &network.Controller{Env: b.Env(), Index: index, Epoch: 1}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = index.Run(ctx) })
	<-index.Synced()
	done.Go(func() { _ = leases.Control().Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	b.parts = &Parts{Cache: b.Cache, Networks: index, Keys: &Keys{
		Key: func(one, other string) string { return "key" },
		Secret: func(ctx context.Context, name string, use api.SecretUse) (map[string]string, error) {
			return store.OpenSecret(ctx, b.Store, name, use)
		},
	}}
	b.edit(func(z *api.Zone) {
		for _, name := range []string{"r1u01", "r2u01"} {
			z.Status.Reflectors = append(z.Status.Reflectors, api.ReflectorStatus{Machine: name, UID: b.Machine(name).Metadata.UID, State: api.ReflectorServing, Since: time.Now().UTC()})
		}
	})
	ready := waittest.Soon(time.Minute, func() bool {
		leases := 0
		for _, m := range b.parts.Members("yellow") {
			leases += len(index.Memberships(m.Machine.Metadata.UID))
		}
		return leases == 8
	})
	if !ready {
		t.Fatalf("the hosts never have their leases: %s", b.Text())
	}
	return b, &Views{Cache: b.Cache, Parts: b.parts, Sessions: b.reported}
}

// lease is a host's of a Network.
func (b *bench) lease(host, network string) netip.Prefix {
	b.t.Helper()
	for _, m := range b.parts.Networks.Memberships(b.Machine(host).Metadata.UID) {
		if m.Network == network {
			return m.Lease
		}
	}
	b.t.Fatalf("%s has no lease of %s", host, network)
	return netip.Prefix{}
}

func TestPolicy(t *testing.T) {
	b, v := newSite(t)
	own, others, quiet := b.lease("r3u01", "blue"), b.lease("r3u02", "blue"), b.lease("r3u01", "quiet")
	reflectors := b.lease("r1u01", "blue")
	all := netip.MustParsePrefix("0.0.0.0/0")
	for _, c := range []struct {
		from   string
		prefix netip.Prefix
		takes  string // the reflectors that take it
		reason string
		told   string // by the first of them
	}{
		{"r3u01", own, "r1u01 r2u01", "r3u01 may originate", "its 1 other clients:true r2u01:true 198.18.8.254:false 198.18.8.253:true"},
		{"r3u01", others, "", "the lease of r3u02 on Network blue", ""},
		{"r3u01", quiet, "", "Network quiet, which is not advertised", ""},
		{"r3u01", netip.PrefixFrom(own.Addr().Next(), 32), "", "its own, complete lease", ""},
		{"r3u01", netip.MustParsePrefix("10.5.0.0/16"), "", "its own, complete lease", ""},
		{"r3u01", netip.MustParsePrefix("192.0.2.0/24"), "", "none of spec.prefixes", ""},
		{"r3u01", all, "", "none of spec.prefixes", ""},
		{"r1u01", reflectors, "r1u01 r2u01", "it originates", "its 2 other clients:true r2u01:true 198.18.8.254:false 198.18.8.253:true"},
		{"198.18.8.254", all, "r1u01 r2u01", "0.0.0.0/0 is accepted", "its 2 other clients:true r2u01:true 198.18.8.253:false"},
		{"198.18.8.254", netip.MustParsePrefix("192.0.2.0/24"), "", "does not list it: 0.0.0.0/0", ""},
		{"198.18.8.253", all, "", "does not list it: nothing", ""},
		{"r9u09", own, "", "neither a Machine nor", ""},
	} {
		got, err := v.TestPolicy(t.Context(), "yellow", c.from, c.prefix)
		if err != nil {
			t.Fatal(err)
		}
		var takes, told []string
		for _, r := range got.Reflectors {
			if !r.Accepted {
				continue
			}
			if len(takes) == 0 {
				for _, x := range r.Told {
					told = append(told, fmt.Sprintf("%s:%v", x.To, x.Told))
				}
			}
			takes = append(takes, r.Reflector)
		}
		if strings.Join(takes, " ") != c.takes || got.Accepted != (c.takes != "") || !strings.Contains(got.Reason, c.reason) || strings.Join(told, " ") != c.told {
			t.Errorf("%s from %s: %+v\ntold %v", c.prefix, c.from, got, told)
		}
	}
	b.Change("r3u02", func(m *api.Machine) { m.Spec.Zone, m.Spec.Links[0].Subnet = "red", "" })
	if got, err := v.TestPolicy(t.Context(), "yellow", "r3u02", others); err != nil || got.Accepted || !strings.Contains(got.Reason, "r3u02 is in Zone red") {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := v.TestPolicy(t.Context(), "blue", "r3u01", own); err == nil {
		t.Error("there is no Zone blue")
	}
}

func TestSessionsAndRoutes(t *testing.T) {
	b, v := newSite(t)
	own := b.lease("r3u01", "blue")
	b.sessions["r1u01"] = &api.BGPStatus{Omitted: 3, Sessions: []api.BGPSession{{Peer: "r3u01", Role: "client", State: api.BGPEstablished, Accepted: 1}},
		Routes: []api.BGPRoute{{Prefix: own, NextHop: b.parts.Members("yellow")[2].V4(), From: "r3u01"}, {Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHop: netip.MustParseAddr("198.18.8.254"), From: "198.18.8.254"}}}
	guest, far := api.BGPSession{Peer: "g", Role: api.BGPGuest, State: "idle"}, func(peer string) api.BGPSession {
		return api.BGPSession{Peer: peer, Role: api.BGPHost, State: api.BGPEstablished}
	}
	b.sessions["r3u01"] = &api.BGPStatus{Sessions: []api.BGPSession{{Peer: "r1u01", State: "active", LastError: "refused"}},
		Networks: []api.BGPNetworkStatus{{Network: "blue", Sessions: []api.BGPSession{guest, far("r3u02")}}}}
	b.sessions["r3u02"] = &api.BGPStatus{Networks: []api.BGPNetworkStatus{{Network: "blue", Sessions: []api.BGPSession{far("r3u01")}}}}
	s, err := v.ZoneSessions(t.Context(), "yellow")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, x := range s.Sessions {
		list = append(list, fmt.Sprintf("%s-%s:%s:%s:%v", x.Host, x.Session.Peer, x.Session.Role, x.Session.State, x.Other != nil))
	}
	want := []string{"r1u01-r2u01:reflector::false", "r1u01-r3u01:client:established:true", "r1u01-r3u02:client::false", "r1u01-198.18.8.254:uplink::false", "r1u01-198.18.8.253:uplink::false",
		"r2u01-r3u01:client::false", "r2u01-r3u02:client::false", "r2u01-198.18.8.254:uplink::false", "r2u01-198.18.8.253:uplink::false"}
	if !slices.Equal(list, want) {
		t.Errorf("%q", list)
	}
	if want := []api.NetworkSession{{Network: "blue", Host: "r3u01", Session: guest}, {Network: "blue", Host: "r3u01", Session: far("r3u02")}}; !slices.Equal(s.Inside, want) {
		t.Errorf("inside of Networks: %+v", s.Inside)
	}
	r, err := v.ZoneRoutes(t.Context(), "yellow")
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]string{}
	for _, x := range r.Routes {
		at[x.Prefix.String()+" "+x.Origin] = fmt.Sprintf("%s %v %v", x.Network, x.Wanted, x.At)
	}
	if len(r.Routes) != 5 || r.Omitted != 3 || at[own.String()+" r3u01"] != "blue true [r1u01]" || at["0.0.0.0/0 198.18.8.254"] != " false [r1u01]" ||
		at[b.lease("r3u02", "blue").String()+" r3u02"] != "blue true []" {
		t.Errorf("%d more, %v", r.Omitted, at)
	}
}

// TestDrops changes one object in one way each, and looks at what is said to
// drop.
func TestDrops(t *testing.T) {
	b, v := newSite(t)
	machine := func(name string, change func(*api.Machine)) api.Object {
		m := *b.Machine(name)
		m.Spec.Links = slices.Clone(m.Spec.Links)
		m.Spec.Links[0].Addresses = slices.Clone(m.Spec.Links[0].Addresses)
		change(&m)
		return &m
	}
	zone := func(change func(*api.Zone)) api.Object {
		z := b.zone("yellow")
		change(z)
		return z
	}
	for _, c := range []struct {
		name string
		next api.Object
		want []string
	}{
		{"a label", machine("r3u01", func(m *api.Machine) { m.Metadata.Labels = map[string]string{"a": "b"} }), nil},
		{"a client is drained", machine("r3u01", func(m *api.Machine) { m.Metadata.Annotations = map[string]string{ShutdownAnnotation: "true"} }), nil},
		{"a client's address", machine("r3u01", func(m *api.Machine) { m.Spec.Links[0].Addresses[0] = netip.MustParseAddr("198.18.8.200") }),
			[]string{"these 2 BGP sessions drop: r1u01 and r3u01, r2u01 and r3u01 (the address of r3u01 becomes 198.18.8.200)"}},
		{"a client leaves the Zone", machine("r3u01", func(m *api.Machine) { m.Spec.Zone, m.Spec.Links[0].Subnet = "red", "" }),
			[]string{"these 2 BGP sessions drop: r1u01 and r3u01, r2u01 and r3u01 (they will no longer be peers)"}},
		{"a reflector into Maintenance", machine("r1u01", func(m *api.Machine) { m.Spec.State = api.StateMaintenance }),
			[]string{"these 3 BGP sessions drop: 198.18.8.253 and r1u01, 198.18.8.254 and r1u01, r1u01 and r3u02 (they will no longer be peers)"}},
		{"a prefix", zone(func(z *api.Zone) { z.Spec.Prefixes = append(z.Spec.Prefixes, netip.MustParsePrefix("10.7.0.0/16")) }), nil},
		{"import and export", zone(func(z *api.Zone) {
			z.Spec.Uplinks[0].Import, z.Spec.Uplinks[1].Export = nil, nil
			z.Spec.Uplinks[0].MaxPrefixes, z.Spec.BGP.HoldTime = 7, api.Duration(30*time.Second)
		}), nil},
		{"another ASN", zone(func(z *api.Zone) { z.Spec.ASN = 64700 }), []string{"these 9 BGP sessions drop: ", "1 more", "ASN becomes 64700"}},
		{"graceful restart", zone(func(z *api.Zone) { z.Spec.BGP.GracefulRestart = api.Duration(time.Hour) }), []string{"these 9 BGP sessions", "gracefulRestart"}},
		{"the best paths alone", zone(func(z *api.Zone) { z.Spec.BGP.Paths = api.PathsBest }), []string{"these 9 BGP sessions", "paths changes"}},
		{"EVPN", zone(func(z *api.Zone) { z.Spec.BGP.EVPN = true }), []string{"these 9 BGP sessions", "evpn changes"}},
		{"EVPN with an uplink", zone(func(z *api.Zone) { z.Spec.BGP.EVPN, z.Spec.Uplinks[0].EVPN = true, true }), []string{"these 9 BGP sessions", "evpn changes"}},
		{"all paths, as unless set", zone(func(z *api.Zone) { z.Spec.BGP.Paths = api.PathsAll }), nil},
		{"a service and loopbacks", zone(func(z *api.Zone) {
			z.Spec.Loopbacks = testsite.Prefixes("10.6.9.0/24")
			z.Spec.Services = []api.Service{{Name: "dns", Addresses: []netip.Addr{netip.MustParseAddr("10.6.8.1")}}}
		}), nil},
		{"an uplink goes", zone(func(z *api.Zone) { z.Spec.Uplinks = z.Spec.Uplinks[1:] }), []string{"these 2 BGP sessions drop: 198.18.8.254 and r1u01, 198.18.8.254 and r2u01"}},
		{"an uplink's key", zone(func(z *api.Zone) { z.Spec.Uplinks[0].Secret = "" }), []string{"these 2 BGP sessions", "MD5 key"}},
		{"one reflector only", zone(func(z *api.Zone) { z.Spec.Reflectors.Count = 1 }), []string{"these 4 BGP sessions drop: 198.18.8.253 and r2u01, 198.18.8.254 and r2u01, r2u01 and r3u01, r2u01 and r3u02 (they will no longer be peers)"}},
		{"the Subnet is another Zone's", &api.Subnet{Base: testsite.Named("prod"), Spec: api.SubnetSpec{Purpose: api.Production, Zone: "red", Prefixes: testsite.Prefixes("198.18.8.0/24")}}, nil},
		{"a Secret", &api.Secret{Base: testsite.Named("leaf"), Spec: api.SecretSpec{Data: map[string]string{"password": "other"}}}, []string{"uplink 198.18.8.254 if its password has changed"}},
		{"another Secret", &api.Secret{Base: testsite.Named("bmc"), Spec: api.SecretSpec{Data: map[string]string{"password": "other"}}}, nil},
		{"a Network", &api.Network{Base: testsite.Named("blue"), Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}, nil},
	} {
		c.next.SetDefaults()
		got, err := v.Drops(t.Context(), c.next)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		text := strings.Join(got, "\n")
		if (len(got) == 0) != (len(c.want) == 0) {
			t.Errorf("%s: %q", c.name, got)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q lacks %q", c.name, text, want)
			}
		}
	}
}
