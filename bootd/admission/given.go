package admission

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// Whoever writes what a Machine boots, or how a Guest is configured, can make it disclose every Secret that it
// receives. Therefore only admins write the objects that receive a Secret, unless the Secret permits operators:
// the Layers that receive it; the Profiles that list these, with their other Layers and their Image; the Machines
// that boot these Profiles; and the Guests that receive it. A host knows the keys of its Zone's uplinks and of
// its Networks' peering, and everything that its Guests receive: so only admins write the Machines of such a
// Zone, and what they boot.

// OnlyAdmins says why an operator may not write an object that replaces current, which may be nil; "" when an
// operator may.
func OnlyAdmins(w *World, o, current api.Object) string {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if sends := rulesOf(api.KindOf(o).Name).sends; sends != nil {
		if why := sends(w, o, current); why != "" {
			return why
		}
	}
	if current != nil && sameButState(o, current) {
		return ""
	}
	g := given{w, w.zonesGiven()}
	for _, x := range []api.Object{current, o} {
		if x == nil {
			continue
		}
		if why := g.to(x); why != "" {
			return why + ": only an admin may write this, unless spec.uses.operators of the Secret is true"
		}
	}
	return ""
}

// Reached says why an operator may not open a console or the like of a Guest or a Machine; "" when an operator
// may.
func (w *World) Reached(o api.Object) string {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if why := (given{w, w.zonesGiven()}).to(o); why != "" {
		return why + ": only an admin may access it, unless spec.uses.operators of the Secret is true"
	}
	return ""
}

// sameButState reports whether nothing but the desired state differs.
func sameButState(a, b api.Object) bool {
	x, xerr := api.Encode(withoutState(a))
	y, yerr := api.Encode(withoutState(b))
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}

func withoutState(o api.Object) any {
	if unstated := rulesOf(api.KindOf(o).Name).unstated; unstated != nil {
		return unstated(o)
	}
	return o
}

func (w *World) unsaid(field, name string, use api.SecretUse) string {
	s := w.secret(name)
	switch {
	case s == nil:
		return fmt.Sprintf("%s: Secret %s does not exist, so its spec.uses does not permit %s: have an admin create it first", field, name, use)
	case s.Spec.Uses == nil:
		return fmt.Sprintf("%s: spec.uses of Secret %s is not set, so only an admin may give it to %s", field, name, use)
	case s.Permits(use) != nil:
		return fmt.Sprintf("%s: %s", field, s.Permits(use))
	}
	return ""
}

// given finds the objects that receive a Secret which operators may not know. Each answer says why, and is empty
// for an object that receives none.
type given struct {
	w     *World
	zones map[string]string
}

// kept reports whether a use receives a Secret that is not for operators.
func kept(s *api.Secret, use api.SecretUse) bool {
	return s != nil && !forOperators(s) && s.Permits(use) == nil
}

func forOperators(s *api.Secret) bool { return s.Spec.Uses != nil && s.Spec.Uses.Operators }

// zonesGiven lists the Zones whose hosts know a Secret.
func (w *World) zonesGiven() map[string]string {
	zones := map[string]string{}
	say := func(zone, format string, args ...any) {
		if zones[zone] == "" {
			zones[zone] = fmt.Sprintf("hosts of Zone %s know %s", zone, fmt.Sprintf(format, args...))
		}
	}
	keyed := found{}.with(w, keyedZone, "")
	for _, z := range sorted[*api.Zone](w, keyed) {
		for _, u := range z.Spec.Uplinks {
			if kept(w.secret(u.Secret), api.UseUplink(z.Metadata.Name)) {
				say(z.Metadata.Name, "Secret %s, the key of uplink %s", u.Secret, u.Address)
			}
		}
	}
	for _, n := range sorted[*api.Network](w, keyed) {
		if p := n.Spec.Peering; kept(w.secret(p.Secret), api.UseNetwork(n.Metadata.Name)) {
			say(n.Spec.Zone, "Secret %s, the key of Network %s", p.Secret, n.Metadata.Name)
		}
	}
	for _, s := range sorted[*api.Secret](w, found{}.with(w, givenGuests, "")) {
		for _, name := range s.Spec.Uses.Guests {
			g := object[*api.Guest](w, id{"Guest", name})
			if g == nil {
				continue
			}
			if n := w.network(g.Spec.Network); n != nil {
				say(n.Spec.Zone, "Secret %s, which Guest %s receives", s.Metadata.Name, name)
			}
		}
	}
	return zones
}

func (g given) to(o api.Object) string {
	if r := rulesOf(api.KindOf(o).Name); r.given != nil {
		return r.given(g, o)
	}
	return ""
}

func (g given) machine(m *api.Machine) string {
	if why := g.zones[m.Spec.Zone]; why != "" {
		return why
	}
	if p := object[*api.Profile](g.w, id{"Profile", m.Spec.Profile}); p != nil {
		return g.layers(p.Spec.Layers)
	}
	return ""
}

// configs says which object with a given Layer or Image receives a Secret.
func (g given) configs(kind, name string) string {
	for _, p := range referrersOf[*api.Profile](g.w, kind, name) {
		if why := g.profile(p); why != "" {
			return fmt.Sprintf("it is in Profile %s, and %s", p.Metadata.Name, why)
		}
	}
	for _, x := range referrersOf[*api.Guest](g.w, kind, name) {
		if why := g.guest(x.Metadata.Name); why != "" {
			return why
		}
	}
	return ""
}

func (g given) profile(p *api.Profile) string {
	if why := g.layers(p.Spec.Layers); why != "" {
		return why
	}
	for _, zone := range slices.Sorted(maps.Keys(g.zones)) {
		if len(found{}.with(g.w, byProfile, p.Metadata.Name+"/"+zone)) > 0 {
			return g.zones[zone]
		}
	}
	return ""
}

func (g given) layers(names []string) string {
	for _, name := range names {
		if why := g.layer(name); why != "" {
			return why
		}
	}
	return ""
}

func (g given) layer(name string) string {
	for _, s := range sorted[*api.Secret](g.w, found{}.with(g.w, givenLayer, name)) {
		return fmt.Sprintf("Layer %s receives Secret %s", name, s.Metadata.Name)
	}
	return ""
}

func (g given) guest(name string) string {
	for _, s := range sorted[*api.Secret](g.w, found{}.with(g.w, givenGuest, name)) {
		return fmt.Sprintf("Guest %s receives Secret %s", name, s.Metadata.Name)
	}
	return ""
}

// few joins the first entries of a list.
func few(names []string) string {
	const most = 5
	slices.Sort(names)
	names = slices.Compact(names)
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}
