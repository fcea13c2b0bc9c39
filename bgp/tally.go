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

// tally counts what each neighbour is told. To ask GoBGP for it has the policy
// run over every route for every neighbour; this follows the same rules over
// the routes as they were read.
type tally struct {
	told  map[netip.Addr]int
	hears map[netip.Addr]hears
	due   bool          // routes have changed since they were counted
	last  time.Time     // when they were
	took  time.Duration // to read and count them
}

// hears is what a neighbour takes, as it said when its session began.
type hears struct {
	since          time.Time
	families, many map[bool]bool // by IPv4 or not: whether at all, and all paths
}

func newTally() *tally {
	return &tally{told: map[netip.Addr]int{}, hears: map[netip.Addr]hears{}}
}

// share is which part of the time counting may take.
const share = 100

// overdue reports whether routes that changed should be counted now.
func (t *tally) overdue(now time.Time) bool {
	return t.due && now.Sub(t.last) > share*t.took
}

// hear notes what a neighbour takes, once for a session.
func (t *tally) hear(p api.BGPPart, n api.BGPNeighbor, capabilities []*anypb.Any, since time.Time) {
	if known, ok := t.hears[n.Address]; ok && known.since.Equal(since) {
		return
	}
	h := hears{since: since, families: map[bool]bool{}, many: map[bool]bool{}}
	for _, c := range capabilities {
		m, err := c.UnmarshalNew()
		if err != nil {
			continue // of a kind that does not matter
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
		h.families[true] = true // RFC 4271 knows of IPv4 alone
	}
	t.hears[n.Address] = h
}

// count counts anew; the routes of each prefix are best first.
func (t *tally) count(p api.BGPPart, neighbors []api.BGPNeighbor, table map[netip.Prefix][]Route) {
	began := time.Now()
	own := map[string][]netip.Addr{}
	for _, a := range p.Accept {
		own[a.Client] = a.NextHops
	}
	t.told = map[netip.Addr]int{}
	for _, n := range neighbors {
		h := t.hears[n.Address]
		for prefix, list := range table {
			v4 := prefix.Addr().Is4()
			if !h.families[v4] {
				continue
			}
			if !h.many[v4] {
				list = list[:1]
			}
			for _, r := range list {
				if isTold(p, n, own[n.Name], r) {
					t.told[n.Address]++
				}
			}
		}
	}
	t.last = time.Now()
	t.took = 2 * t.last.Sub(began) // reading them takes about as long again
}

// isTold follows compileExport, and what GoBGP never reflects: to whom it is from.
func isTold(p api.BGPPart, n api.BGPNeighbor, own []netip.Addr, r Route) bool {
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

// residentBytes is what this process has in memory; 0 when the kernel does not
// say.
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
