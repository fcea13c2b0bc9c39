package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// TestZoneViews asks for all that there is of a Zone, as a viewer.
func TestZoneViews(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	root := r.root()
	put := func(o api.Object) {
		t.Helper()
		o.SetDefaults()
		if _, err := root.Put(ctx, o, false); err != nil {
			t.Fatal(err)
		}
	}
	zone := &api.Zone{Spec: api.ZoneSpec{ASN: 64601, Prefixes: testsite.Prefixes("10.5.0.0/16")}}
	zone.Metadata.Name = "yellow"
	prod := &api.Subnet{Spec: api.SubnetSpec{Purpose: api.Production, Zone: "yellow", Prefixes: testsite.Prefixes("198.18.8.0/24")}}
	prod.Metadata.Name = "prod"
	put(zone)
	put(prod)
	machines := map[string]*api.Machine{}
	for i := range 2 {
		m := testsite.NewMachine(fmt.Sprintf("r%d", i+1), api.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i+1)))
		m.Spec.Zone = "yellow"
		m.Spec.Links = append(m.Spec.Links, api.Link{Name: "prod", VLAN: &api.VLAN{Link: "eth0", ID: 8}, Subnet: "prod", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, 8, byte(i + 1)})}})
		put(m)
		machines[m.Metadata.Name] = m
	}
	var revision string
	r1, err := store.Get[api.Machine](ctx, r.store, "r1")
	must(t, err)
	z, err := store.Mutate(ctx, r.store, "yellow", func(z *api.Zone) error {
		z.Status.Reflectors = []api.ReflectorStatus{{Machine: "r1", UID: r1.Metadata.UID, State: api.ReflectorServing}}
		z.Spec.Reflectors.Machines = []string{"r1"}
		return nil
	})
	must(t, err)
	revision = z.Metadata.ResourceVersion
	var at int64
	_, err = fmt.Sscan(revision, &at)
	must(t, err)
	must(t, r.cache.WaitRevision(ctx, at))

	vera := r.bearer(viewerToken)
	sessions, err := vera.ZoneSessions(ctx, "yellow")
	if err != nil || len(sessions.Sessions) != 1 || sessions.Sessions[0].Host != "r1" || sessions.Sessions[0].Session.Peer != "r2" {
		t.Errorf("%+v, %v", sessions, err)
	}
	if routes, err := vera.ZoneRoutes(ctx, "yellow"); err != nil || len(routes.Routes) != 0 {
		t.Errorf("%+v, %v", routes, err)
	}
	if test, err := vera.TestPolicy(ctx, "yellow", "r2", netip.MustParsePrefix("10.5.3.0/24")); err != nil || test.Accepted || len(test.Reflectors) != 1 {
		t.Errorf("%+v, %v", test, err)
	}
	if _, err := vera.ZoneSessions(ctx, "red"); !api.IsStatus(err, http.StatusNotFound) {
		t.Errorf("%v", err)
	}
	for _, query := range []string{"", "?prefix=10.5.3.0/24", "?prefix=10.5.3.0&from=r2"} {
		if _, err := vera.Do(ctx, http.MethodGet, "/v1/zones/yellow/bgp/test"+query, nil); !api.IsStatus(err, http.StatusBadRequest) {
			t.Errorf("%q: %v", query, err)
		}
	}

	// No key is shown to anybody.
	for _, c := range []*api.Client{vera, root} {
		spec, err := api.Get[api.HostSpec](ctx, c, "r2")
		if err != nil {
			t.Fatal(err)
		}
		var part api.BGPPart
		must(t, json.Unmarshal(spec.Parts[api.PartBGP], &part))
		if len(part.Neighbors) != 1 || part.Neighbors[0].Password != "(not shown)" {
			t.Errorf("%s", spec.Parts[api.PartBGP])
		}
	}

	// A dry run says what drops, and drops nothing.
	warnings := func(o api.Object, query string) string {
		t.Helper()
		resp, err := root.Do(ctx, http.MethodPut, "/v1/"+api.KindOf(o).Plural+"/"+o.Meta().Name+query, o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		return strings.Join(resp.Header.Values("Warning"), "\n")
	}
	m := machines["r2"]
	m.Metadata.ResourceVersion = ""
	m.Metadata.Labels = map[string]string{"tier": "app"}
	if got := warnings(m, "?dryRun=true"); got != "" {
		t.Error(got)
	}
	m.Spec.Links[1].Addresses[0] = netip.MustParseAddr("198.18.8.99")
	if got := warnings(m, "?dryRun=true"); !strings.Contains(got, "this BGP session drops: r1 and r2 (the address of r2 becomes 198.18.8.99)") {
		t.Error(got)
	}
	if stored, err := store.Get[api.Machine](ctx, r.store, "r2"); err != nil || stored.Spec.Links[1].Addresses[0].String() != "198.18.8.2" {
		t.Errorf("%+v, %v", stored, err)
	}
}
