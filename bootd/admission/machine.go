package admission

import (
	"cmp"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/machine"
)

func machineRules() rules {
	return rules{
		kind: "Machine",
		judge: func(v *Verdict, w *World, o, _ api.Object) {
			m := o.(*api.Machine)
			v.machine(w, m)
			if p := object[*api.Profile](w, id{"Profile", m.Spec.Profile}); p != nil {
				v.bootStops(w, p.Spec.Layers, []string{m.Metadata.Name})
			}
			if b := m.Spec.BMC; b != nil {
				v.refused(w, "/spec/bmc/credentials", b.Credentials, api.UseBMC(b.Address))
			}
		},
		keys: func(o api.Object) []key {
			m := o.(*api.Machine)
			list := machineKeys(m)
			if m.Spec.Profile != "" && m.Spec.Zone != "" {
				list = append(list, key{byProfile, m.Spec.Profile + "/" + m.Spec.Zone})
			}
			return list
		},
		layers: func(o api.Object) map[layer][]netip.Prefix {
			return map[layer][]netip.Prefix{{what: announcedPrefixes}: prefixesOf(announcedBy(o.(*api.Machine)))}
		},
		given: func(g given, o api.Object) string { return g.machine(o.(*api.Machine)) },
		sends: func(w *World, o, current api.Object) string { return w.bmcSecret(o.(*api.Machine), current) },
		unstated: func(o api.Object) any {
			spec := o.(*api.Machine).Spec
			spec.State = ""
			return spec
		},
		claims: func(o api.Object) (claims []string) {
			for _, k := range machineKeys(o.(*api.Machine)) {
				if k.what != byLoopbacks {
					claims = append(claims, k.what+" "+k.value)
				}
			}
			return claims
		},
		unnamed: true, // except by Zones, which are written alone
	}
}

// bmcSecret says why an operator may not choose a BMC and the Secret that is sent to it; "" when an operator may.
func (w *World) bmcSecret(m *api.Machine, current api.Object) string {
	old, _ := current.(*api.Machine)
	if m.Spec.BMC == nil || old != nil && reflect.DeepEqual(old.Spec.BMC, m.Spec.BMC) {
		return ""
	}
	return w.unsaid("spec.bmc.credentials", m.Spec.BMC.Credentials, api.UseBMC(m.Spec.BMC.Address))
}

func machineKeys(m *api.Machine) []key {
	var list []key
	for _, mac := range m.MACs() {
		list = append(list, key{byMAC, string(mac)})
	}
	_, addresses := pointersOf(m)
	for _, a := range addresses {
		list = append(list, key{byAddress, a.address.String()})
	}
	if m.Spec.BMC != nil {
		for _, e := range endpoints(m.Spec.BMC) {
			list = append(list, key{byBMC, e})
		}
	}
	if len(m.Spec.Loopbacks) > 0 {
		list = append(list, key{byLoopbacks, m.Spec.Zone})
	}
	return list
}

func (v *Verdict) machine(w *World, m *api.Machine) {
	macs, addresses := pointersOf(m)
	for _, other := range w.rivals(m) {
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
		v.bmc(m, other)
	}
	for i, a := range addresses {
		if slices.ContainsFunc(addresses[:i], func(b pinned) bool { return a.address == b.address }) {
			v.fail(a.pointer, "address %s is already in this Machine", a.address)
		}
	}
	for i, l := range m.Spec.Links {
		if s := w.subnet(l.Subnet); s != nil {
			v.link(m, i, s)
		}
	}
	v.loopbacks(w, m)
	zones := found{}
	for _, a := range addresses {
		zones.with(w, byUplink, a.address.String())
	}
	for _, z := range sorted[*api.Zone](w, zones) {
		for _, u := range z.Spec.Uplinks {
			if i := slices.IndexFunc(addresses, func(a pinned) bool { return a.address == u.Address }); i >= 0 {
				v.fail(addresses[i].pointer, "address %s belongs to an uplink of Zone %s", u.Address, z.Metadata.Name)
			}
		}
	}
}

// bmc refuses a BMC that another Machine has, unless each names a system of its own.
func (v *Verdict) bmc(m, other *api.Machine) {
	mine, theirs := m.Spec.BMC, other.Spec.BMC
	switch {
	case mine == nil || theirs == nil || !intersect(endpoints(mine), endpoints(theirs)):
	case mine.System == "" || theirs.System == "":
		v.fail("/spec/bmc/address", "BMC %s belongs to Machine %s: Machines share one when each names its own spec.bmc.system", mine.Address, other.Metadata.Name)
	case mine.System == theirs.System:
		v.fail("/spec/bmc/system", "system %s of BMC %s belongs to Machine %s", mine.System, mine.Address, other.Metadata.Name)
	}
}

// rivals are the Machines that share an address, a MAC or a BMC with this one.
func (w *World) rivals(m *api.Machine) []*api.Machine {
	f := found{}
	for _, k := range machineKeys(m) {
		if k.what != byLoopbacks {
			f.with(w, k.what, k.value)
		}
	}
	return sorted[*api.Machine](w, f)
}

// macs refuses a MAC that another Machine has; a discovered Machine is replaced.
func (v *Verdict) macs(m, other *api.Machine, macs map[api.MAC]string) {
	for _, mac := range other.MACs() {
		pointer, shared := macs[mac]
		switch {
		case !shared:
		case machine.IsDiscovered(other):
			if !slices.Contains(v.Takeover, other.Metadata.Name) {
				v.Takeover = append(v.Takeover, other.Metadata.Name)
			}
		default:
			v.fail(pointer, "MAC %s is in use by Machine %s", mac, other.Metadata.Name)
		}
	}
}

// link judges a Machine's link against its Subnet.
func (v *Verdict) link(m *api.Machine, i int, s *api.Subnet) {
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

type pinned struct {
	address netip.Addr
	pointer string
}

// pointersOf maps each MAC and pinned address to its pointers in a Machine's spec.
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

// endpoints are the host and the ports at which a BMC is spoken to, in canonical form. On the usual ports Redfish and IPMI
// of one host are one BMC.
func endpoints(b *api.BMC) []string {
	u, err := url.Parse(b.Address)
	if err != nil {
		return []string{b.Address}
	}
	overIPMI := b.Protocol == api.ProtocolIPMI
	host, port := strings.ToLower(u.Hostname()), cmp.Or(u.Port(), "443")
	if overIPMI {
		port = cmp.Or(u.Port(), ipmiPort)
	}
	list := []string{host + " " + port}
	if b.Fallback == api.ProtocolIPMI {
		list = append(list, host+" "+ipmiPort)
	}
	if overIPMI && port == ipmiPort {
		list = append(list, host+" 443")
	}
	return list
}

const ipmiPort = "623"

func intersect(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
