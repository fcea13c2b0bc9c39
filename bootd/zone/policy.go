package zone

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// TestPolicy says what the reflectors of a Zone would do with a prefix that a host, or an uplink by its address,
// advertised to them, and to whom they would advertise it. It uses only the parts that hosts receive.
func (v *Views) TestPolicy(ctx context.Context, zone, from string, prefix netip.Prefix) (*api.BGPTest, error) {
	z, err := v.zone(zone)
	if err != nil {
		return nil, err
	}
	prefix = prefix.Masked()
	out := &api.BGPTest{Zone: zone, From: from, Prefix: prefix}
	source, reason := v.source(z, from)
	if reason != "" {
		out.Reason = reason
		return out, nil
	}
	all, faults, err := reflectors(ctx, v.Parts, z)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		a := judgeAt(r, source, prefix)
		out.Reflectors = append(out.Reflectors, a)
		if a.Accepted && !out.Accepted {
			out.Accepted, out.Reason = true, a.Reason
		}
	}
	for _, r := range z.Status.Reflectors {
		if reason := faults[r.Machine]; reason != "" {
			out.Reflectors = append(out.Reflectors, api.BGPTestAnswer{Reflector: r.Machine, Reason: "it has no bgp part: " + reason})
		}
	}
	switch {
	case len(z.Status.Reflectors) == 0:
		out.Reason = "the Zone has no reflector: see `weftctl describe zone " + zone + "`"
	case !out.Accepted:
		out.Reason = v.whyNot(z, source, prefix)
	}
	return out, nil
}

// source is the advertiser of a prefix.
type source struct {
	name   string
	host   *Member
	uplink *api.Uplink
}

func (v *Views) source(z *api.Zone, from string) (source, string) {
	for _, m := range v.Parts.Members(z.Metadata.Name) {
		if m.Machine.Metadata.Name != from {
			continue
		}
		if m.Fault != "" {
			return source{}, fmt.Sprintf("%s does not take part in BGP: %s", from, m.Fault)
		}
		return source{name: from, host: &m}, ""
	}
	for _, u := range z.Spec.Uplinks {
		if u.Address.String() == from {
			return source{name: from, uplink: &u}, ""
		}
	}
	if m, ok := store.Cached[api.Machine](v.Cache, from); ok {
		return source{}, fmt.Sprintf("%s is in %s: no reflector of Zone %s has a session with it", from, zoneText(m.Spec.Zone), z.Metadata.Name)
	}
	return source{}, fmt.Sprintf("%s is neither a Machine nor the address of an uplink of Zone %s", from, z.Metadata.Name)
}

// hop is the next hop that a source would advertise.
func (s source) hop(p netip.Prefix) (netip.Addr, bool) {
	if s.uplink != nil {
		return s.uplink.Address, s.uplink.Address.Is4() == p.Addr().Is4()
	}
	i := slices.IndexFunc(s.host.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return s.host.Addresses[i], true
}

// judgeAt is the decision of one reflector.
func judgeAt(r reflector, from source, prefix netip.Prefix) api.BGPTestAnswer {
	a := api.BGPTestAnswer{Reflector: r.name}
	if r.name == from.name {
		own := mayOriginate(r.part)
		a.Accepted = slices.Contains(own, prefix) || slices.ContainsFunc(r.part.Inside, func(n api.BGPInside) bool { return n.Covers(prefix) })
		a.Reason = "it originates " + prefix.String() + " itself"
		if !a.Accepted {
			a.Reason = fmt.Sprintf("it originates %s, and not %s", listed(own), prefix)
		}
	} else {
		a.Accepted, a.Reason = accepts(r, from, prefix)
	}
	if a.Accepted {
		a.Told = exports(r, from, prefix)
	}
	return a
}

// mayOriginate lists the prefixes that a host itself advertises, with services as if their checks passed.
func mayOriginate(p *api.BGPPart) []netip.Prefix {
	list := slices.Clone(p.Originate)
	for _, a := range p.Loopbacks {
		list = append(list, api.HostPrefix(a))
	}
	for _, s := range p.Services {
		for _, a := range s.Addresses {
			list = append(list, api.HostPrefix(a))
		}
	}
	return list
}

// accepts follows the import rules of package bgp.
func accepts(r reflector, from source, prefix netip.Prefix) (bool, string) {
	at := slices.IndexFunc(r.part.Neighbors, func(n api.BGPNeighbor) bool { return n.Name == from.name })
	if at < 0 {
		return false, "it has no session with " + from.name
	}
	n := r.part.Neighbors[at]
	hop, has := from.hop(prefix)
	if n.Role == api.BGPClient {
		i := slices.IndexFunc(r.part.Accept, func(a api.BGPAccept) bool { return a.Client == n.Name })
		switch {
		case i < 0:
			return false, from.name + " may originate nothing"
		case !r.part.Accept[i].Allows(prefix):
			return false, fmt.Sprintf("%s may originate %s, and not %s", from.name, listed(slices.Concat(r.part.Accept[i].Prefixes, r.part.Accept[i].Within)), prefix)
		case !has || !slices.Contains(r.part.Accept[i].NextHops, hop):
			return false, fmt.Sprintf("%s has no address of the family of %s for the next hop", from.name, prefix)
		}
		return true, fmt.Sprintf("%s may originate %s with next hop %s", from.name, prefix, listed(r.part.Accept[i].NextHops))
	}
	i := slices.IndexFunc(n.Import, func(f api.PrefixFilter) bool { return f.Matches(prefix) })
	if i < 0 {
		return false, fmt.Sprintf("%s matches nothing that is accepted from %s: %s", prefix, from.name, filters(n.Import))
	}
	if !has {
		return true, fmt.Sprintf("%s is accepted from %s, with a next hop of the Zone's", prefix, from.name)
	}
	return true, fmt.Sprintf("%s is accepted from %s (%s), with next hop %s", prefix, from.name, filters(n.Import[i:i+1]), hop)
}

// exports follows the export rules of package bgp.
func exports(r reflector, from source, prefix netip.Prefix) []api.BGPTestExport {
	var list []api.BGPTestExport
	clients := 0
	for _, n := range r.part.Neighbors {
		if n.Role == api.BGPClient && n.Name != from.name {
			clients++
		}
	}
	if clients > 0 {
		list = append(list, api.BGPTestExport{To: fmt.Sprintf("its %d other clients", clients), Told: true, Reason: "it carries the Zone's community " + r.part.Community})
	}
	for _, n := range r.part.Neighbors {
		switch {
		case n.Name == from.name || n.Role == api.BGPClient:
		case n.Role == api.BGPReflector:
			list = append(list, api.BGPTestExport{To: n.Name, Told: true, Reason: "reflectors advertise all of the Zone's routes to each other"})
		default:
			list = append(list, toldUplink(r, n, from, prefix))
		}
	}
	return list
}

func toldUplink(r reflector, n api.BGPNeighbor, from source, prefix netip.Prefix) api.BGPTestExport {
	x := api.BGPTestExport{To: n.Name}
	if from.uplink != nil {
		x.Reason = "routes of one uplink are never advertised to another"
		return x
	}
	var aggregates []netip.Prefix
	for _, a := range r.part.Aggregates {
		exported := slices.ContainsFunc(n.Export, func(f api.PrefixFilter) bool { return f.Matches(a) })
		if exported && a.Bits() <= prefix.Bits() && a.Contains(prefix.Addr()) {
			aggregates = append(aggregates, a)
		}
	}
	x.Told = slices.ContainsFunc(n.Export, func(f api.PrefixFilter) bool { return f.Matches(prefix) })
	switch {
	case x.Told:
		x.Reason = "its export lists " + filters(n.Export)
	case len(aggregates) > 0:
		x.Reason = fmt.Sprintf("its export lists %s: the aggregate %s is advertised to it instead", filters(n.Export), listed(aggregates))
	default:
		x.Reason = fmt.Sprintf("its export lists %s, and not %s", filters(n.Export), prefix)
	}
	return x
}

// whyNot finds what a person can do about a prefix that no reflector accepts.
func (v *Views) whyNot(z *api.Zone, from source, prefix netip.Prefix) string {
	if from.uplink != nil {
		return fmt.Sprintf("import of uplink %s does not list it: %s", from.name, filters(from.uplink.Import))
	}
	inside := slices.ContainsFunc(z.Spec.Prefixes, func(p netip.Prefix) bool { return p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr()) })
	if !inside {
		return fmt.Sprintf("it lies in none of spec.prefixes of Zone %s (%s)", z.Metadata.Name, listed(z.Spec.Prefixes))
	}
	for _, m := range v.Parts.Members(z.Metadata.Name) {
		origin, ok := v.Parts.Originates(z, m.Machine)[prefix]
		switch {
		case !ok || m.Machine.Metadata.Name == from.name:
		case origin.Network != "":
			return fmt.Sprintf("it is the lease of %s on Network %s, not of %s", m.Machine.Metadata.Name, origin.Network, from.name)
		case origin.Service != "":
			return fmt.Sprintf("it is an address of service %s, which the labels of %s do not select: see spec.services of Zone %s", origin.Service, from.name, z.Metadata.Name)
		default:
			return fmt.Sprintf("it is the loopback of %s, not of %s", m.Machine.Metadata.Name, from.name)
		}
	}
	for _, s := range z.Spec.Services {
		if slices.ContainsFunc(s.Addresses, func(a netip.Addr) bool { return api.HostPrefix(a) == prefix }) {
			return fmt.Sprintf("it is an address of service %s, and no Machine of the Zone has its labels %s", s.Name, labelsText(s.Hosts))
		}
	}
	for _, n := range store.CachedList[api.Network](v.Cache) {
		for _, c := range n.Spec.CIDRs {
			switch {
			case n.Spec.Zone != z.Metadata.Name || !c.Overlaps(prefix):
			case !n.Spec.Advertise:
				return fmt.Sprintf("it is in Network %s, which is not advertised: set its spec.advertise", n.Metadata.Name)
			default:
				return fmt.Sprintf("it is in Network %s, of which %s has no such lease: each host originates its own, complete lease", n.Metadata.Name, from.name)
			}
		}
	}
	return "no Network of the Zone has it"
}

func listed[T fmt.Stringer](list []T) string {
	if len(list) == 0 {
		return "nothing"
	}
	texts := make([]string, len(list))
	for i, x := range list {
		texts[i] = x.String()
	}
	return strings.Join(texts, ", ")
}

func filters(list []api.PrefixFilter) string {
	if len(list) == 0 {
		return "nothing"
	}
	texts := make([]string, len(list))
	for i, f := range list {
		texts[i] = f.Prefix.String()
		if f.LE != 0 {
			texts[i] += fmt.Sprintf(" le %d", f.LE)
		}
	}
	return strings.Join(texts, ", ")
}
