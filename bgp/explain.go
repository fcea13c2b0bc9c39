package bgp

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// Question is a route that a neighbour might advertise.
type Question struct {
	From             string // name of the neighbour
	Prefix           netip.Prefix
	NextHop          netip.Addr // Default: the neighbour's own address
	LargeCommunities []string
	ASPath           []uint32
}

// Verdict is the policy's decision about the route.
type Verdict struct {
	Accepted bool   `json:"accepted"`
	Reason   string `json:"reason"`
}

// explain returns what compilePolicy's import policy does with a route, and by
// which rule.
func explain(p api.BGPPart, q Question) Verdict {
	deny := func(format string, args ...any) Verdict { return Verdict{Reason: fmt.Sprintf(format, args...)} }
	i := slices.IndexFunc(p.Neighbors, func(n api.BGPNeighbor) bool { return n.Name == q.From })
	if i < 0 {
		return deny("this speaker has no neighbor %q", q.From)
	}
	n := p.Neighbors[i]
	hop := q.NextHop
	if !hop.IsValid() {
		hop = n.Address
	}
	if matches(martians(), q.Prefix) {
		return deny("%s is a martian", q.Prefix)
	}
	if slices.Contains(q.ASPath, p.ASN) {
		return deny("its path contains the Zone's own ASN %d: a loop", p.ASN)
	}
	switch n.Role {
	case api.BGPClient:
		return explainClient(p, n, q, hop)
	case api.BGPReflector:
		if !slices.Contains(q.LargeCommunities, p.Community) {
			return deny("it lacks the Zone's community %s", p.Community)
		}
	case api.BGPUplink:
		for _, asn := range q.ASPath {
			if private(asn) && asn != n.ASN && !slices.Contains(n.PrivateASNs, asn) {
				return deny("its path contains the private ASN %d, which is not in privateASNs of %s", asn, n.Name)
			}
		}
	}
	if !matches(n.Import, q.Prefix) {
		return deny("%s matches nothing of what is imported from %s: %v", q.Prefix, n.Name, n.Import)
	}
	if n.Role == api.BGPGuest || n.Role == api.BGPHost {
		if !contains(n.NextHops, hop) {
			return deny("the next hop %s is not one of %s: %v", hop, n.Name, n.NextHops)
		}
		return Verdict{true, fmt.Sprintf("%s is accepted from %s %s", q.Prefix, n.Role, n.Name)}
	}
	in := contains(p.ZoneNextHops, hop)
	if !in && (n.Role != api.BGPUplink || hop != n.Address) {
		return deny("its next hop %s is not one of the Zone's: %v", hop, p.ZoneNextHops)
	}
	return Verdict{true, fmt.Sprintf("%s is imported from %s", q.Prefix, n.Name)}
}

func explainClient(p api.BGPPart, n api.BGPNeighbor, q Question, hop netip.Addr) Verdict {
	i := slices.IndexFunc(p.Accept, func(a api.BGPAccept) bool { return a.Client == n.Name })
	switch {
	case i < 0:
		return Verdict{Reason: fmt.Sprintf("%s may originate nothing", n.Name)}
	case !p.Accept[i].Allows(q.Prefix):
		return Verdict{Reason: fmt.Sprintf("%s may not originate %s, only %v", n.Name, q.Prefix, slices.Concat(p.Accept[i].Prefixes, p.Accept[i].Within))}
	case !slices.Contains(p.Accept[i].NextHops, hop):
		return Verdict{Reason: fmt.Sprintf("the next hop %s is not one of %s: %v", hop, n.Name, p.Accept[i].NextHops)}
	}
	return Verdict{true, fmt.Sprintf("%s may originate %s", n.Name, q.Prefix)}
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// private reports whether an ASN is private (RFC 6996).
func private(asn uint32) bool {
	return asn >= 64512 && asn <= 65534 || asn >= 4200000000 && asn <= 4294967294
}
