package guest

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

// A part says that what a share holds has changed, and nothing of what it holds.
// A Guest waits for a Secret that it may have, except to be stopped.
func TestShares(t *testing.T) {
	b := newBench(t, "h1")
	b.create("web", func(g *api.Guest) { g.Spec.Shares = []api.Share{{Name: "tls", Secret: "web-tls"}} })
	b.placed("web")
	b.because("web", api.CondReady, "Incomplete")
	secret := &api.Secret{Base: testsite.Named("web-tls"), Spec: api.SecretSpec{Data: map[string]string{"tls.key": "first"}}}
	b.Create(secret)
	b.eventually("it waits for the Secret to name it", func() bool {
		c := b.guest("web").Status.Conditions.Get(api.CondReady)
		return c != nil && strings.Contains(c.Message, "spec.uses.guests")
	})
	edit := func(fn func(*api.Secret)) {
		t.Helper()
		if _, err := store.Mutate(t.Context(), b.Store, "web-tls", func(s *api.Secret) error { fn(s); return nil }); err != nil {
			t.Fatal(err)
		}
		b.Sync()
	}
	version := func() string {
		t.Helper()
		p, err := Part(b.Cache, b.guest("web"))
		if err != nil || len(p.Shares) != 1 {
			t.Fatalf("its part is %+v: %v", p.Shares, err)
		}
		raw, err := api.EncodePart(p)
		if err != nil || strings.Contains(string(raw), "first") {
			t.Errorf("the part is %s: %v", raw, err)
		}
		return p.Shares[0].Version
	}
	given := func(s *api.Secret, value string) {
		s.Spec.Uses, s.Spec.Data = &api.SecretUses{Guests: []string{"web"}}, map[string]string{"tls.key": value}
	}
	edit(func(s *api.Secret) { given(s, "first") })
	b.because("web", api.CondReady, "NotApplied")
	first := version()
	edit(func(s *api.Secret) { given(s, "second") })
	if version() == first {
		t.Error("another value is the same version")
	}
	edit(func(s *api.Secret) { s.Spec.Data = map[string]string{"../key": "x"} })
	if _, err := Part(b.Cache, b.guest("web")); err == nil || !strings.Contains(err.Error(), "invalid file name") {
		t.Errorf("a key that is a path: %v", err)
	}
	b.change("web", func(g *api.Guest) { g.Spec.State = api.GuestStopped })
	if p, err := Part(b.Cache, b.guest("web")); err != nil || len(p.Shares) != 0 {
		t.Errorf("to be stopped it needs %+v: %v", p.Shares, err)
	}
}

// An Image says what configures its Guests, and a Guest has to agree.
func TestConfiguredBy(t *testing.T) {
	b := newBench(t, "h1")
	image := func(by string) {
		t.Helper()
		if _, err := store.Mutate(t.Context(), b.Store, "debian", func(i *api.Image) error { i.Spec.ConfiguredBy = by; return nil }); err != nil {
			t.Fatal(err)
		}
		b.Sync()
	}
	b.create("web", func(g *api.Guest) { g.Spec.CloudInit = &api.GuestCloudInit{UserData: "#cloud-config\n"} })
	b.placed("web")
	b.because("web", api.CondReady, "Incomplete")
	image(api.CloudInit)
	if p, err := Part(b.Cache, b.guest("web")); err != nil || p.Config.CloudInit == nil || p.Config.URL != "" {
		t.Errorf("its config is %+v: %v", p.Config, err)
	}
	b.change("web", func(g *api.Guest) { g.Spec.CloudInit, g.Spec.Ignition.Layers = nil, []string{"base"} })
	if _, err := Part(b.Cache, b.guest("web")); err == nil || !strings.Contains(err.Error(), "reads no Layers") {
		t.Errorf("Layers for cloud-init: %v", err)
	}
	image("")
	if p, err := Part(b.Cache, b.guest("web")); err != nil || p.Config.CloudInit != nil || p.Config.URL != ConfigURL {
		t.Errorf("its config is %+v: %v", p.Config, err)
	}
}
