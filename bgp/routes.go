package bgp

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp/fib"
	"github.com/rackweft/rackweft/bgp/sources"
)

// resync reads and compares all routes.
func (s *speaker) resync(ctx context.Context) {
	if s.server == nil {
		return
	}
	s.readRoutes(ctx, nil)
	s.resyncKernel()
	s.syncKernel(ctx)
}

func (s *speaker) resyncKernel() {
	if s.fib == nil {
		return
	}
	if err := s.fib.Refresh(); err != nil {
		s.options.Log.Warn("bgp: cannot read the kernel's routes", "error", err)
		return
	}
	s.syncKernel(context.Background())
}

// readRoutes reads the learned routes of the prefixes, or of all prefixes when
// none is given.
func (s *speaker) readRoutes(ctx context.Context, prefixes []netip.Prefix) {
	table, err := s.server.list(ctx, gobgp.TableType_GLOBAL, "", prefixes)
	if err != nil {
		s.options.Log.Warn("bgp: cannot read routes", "error", err)
		return
	}
	if prefixes == nil {
		s.learned, s.guests = map[netip.Prefix][]netip.Addr{}, map[netip.Prefix][]netip.Addr{}
		s.counts = map[string]int{}
		for _, list := range table {
			for _, r := range list {
				s.counts[r.Neighbor]++
			}
		}
		s.tally.count(s.server.part, slices.Collect(maps.Values(s.server.sessions)), table)
	}
	s.tally.due = prefixes != nil
	for _, p := range prefixes {
		delete(s.learned, p)
		delete(s.guests, p)
	}
	for prefix, list := range table {
		if hops := learned(list, s.isOwn); len(hops) > 0 && !s.onLo[prefix] {
			s.learned[prefix] = hops
		}
		if from := bestNeighbors(list); len(from) > 0 && s.server.part.Role == api.BGPNetwork {
			s.guests[prefix] = from
		}
	}
	s.aggregate(ctx)
}

func (s *speaker) isOwn(a netip.Addr) bool { return slices.Contains(s.server.part.NextHops, a) }

// aggregate announces the aggregates that contain a route of the Zone.
func (s *speaker) aggregate(ctx context.Context) {
	active := map[netip.Prefix]bool{}
	s.status.Aggregates = nil
	for _, x := range s.server.part.Aggregates {
		within := func(p netip.Prefix) bool { return p != x && p.Bits() >= x.Bits() && x.Contains(p.Addr()) }
		for p := range s.learned {
			active[x] = active[x] || within(p)
		}
		if active[x] = active[x] || slices.ContainsFunc(s.server.part.Originate, within) || s.servesWithin(x) || slices.ContainsFunc(slices.Collect(maps.Keys(s.server.guests)), within); active[x] {
			s.status.Aggregates = append(s.status.Aggregates, x)
		}
	}
	if err := s.server.aggregate(ctx, active); err != nil {
		s.options.Log.Warn("bgp: cannot update all aggregates", "error", err)
	}
}

// syncKernel installs the learned routes in the kernel.
func (s *speaker) syncKernel(context.Context) {
	if s.server == nil {
		return
	}
	want := make([]fib.Route, 0, len(s.learned)+len(s.status.Aggregates))
	for prefix, hops := range s.learned {
		want = append(want, fib.Route{Prefix: prefix, NextHops: hops})
	}
	for _, x := range thrownAway(s.server.part, s.status.Aggregates) {
		if _, also := s.learned[x]; !also {
			want = append(want, fib.Route{Prefix: x})
		}
	}
	keep := !s.status.Settled || s.holds(time.Now())
	s.letThrough(keep)
	state, err := s.fib.Sync(want, keep)
	if err != nil {
		s.options.Log.Warn("bgp: cannot update all routes of the kernel", "error", err)
		return
	}
	if state.Repairs > s.status.FIB.Repairs {
		s.options.Log.Warn("bgp: repaired routes of the kernel", "changes", state.Repairs-s.status.FIB.Repairs)
	}
	s.status.FIB, s.status.Learned = state, len(s.learned)
}

// thrownAway returns the aggregates for which the kernel drops packets that no
// longer route covers. An aggregate within which guests may announce leads into
// their Network's namespace, which drops them.
func thrownAway(p api.BGPPart, aggregates []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(aggregates), func(x netip.Prefix) bool {
		return slices.ContainsFunc(p.Inside, func(n api.BGPInside) bool { return n.Covers(x) })
	})
}

// letThrough updates the filters of guests' taps: they pass packets from the
// prefixes that are routed to the guest.
func (s *speaker) letThrough(keep bool) {
	if s.server.part.Role != api.BGPNetwork {
		return
	}
	taps := map[netip.Addr]string{}
	for _, n := range s.server.part.Neighbors {
		if n.Role == api.BGPGuest {
			taps[n.Address] = n.Tap
		}
	}
	want := map[string][]netip.Prefix{}
	for prefix, guests := range s.guests {
		for _, g := range guests {
			if tap, here := taps[g]; here {
				want[tap] = append(want[tap], prefix)
			}
		}
	}
	s.status.Filter = ""
	if err := sources.Sync(want, keep); err != nil {
		s.status.Filter = err.Error()
	}
	if err := s.handOver(want, keep); err != nil && s.status.Filter == "" {
		s.status.Filter = err.Error()
	}
}
