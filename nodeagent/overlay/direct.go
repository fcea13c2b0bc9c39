package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/internal/nft"
)

// A Network that is routed directly leaves its namespace by the veth pair of
// egress, without masquerading, and the host routes it to the peers that are on
// the underlay's own link: `<lease> via <VTEP>`, as flannel's DirectRouting
// does. Its CIDRs are then part of the zone, so no other Network of this host may
// have any of them, and they may not overlap with a subnet. Peers further away, IPv6
// leases and IPv6 underlays stay with VXLAN. Both ways are accepted from every peer:
// each host decides how it sends. If the underlay is encrypted, everything stays
// with VXLAN.

// settleDirect determines which Networks and peers are routed directly. It runs
// after joinNetworks: packets from another Network must stay in this one's VXLAN,
// because their source is wrong on the underlay.
func settleDirect(jobs []job, u underlay) {
	var taken []network
	for i := range jobs { // by VNI, see joinNetworks
		n := &jobs[i].network
		if !n.direct {
			continue
		}
		if fault := directFault(*n, taken, u); fault != "" {
			n.direct = false
			jobs[i].note(api.PartFailed, "all peers are reached by VXLAN: "+fault)
			continue
		}
		if len(n.passages) > 0 || !n.source.Is4() || u.encrypted {
			n.direct = false
			continue
		}
		taken = append(taken, *n)
		for k, p := range n.peers {
			n.peers[k].direct = p.vtep.Is4() && within4(p.lease, n.cidrs) && slices.ContainsFunc(u.connected, func(c netip.Prefix) bool { return c.Contains(p.vtep) })
		}
	}
}

func directFault(n network, taken []network, u underlay) string {
	if !within4(n.lease, n.cidrs) {
		return fmt.Sprintf("lease %s is not in any of the Network's CIDRs", n.lease)
	}
	for _, c := range slices.Concat(n.cidrs, n.announceable()) {
		for _, closed := range append(slices.Clone(u.closed), u.connected...) {
			if c.Overlaps(closed) {
				return fmt.Sprintf("its CIDR %s overlaps with the subnet %s", c, closed)
			}
		}
		for _, other := range taken {
			theirs := slices.Concat(other.cidrs, other.announceable())
			if i := slices.IndexFunc(theirs, c.Overlaps); i >= 0 {
				return fmt.Sprintf("its CIDR %s overlaps with %s of Network %s, which is routed directly, too", c, theirs[i], other.name)
			}
		}
	}
	return ""
}

func within4(p netip.Prefix, cidrs []netip.Prefix) bool {
	return p.Addr().Is4() && slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) })
}

func only4(list []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return !p.Addr().Is4() })
}

// leases returns this host's leases.
func (n network) leases() []netip.Prefix { return append([]netip.Prefix{n.lease}, n.moved...) }

// directHostRules accept a Network's packets to and from the underlay if source and
// destination are its own, and drop those of all others.
func directHostRules(networks []network, underlay string) []nft.Rule {
	var rules []nft.Rule
	networks = slices.DeleteFunc(slices.Clone(networks), func(n network) bool { return !n.direct })
	for _, n := range networks {
		end := egressName(n.vni)
		for _, source := range only4(n.cidrs) {
			for _, cidr := range only4(n.cidrs) {
				rules = append(rules, nft.Rule{nft.IIF(end), nft.OIF(underlay), nft.From(source), nft.To(cidr), nft.Accept()})
			}
			for _, lease := range n.leases() {
				rules = append(rules, nft.Rule{nft.IIF(underlay), nft.OIF(end), nft.From(source), nft.To(lease), nft.Accept()})
			}
		}
	}
	for _, n := range networks {
		for _, cidr := range only4(n.cidrs) {
			rules = append(rules, nft.Rule{nft.IIF(egressPrefix + "*"), nft.To(cidr), nft.Drop()})
		}
	}
	return rules
}

// directTenantRules accept packets between guests and the pair.
func directTenantRules(n network) []nft.Rule {
	bridge := bridgeName(n.vni)
	var rules []nft.Rule
	for _, source := range only4(n.cidrs) {
		for _, cidr := range only4(n.cidrs) {
			rules = append(rules, nft.Rule{nft.IIF(bridge), nft.OIF(egressInside), nft.From(source), nft.To(cidr), nft.Accept()},
				nft.Rule{nft.IIF(egressInside), nft.OIF(bridge), nft.From(source), nft.To(cidr), nft.Accept()})
		}
	}
	return rules
}

// routes sets the routes of direct and advertised Networks in the host's own table.
// It comes last: the pairs must exist.
func (h *hostSide) routes(host place, u underlay, networks []network) error {
	routed := anyRouted(networks)
	if !routed && h.noRoutes {
		return nil
	}
	complete, err := h.tenants.complete(networks)
	if err != nil {
		return err
	}
	want, err := wantHostRoutes(host, u, networks)
	if err != nil {
		return err
	}
	seen, err := kernel.List(func() ([]netlink.Route, error) {
		return host.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list the host's routes: %w", err)
	}
	var changes []change
	for _, r := range want {
		if slices.ContainsFunc(seen, func(s netlink.Route) bool { return sameRoute(s, r) && s.Type == r.Type }) {
			continue
		}
		changes = append(changes, change("set the host's route "+toPrefix(r.Dst).String()))
		if err := host.RouteReplace(&r); err != nil {
			return fmt.Errorf("set the host's route to %s: %w", toPrefix(r.Dst), err)
		}
	}
	for _, s := range seen {
		if !complete || slices.ContainsFunc(want, func(r netlink.Route) bool { return sameKey(s, r) }) {
			continue
		}
		changes = append(changes, change("remove the host's route "+toPrefix(s.Dst).String()))
		if err := host.RouteDel(&s); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the host's route to %s: %w", toPrefix(s.Dst), err)
		}
	}
	h.noRoutes = !routed && complete
	h.ledger.noteHost("routes", networks, u, changes, nil)
	return nil
}

// wantHostRoutes makes the rest of the CIDRs, which no lease covers, unreachable:
// otherwise packets there would leave by the host's default route.
func wantHostRoutes(host place, u underlay, networks []network) ([]netlink.Route, error) {
	var list []netlink.Route
	for _, n := range networks {
		if !n.routed() {
			continue
		}
		end, err := host.LinkByName(egressName(n.vni))
		if _, missing := err.(netlink.LinkNotFoundError); missing {
			continue // its own status says why
		}
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", egressName(n.vni), err)
		}
		_, inside := egressAddresses(n.vni)
		for _, lease := range n.leases() {
			list = append(list, netlink.Route{Dst: toAddress(lease).IPNet, Gw: inside.Addr().AsSlice(), LinkIndex: end.Attrs().Index, Protocol: Protocol, Type: unix.RTN_UNICAST})
		}
		for _, at := range n.announceable() {
			list = append(list, netlink.Route{Dst: toAddress(at).IPNet, Gw: inside.Addr().AsSlice(), LinkIndex: end.Attrs().Index, Protocol: Protocol, Type: unix.RTN_UNICAST, Priority: lastMetric})
		}
		for _, p := range n.peers {
			if p.direct {
				list = append(list, netlink.Route{Dst: toAddress(p.lease).IPNet, Gw: p.vtep.AsSlice(), LinkIndex: u.index, Protocol: Protocol, Type: unix.RTN_UNICAST})
			}
		}
		for _, cidr := range only4(n.cidrs) {
			list = append(list, netlink.Route{Dst: toAddress(cidr.Masked()).IPNet, Protocol: Protocol, Type: unix.RTN_UNREACHABLE, Priority: lastMetric})
		}
	}
	// Longer prefixes come first, so that nothing is unreachable meanwhile.
	slices.SortStableFunc(list, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	return list, nil
}

// lastMetric makes any other route to the same prefix preferred.
const lastMetric = 1 << 31
