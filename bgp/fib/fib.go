// Package fib installs learned routes in the kernel.
//
// Our routes are identified by protocol number and metric, in one table; other
// routes are never changed or removed. A next hop is resolved through the
// kernel's other routes, never through ours, and never through a default route:
// with the link to the fabric down, tenants' packets must not leave by the
// management network. Nothing is removed when the FIB is closed: the kernel
// keeps forwarding while the speaker restarts.
package fib

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
)

// Protocol identifies the routes (rtnetlink(7), rtm_protocol).
const Protocol = api.BGPRouteProtocol

// Route is a learned route. A route without next hops drops packets that no
// longer route covers.
type Route struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}

// Options make a FIB.
type Options struct {
	Table  int // 254 is main
	Metric int
	// OnLink makes the kernel accept a gateway as a neighbour on its link even
	// if no address of the link covers it.
	OnLink bool
	Log    *slog.Logger
}

// FIB is one table of the network namespace of the thread that opened it. It is
// not safe for concurrent use.
type FIB struct {
	options Options
	handle  *netlink.Handle
	batch   *batch
	have    map[key]string // hops, by key, of our routes in the kernel
	read    bool           // have was read from the kernel
	around  surroundings   // the kernel's other routes
	repairs int64
}

// key identifies a route of ours.
type key struct {
	prefix netip.Prefix
	metric int
}

// State is the state of the kernel's table.
type State struct {
	Installed  int           `json:"installed"`
	Held       int           `json:"held,omitzero" doc:"Kept although they are no longer announced."`
	Repairs    int64         `json:"repairs" doc:"Changes made although nothing else had been learned."`
	Unresolved []Unresolved  `json:"unresolved,omitempty" doc:"At most 100."`
	Unsettled  int           `json:"unsettled,omitzero" doc:"Routes with a next hop that is unresolved, and routes refused."`
	Took       time.Duration `json:"-"`
}

// Unresolved is a route that is not in the kernel, or lacks some of its next
// hops.
type Unresolved struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop,omitzero"`
	Reason  string       `json:"reason"`
}

// maxUnresolved bounds the list of them.
const maxUnresolved = 100

// Open opens the table.
func Open(o Options) (*FIB, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	b, err := openBatch()
	if err != nil {
		h.Close()
		return nil, err
	}
	return &FIB{options: o, handle: h, batch: b}, nil
}

// Close leaves the kernel's routes in place.
func (f *FIB) Close() {
	f.batch.close()
	f.handle.Close()
}

// Refresh reads our routes and those that next hops resolve through from the
// kernel. Changes of ours by others count as repaired in the next Sync.
func (f *FIB) Refresh() error {
	have := map[key]string{}
	var around surroundings
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := f.list(family)
		if err != nil {
			return err
		}
		for _, r := range routes {
			prefix := toPrefix(r)
			switch {
			case r.Protocol == Protocol && r.Table == f.options.Table:
				have[key{prefix, r.Priority}] = seenHops(r)
			case r.Protocol != Protocol && r.Table == unix.RT_TABLE_MAIN:
				around.add(prefix, r)
			}
		}
	}
	around.sort()
	if f.read {
		f.repairs += int64(differences(f.have, have))
	}
	f.have, f.around, f.read = have, around, true
	return nil
}

// list returns the routes of the main table and of ours.
func (f *FIB) list(family int) ([]netlink.Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := kernel.List(func() ([]netlink.Route, error) {
		return f.handle.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes: %w", err)
	}
	return routes, nil
}

func differences(a, b map[key]string) int {
	n := 0
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			n++
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			n++
		}
	}
	return n
}

// Sync makes the table contain want. With keep, our other routes stay. The
// State reports what could not be done; an error means that the kernel's
// interface failed.
func (f *FIB) Sync(want []Route, keep bool) (State, error) {
	began := time.Now()
	if !f.read {
		if err := f.Refresh(); err != nil {
			return State{}, err
		}
	}
	var state State
	wanted := make(map[netip.Prefix]hops, len(want))
	for _, r := range want {
		if h, ok := f.resolve(r, &state); ok {
			wanted[r.Prefix] = h
		}
	}
	// Removals go first, to free the place: the new route may have another
	// metric.
	if !keep {
		if err := f.removeOthers(wanted, &state); err != nil {
			return f.lost(err)
		}
	}
	if err := f.put(wanted, &state); err != nil {
		return f.lost(err)
	}
	if keep {
		for k := range f.have {
			if _, ok := wanted[k.prefix]; !ok || k.metric != f.options.Metric {
				state.Held++
			}
		}
	}
	state.Installed, state.Repairs, state.Took = len(f.have), f.repairs, time.Since(began)
	slices.SortFunc(state.Unresolved, func(a, b Unresolved) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), a.NextHop.Compare(b.NextHop))
	})
	return state, nil
}

// lost forces a Refresh before further changes, because it is unknown which
// changes were made.
func (f *FIB) lost(err error) (State, error) {
	f.read = false
	return State{}, err
}

// Known counts our routes in the kernel at the last read.
func (f *FIB) Known() int { return len(f.have) }

func (s *State) complain(prefix netip.Prefix, hop netip.Addr, format string, args ...any) {
	s.Unsettled++
	if len(s.Unresolved) < maxUnresolved {
		s.Unresolved = append(s.Unresolved, Unresolved{prefix, hop, fmt.Sprintf(format, args...)})
	}
}

// removeOthers removes our routes that are not wanted.
func (f *FIB) removeOthers(wanted map[netip.Prefix]hops, state *State) error {
	var keys []key
	var requests []*nl.NetlinkRequest
	for k := range f.have {
		if _, ok := wanted[k.prefix]; !ok || k.metric != f.options.Metric {
			keys, requests = append(keys, k), append(requests, f.request(unix.RTM_DELROUTE, 0, k, nil))
		}
	}
	err := f.batch.do(requests, func(i int, err error) {
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
			state.complain(keys[i].prefix, netip.Addr{}, "the kernel does not remove it: %s", err)
			return
		}
		delete(f.have, keys[i])
	})
	if err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	return nil
}

// put installs the wanted routes that the kernel lacks or has differently.
func (f *FIB) put(wanted map[netip.Prefix]hops, state *State) error {
	var keys []key
	var requests []*nl.NetlinkRequest
	for prefix, h := range wanted {
		k := key{prefix, f.options.Metric}
		have, ours := f.have[k]
		if ours && have == h.String() {
			continue
		}
		flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL // never replaces another route
		if ours {
			flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
		}
		keys, requests = append(keys, k), append(requests, f.request(unix.RTM_NEWROUTE, flags, k, h))
	}
	err := f.batch.do(requests, func(i int, err error) {
		switch {
		case errors.Is(err, unix.EEXIST):
			state.complain(keys[i].prefix, netip.Addr{}, "a route that is not rackweft's has its metric %d: remove that", f.options.Metric)
		case err != nil:
			state.complain(keys[i].prefix, netip.Addr{}, "the kernel refuses it: %s", err)
		default:
			f.have[keys[i]] = wanted[keys[i].prefix].String()
		}
	})
	if err != nil {
		return fmt.Errorf("install routes: %w", err)
	}
	return nil
}

// toPrefix returns the destination of a route; none means the default.
func toPrefix(r netlink.Route) netip.Prefix {
	if r.Dst == nil || len(r.Dst.Mask) == 0 || r.Dst.IP.IsUnspecified() && isZero(r.Dst.Mask) {
		if r.Family == netlink.FAMILY_V6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	addr, _ := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(addr, bits)
}

func isZero(m net.IPMask) bool {
	bits, _ := m.Size()
	return bits == 0
}
