package admission

import (
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/ignition"
)

func guestRules() rules {
	return rules{
		kind: "Guest",
		judge: func(v *Verdict, w *World, o, current api.Object) {
			g := o.(*api.Guest)
			v.guest(g, current)
			for _, name := range w.asksOf(g) {
				v.refused(w, "/spec", name, api.UseGuest(g.Metadata.Name))
			}
		},
		asks:  func(o api.Object) []string { return ignition.SecretsOf(userData(o.(*api.Guest))) },
		given: func(g given, o api.Object) string { return g.guest(o.Meta().Name) },
		unstated: func(o api.Object) any {
			spec := o.(*api.Guest).Spec
			spec.State = ""
			return spec
		},
		claims:  nothing,
		unnamed: true,
	}
}

// guest refuses changes of a Guest's addresses, which are its Network's, and disks that shrink.
func (v *Verdict) guest(g *api.Guest, current api.Object) {
	old, ok := current.(*api.Guest)
	if !ok {
		return
	}
	if g.Spec.Network != old.Spec.Network && len(old.Status.Addresses) > 0 {
		v.fail("/spec/network", "its addresses (%s) are from Network %s and cannot change: delete the Guest and create it again", old.Status.Addresses[0], old.Spec.Network)
	}
	for i, d := range g.Spec.Disks {
		at := slices.IndexFunc(old.Spec.Disks, func(o api.Disk) bool { return o.Name == d.Name })
		if at < 0 {
			continue
		}
		was := old.Spec.Disks[at]
		if d.Size.Value() < was.Size.Value() {
			v.fail(api.Pointer("spec", "disks", i, "size"), "disk %s has %s and cannot shrink: add a smaller one under another name", d.Name, was.Size)
		}
		if format(d) != format(was) {
			v.fail(api.Pointer("spec", "disks", i, "format"), "disk %s is %s, which cannot change: add one of another format under another name", d.Name, format(was))
		}
	}
}

func format(d api.Disk) string {
	if d.Format == "" {
		return "qcow2"
	}
	return d.Format
}
