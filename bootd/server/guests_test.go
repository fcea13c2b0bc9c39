package server

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

func TestGuestVerbs(t *testing.T) {
	r := newRig(t)
	c := r.root()
	put(t, c, testsite.NewMachine("r1", "52:54:00:00:00:01"), testsite.NewMachine("r2", "52:54:00:00:00:02"))
	n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	n.Metadata.Name = "net"
	g := &api.Guest{Spec: api.GuestSpec{Network: "net", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30),
		Disks: []api.Disk{{Name: "data", Size: api.Bytes(1 << 30), Retain: true}}}}
	g.Metadata.Name = "web"
	put(t, c, n, g)
	ask := func(verb string, a api.GuestAction) (*api.Guest, error) {
		return c.GuestVerb(context.Background(), "web", verb, a)
	}
	_, err := ask("reset", api.GuestAction{})
	wantStatus(t, err, http.StatusUnprocessableEntity, "has no host yet")
	_, err = store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error { g.Status.Host = "r1"; return nil })
	must(t, err)

	got, err := ask("restart", api.GuestAction{ID: "a"})
	must(t, err)
	if q := got.Status.Request; q == nil || *q != (api.GuestRequest{ID: "a", Verb: "restart"}) {
		t.Errorf("asked: %+v", q)
	}
	again, err := ask("reset", api.GuestAction{ID: "a"})
	must(t, err)
	if again.Status.Request.Verb != "restart" {
		t.Error("a repeated id is another request")
	}
	_, err = ask(api.GuestSnapshotCreate, api.GuestAction{Snapshot: "s1"})
	wantStatus(t, err, http.StatusUnprocessableEntity, "has not finished the restart")
	_, err = store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
		g.Status.Result = &api.GuestResult{ID: "a"}
		g.Status.Snapshots = []api.GuestSnapshot{{Name: "s1"}}
		return nil
	})
	must(t, err)
	for _, bad := range []struct {
		verb   string
		action api.GuestAction
		want   string
	}{
		{"reset", api.GuestAction{Snapshot: "s1"}, "does not take a snapshot"},
		{api.GuestSnapshotCreate, api.GuestAction{}, "the snapshot's name"},
		{api.GuestSnapshotCreate, api.GuestAction{Snapshot: "s1"}, "choose another name"},
		{api.GuestSnapshotCreate, api.GuestAction{Snapshot: "s2", To: "r2"}, "neither a host"},
		{api.GuestSnapshotDelete, api.GuestAction{Snapshot: "s2"}, "has no snapshot s2"},
		{api.GuestSnapshotRevert, api.GuestAction{Snapshot: "s1"}, "weftctl guest stop web"},
		{"reset", api.GuestAction{To: "r2"}, "neither a host nor disks"},
		{"move", api.GuestAction{To: "r1"}, "is already on r1"},
		{"move", api.GuestAction{To: "r9"}, "no Machine r9"},
		{"move", api.GuestAction{Mode: "Warm"}, "Live or Stop"},
		{"move", api.GuestAction{Mode: "Live", LoseDisks: true}, "starts with empty disks"},
		{"restart", api.GuestAction{Mode: "Live"}, "nor a mode"},
	} {
		_, err = ask(bad.verb, bad.action)
		wantStatus(t, err, http.StatusUnprocessableEntity, bad.want)
	}
	got, err = ask(api.GuestSnapshotCreate, api.GuestAction{ID: "b", Snapshot: "s2"})
	must(t, err)
	if q := got.Status.Request; q == nil || *q != (api.GuestRequest{ID: "b", Verb: api.GuestSnapshotCreate, Snapshot: "s2"}) {
		t.Errorf("asked: %+v", q)
	}
	got, err = ask("move", api.GuestAction{To: "r2"})
	must(t, err)
	if m := got.Status.Move; m == nil || !m.Asked || m.To != "r2" || m.LoseDisks {
		t.Errorf("the move is %+v", m)
	}
	_, err = ask("move", api.GuestAction{})
	wantStatus(t, err, http.StatusUnprocessableEntity, "is being moved")
	got, err = ask("move", api.GuestAction{LoseDisks: true}) // a person's word goes over it
	must(t, err)
	if m := got.Status.Move; m == nil || !m.LoseDisks || m.Step != api.MoveStopping {
		t.Errorf("the move is %+v", m)
	}
	_, err = c.GuestVerb(context.Background(), "db", "reset", api.GuestAction{})
	wantStatus(t, err, http.StatusNotFound, "db")
	_, err = r.bearer(viewerToken).GuestVerb(context.Background(), "web", "reset", api.GuestAction{})
	wantStatus(t, err, http.StatusForbidden, "role")
	if n := len(r.auditsOf("/v1/guests/web/restart")); n != 1 {
		t.Errorf("%d restarts were audited", n)
	}
}

// A Guest's config goes to its host, and to nobody else; of the Site's Secrets
// it gets those that are for Guests.
func TestGuestConfig(t *testing.T) {
	r := newRig(t)
	c := r.root()
	img := &api.Image{Spec: api.ImageSpec{Version: "1", IgnitionVersion: "3.4.0", Files: map[string]api.ImageFile{"kernel": {SHA256: testsite.Digest("kernel")}}}}
	img.Metadata.Name = "flatcar"
	open, shut := &api.Secret{Spec: api.SecretSpec{Data: map[string]string{"key": "open-sesame"}}}, &api.Secret{Spec: api.SecretSpec{Data: map[string]string{"key": "shut"}}}
	open.Metadata.Name, open.Spec.Uses, shut.Metadata.Name = "open", &api.SecretUses{Guests: []string{"web"}}, "shut"
	layer := func(name, secret string) *api.Layer {
		l := &api.Layer{Spec: api.LayerSpec{Butane: "storage: {files: [{path: /etc/key, contents: {inline: '{{ .Guest.Name }} {{ secret \"" + secret + "\" \"key\" }}'}}]}\n"}}
		l.Metadata.Name = name
		return l
	}
	put(t, c, img, open, shut, layer("good", "open"), layer("bad", "shut"), testsite.NewMachine("r1", "52:54:00:00:00:01"), testsite.NewMachine("r2", "52:54:00:00:00:02"))
	n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes("10.5.0.0/16")}}
	n.Metadata.Name = "net"
	g := &api.Guest{Spec: api.GuestSpec{Network: "net", Image: "flatcar", CPUs: 1, Memory: api.Bytes(1 << 30), Ignition: api.GuestIgnition{Layers: []string{"good"}}}}
	g.Metadata.Name = "web"
	put(t, c, n, g)
	host := r.hostClient("r1")
	m, err := api.Get[api.Machine](t.Context(), c, "r1")
	must(t, err)
	fetch := func(client *api.Client, path string) (string, error) {
		resp, err := client.Do(t.Context(), http.MethodGet, path, nil)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	_, err = fetch(host, "/v1/hosts/r1/guests/web/config")
	wantStatus(t, err, http.StatusNotFound, "is not on r1")
	fresh, err := store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
		g.Status.Host, g.Status.HostUID = "r1", m.Metadata.UID
		return nil
	})
	must(t, err)
	r.sync(t, fresh)
	body, err := fetch(host, "/v1/hosts/r1/guests/web/config")
	must(t, err)
	if !strings.Contains(body, "web%20open-sesame") || !strings.Contains(body, "/etc/hostname") || !strings.Contains(body, `"version":"3.4.0"`) {
		t.Errorf("the config is %s", body)
	}
	fresh, err = store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
		g.Spec.Shares = []api.Share{{Name: "tls", Secret: "open"}, {Name: "conf", Files: map[string]string{"a": "b"}}, {Name: "other", Secret: "shut"}}
		return nil
	})
	must(t, err)
	r.sync(t, fresh)
	for share, want := range map[string]string{"tls": `"files":{"key":"open-sesame"}`, "conf": `"files":{"a":"b"}`} {
		if body, err = fetch(host, "/v1/hosts/r1/guests/web/shares/"+share); err != nil || !strings.Contains(body, want) {
			t.Errorf("share %s is %s, %v", share, body, err)
		}
	}
	_, err = fetch(host, "/v1/hosts/r1/guests/web/shares/other")
	wantStatus(t, err, http.StatusServiceUnavailable, "Secret shut is not for Guest web")
	_, err = fetch(host, "/v1/hosts/r1/guests/web/shares/none")
	wantStatus(t, err, http.StatusServiceUnavailable, "no share of Guest web is named")
	for name, client := range map[string]*api.Client{"an admin": c, "an operator": r.bearer(operatorToken), "another host": r.hostClient("r2")} {
		for _, path := range []string{"config", "shares/tls"} {
			if body, err := fetch(client, "/v1/hosts/r1/guests/web/"+path); !api.IsStatus(err, http.StatusForbidden) {
				t.Errorf("%s gets %s, %v", name, body, err)
			}
		}
	}
	// The host that it moves to makes its machine before it is there.
	m2, err := api.Get[api.Machine](t.Context(), c, "r2")
	must(t, err)
	for step, want := range map[string]bool{api.MoveTransfer: true, api.MoveBack: false} {
		moving, err := store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
			g.Status.Move = &api.GuestMove{Step: step, Target: &api.GuestPlace{Host: "r2", HostUID: m2.Metadata.UID}}
			return nil
		})
		must(t, err)
		r.sync(t, moving)
		if _, err := fetch(r.hostClient("r2"), "/v1/hosts/r2/guests/web/config"); (err == nil) != want {
			t.Errorf("in step %s its target gets %v", step, err)
		}
	}
	image, err := store.Mutate(t.Context(), r.store, "flatcar", func(i *api.Image) error { i.Spec.ConfiguredBy = api.CloudInit; return nil })
	must(t, err)
	r.sync(t, image)
	for text, want := range map[string]string{
		"#cloud-config\nwho: {{ .Guest.Name }} {{ secret \"open\" \"key\" }} {{ .Variables.a }}": "#cloud-config\nwho: web open-sesame b",
		"": "",
	} {
		changed, err := store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
			g.Spec.CloudInit = &api.GuestCloudInit{UserData: text, Variables: map[string]string{"a": "b"}}
			return nil
		})
		must(t, err)
		r.sync(t, changed)
		if body, err = fetch(host, "/v1/hosts/r1/guests/web/config"); err != nil || body != want {
			t.Errorf("the user data is %q, %v", body, err)
		}
	}
	image, err = store.Mutate(t.Context(), r.store, "flatcar", func(i *api.Image) error { i.Spec.ConfiguredBy = ""; return nil })
	must(t, err)
	r.sync(t, image)
	fresh, err = store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error { g.Spec.Ignition.Layers = []string{"bad"}; return nil })
	must(t, err)
	r.sync(t, fresh)
	_, err = fetch(host, "/v1/hosts/r1/guests/web/config")
	wantStatus(t, err, http.StatusServiceUnavailable, "Secret shut is not for Guest web")
}

// sync returns when the cache has an object as it stands.
func (r *rig) sync(t *testing.T, o api.Object) {
	t.Helper()
	revision, err := strconv.ParseInt(o.Meta().ResourceVersion, 10, 64)
	must(t, err)
	must(t, r.cache.WaitRevision(t.Context(), revision))
}

func TestGuestAdmission(t *testing.T) {
	r := newRig(t)
	c := r.root()
	for _, name := range []string{"net", "other"} {
		n := &api.Network{Spec: api.NetworkSpec{Zone: "yellow", CIDRs: testsite.Prefixes(map[string]string{"net": "10.5.0.0/16", "other": "10.6.0.0/16"}[name])}}
		n.Metadata.Name = name
		put(t, c, n)
	}
	guest := func(change func(*api.GuestSpec)) *api.Guest {
		g := &api.Guest{Spec: api.GuestSpec{Network: "net", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30), Disks: []api.Disk{{Name: "root", Size: api.Bytes(2 << 30)}}}}
		g.Metadata.Name = "web"
		change(&g.Spec)
		return g
	}
	put(t, c, guest(func(*api.GuestSpec) {}))
	put(t, c, guest(func(s *api.GuestSpec) { s.Network = "other" })) // it has no address yet
	put(t, c, guest(func(*api.GuestSpec) {}))
	fresh, err := store.Mutate(t.Context(), r.store, "web", func(g *api.Guest) error {
		g.Status.Addresses = []netip.Addr{netip.MustParseAddr("10.5.1.2")}
		return nil
	})
	must(t, err)
	r.sync(t, fresh)
	for _, bad := range []struct {
		change  func(*api.GuestSpec)
		pointer string
	}{
		{func(s *api.GuestSpec) { s.Network = "other" }, "/spec/network"},
		{func(s *api.GuestSpec) { s.Disks[0].Size = api.Bytes(1 << 30) }, "/spec/disks/0/size"},
		{func(s *api.GuestSpec) { s.Disks[0].Format = "raw" }, "/spec/disks/0/format"},
	} {
		_, err := c.Put(t.Context(), guest(bad.change), false)
		wantStatus(t, err, http.StatusUnprocessableEntity, bad.pointer)
	}
	put(t, c, guest(func(s *api.GuestSpec) {
		s.Disks = append([]api.Disk{{Name: "more", Size: api.Bytes(1 << 20)}}, s.Disks...)
		s.Disks[1].Size, s.Disks[1].Format = api.Bytes(3<<30), "qcow2"
	}))
	if err := c.Delete(t.Context(), kindOf(t, "network"), "net"); !api.IsStatus(err, http.StatusConflict) {
		t.Errorf("a Network with a Guest is deleted: %v", err)
	}
}
