// Package fib puts routes that were learned elsewhere into the kernel.
//
// What is ours is told by the protocol number and the metric, in one table;
// whatever else is there is never changed or removed. A next hop is resolved
// through the kernel's other routes, never through ours, and never through a
// default route: with the link to the fabric down, tenants' packets must not
// leave by the management network. Nothing is removed when the FIB is closed:
// the kernel keeps forwarding while the speaker restarts.
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

// Protocol marks the routes (rtnetlink(7), rtm_protocol).
const Protocol = api.BGPRouteProtocol

// Route is a route as it was learned. Without next hops, packets that no
// longer route covers are thrown away.
type Route struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}

// Options make a FIB.
type Options struct {
	Table  int // 254 is main
	Metric int
	// OnLink has the kernel take gateways for neighbours on their link, although
	// no address of the link says so.
	OnLink bool
	Log    *slog.Logger
}

// FIB is one table of the network namespace of the thread that opened it. It
// is for one goroutine.
type FIB struct {
	options Options
	handle  *netlink.Handle
	batch   *batch
	have    map[key]string // hops, by what is ours in the kernel
	read    bool           // have has been read from the kernel
	around  surroundings   // the kernel's other routes
	repairs int64
}

// key is what makes a route of ours one.
type key struct {
	prefix netip.Prefix
	metric int
}

// State tells how the kernel stands.
type State struct {
	Installed  int           `json:"installed"`
	Held       int           `json:"held,omitzero" doc:"Kept although nobody announces them any more."`
	Repairs    int64         `json:"repairs" doc:"Changes made although nothing else had been learned."`
	Unresolved []Unresolved  `json:"unresolved,omitempty" doc:"At most 100."`
	Unsettled  int           `json:"unsettled,omitzero" doc:"Routes with a next hop that is unresolved, and routes refused."`
	Took       time.Duration `json:"-"`
}

// Unresolved is a route that is not in the kernel, or not with all its next hops.
type Unresolved struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"nextHop,omitzero"`
	Reason  string       `json:"reason"`
}

// maxUnresolved bounds what is told.
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

// Close leaves the kernel as it is.
func (f *FIB) Close() {
	f.batch.close()
	f.handle.Close()
}

// Refresh reads from the kernel what is there: ours, and what next hops
// resolve through. What had changed of ours counts as repaired by the Sync
// that follows.
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

// list lists the main table and ours.
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

// Sync makes the table hold want. With keep, routes of ours that want does not
// name stay. The State tells of what could not be done; an error is one of the
// kernel's interface as a whole.
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
	// What goes makes room first: a route of another metric is no obstacle.
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

// lost has the kernel read before anything else is changed: how far the
// changes have come is not known.
func (f *FIB) lost(err error) (State, error) {
	f.read = false
	return State{}, err
}

// Known counts the routes of ours that the kernel had when it was last read.
func (f *FIB) Known() int { return len(f.have) }

func (s *State) complain(prefix netip.Prefix, hop netip.Addr, format string, args ...any) {
	s.Unsettled++
	if len(s.Unresolved) < maxUnresolved {
		s.Unresolved = append(s.Unresolved, Unresolved{prefix, hop, fmt.Sprintf(format, args...)})
	}
}

// removeOthers removes what is ours and not wanted.
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

// put installs what is wanted and not so in the kernel.
func (f *FIB) put(wanted map[netip.Prefix]hops, state *State) error {
	var keys []key
	var requests []*nl.NetlinkRequest
	for prefix, h := range wanted {
		k := key{prefix, f.options.Metric}
		have, ours := f.have[k]
		if ours && have == h.String() {
			continue
		}
		flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL // never takes another's place
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

// toPrefix is the destination of a route; none is the default.
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
