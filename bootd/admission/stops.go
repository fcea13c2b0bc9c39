package admission

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/ignition"
)

// The functions below warn of boots, BMCs, Guests and sessions that fail because a Secret does not permit them.

func (v *Verdict) warn(format string, args ...any) {
	v.Warnings = append(v.Warnings, fmt.Sprintf(format, args...))
}

// refused warns of a Secret that does not permit its use. A missing Secret is reported as a reference that does
// not exist yet.
func (v *Verdict) refused(w *World, pointer, name string, use api.SecretUse) {
	if s := w.secret(name); s != nil && s.Permits(use) != nil {
		v.warn("%s: %s", pointer, s.Permits(use))
	}
}

// bootStops warns of boots that stop because a Layer uses a Secret that it does not receive.
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

// boots warns that Machines do not boot, because a Layer does not receive a Secret.
func (v *Verdict) boots(machines []string, layer, name string, s *api.Secret) {
	switch {
	case len(machines) == 0:
	case s == nil:
		v.warn("the next boot of Machines %s stops: Layer %s uses Secret %s, which does not exist yet", few(machines), layer, name)
	case s.Permits(api.UseLayer(layer)) != nil:
		v.warn("the next boot of Machines %s stops: %s", few(machines), s.Permits(api.UseLayer(layer)))
	}
}

// layerStops judges the Secrets that a Layer uses by the Machines and Guests that have it.
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

// guests warns of Guests that are not configured, because they do not receive a Secret.
func (v *Verdict) guests(s *api.Secret, all []string) {
	var stopped []string
	for _, g := range all {
		if s.Permits(api.UseGuest(g)) != nil {
			stopped = append(stopped, g)
		}
	}
	if len(stopped) > 0 {
		v.warn("Guests %s are not configured: Secret %s does not permit them, an admin adds them to its spec.uses.guests", few(stopped), s.Metadata.Name)
	}
}

// secretStops lists the objects that receive a Secret, and those that use it and do not.
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
		v.warn("the BMCs of Machines %s are not used: Secret %s does not permit them, add their hosts to spec.uses.bmc", few(bmcs), name)
	}
	for _, z := range referrersOf[*api.Zone](w, "Secret", name) {
		if err := s.Permits(api.UseUplink(z.Metadata.Name)); err != nil {
			v.warn("sessions with uplinks of Zone %s end: %s", z.Metadata.Name, err)
		}
	}
	for _, n := range referrersOf[*api.Network](w, "Secret", name) {
		if err := s.Permits(api.UseNetwork(n.Metadata.Name)); err != nil {
			v.warn("guests of Network %s can no longer peer: %s", n.Metadata.Name, err)
		}
	}
	if s.Metadata.Labels[oldGuestsLabel] != "" {
		v.warn("/metadata/labels: %s has no effect: spec.uses.guests says which Guests receive the Secret", oldGuestsLabel)
	}
	v.gives(w, s)
}

// oldGuestsLabel is how Secrets for Guests used to be marked.
const oldGuestsLabel = "rackweft/guests"

// gives names the objects that receive a Secret at the time of the write: from then on operators may not write
// them.
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
			v.warn("Layer %s gives it to Machines %s; from now on only an admin may write these, their Profiles, Layers and Images", l, few(machines))
		}
	}
}

// asksOf are the Secrets that a Guest uses.
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
