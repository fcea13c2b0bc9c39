package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/internal/kernel"
)

// Egress is a veth pair from a Network's namespace to the host's, for masqueraded
// and for routed packets. Packets are masqueraded twice: when they leave the
// namespace, to its own link address, which distinguishes Networks with the same
// CIDR, and when they leave the host.
const (
	egressPrefix = "weft"    // of the host's ends
	egressInside = "egress0" // the tenant's end
)

// egressPool holds the link addresses, two for each of the 2^24 VNIs, so that they
// need no allocation. They are in the reserved class E, which Linux routes, and
// never leave the host.
func egressPool() netip.Prefix { return netip.MustParsePrefix("240.0.0.0/7") }

func egressName(vni uint32) string { return fmt.Sprintf("%s%d", egressPrefix, vni) }

// egressAddresses returns the addresses of the host's end and of the tenant's.
func egressAddresses(vni uint32) (host, tenant netip.Prefix) {
	base := egressPool().Addr().As4()
	base[0] |= byte(vni >> 23)
	base[1], base[2], base[3] = byte(vni>>15), byte(vni>>7), byte(vni<<1)
	host = netip.PrefixFrom(netip.AddrFrom4(base), 31)
	return host, netip.PrefixFrom(host.Addr().Next(), 31)
}

// egressLinks returns the pair's two ends; creating the tenant's creates both.
func egressLinks(n network) (host, tenant link) {
	hostAddr, tenantAddr := egressAddresses(n.vni)
	host = link{name: egressName(n.vni), kind: "veth", alias: mark(n.uid), mtu: n.mtu, up: true, addresses: []netip.Prefix{hostAddr}}
	tenant = link{name: egressInside, kind: "veth", alias: mark(n.uid), mtu: n.mtu, up: true, addresses: []netip.Prefix{tenantAddr}}
	return host, tenant
}

// egress creates the pair, or removes it when it is no longer wanted.
func (w *work) egress() error {
	host, tenant := egressLinks(w.network)
	inside, err := listLinks(w.tenant.Handle)
	if err != nil {
		return err
	}
	outside, err := listLink(w.host.Handle, host.name)
	if err != nil {
		return err
	}
	_, outer := outside[host.name]
	end, inner := inside[tenant.name]
	if !w.network.leaves() {
		if inner && end.alias == mark(w.network.uid) {
			did(w, []change{"remove egress"})
			return w.tenant.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: end.index}})
		}
		return nil
	}
	if outer != inner {
		// One end without the other: another program moved or renamed that.
		return fmt.Errorf("egress: only one of %s and %s in %s exists; remove it", host.name, tenant.name, w.network.name)
	}
	if !inner {
		if err := w.createEgress(host, tenant); err != nil {
			return err
		}
		if inside, err = listLinks(w.tenant.Handle); err != nil {
			return err
		}
		if outside, err = listLink(w.host.Handle, host.name); err != nil {
			return err
		}
	}
	before := w.changes
	if err := w.mend(w.host, []link{host}, outside); err != nil {
		return err
	}
	if err := w.mend(w.tenant, []link{tenant}, inside); err != nil {
		return err
	}
	if w.changes > before {
		if err := errors.Join(w.host.carry(host.name), w.tenant.carry(tenant.name)); err != nil {
			return err
		}
	}
	if err := w.setSysctls(w.host, egressSysctls(host.name)); err != nil {
		return err
	}
	return w.setRoutes(inside[tenant.name].index, tenant.name, egressRoutes(w.network, inside[tenant.name].index))
}

func (w *work) createEgress(host, tenant link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = host.name, host.mtu
	did(w, []change{"add egress"})
	err := w.host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: tenant.name, PeerMTU: uint32(tenant.mtu), PeerNamespace: netlink.NsFd(w.tenant.ns)})
	if err != nil {
		return fmt.Errorf("add egress %s: %w", host.name, err)
	}
	return nil
}

// mend corrects existing interfaces.
func (w *work) mend(at place, want []link, seen map[string]link) error {
	ops, err := diffLinks(want, seen)
	if err != nil {
		return err
	}
	did(w, ops)
	return applyLinks(w.host.Handle, at.Handle, at.ns, ops)
}

// egressRoutes returns the namespace's routes out.
func egressRoutes(n network, index int) []netlink.Route {
	host, _ := egressAddresses(n.vni)
	by := func(dst netip.Prefix) netlink.Route {
		return netlink.Route{LinkIndex: index, Dst: toAddress(dst).IPNet, Gw: host.Addr().AsSlice(), Protocol: Protocol}
	}
	var list []netlink.Route
	if n.masquerade || n.advertise {
		list = append(list, by(netip.PrefixFrom(netip.IPv4Unspecified(), 0)))
	}
	for _, p := range n.peers {
		if p.direct {
			list = append(list, by(p.lease))
		}
	}
	return list
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// listLink is listLinks of one name, on a host that may have thousands.
func listLink(h *netlink.Handle, name string) (map[string]link, error) {
	l, err := h.LinkByName(name)
	if _, missing := err.(netlink.LinkNotFoundError); missing {
		return map[string]link{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	s := seenLink(l)
	addrs, err := kernel.List(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		bits, _ := a.Mask.Size()
		s.addresses = append(s.addresses, netip.PrefixFrom(toAddr(a.IP), bits))
	}
	slices.SortFunc(s.addresses, compareAddress)
	return map[string]link{name: s}, nil
}

// egressSysctls returns the sysctls of the host's ends, and of the uplinks, where
// the answers come in.
func egressSysctls(name string) []sysctl {
	return []sysctl{
		{"net/ipv4/conf/" + name + "/forwarding", "1"},
		{"net/ipv4/conf/" + name + "/send_redirects", "0"},
		{"net/ipv4/conf/" + name + "/accept_redirects", "0"},
		{"net/ipv6/conf/" + name + "/disable_ipv6", "1"},
	}
}

// uplinks returns the interfaces of the host's default routes and of its underlay,
// sorted.
func uplinks(host place, u underlay) ([]string, error) {
	names := []string{u.name}
	routes, err := kernel.List(func() ([]netlink.Route, error) { return host.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	for _, r := range routes {
		if !isDefault(r) {
			continue
		}
		for _, index := range append(hops(r), r.LinkIndex) {
			if l, err := host.LinkByIndex(index); err == nil {
				names = append(names, l.Attrs().Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func hops(r netlink.Route) []int {
	var list []int
	for _, hop := range r.MultiPath {
		list = append(list, hop.LinkIndex)
	}
	return list
}

// connected returns the host's own subnets, which no tenant may reach, whether bootd
// knows them or not.
func connected(host place) ([]netip.Prefix, error) {
	addrs, err := kernel.List(func() ([]netlink.Addr, error) { return host.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var list []netip.Prefix
	for _, a := range addrs {
		bits, _ := a.Mask.Size()
		if p := netip.PrefixFrom(toAddr(a.IP), bits).Masked(); !p.Addr().IsLoopback() && !egressPool().Contains(p.Addr()) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, compareAddress)
	return slices.Compact(list), nil
}

// outermost drops prefixes that others contain, and sorts the rest.
func outermost(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i := range list {
		list[i] = list[i].Masked()
	}
	slices.SortFunc(list, compareAddress)
	for _, p := range list {
		if !p.IsValid() || slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) }) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// isRouter reports whether the host forwards anyway: then rackweft must not prevent
// it.
func isRouter(host place) (router bool, err error) {
	err = within(host.ns, func() error {
		value, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/forwarding")
		router = strings.TrimSpace(string(value)) == "1"
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read whether the host forwards: %w", err)
	}
	return router, nil
}
