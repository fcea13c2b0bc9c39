package bgp

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rackweft/rackweft/api"
)

// tally counts the routes advertised to each neighbour. GoBGP would evaluate
// the policy for every route and neighbour to answer that; this applies the
// same rules to the routes already read.
type tally struct {
	advertised map[netip.Addr]int
	negotiated map[netip.Addr]negotiated
	due        bool          // routes have changed since the last count
	last       time.Time     // when they were counted
	took       time.Duration // to read and count them
}

// negotiated holds the families that a neighbour negotiated.
type negotiated struct {
	since          time.Time
	families, many map[bool]bool // by IPv4 or not: whether at all, and all paths
}

func newTally() *tally {
	return &tally{advertised: map[netip.Addr]int{}, negotiated: map[netip.Addr]negotiated{}}
}

// share limits the share of time spent on counting.
const share = 100

// overdue reports whether a count is due.
func (t *tally) overdue(now time.Time) bool {
	return t.due && now.Sub(t.last) > share*t.took
}

// negotiate records a neighbour's capabilities, once per session.
func (t *tally) negotiate(p api.BGPPart, n api.BGPNeighbor, capabilities []*anypb.Any, since time.Time) {
	if known, ok := t.negotiated[n.Address]; ok && known.since.Equal(since) {
		return
	}
	h := negotiated{since: since, families: map[bool]bool{}, many: map[bool]bool{}}
	for _, c := range capabilities {
		m, err := c.UnmarshalNew()
		if err != nil {
			continue // of another kind
		}
		switch c := m.(type) {
		case *gobgp.MultiProtocolCapability:
			if isUnicast(c.Family) {
				h.families[c.Family.GetAfi() == gobgp.Family_AFI_IP] = true
			}
		case *gobgp.AddPathCapability:
			for _, x := range c.Tuples {
				if !isUnicast(x.Family) {
					continue
				}
				if x.Mode == gobgp.AddPathCapabilityTuple_RECEIVE || x.Mode == gobgp.AddPathCapabilityTuple_BOTH {
					h.many[x.Family.GetAfi() == gobgp.Family_AFI_IP] = p.AllPaths && n.ASN == p.ASN
				}
			}
		}
	}
	if len(h.families) == 0 {
		h.families[true] = true // IPv4 is the default of RFC 4271
	}
	t.negotiated[n.Address] = h
}

// count counts again; the routes of each prefix are sorted best first.
func (t *tally) count(p api.BGPPart, neighbors []api.BGPNeighbor, table map[netip.Prefix][]Route) {
	began := time.Now()
	own := map[string][]netip.Addr{}
	for _, a := range p.Accept {
		own[a.Client] = a.NextHops
	}
	t.advertised = map[netip.Addr]int{}
	for _, n := range neighbors {
		h := t.negotiated[n.Address]
		for prefix, list := range table {
			v4 := prefix.Addr().Is4()
			if !h.families[v4] {
				continue
			}
			if !h.many[v4] {
				list = list[:1]
			}
			for _, r := range list {
				if isAdvertised(p, n, own[n.Name], r) {
					t.advertised[n.Address]++
				}
			}
		}
	}
	t.last = time.Now()
	t.took = 2 * t.last.Sub(began) // reading them takes about as long again
}

// isAdvertised follows compileExport and GoBGP's rule that a route is not reflected
// to its sender.
func isAdvertised(p api.BGPPart, n api.BGPNeighbor, own []netip.Addr, r Route) bool {
	marked := slices.Contains(r.LargeCommunities, p.Community)
	switch {
	case r.Neighbor == n.Address.String() || slices.Contains(own, r.NextHop):
		return false
	case n.Role == api.BGPUplink:
		aggregate := r.local() && slices.Contains(p.Aggregates, r.Prefix)
		return (aggregate || marked && len(r.ASPath) == 0) && matches(n.Export, r.Prefix)
	case n.Role == api.BGPReflector && p.Role == api.BGPClient:
		return marked && r.local()
	case n.Role == api.BGPReflector && p.AllPaths:
		return marked && !slices.Contains(r.LargeCommunities, reflectedMark(p))
	}
	return marked
}

// residentBytes returns the resident memory of this process; 0 when the kernel
// does not report it.
func residentBytes() int64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
