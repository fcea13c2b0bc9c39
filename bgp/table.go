package bgp

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	gobgp "github.com/osrg/gobgp/v3/api"
)

// Route is one path to a prefix in the speaker's table.
type Route struct {
	Prefix           netip.Prefix `json:"prefix"`
	NextHop          netip.Addr   `json:"nextHop,omitzero"`
	Neighbor         string       `json:"neighbor,omitzero" doc:"Address of the neighbor that advertised it; empty for routes that this host originates."`
	Best             bool         `json:"best,omitzero" doc:"Used, alone or with others that are as good."`
	Stale            bool         `json:"stale,omitzero" doc:"Kept although its neighbor is restarting."`
	LocalPref        uint32       `json:"localPref,omitzero"`
	ASPath           []uint32     `json:"asPath,omitempty"`
	Communities      []string     `json:"communities,omitempty"`
	LargeCommunities []string     `json:"largeCommunities,omitempty"`

	origin   uint32
	med      uint32
	external bool
}

// local reports whether this host originates the route.
func (r Route) local() bool { return r.Neighbor == "" }

// asGood reports whether packets may use both paths (RFC 4271, section 9.1.2,
// up to the comparison of identifiers).
func (r Route) asGood(o Route) bool {
	return r.LocalPref == o.LocalPref && len(r.ASPath) == len(o.ASPath) && r.origin == o.origin && r.med == o.med &&
		r.external == o.external && r.local() == o.local()
}

// list returns routes by prefix, best first: of all prefixes when none is
// given.
func (s *bgpServer) list(ctx context.Context, table gobgp.TableType, neighbor string, prefixes []netip.Prefix) (map[netip.Prefix][]Route, error) {
	out := map[netip.Prefix][]Route{}
	for _, v4 := range []bool{true, false} {
		r := &gobgp.ListPathRequest{TableType: table, Name: neighbor, Family: toFamily(v4)}
		for _, p := range prefixes {
			if p.Addr().Is4() == v4 {
				r.Prefixes = append(r.Prefixes, &gobgp.TableLookupPrefix{Prefix: p.String()})
			}
		}
		if len(prefixes) > 0 && len(r.Prefixes) == 0 {
			continue
		}
		var fault error
		err := s.ListPath(ctx, r, func(d *gobgp.Destination) {
			prefix, err := netip.ParsePrefix(d.Prefix)
			if err != nil {
				fault = fmt.Errorf("a route's prefix: %w", err)
				return
			}
			for _, p := range d.Paths {
				out[prefix] = append(out[prefix], s.toRoute(prefix, p))
			}
		})
		if err = cmp.Or(err, fault); err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
	}
	return out, nil
}

func (s *bgpServer) toRoute(prefix netip.Prefix, p *gobgp.Path) Route {
	r := Route{Prefix: prefix, Stale: p.Stale, LocalPref: 100}
	if addr, err := netip.ParseAddr(p.NeighborIp); err == nil {
		r.Neighbor = addr.String()
		r.external = p.SourceAsn != s.part.ASN
	}
	for _, attr := range p.Pattrs {
		m, err := attr.UnmarshalNew()
		if err != nil {
			continue // of a kind that is not used
		}
		switch a := m.(type) {
		case *gobgp.OriginAttribute:
			r.origin = a.Origin
		case *gobgp.NextHopAttribute:
			r.NextHop, _ = netip.ParseAddr(a.NextHop)
		case *gobgp.MpReachNLRIAttribute:
			if len(a.NextHops) > 0 {
				r.NextHop, _ = netip.ParseAddr(a.NextHops[0])
			}
		case *gobgp.LocalPrefAttribute:
			r.LocalPref = a.LocalPref
		case *gobgp.MultiExitDiscAttribute:
			r.med = a.Med
		case *gobgp.AsPathAttribute:
			for _, segment := range a.Segments {
				r.ASPath = append(r.ASPath, segment.Numbers...)
			}
		case *gobgp.CommunitiesAttribute:
			for _, c := range a.Communities {
				r.Communities = append(r.Communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
			}
		case *gobgp.LargeCommunitiesAttribute:
			for _, c := range a.Communities {
				r.LargeCommunities = append(r.LargeCommunities, fmt.Sprintf("%d:%d:%d", c.GlobalAdmin, c.LocalData1, c.LocalData2))
			}
		}
	}
	r.NextHop = r.NextHop.Unmap()
	return r
}

// markBest marks the best paths of a prefix' routes, which are sorted best
// first.
func markBest(routes []Route) {
	for i := range routes {
		routes[i].Best = routes[i].asGood(routes[0])
	}
}

// learned returns the next hops of the best of a prefix' routes; none if this
// host originates the prefix or is itself the next hop.
func learned(routes []Route, own func(netip.Addr) bool) []netip.Addr {
	var hops []netip.Addr
	markBest(routes)
	for _, r := range routes {
		if r.local() {
			return nil
		}
		if r.Best && r.NextHop.IsValid() && !own(r.NextHop) {
			hops = append(hops, r.NextHop)
		}
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	return slices.Compact(hops)
}

// bestNeighbors returns the neighbours that advertised the best of a prefix'
// routes, which learned has marked.
func bestNeighbors(routes []Route) []netip.Addr {
	var list []netip.Addr
	for _, r := range routes {
		if from, err := netip.ParseAddr(r.Neighbor); err == nil && r.Best {
			list = append(list, from)
		}
	}
	return list
}

// digest hashes a neighbour's routes: equal for equal prefixes and next hops.
func digest(routes map[netip.Prefix][]Route) (count int, sum string) {
	var lines []string
	for prefix, list := range routes {
		for _, r := range list {
			lines = append(lines, prefix.String()+" "+r.NextHop.String()+"\n")
		}
	}
	slices.Sort(lines)
	h := sha256.New()
	for _, l := range lines {
		_, _ = h.Write([]byte(l)) // never fails
	}
	return len(lines), hex.EncodeToString(h.Sum(nil))
}
