package fib

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hop is a gateway on a link.
type hop struct {
	gateway netip.Addr
	link    int
}

// hops are sorted. An empty list drops packets.
type hops []hop

// String is the form for comparison.
func (h hops) String() string {
	if len(h) == 0 {
		return "blackhole"
	}
	var b strings.Builder
	for _, one := range h {
		fmt.Fprintf(&b, "%s%%%d ", one.gateway, one.link)
	}
	return b.String()
}

// seenHops returns the String of the hops of a kernel route.
func seenHops(r netlink.Route) string {
	if r.Type == unix.RTN_BLACKHOLE {
		return hops{}.String()
	}
	var h hops
	add := func(gateway net.IP, link int) {
		addr, _ := netip.AddrFromSlice(gateway)
		h = append(h, hop{addr.Unmap(), link})
	}
	if len(r.MultiPath) == 0 {
		add(r.Gw, r.LinkIndex)
	}
	for _, one := range r.MultiPath {
		add(one.Gw, one.LinkIndex)
	}
	return h.sorted().String()
}

func (h hops) sorted() hops {
	slices.SortFunc(h, func(a, b hop) int { return cmp.Or(a.gateway.Compare(b.gateway), cmp.Compare(a.link, b.link)) })
	return slices.Compact(h)
}

// surroundings are the kernel's other routes, longest prefix and preferred ones
// first.
type surroundings struct {
	routes    []neighbour
	connected []netip.Prefix // of the interfaces' addresses
}

// neighbour is one of the other routes.
type neighbour struct {
	prefix netip.Prefix
	metric int
	typ    int
	hops   []hop // without a gateway: on the link itself
}

func (s *surroundings) add(prefix netip.Prefix, r netlink.Route) {
	if prefix.Bits() == 0 || prefix.Addr().IsLinkLocalUnicast() || prefix.Addr().IsMulticast() {
		return
	}
	n := neighbour{prefix: prefix, metric: r.Priority, typ: r.Type}
	add := func(gateway net.IP, link, flags int) {
		if link == 0 || flags&(unix.RTNH_F_LINKDOWN|unix.RTNH_F_DEAD) != 0 {
			return
		}
		addr, _ := netip.AddrFromSlice(gateway)
		n.hops = append(n.hops, hop{addr.Unmap(), link})
	}
	if len(r.MultiPath) == 0 {
		add(r.Gw, r.LinkIndex, r.Flags)
	}
	for _, one := range r.MultiPath {
		add(one.Gw, one.LinkIndex, one.Flags)
	}
	s.routes = append(s.routes, n)
	if r.Protocol == unix.RTPROT_KERNEL && r.Type == unix.RTN_UNICAST {
		s.connected = append(s.connected, prefix)
	}
}

func (s *surroundings) sort() {
	slices.SortStableFunc(s.routes, func(a, b neighbour) int {
		return cmp.Or(cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), cmp.Compare(a.metric, b.metric))
	})
}

// shadowed finds the connected prefix whose packets a route would divert.
func (s *surroundings) shadowed(p netip.Prefix) (netip.Prefix, bool) {
	for _, c := range s.connected {
		if c.Bits() <= p.Bits() && c.Contains(p.Addr()) {
			return c, true
		}
	}
	return netip.Prefix{}, false
}

// lookup returns the kernel's hops to addr, or why there are none.
func (s *surroundings) lookup(addr netip.Addr) ([]hop, string) {
	for _, n := range s.routes {
		if !n.prefix.Contains(addr) {
			continue
		}
		switch {
		case n.typ != unix.RTN_UNICAST:
			return nil, fmt.Sprintf("%s is dropped here", n.prefix)
		case len(n.hops) == 0:
			return nil, fmt.Sprintf("the link of %s is down", n.prefix)
		}
		found := slices.Clone(n.hops)
		for i := range found {
			if !found[i].gateway.IsValid() {
				found[i].gateway = addr
			}
		}
		return found, ""
	}
	return nil, "no route leads there (a default route does not count)"
}

// resolve returns the hops of a route, false when there are none.
func (f *FIB) resolve(r Route, state *State) (hops, bool) {
	if c, ok := f.around.shadowed(r.Prefix); ok {
		state.complain(r.Prefix, netip.Addr{}, "it lies within %s, which this host is connected to", c)
		return nil, false
	}
	var all hops
	for _, next := range r.NextHops {
		found, fault := f.around.lookup(next)
		if fault != "" {
			state.complain(r.Prefix, next, "%s", fault)
		}
		all = append(all, found...)
	}
	return all.sorted(), len(all) > 0 || len(r.NextHops) == 0
}
