package admission

import (
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

func secretFor(name string, uses *api.SecretUses) *api.Secret {
	s := &api.Secret{Spec: api.SecretSpec{Uses: uses}, Status: api.SecretStatus{Digests: map[string]string{"username": "x", "password": "y"}}}
	s.Metadata.Name = name
	return s
}

// given is a world in which Profile worker, of Machine r1 in Zone yellow, lists
// Layers site and base, base asks for vault, Guest web is on net1 of the Zone.
func givenWorld(secrets ...*api.Secret) *World {
	f := testsite.Objects()
	f[6].(*api.Profile).Spec.Layers = []string{"site", "base"}
	f[0].(*api.Zone).Spec.Uplinks = []api.Uplink{{Address: testsite.Prefixes("198.18.8.1/32")[0].Addr(), ASN: 64999, Secret: "leaf"}}
	f[7].(*api.Network).Spec.Peering = &api.Peering{ASN: 64513, Prefixes: testsite.Prefixes("10.244.0.0/16"), Secret: "peering"}
	base := &api.Layer{Spec: api.LayerSpec{Butane: `a: {{ secret "vault" "password" }}`}}
	base.Metadata.Name = "base"
	other := &api.Layer{Spec: api.LayerSpec{Butane: "storage: {}"}}
	other.Metadata.Name = "other"
	web := &api.Guest{Spec: api.GuestSpec{Network: "net1", Image: "cloud", Ignition: api.GuestIgnition{Layers: []string{"other"}}, Shares: []api.Share{{Name: "s", Secret: "tls"}}}}
	web.Metadata.Name = "web"
	cloud := &api.Image{Spec: api.ImageSpec{Version: "1"}}
	cloud.Metadata.Name = "cloud"
	w := worldOf(append(f, base, other, web, cloud)...)
	for _, s := range secrets {
		w.Set("Secret", s.Metadata.Name, s)
	}
	return w
}

// copied is an object of a world that may be changed.
func copied[T any, P interface {
	*T
	api.Object
}](w *World, name string, change func(P)) (next, current api.Object) {
	kind := api.KindOf(P(new(T))).Name
	old := w.objects[id{kind, name}].(P)
	c := *old
	change(P(&c))
	return P(&c), old
}

func TestOnlyAdmins(t *testing.T) {
	layer := func(name string) func(w *World) (api.Object, api.Object) {
		return func(w *World) (api.Object, api.Object) {
			return copied(w, name, func(l *api.Layer) { l.Spec.Butane = "storage: {files: []}" })
		}
	}
	machine := func(change func(*api.Machine)) func(w *World) (api.Object, api.Object) {
		return func(w *World) (api.Object, api.Object) { return copied(w, "r1", change) }
	}
	evil := func(profile, zone string) func(w *World) (api.Object, api.Object) {
		return func(*World) (api.Object, api.Object) {
			m := testsite.NewMachine("evil", "52:54:00:00:00:66")
			m.Spec.Profile, m.Spec.Zone = profile, zone
			return m, nil
		}
	}
	ways := map[string]func(w *World) (next, current api.Object){
		"Layer base":  layer("base"),
		"Layer site":  layer("site"),
		"Layer other": layer("other"),
		"Profile": func(w *World) (api.Object, api.Object) {
			return copied(w, "worker", func(p *api.Profile) { p.Spec.KernelArguments = []string{"x"} })
		},
		"new Profile": func(*World) (api.Object, api.Object) {
			p := &api.Profile{Spec: api.ProfileSpec{Image: "debian", Layers: []string{"base"}}}
			p.Metadata.Name = "evil"
			return p, nil
		},
		"Image": func(w *World) (api.Object, api.Object) {
			return copied(w, "debian", func(i *api.Image) { i.Spec.Version = "2" })
		},
		"Image cloud": func(w *World) (api.Object, api.Object) {
			return copied(w, "cloud", func(i *api.Image) { i.Spec.Version = "2" })
		},
		"Machine, links":    machine(func(m *api.Machine) { m.Spec.Links = m.Spec.Links[:1] }),
		"Machine, state":    machine(func(m *api.Machine) { m.Spec.State = api.StateOff }),
		"Machine, label":    machine(func(m *api.Machine) { m.Metadata.Labels = map[string]string{"a": "b"} }),
		"Machine, BMC":      machine(func(m *api.Machine) { m.Spec.BMC = &api.BMC{Address: "https://198.18.66.6", Credentials: "bmc"} }),
		"Machine of a Zone": evil("", "yellow"),
		"Machine, Profile":  evil("worker", ""),
		"Machine, neither":  evil("", ""),
		"Guest": func(w *World) (api.Object, api.Object) {
			return copied(w, "web", func(g *api.Guest) { g.Spec.CPUs = 9 })
		},
		"Guest, state": func(w *World) (api.Object, api.Object) {
			return copied(w, "web", func(g *api.Guest) { g.Spec.State = "Stopped" })
		},
		"Network, Zone": func(w *World) (api.Object, api.Object) {
			return copied(w, "net1", func(n *api.Network) { n.Spec.Zone = "red" })
		},
		"Network, CIDRs": func(w *World) (api.Object, api.Object) {
			return copied(w, "net1", func(n *api.Network) { n.Spec.CIDRs = nil })
		},
	}
	zone := []string{"Layer base", "Layer site", "Profile", "Image", "Machine, links", "Machine of a Zone", "Machine, BMC", "Network, Zone"}
	for _, c := range []struct {
		name    string
		secrets []*api.Secret
		refused []string
	}{
		{"no Secret", nil, []string{"Machine, BMC", "Network, Zone"}},
		{"for a Layer", []*api.Secret{secretFor("vault", &api.SecretUses{Layers: []string{"base"}})},
			[]string{"Layer base", "Layer site", "Profile", "new Profile", "Image", "Machine, links", "Machine, Profile", "Machine, BMC", "Network, Zone"}},
		{"for a Layer and operators", []*api.Secret{secretFor("vault", &api.SecretUses{Layers: []string{"base"}, Operators: true})}, []string{"Machine, BMC", "Network, Zone"}},
		{"for a Guest", []*api.Secret{secretFor("tls", &api.SecretUses{Guests: []string{"web"}})}, append([]string{"Guest", "Layer other", "Image cloud"}, zone...)},
		{"for an uplink", []*api.Secret{secretFor("leaf", &api.SecretUses{Uplinks: []string{"yellow"}})}, zone},
		{"for an uplink, as before there were uses", []*api.Secret{secretFor("leaf", nil)}, zone},
		{"for an uplink of another Zone", []*api.Secret{secretFor("leaf", &api.SecretUses{Uplinks: []string{"red"}})}, []string{"Machine, BMC", "Network, Zone"}},
		{"for a Network", []*api.Secret{secretFor("peering", &api.SecretUses{Networks: []string{"net1"}})}, slices.DeleteFunc(slices.Clone(zone), func(s string) bool { return s == "Network, Zone" })},
		{"for BMCs", []*api.Secret{secretFor("bmc", &api.SecretUses{BMC: []string{"198.18.0.0/16"}})}, []string{"Network, Zone"}},
		{"for other BMCs", []*api.Secret{secretFor("bmc", &api.SecretUses{BMC: []string{"198.18.0.0/24"}})}, []string{"Machine, BMC", "Network, Zone"}},
	} {
		w := givenWorld(c.secrets...)
		for name, way := range ways {
			next, current := way(w)
			why := OnlyAdmins(w, next, current)
			if want := slices.Contains(c.refused, name); (why != "") != want {
				t.Errorf("%s, %s: refused %v with %q", c.name, name, !want, why)
			}
		}
		if why := w.Reached(w.objects[id{"Guest", "web"}]); (why != "") != slices.Contains(c.refused, "Guest") {
			t.Errorf("%s: Guest web is reached into: %q", c.name, why)
		}
	}
}

// A change says which boots, BMCs, Guests and sessions it stops.
func TestStops(t *testing.T) {
	for _, c := range []struct {
		name string
		o    func(w *World) (api.Object, api.Object)
		want []string
	}{
		{"a Secret is for nothing", func(*World) (api.Object, api.Object) { return secretFor("vault", &api.SecretUses{}), nil },
			[]string{"the next boot of Machines r1 stops: Secret vault is not for Layer base"}},
		{"a Secret is for the Layer", func(*World) (api.Object, api.Object) {
			return secretFor("vault", &api.SecretUses{Layers: []string{"base", "none"}}), nil
		},
			[]string{`Layer "none" does not exist yet`, "Layer base gives it to Machines r1; from now on only an admin may write these"}},
		{"a BMC's is not", func(*World) (api.Object, api.Object) {
			return secretFor("bmc", &api.SecretUses{BMC: []string{"198.18.9.0/24"}}), nil
		},
			[]string{"the BMCs of Machines r1 are not used: Secret bmc does not permit them"}},
		{"a Guest's is not", func(*World) (api.Object, api.Object) { return secretFor("tls", nil), nil },
			[]string{"Guests web are not configured: Secret tls does not permit them"}},
		{"an uplink's is not", func(*World) (api.Object, api.Object) { return secretFor("leaf", &api.SecretUses{}), nil },
			[]string{"sessions with uplinks of Zone yellow end: Secret leaf is not for an uplink of Zone yellow"}},
		{"a Network's is not", func(*World) (api.Object, api.Object) { return secretFor("peering", &api.SecretUses{}), nil },
			[]string{"guests of Network net1 can no longer peer"}},
		{"the old label", func(*World) (api.Object, api.Object) {
			s := secretFor("x", nil)
			s.Metadata.Labels = map[string]string{"rackweft/guests": "true"}
			return s, nil
		}, []string{"rackweft/guests has no effect"}},
		{"a Layer asks", func(w *World) (api.Object, api.Object) {
			return copied(w, "site", func(l *api.Layer) { l.Spec.Butane = `{{ secret "idle" "k" }}{{ secret "gone" "k" }}` })
		}, []string{"the next boot of Machines r1 stops: Secret idle is not for Layer site", "Layer site uses Secret gone, which does not exist yet"}},
		{"a Profile lists it", func(w *World) (api.Object, api.Object) { return copied(w, "worker", func(*api.Profile) {}) },
			[]string{"the next boot of Machines r1 stops: Secret vault is not for Layer base"}},
		{"a Machine boots it", func(w *World) (api.Object, api.Object) { return copied(w, "r1", func(*api.Machine) {}) },
			[]string{"the next boot of Machines r1 stops: Secret vault is not for Layer base"}},
		{"a Guest asks", func(w *World) (api.Object, api.Object) {
			return copied(w, "web", func(g *api.Guest) { g.Spec.CloudInit = &api.GuestCloudInit{UserData: `#!{{ secret "idle" "k" }}`} })
		}, []string{"/spec: Secret idle is not for Guest web"}},
	} {
		w := givenWorld(secretFor("vault", nil), secretFor("idle", nil))
		next, current := c.o(w)
		got := strings.Join(Judge(w, next, current).Warnings, "\n")
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: warned is\n%s\nwant %s", c.name, got, want)
			}
		}
	}
}

// Uses may be changed by who does not know the values any more.
func TestUsesWithoutData(t *testing.T) {
	old := secretFor("vault", nil)
	if v := Judge(givenWorld(old), secretFor("vault", &api.SecretUses{}), old); len(v.Errors) > 0 {
		t.Errorf("%v", v.Errors)
	}
	if v := Judge(givenWorld(old), secretFor("vault", nil), old); len(v.Errors) != 1 {
		t.Errorf("a Secret that was read and is put: %v", v.Errors)
	}
}
