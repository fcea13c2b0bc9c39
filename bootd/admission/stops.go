package admission

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/ignition"
)

// The functions below warn of what does not work any more, or not yet, because a
// Secret is not for it: boots, BMCs, Guests and sessions.

func (v *Verdict) warn(format string, args ...any) {
	v.Warnings = append(v.Warnings, fmt.Sprintf(format, args...))
}

// refused warns of a Secret that is not for what asks for it. One that is not
// there is a reference that does not exist yet.
func (v *Verdict) refused(w *World, pointer, name string, use api.SecretUse) {
	if s := w.secret(name); s != nil && s.Permits(use) != nil {
		v.warn("%s: %s", pointer, s.Permits(use))
	}
}

// bootStops warns of boots that stop for want of a Secret that a Layer asks for.
func (v *Verdict) bootStops(w *World, layers, machines []string) {
	if len(machines) == 0 {
		return
	}
	for _, l := range layers {
		for _, name := range w.asks[id{"Layer", l}] {
			v.boots(machines, l, name, w.secret(name))
		}
	}
}

// boots warns that Machines do not boot, because a Layer is not given a Secret.
func (v *Verdict) boots(machines []string, layer, name string, s *api.Secret) {
	switch {
	case len(machines) == 0:
	case s == nil:
		v.warn("the next boot of Machines %s stops: Layer %s asks for Secret %s, which does not exist yet", few(machines), layer, name)
	case s.Permits(api.UseLayer(layer)) != nil:
		v.warn("the next boot of Machines %s stops: %s", few(machines), s.Permits(api.UseLayer(layer)))
	}
}

// layerStops judges what a Layer asks for by the Machines and Guests that have it.
func (v *Verdict) layerStops(w *World, l *api.Layer) {
	name := l.Metadata.Name
	machines := w.machinesOf(name)
	guests := referrersOf[*api.Guest](w, "Layer", name)
	for _, asked := range ignition.SecretsOf(l.Spec.Butane) {
		s := w.secret(asked)
		v.boots(machines, name, asked, s)
		if s == nil {
			v.warn("/spec/butane: Secret %q does not exist yet", asked)
			continue
		}
		v.guests(s, names(guests))
		if err := s.Permits(api.UseLayer(name)); err != nil && len(machines)+len(guests) == 0 {
			v.warn("/spec/butane: %s", err)
		}
	}
}

// machinesOf are the Machines that boot a Layer.
func (w *World) machinesOf(layer string) []string {
	var list []string
	for _, p := range referrersOf[*api.Profile](w, "Layer", layer) {
		list = append(list, names(referrersOf[*api.Machine](w, "Profile", p.Metadata.Name))...)
	}
	return list
}

// guests warns of Guests that are not configured, because they are not given a Secret.
func (v *Verdict) guests(s *api.Secret, all []string) {
	var stopped []string
	for _, g := range all {
		if s.Permits(api.UseGuest(g)) != nil {
			stopped = append(stopped, g)
		}
	}
	if len(stopped) > 0 {
		v.warn("Guests %s are not configured: Secret %s is not for them, an admin adds them to its spec.uses.guests", few(stopped), s.Metadata.Name)
	}
}

// secretStops says what a Secret is given to, and what asks for it and is not.
func (v *Verdict) secretStops(w *World, s *api.Secret) {
	name := s.Metadata.Name
	asking := found{}.with(w, asks, name)
	var guests []string
	for _, l := range sorted[*api.Layer](w, asking) {
		v.boots(w.machinesOf(l.Metadata.Name), l.Metadata.Name, name, s)
		guests = append(guests, names(referrersOf[*api.Guest](w, "Layer", l.Metadata.Name))...)
	}
	guests = append(guests, names(sorted[*api.Guest](w, asking))...)
	guests = append(guests, names(referrersOf[*api.Guest](w, "Secret", name))...)
	v.guests(s, guests)
	var bmcs []string
	for _, m := range referrersOf[*api.Machine](w, "Secret", name) {
		if m.Spec.BMC != nil && s.Permits(api.UseBMC(m.Spec.BMC.Address)) != nil {
			bmcs = append(bmcs, m.Metadata.Name)
		}
	}
	if len(bmcs) > 0 {
		v.warn("the BMCs of Machines %s are not used: Secret %s is not for them, add their hosts to spec.uses.bmc", few(bmcs), name)
	}
	for _, z := range referrersOf[*api.Zone](w, "Secret", name) {
		if err := s.Permits(api.UseUplink(z.Metadata.Name)); err != nil {
			v.warn("sessions with uplinks of Zone %s end: %s", z.Metadata.Name, err)
		}
	}
	for _, n := range referrersOf[*api.Network](w, "Secret", name) {
		if err := s.Permits(api.UseNetwork(n.Metadata.Name)); err != nil {
			v.warn("guests of Network %s do not peer any more: %s", n.Metadata.Name, err)
		}
	}
	if s.Metadata.Labels[oldGuestsLabel] != "" {
		v.warn("/metadata/labels: %s has no effect: spec.uses.guests says which Guests are given the Secret", oldGuestsLabel)
	}
	v.gives(w, s)
}

// oldGuestsLabel is how Secrets for Guests used to be marked.
const oldGuestsLabel = "rackweft/guests"

// gives names what a Secret is given to, as it is when the admin says so: from
// then on operators do not write it.
func (v *Verdict) gives(w *World, s *api.Secret) {
	u := s.Spec.Uses
	if u == nil {
		return
	}
	for _, list := range []struct {
		kind  string
		names []string
	}{{"Layer", u.Layers}, {"Guest", u.Guests}, {"Zone", u.Uplinks}, {"Network", u.Networks}} {
		for _, name := range list.names {
			if name != api.AnyUse && !w.has(list.kind, name) {
				v.warn("/spec/uses: %s %q does not exist yet", list.kind, name)
			}
		}
	}
	for _, l := range u.Layers {
		if machines := w.machinesOf(l); len(machines) > 0 && !u.Operators {
			v.warn("Layer %s gives it to Machines %s; from now on only an admin writes these, their Profiles, Layers and Images", l, few(machines))
		}
	}
}

// asksOf are the Secrets that a Guest asks for.
func (w *World) asksOf(g *api.Guest) []string {
	list := ignition.SecretsOf(userData(g))
	for _, l := range g.Spec.Ignition.Layers {
		list = append(list, w.asks[id{"Layer", l}]...)
	}
	for _, s := range g.Spec.Shares {
		list = append(list, s.Secret)
	}
	return list
}

func userData(g *api.Guest) string {
	if g.Spec.CloudInit == nil {
		return ""
	}
	return g.Spec.CloudInit.UserData
}

func names[P api.Object](list []P) []string {
	out := make([]string, len(list))
	for i, o := range list {
		out[i] = o.Meta().Name
	}
	return out
}
