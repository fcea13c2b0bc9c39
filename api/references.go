package api

// Reference is one object that another names.
type Reference struct{ Kind, Name, Pointer string }

// References lists every object that o names.
func References(o Object) []Reference {
	var list []Reference
	add := func(kind, name string, at ...any) {
		if name != "" {
			list = append(list, Reference{kind, name, Pointer(at...)})
		}
	}
	switch o := o.(type) {
	case *Machine:
		add("Zone", o.Spec.Zone, "spec", "zone")
		add("Profile", o.Spec.Profile, "spec", "profile")
		for i, l := range o.Spec.Links {
			add("Subnet", l.Subnet, "spec", "links", i, "subnet")
		}
		if o.Spec.BMC != nil {
			add("Secret", o.Spec.BMC.Credentials, "spec", "bmc", "credentials")
		}
	case *Profile:
		add("Image", o.Spec.Image, "spec", "image")
		for i, l := range o.Spec.Layers {
			add("Layer", l, "spec", "layers", i)
		}
	case *Subnet:
		add("Zone", o.Spec.Zone, "spec", "zone")
	case *Zone:
		for i, m := range o.Spec.Reflectors.Machines {
			add("Machine", m, "spec", "reflectors", "machines", i)
		}
		for i, u := range o.Spec.Uplinks {
			add("Secret", u.Secret, "spec", "uplinks", i, "secret")
		}
	case *Network:
		add("Zone", o.Spec.Zone, "spec", "zone")
		for i, n := range o.Spec.Allow {
			add("Network", n, "spec", "allow", i)
		}
		if p := o.Spec.Peering; p != nil {
			add("Secret", p.Secret, "spec", "peering", "secret")
		}
	case *Guest:
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
