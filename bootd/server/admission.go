package server

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
	"github.com/rackweft/rackweft/bootd/store"
)

// world is what stands when an object is judged. Its objects are shared and not
// changed.
type world struct {
	machines []*api.Machine
	subnets  []*api.Subnet
	zones    []*api.Zone
	networks []*api.Network
	objects  map[string][]api.Object // every kind's, by the kind's name
}

func (s *Server) world() world {
	w := world{
		machines: store.CachedList[api.Machine](s.conf.Cache),
		subnets:  store.CachedList[api.Subnet](s.conf.Cache),
		zones:    store.CachedList[api.Zone](s.conf.Cache),
		networks: store.CachedList[api.Network](s.conf.Cache),
		objects:  map[string][]api.Object{},
	}
	for _, k := range api.Kinds() {
		w.objects[k.Name], _ = s.conf.Cache.CachedObjects(k)
	}
	return w
}

func (w world) has(kind, name string) bool {
	return slices.ContainsFunc(w.objects[kind], func(o api.Object) bool { return o.Meta().Name == name })
}

func (w world) subnet(name string) *api.Subnet {
	i := slices.IndexFunc(w.subnets, func(s *api.Subnet) bool { return s.Metadata.Name == name })
	if i < 0 {
		return nil
	}
	return w.subnets[i]
}

// verdict is what admission says of an object.
type verdict struct {
	errors   api.FieldErrors
	warnings []string // it may be stored, but does not do what it should yet
	takeover []string // discovered Machines that it replaces
}

func (v *verdict) fail(pointer, format string, args ...any) {
	v.errors = append(v.errors, api.FieldError{Pointer: pointer, Message: fmt.Sprintf(format, args...)})
}

// admit judges an object that is valid by itself by all the others. current is
// the one that it replaces, or nil.
func admit(w world, o, current api.Object) verdict {
	v := new(verdict)
	switch o := o.(type) {
	case *api.Machine:
		v.machine(w, o)
	case *api.Subnet:
		v.subnet(w, o)
	case *api.Zone:
		v.zone(w, o)
	case *api.Network:
		v.network(w, o, current)
	case *api.Guest:
		v.guest(o, current)
	case *api.Secret:
		v.secret(w, o, current)
	}
	for _, r := range references(o) {
		if !w.has(r.kind, r.name) && !(r.kind == api.KindOf(o).Name && r.name == o.Meta().Name) {
			v.warnings = append(v.warnings, fmt.Sprintf("%s: %s %q does not exist yet", r.pointer, r.kind, r.name))
		}
	}
	return *v
}

// secret keeps a Secret that was read, and so has no values, from wiping the
// one that has.
func (v *verdict) secret(w world, o *api.Secret, current api.Object) {
	v.sessionKey(w, o)
	old, ok := current.(*api.Secret)
	if ok && len(o.Spec.Data) == 0 && len(old.Status.Digests) > 0 {
		v.fail("/spec/data", "no values are given, but the stored Secret has some: a read never shows them, so write all of them anew, or delete the Secret")
	}
}

func (v *verdict) machine(w world, m *api.Machine) {
	macs, addresses := pointersOf(m)
	for _, other := range w.machines {
		if other.Metadata.Name == m.Metadata.Name {
			continue
		}
		v.macs(m, other, macs)
		if machine.IsDiscovered(other) {
			continue
		}
		_, taken := pointersOf(other)
		for _, a := range addresses {
			if slices.ContainsFunc(taken, func(b pinned) bool { return a.address == b.address }) {
				v.fail(a.pointer, "address %s is pinned by Machine %s", a.address, other.Metadata.Name)
			}
		}
		if m.Spec.BMC != nil && other.Spec.BMC != nil && endpoint(m.Spec.BMC) == endpoint(other.Spec.BMC) {
			v.fail("/spec/bmc/address", "BMC %s is that of Machine %s", m.Spec.BMC.Address, other.Metadata.Name)
		}
	}
	for i, a := range addresses {
		if slices.ContainsFunc(addresses[:i], func(b pinned) bool { return a.address == b.address }) {
			v.fail(a.pointer, "address %s stands in this Machine already", a.address)
		}
	}
	for i, l := range m.Spec.Links {
		if s := w.subnet(l.Subnet); s != nil {
			v.link(m, i, s)
		}
	}
	v.loopbacks(w, m)
	for _, z := range w.zones {
		for _, u := range z.Spec.Uplinks {
			if i := slices.IndexFunc(addresses, func(a pinned) bool { return a.address == u.Address }); i >= 0 {
				v.fail(addresses[i].pointer, "address %s is that of an uplink of Zone %s", u.Address, z.Metadata.Name)
			}
		}
	}
}

// macs refuses a MAC that another Machine has; a discovered one is taken over.
func (v *verdict) macs(m, other *api.Machine, macs map[api.MAC]string) {
	for _, mac := range other.MACs() {
		pointer, shared := macs[mac]
		switch {
		case !shared:
		case machine.IsDiscovered(other):
			if !slices.Contains(v.takeover, other.Metadata.Name) {
				v.takeover = append(v.takeover, other.Metadata.Name)
			}
		default:
			v.fail(pointer, "MAC %s is in use by Machine %s", mac, other.Metadata.Name)
		}
	}
}

// link judges a Machine's link by the Subnet that it is on.
func (v *verdict) link(m *api.Machine, i int, s *api.Subnet) {
	if s.Spec.Purpose == api.Production && s.Spec.Zone != m.Spec.Zone {
		v.fail(api.Pointer("spec", "links", i, "subnet"), "Subnet %s belongs to Zone %s, and this Machine is in %s: a Machine has production links in its own Zone only",
			s.Metadata.Name, s.Spec.Zone, zoneText(m.Spec.Zone))
	}
	for j, a := range m.Spec.Links[i].Addresses {
		if _, inside := s.Prefix(a); !inside {
			v.fail(api.Pointer("spec", "links", i, "addresses", j), "%s is in none of the prefixes of Subnet %s (%s)", a, s.Metadata.Name, prefixes(s.Spec.Prefixes))
		}
	}
}

func (v *verdict) subnet(w world, s *api.Subnet) {
	for _, other := range w.subnets {
		if other.Metadata.Name == s.Metadata.Name {
			continue
		}
		for i, p := range s.Spec.Prefixes {
			for _, q := range other.Spec.Prefixes {
				if p.Overlaps(q) {
					v.fail(api.Pointer("spec", "prefixes", i), "%s overlaps %s of Subnet %s", p, q, other.Metadata.Name)
				}
			}
		}
		if s.Spec.Interface != "" && s.Spec.Interface == other.Spec.Interface && s.Spec.Purpose == api.Provisioning && other.Spec.Purpose == api.Provisioning {
			v.fail("/spec/interface", "Subnet %s is a provisioning Subnet on %s already: one interface serves one", other.Metadata.Name, s.Spec.Interface)
		}
	}
	v.linked(w, s)
	v.apart(w, s)
	v.routed(w, s)
	v.keepsOff(w, s.Spec.Prefixes, "/spec/prefixes", func(announced) bool { return true })
}

// linked refuses a change of a Subnet that Machines on it contradict.
func (v *verdict) linked(w world, s *api.Subnet) {
	for _, m := range w.machines {
		for i, l := range m.Spec.Links {
			if l.Subnet != s.Metadata.Name {
				continue
			}
			if s.Spec.Purpose == api.Production && s.Spec.Zone != m.Spec.Zone {
				v.fail("/spec/zone", "Machine %s, which links to this Subnet, is in %s", m.Metadata.Name, zoneText(m.Spec.Zone))
			}
			for j, a := range l.Addresses {
				if _, inside := s.Prefix(a); !inside {
					v.fail("/spec/prefixes", "%s of Machine %s (%s) is in none of them", a, m.Metadata.Name, api.Pointer("spec", "links", i, "addresses", j))
				}
			}
		}
	}
}

type pinned struct {
	address netip.Addr
	pointer string
}

// pointersOf says where a Machine's spec names each MAC and pinned address.
func pointersOf(m *api.Machine) (map[api.MAC]string, []pinned) {
	macs := map[api.MAC]string{}
	var addresses []pinned
	for i, l := range m.Spec.Links {
		if l.MAC != "" {
			macs[l.MAC] = api.Pointer("spec", "links", i, "mac")
		}
		if l.Bond != nil {
			for j, mac := range l.Bond.Members {
				macs[mac] = api.Pointer("spec", "links", i, "bond", "members", j)
			}
		}
		for j, a := range l.Addresses {
			addresses = append(addresses, pinned{a, api.Pointer("spec", "links", i, "addresses", j)})
		}
	}
	for i, a := range m.Spec.Loopbacks {
		addresses = append(addresses, pinned{a, api.Pointer("spec", "loopbacks", i)})
	}
	return macs, addresses
}

// endpoint is a BMC's address in one spelling.
func endpoint(b *api.BMC) string {
	u, err := url.Parse(b.Address)
	if err != nil {
		return b.Address
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = "443"
	}
	return host + " " + port
}

func zoneText(name string) string {
	if name == "" {
		return "no Zone (set spec.zone)"
	}
	return "Zone " + name
}

func prefixes(list []netip.Prefix) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}
