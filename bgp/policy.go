package bgp

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/api"
)

// Names of the two policies. They never change: GoBGP falls back to accepting
// everything when an assigned policy is removed.
const (
	importPolicy = "import"
	exportPolicy = "export"
)

// gracefulShutdown is the well-known community of RFC 8326.
const gracefulShutdown = "65535:0"

// policy is a part as GoBGP's global policy: a list of statements of which the
// first match decides. A route that no statement accepts is rejected.
//
// Cost determines its shape. GoBGP evaluates import statements once per
// received path, so there is one per client and family. It evaluates export
// statements once per path and neighbour: those of uplinks and reflectors,
// which are few, come first and end in a rejection, so that clients need no
// neighbour set, which GoBGP searches linearly.
type policy struct {
	sets    []*gobgp.DefinedSet
	imports []*gobgp.Statement
	exports []*gobgp.Statement

	// The policy of each neighbour as text: the neighbour is reset when it
	// changes.
	in  map[string]string
	out map[string]string
	own string // for the routes that this host originates
}

func compilePolicy(p api.BGPPart) *policy {
	c := &policy{in: map[string]string{}, out: map[string]string{}}
	by := map[string][]api.BGPNeighbor{}
	for _, n := range p.Neighbors {
		by[n.Role] = append(by[n.Role], n)
	}
	for role, list := range by {
		var addresses []string
		for _, n := range list {
			addresses = append(addresses, n.Address.String())
		}
		c.neighborSet(role+"s", addresses...)
	}
	c.sets = append(c.sets,
		&gobgp.DefinedSet{DefinedType: gobgp.DefinedType_LARGE_COMMUNITY, Name: "zone", List: []string{only(p.Community)}},
		&gobgp.DefinedSet{DefinedType: gobgp.DefinedType_LARGE_COMMUNITY, Name: "reflected", List: []string{only(reflectedMark(p))}},
		&gobgp.DefinedSet{DefinedType: gobgp.DefinedType_COMMUNITY, Name: "drained", List: []string{"^" + gracefulShutdown + "$"}})
	c.compileImport(p, by)
	c.compileExport(p, by)
	return c
}

// only returns an expression that matches one community.
func only(community string) string { return "^" + regexp.QuoteMeta(community) + "$" }

// reflectedMark is added to routes of other hosts that one reflector advertises
// to another. When all paths are advertised, such a route is not advertised to
// a third reflector, or each path would arrive there once per path between
// reflectors. A reflector's own routes go one hop further, because hosts
// without a session with it receive them only that way.
func reflectedMark(p api.BGPPart) string { return fmt.Sprintf("%d:1:2", p.ASN) }

// martians are never accepted.
func martians() []api.PrefixFilter {
	var all []api.PrefixFilter
	for _, s := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"} {
		all = append(all, api.PrefixFilter{Prefix: netip.MustParsePrefix(s), LE: 32})
	}
	for _, s := range []string{"::/8", "fe80::/10", "ff00::/8"} {
		all = append(all, api.PrefixFilter{Prefix: netip.MustParsePrefix(s), LE: 128})
	}
	return all
}

func (c *policy) compileImport(p api.BGPPart, by map[string][]api.BGPNeighbor) {
	mark := &gobgp.CommunityAction{Type: gobgp.CommunityAction_REPLACE, Communities: []string{p.Community}}
	// Aggregates carry no community of the Zone, because only uplinks receive
	// them.
	for _, set := range c.prefixSets("aggregates", exactly(p.Aggregates)) {
		c.imports = append(c.imports, &gobgp.Statement{Name: "in-" + set,
			Conditions: &gobgp.Conditions{RouteType: gobgp.Conditions_ROUTE_TYPE_LOCAL, PrefixSet: matchAny(set)},
			Actions:    accept(nil)})
	}
	c.imports = append(c.imports, &gobgp.Statement{Name: "in-own",
		Conditions: &gobgp.Conditions{RouteType: gobgp.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    accept(&gobgp.Actions{LargeCommunity: mark})})
	for _, set := range c.prefixSets("martians", martians()) {
		c.imports = append(c.imports, &gobgp.Statement{Name: "in-" + set, Conditions: &gobgp.Conditions{PrefixSet: matchAny(set)}, Actions: reject()})
	}
	c.own = fmt.Sprint(p.Community, p.Aggregates, p.Drain)

	// This speaker sets the preference and the Zone's community, except between
	// reflectors; a drained host gets the lowest preference that GoBGP can set.
	// Both are set in one statement, before the checks of who may announce
	// what: each statement that changes a route adds a layer to it, which GoBGP
	// traverses for each neighbour.
	marked := &gobgp.Conditions{}
	if len(by[api.BGPReflector]) > 0 {
		marked.NeighborSet = &gobgp.MatchSet{Type: gobgp.MatchSet_INVERT, Name: "reflectors"}
	}
	c.imports = append(c.imports,
		&gobgp.Statement{Name: "in-mark", Conditions: marked, Actions: &gobgp.Actions{LocalPref: &gobgp.LocalPrefAction{Value: 100}, LargeCommunity: mark}},
		&gobgp.Statement{Name: "in-drained", Conditions: &gobgp.Conditions{CommunitySet: matchAny("drained")}, Actions: &gobgp.Actions{LocalPref: &gobgp.LocalPrefAction{Value: 1}}})

	hops := texts(p.ZoneNextHops)
	for _, n := range by[api.BGPReflector] {
		c.importFrom(n, n.Import, hops, &gobgp.Conditions{LargeCommunitySet: matchAny("zone")})
		if p.Role == api.BGPReflector { // only a reflector passes them on
			c.importEVPN(n, hops, &gobgp.Conditions{LargeCommunitySet: matchAny("zone")})
		}
	}
	for _, n := range slices.Concat(by[api.BGPGuest], by[api.BGPHost]) {
		c.importFrom(n, n.Import, texts(n.NextHops), &gobgp.Conditions{})
	}
	for _, n := range by[api.BGPUplink] {
		foreign := c.foreignASNs(p, n)
		c.importFrom(n, n.Import, append([]string{n.Address.String()}, hops...), &gobgp.Conditions{AsPathSet: foreign})
		c.importEVPN(n, []string{n.Address.String()}, &gobgp.Conditions{AsPathSet: foreign})
	}
	accepted := map[string]api.BGPAccept{}
	for _, a := range p.Accept {
		accepted[a.Client] = a
	}
	for _, n := range by[api.BGPClient] {
		a := accepted[n.Name]
		c.importFrom(n, acceptable(a), texts(a.NextHops), &gobgp.Conditions{})
		c.importEVPN(n, texts(a.NextHops), &gobgp.Conditions{})
	}
}

// importFrom accepts routes from n that match filters and more, with a next hop
// in hops. Without filters or without hops it accepts nothing.
func (c *policy) importFrom(n api.BGPNeighbor, filters []api.PrefixFilter, hops []string, more *gobgp.Conditions) {
	c.in[n.Name] = fmt.Sprint(c.own, n.Role, n.Address, filters, hops, more)
	if len(hops) == 0 { // GoBGP takes an empty list for any next hop
		return
	}
	from := c.neighborSet("from-"+n.Name, n.Address.String())
	for _, set := range c.prefixSets("from-"+n.Name, filters) {
		c.imports = append(c.imports, &gobgp.Statement{Name: "in-" + set,
			Conditions: &gobgp.Conditions{PrefixSet: matchAny(set), NeighborSet: matchAny(from), NextHopInList: hops,
				LargeCommunitySet: more.LargeCommunitySet, AsPathSet: more.AsPathSet},
			Actions: accept(nil)})
	}
}

// importEVPN accepts EVPN routes from n, if it speaks EVPN, with a next hop in
// hops. It comes after importFrom, because no prefix set matches them.
func (c *policy) importEVPN(n api.BGPNeighbor, hops []string, more *gobgp.Conditions) {
	if !slices.Contains(n.Families, api.FamilyEVPN) || len(hops) == 0 {
		return
	}
	c.in[n.Name] += fmt.Sprint(" evpn ", hops, more)
	c.imports = append(c.imports, &gobgp.Statement{Name: "in-evpn-from-" + n.Name,
		Conditions: &gobgp.Conditions{AfiSafiIn: []*gobgp.Family{evpn()}, NeighborSet: matchAny("from-" + n.Name), NextHopInList: hops,
			LargeCommunitySet: more.LargeCommunitySet, AsPathSet: more.AsPathSet},
		Actions: accept(nil)})
}

// foreignASNs matches a path with a private ASN (RFC 6996) that n may not use.
// A range is not possible in a regular expression, so the digits are spelt out.
func (c *policy) foreignASNs(p api.BGPPart, n api.BGPNeighbor) *gobgp.MatchSet {
	allowed := append([]uint32{n.ASN}, n.PrivateASNs...)
	allowed = slices.DeleteFunc(allowed, func(a uint32) bool { return a == p.ASN })
	name := "private-" + n.Name
	c.sets = append(c.sets, &gobgp.DefinedSet{DefinedType: gobgp.DefinedType_AS_PATH, Name: name, List: []string{onlyPublic(allowed)}})
	return matchAny(name)
}

// onlyPublic returns the expression for a path, such as "64600 3320 {1,2}", in
// which every ASN is public or allowed.
func onlyPublic(allowed []uint32) string {
	public := []string{
		`[1-9][0-9]{0,3}`, `[1-5][0-9]{4}`, `6[0-3][0-9]{3}`, `64[0-4][0-9]{2}`, `6450[0-9]|6451[01]|65535`, // up to 64511
		`6553[6-9]|655[4-9][0-9]|65[6-9][0-9]{2}|6[6-9][0-9]{3}|[7-9][0-9]{4}`, // 65536 to 99999
		`[1-9][0-9]{5,8}`, `[1-3][0-9]{9}`, `4[01][0-9]{8}`, `429496729[5-9]`,
	}
	for _, a := range allowed {
		public = append(public, fmt.Sprint(a))
	}
	one := "(" + strings.Join(public, "|") + ")"
	return "^" + one + "( " + one + ")*$"
}

func (c *policy) compileExport(p api.BGPPart, by map[string][]api.BGPNeighbor) {
	if p.Drain {
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-drain",
			Conditions: &gobgp.Conditions{RouteType: gobgp.Conditions_ROUTE_TYPE_LOCAL},
			Actions: &gobgp.Actions{Community: &gobgp.CommunityAction{Type: gobgp.CommunityAction_ADD, Communities: []string{gracefulShutdown}},
				LocalPref: &gobgp.LocalPrefAction{Value: 1}}})
	}
	for _, n := range by[api.BGPUplink] {
		c.exportToUplink(p, n)
	}
	c.rejectRest("uplinks", by[api.BGPUplink])
	if len(by[api.BGPReflector]) > 0 {
		c.exportToReflectors(p)
	}
	c.rejectRest("reflectors", by[api.BGPReflector])
	if p.Role == api.BGPNetwork {
		c.exportInside(p, by)
	}
	// Only clients are left.
	if p.Role == api.BGPReflector {
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-clients", Conditions: &gobgp.Conditions{LargeCommunitySet: matchAny("zone")}, Actions: accept(nil)})
	}
	for _, n := range p.Neighbors {
		c.out[n.Name] = fmt.Sprint(p.Role, p.Drain, p.Community, n.Role)
		if n.Role == api.BGPUplink {
			c.out[n.Name] += fmt.Sprint(p.Aggregates, n.Export, n.KeepNextHop)
		}
	}
}

// exportToReflectors advertises this host's own routes to reflectors, and from
// a reflector all others. When all paths are advertised, the others get the
// mark that stops them from going further.
func (c *policy) exportToReflectors(p api.BGPPart) {
	to := func(set string, typ gobgp.Conditions_RouteType) *gobgp.Conditions {
		return &gobgp.Conditions{NeighborSet: matchAny("reflectors"), LargeCommunitySet: matchAny(set), RouteType: typ}
	}
	c.exports = append(c.exports, &gobgp.Statement{Name: "out-own", Conditions: to("zone", gobgp.Conditions_ROUTE_TYPE_LOCAL), Actions: accept(nil)})
	if p.Role == api.BGPClient {
		return
	}
	if p.EVPN { // only best EVPN paths are advertised, and two reflectors may both advertise them to a third
		routes := to("zone", gobgp.Conditions_ROUTE_TYPE_NONE)
		routes.AfiSafiIn = []*gobgp.Family{evpn()}
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-evpn", Conditions: routes, Actions: accept(nil)})
	}
	var actions *gobgp.Actions
	if p.AllPaths {
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-reflected", Conditions: to("reflected", gobgp.Conditions_ROUTE_TYPE_NONE), Actions: reject()})
		actions = &gobgp.Actions{LargeCommunity: &gobgp.CommunityAction{Type: gobgp.CommunityAction_ADD, Communities: []string{reflectedMark(p)}}}
	}
	c.exports = append(c.exports, &gobgp.Statement{Name: "out-reflectors", Conditions: to("zone", gobgp.Conditions_ROUTE_TYPE_NONE), Actions: accept(actions)})
}

// exportInside advertises this host's guests' routes to the other hosts, and
// all of the Network's guests' IPv4 routes to its guests, with this host as the
// next hop.
func (c *policy) exportInside(p api.BGPPart, by map[string][]api.BGPNeighbor) {
	if len(by[api.BGPHost]) > 0 {
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-hosts",
			Conditions: &gobgp.Conditions{NeighborSet: matchAny("hosts"), RouteType: gobgp.Conditions_ROUTE_TYPE_EXTERNAL, LargeCommunitySet: matchAny("zone")},
			Actions:    accept(nil)})
	}
	c.rejectRest("hosts", by[api.BGPHost])
	// Sessions run over IPv4, which offers no IPv6 next hop that a guest can
	// reach on its link: for IPv6 guests use their default route.
	a := accept(&gobgp.Actions{LargeCommunity: &gobgp.CommunityAction{Type: gobgp.CommunityAction_REMOVE, Communities: []string{"^" + regexp.QuoteMeta(p.Community) + "$"}}})
	a.Nexthop = &gobgp.NexthopAction{Self: true}
	c.exports = append(c.exports, &gobgp.Statement{Name: "out-guests",
		Conditions: &gobgp.Conditions{LargeCommunitySet: matchAny("zone"), AfiSafiIn: []*gobgp.Family{toFamily(true)}}, Actions: a})
}

// exportToUplink advertises the Zone's own routes to n, with only this Zone's
// ASN in their path: routes from one uplink are never advertised to another.
func (c *policy) exportToUplink(p api.BGPPart, n api.BGPNeighbor) {
	to := c.neighborSet("to-"+n.Name, n.Address.String())
	actions := func() *gobgp.Actions {
		a := accept(&gobgp.Actions{LargeCommunity: &gobgp.CommunityAction{Type: gobgp.CommunityAction_REMOVE, Communities: []string{only(p.Community), only(reflectedMark(p))}}})
		if p.Drain && !n.KeepNextHop {
			a.Community = &gobgp.CommunityAction{Type: gobgp.CommunityAction_ADD, Communities: []string{gracefulShutdown}}
		}
		return a
	}
	var aggregates []api.PrefixFilter
	for _, x := range p.Aggregates {
		if matches(n.Export, x) {
			aggregates = append(aggregates, api.PrefixFilter{Prefix: x})
		}
	}
	for _, set := range c.prefixSets("aggregates-to-"+n.Name, aggregates) {
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-" + set,
			Conditions: &gobgp.Conditions{PrefixSet: matchAny(set), NeighborSet: matchAny(to), RouteType: gobgp.Conditions_ROUTE_TYPE_LOCAL},
			Actions:    actions()})
	}
	for _, set := range c.prefixSets("to-"+n.Name, n.Export) {
		a := actions()
		if n.KeepNextHop {
			a.Nexthop = &gobgp.NexthopAction{Unchanged: true}
		}
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-" + set,
			Conditions: &gobgp.Conditions{PrefixSet: matchAny(set), NeighborSet: matchAny(to), LargeCommunitySet: matchAny("zone"),
				AsPathLength: &gobgp.AsPathLength{Type: gobgp.AsPathLength_LE, Length: 1}},
			Actions: a})
	}
	if slices.Contains(n.Families, api.FamilyEVPN) {
		a := actions()
		a.Nexthop = &gobgp.NexthopAction{Unchanged: true} // the VTEP's
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-evpn-" + to,
			Conditions: &gobgp.Conditions{AfiSafiIn: []*gobgp.Family{evpn()}, NeighborSet: matchAny(to), LargeCommunitySet: matchAny("zone"),
				AsPathLength: &gobgp.AsPathLength{Type: gobgp.AsPathLength_LE, Length: 1}},
			Actions: a})
	}
}

func (c *policy) rejectRest(set string, of []api.BGPNeighbor) {
	if len(of) > 0 { // GoBGP takes an empty set for any neighbour
		c.exports = append(c.exports, &gobgp.Statement{Name: "out-no-more-" + set, Conditions: &gobgp.Conditions{NeighborSet: matchAny(set)}, Actions: reject()})
	}
}

func (c *policy) neighborSet(name string, addresses ...string) string {
	c.sets = append(c.sets, &gobgp.DefinedSet{DefinedType: gobgp.DefinedType_NEIGHBOR, Name: name, List: addresses})
	return name
}

// prefixSets creates a set for each family in filters, and returns their names.
func (c *policy) prefixSets(name string, filters []api.PrefixFilter) []string {
	var names []string
	for _, v4 := range []bool{true, false} {
		var family []api.PrefixFilter
		for _, f := range filters {
			if f.Prefix.Addr().Is4() == v4 {
				family = append(family, f)
			}
		}
		if len(family) == 0 {
			continue
		}
		set := name + "-ipv6"
		if v4 {
			set = name + "-ipv4"
		}
		c.sets = append(c.sets, &gobgp.DefinedSet{DefinedType: gobgp.DefinedType_PREFIX, Name: set, Prefixes: flatten(family)})
		names = append(names, set)
	}
	return names
}

// flatten writes filters as GoBGP's prefixes. GoBGP evaluates only the longest
// entry that covers a route, so each entry repeats what shorter ones allow.
func flatten(filters []api.PrefixFilter) []*gobgp.Prefix {
	var out []*gobgp.Prefix
	seen := map[string]bool{}
	for _, f := range filters {
		for _, g := range filters {
			low, high := g.Prefix.Bits(), max(g.LE, g.Prefix.Bits())
			if !g.Prefix.Contains(f.Prefix.Addr()) || g.Prefix.Bits() > f.Prefix.Bits() || high < f.Prefix.Bits() {
				continue
			}
			p := &gobgp.Prefix{IpPrefix: f.Prefix.String(), MaskLengthMin: uint32(max(low, f.Prefix.Bits())), MaskLengthMax: uint32(high)}
			if text := p.String(); !seen[text] {
				seen[text] = true
				out = append(out, p)
			}
		}
	}
	return out
}

// matches reports whether one of the filters matches p.
func matches(filters []api.PrefixFilter, p netip.Prefix) bool {
	return slices.ContainsFunc(filters, func(f api.PrefixFilter) bool {
		return f.Prefix.Contains(p.Addr()) && p.Bits() >= f.Prefix.Bits() && p.Bits() <= max(f.LE, f.Prefix.Bits())
	})
}

// acceptable returns the routes that a client may originate.
func acceptable(a api.BGPAccept) []api.PrefixFilter {
	list := exactly(a.Prefixes)
	for _, p := range a.Within {
		list = append(list, api.PrefixFilter{Prefix: p, LE: p.Addr().BitLen()})
	}
	return list
}

func exactly(prefixes []netip.Prefix) []api.PrefixFilter {
	var out []api.PrefixFilter
	for _, p := range prefixes {
		out = append(out, api.PrefixFilter{Prefix: p})
	}
	return out
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

func matchAny(set string) *gobgp.MatchSet {
	return &gobgp.MatchSet{Type: gobgp.MatchSet_ANY, Name: set}
}

func accept(a *gobgp.Actions) *gobgp.Actions {
	if a == nil {
		a = &gobgp.Actions{}
	}
	return &gobgp.Actions{RouteAction: gobgp.RouteAction_ACCEPT, LargeCommunity: a.LargeCommunity, Community: a.Community, Nexthop: a.Nexthop}
}

func reject() *gobgp.Actions { return &gobgp.Actions{RouteAction: gobgp.RouteAction_REJECT} }
