package admission

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
)

// reference is one object that another names.
type reference struct{ kind, name, pointer string }

// references lists every object that o names.
func references(o api.Object) []reference {
	var list []reference
	add := func(kind, name string, at ...any) {
		if name != "" {
			list = append(list, reference{kind, name, api.Pointer(at...)})
		}
	}
	switch o := o.(type) {
	case *api.Machine:
		add("Zone", o.Spec.Zone, "spec", "zone")
		add("Profile", o.Spec.Profile, "spec", "profile")
		for i, l := range o.Spec.Links {
			add("Subnet", l.Subnet, "spec", "links", i, "subnet")
		}
		if o.Spec.BMC != nil {
			add("Secret", o.Spec.BMC.Credentials, "spec", "bmc", "credentials")
		}
	case *api.Profile:
		add("Image", o.Spec.Image, "spec", "image")
		for i, l := range o.Spec.Layers {
			add("Layer", l, "spec", "layers", i)
		}
	case *api.Subnet:
		add("Zone", o.Spec.Zone, "spec", "zone")
	case *api.Zone:
		for i, m := range o.Spec.Reflectors.Machines {
			add("Machine", m, "spec", "reflectors", "machines", i)
		}
		for i, u := range o.Spec.Uplinks {
			add("Secret", u.Secret, "spec", "uplinks", i, "secret")
		}
	case *api.Network:
		add("Zone", o.Spec.Zone, "spec", "zone")
		for i, n := range o.Spec.Allow {
			add("Network", n, "spec", "allow", i)
		}
		if p := o.Spec.Peering; p != nil {
			add("Secret", p.Secret, "spec", "peering", "secret")
		}
	case *api.Guest:
		add("Network", o.Spec.Network, "spec", "network")
		add("Image", o.Spec.Image, "spec", "image")
		for i, l := range o.Spec.Ignition.Layers {
			add("Layer", l, "spec", "ignition", "layers", i)
		}
		for i, s := range o.Spec.Shares {
			add("Secret", s.Secret, "spec", "shares", i, "secret")
		}
	}
	return list
}

// maxReferrers bounds how many are named.
const maxReferrers = 5

// Referrers names the other objects that refer to one. What was only
// discovered holds nothing back.
func (w World) Referrers(k api.Kind, name string) []string {
	var who []string
	more := 0
	for _, other := range api.Kinds() {
		for _, o := range w.objects[other.Name] {
			if other.Name == k.Name && o.Meta().Name == name || o.Meta().Labels[api.DiscoveredLabel] != "" {
				continue
			}
			for _, r := range references(o) {
				if r.kind != k.Name || r.name != name {
					continue
				}
				if len(who) == maxReferrers {
					more++
				} else {
					who = append(who, fmt.Sprintf("%s %s (%s)", other.Name, o.Meta().Name, r.pointer))
				}
				break
			}
		}
	}
	if more > 0 {
		who = append(who, fmt.Sprintf("%d more", more))
	}
	return who
}
