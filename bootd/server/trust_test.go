package server

import (
	"net/http"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

func strictProfile(name string, minimum api.TrustLevel) *api.Profile {
	p := new(api.Profile)
	p.Metadata.Name, p.Spec.Image, p.Spec.Trust.Minimum = name, "img", minimum
	p.SetDefaults()
	return p
}

// TestOnlyAnAdminLowersTrust: whatever an operator writes, the level that boots
// must reach does not go down by it.
func TestOnlyAnAdminLowersTrust(t *testing.T) {
	r := newRig(t)
	admin, operator := r.root(), r.bearer(operatorToken)
	machine := func(profile string, minimum api.TrustLevel) *api.Machine {
		m := testsite.NewMachine("r1", "52:54:00:00:00:01")
		m.Spec.Profile, m.Spec.Trust.Minimum = profile, minimum
		return m
	}
	stand := func() {
		put(t, admin, strictProfile("strict", api.TrustNonce), strictProfile("plain", ""), machine("strict", api.TrustAddress))
	}
	remove := func(kind, name string) func(*api.Client) error {
		return func(c *api.Client) error {
			k, err := api.LookupKind(kind)
			must(t, err)
			return c.Delete(t.Context(), k, name)
		}
	}
	write := func(o api.Object) func(*api.Client) error {
		return func(c *api.Client) error { _, err := c.Put(t.Context(), o, false); return err }
	}
	for _, c := range []struct {
		name   string
		do     func(*api.Client) error
		lowers bool
	}{
		{"a Profile that asks for less", write(strictProfile("strict", api.TrustToken)), true},
		{"a Profile that asks for nothing", write(strictProfile("strict", "")), true},
		{"a Profile that asks for more", write(strictProfile("strict", api.TrustBMC)), false},
		{"a Machine that asks for nothing", write(machine("strict", "")), true},
		{"a Machine of another Profile", write(machine("plain", api.TrustAddress)), true},
		{"a Machine that asks for more", write(machine("strict", api.TrustTPM)), false},
		{"a strict Machine deleted", remove("Machine", "r1"), true},
		{"a plain Profile deleted", remove("Profile", "plain"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			stand()
			err := c.do(operator)
			if !c.lowers {
				must(t, err)
				return
			}
			wantStatus(t, err, http.StatusForbidden, "trust level", "role admin is needed")
			must(t, c.do(admin))
		})
	}
	t.Run("a strict Profile deleted", func(t *testing.T) {
		stand()
		must(t, remove("Machine", "r1")(admin))
		wantStatus(t, remove("Profile", "strict")(operator), http.StatusForbidden, "trust level nonce")
		must(t, remove("Profile", "strict")(admin))
	})
	t.Run("the Site is an admin's", func(t *testing.T) {
		site := new(api.Site)
		site.Metadata.Name = api.SiteName
		site.SetDefaults()
		wantStatus(t, write(site)(operator), http.StatusForbidden)
	})
}
