package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/internal/nft"
)

// passage is one Network's end of a veth pair between the namespaces of two Networks
// on this host. Every host has its own pair, so the two directions of a connection
// may take different ones: a packet crosses to the other Network on its sender's
// host, and continues in that Network.
//
//	guest of A on host 1 → A on host 1 ═ B on host 1 → VXLAN of B → B on host 2 → guest
//	                       A on host 1 ← VXLAN of A ← A on host 2 ═ B on host 2 ← guest
//
// So A on host 2 sees only the answers of a connection, and accepts them by their
// addresses alone. B cannot open connections to A because the host of B's guest
// prevents it: the namespace there sees both directions, and accepts only answers.
type passage struct {
	name, uid string // of the other Network
	vni       uint32
	cidrs     []netip.Prefix
	mtu       int  // 0: unknown, use this Network's
	in        bool // its guests may open connections here
	out       bool // guests here may open connections there
}

// Both ends of every passage have the same MAC and neighbour address: each has only
// one neighbour, with a static entry.
const passagePrefix = "allow"

func passageMAC() mac { return mac{0x02, 0x00, 0xa9, 0xfe, 0x01, 0x02} }

func passageGateways() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("169.254.1.2"), netip.MustParseAddr("fe80::a9fe:102")}
}

func passageName(vni uint32) string { return fmt.Sprintf("%s%d", passagePrefix, vni) }

// passageVNI returns the other Network's VNI from the name of an end, or 0.
func passageVNI(name string) uint32 {
	digits, ok := strings.CutPrefix(name, passagePrefix)
	vni, err := strconv.ParseUint(digits, 10, 24)
	if !ok || err != nil {
		return 0
	}
	return uint32(vni)
}

// speaks6 reports whether a passage carries IPv6, too.
func (n network) speaks6(p passage) bool {
	return n.lease6.IsValid() && passageLink(n, p).mtu >= minMTU6
}

func passageLink(n network, p passage) link {
	l := link{name: passageName(p.vni), kind: "veth", alias: mark(n.uid), mtu: n.mtu, mac: passageMAC(), up: true}
	if p.mtu != 0 {
		l.mtu = min(l.mtu, p.mtu)
	}
	return l
}

// joinNetworks gives each Network its passages. A passage that cannot be allowed is
// left out and noted at the Network that requests it, whatever the order of lists.
func joinNetworks(jobs []job) {
	slices.SortFunc(jobs, func(a, b job) int { return cmp.Compare(a.network.vni, b.network.vni) })
	for i := range jobs {
		to := &jobs[i]
		allowed := slices.Clone(to.network.allowed)
		slices.SortFunc(allowed, func(a, b api.NetworkAllow) int { return cmp.Compare(a.VNI, b.VNI) })
		for _, a := range allowed {
			at := slices.IndexFunc(jobs, func(j job) bool { return j.network.vni == a.VNI && j.network.uid == a.UID })
			var other *job
			if at >= 0 {
				other = &jobs[at]
			}
			if fault := joinPair(&to.network, a, other); fault != "" {
				to.note(api.PartFailed, fmt.Sprintf("Network %s is not allowed in: %s", a.Network, fault))
			} else if other == nil {
				to.note(api.PartPending, fmt.Sprintf("Network %s cannot come in yet: this host has no part of it", a.Network))
			}
		}
	}
}

// joinPair adds the passage from a to the Network on both sides.
func joinPair(n *network, a api.NetworkAllow, other *job) (fault string) {
	switch {
	case a.UID == "" || a.VNI == 0 || a.VNI >= 1<<24 || a.VNI == n.vni:
		return fmt.Sprintf("uid %q and VNI %d do not belong to another Network", a.UID, a.VNI)
	case len(a.CIDRs) == 0 || len(n.cidrs) == 0:
		return "the CIDRs of one of them are not known"
	}
	if fault := n.clash(a.VNI, a.CIDRs); fault != "" {
		return fault
	}
	mtu := 0
	if other != nil {
		if fault := other.network.clash(n.vni, n.cidrs); fault != "" {
			return fault
		}
		mtu = other.network.mtu
		other.network.passage(passage{name: n.name, uid: n.uid, vni: n.vni, cidrs: n.cidrs, mtu: n.mtu}).out = true
	}
	n.passage(passage{name: a.Network, uid: a.UID, vni: a.VNI, cidrs: a.CIDRs, mtu: mtu}).in = true
	return ""
}

// clash returns a CIDR of the Network, or of a Network with a passage to it, that
// overlaps with those of the Network vni: a packet's Network would be ambiguous.
func (n network) clash(vni uint32, cidrs []netip.Prefix) string {
	find := func(whose string, list []netip.Prefix) string {
		for _, c := range cidrs {
			if i := slices.IndexFunc(list, c.Overlaps); i >= 0 {
				return fmt.Sprintf("%s overlaps with %s of %s; give one of them other CIDRs", c, list[i], whose)
			}
		}
		return ""
	}
	fault := find("Network "+n.name, n.cidrs)
	for _, p := range n.passages {
		if fault == "" && p.vni != vni {
			fault = find("Network "+p.name+", which has a passage to "+n.name, p.cidrs)
		}
	}
	return fault
}

// passage returns the passage to another Network, and adds it if there is none.
func (n *network) passage(p passage) *passage {
	i := slices.IndexFunc(n.passages, func(have passage) bool { return have.vni == p.vni })
	if i < 0 {
		n.passages = append(n.passages, p)
		i = len(n.passages) - 1
	}
	return &n.passages[i]
}

// passageRules accept packets between the guests of two Networks, as far as allowed.
func passageRules(n network) []nft.Rule {
	bridge, vxlan := bridgeName(n.vni), vxlanName(n.vni)
	var rules []nft.Rule
	for _, p := range n.passages {
		end := passageName(p.vni)
		for _, theirs := range p.cidrs {
			for _, ours := range n.cidrs {
				if ours.Addr().Is4() != theirs.Addr().Is4() {
					continue
				}
				// In: here, on to another host, and from another host where it came over.
				rules = append(rules,
					nft.Rule{nft.IIF(end), nft.OIF(bridge), nft.From(theirs), nft.To(ours), nft.Accept()},
					nft.Rule{nft.IIF(end), nft.OIF(vxlan), nft.From(theirs), nft.To(ours), nft.Accept()},
					nft.Rule{nft.IIF(vxlan), nft.OIF(bridge), nft.From(theirs), nft.To(ours), nft.Accept()})
				// Out: only of this host's guests, because their own host filters them.
				out := nft.Rule{nft.IIF(bridge), nft.OIF(end), nft.From(ours), nft.To(theirs)}
				if !p.out {
					out = append(out, nft.Answers(), nft.TowardsOpener())
				}
				rules = append(rules, append(out, nft.Accept()))
			}
		}
	}
	return rules
}

// oldPassages removes passages that are no longer wanted. Those to a Network whose
// part cannot be read are kept: absence is not deletion.
func (w *work) oldPassages(seen map[string]link) error {
	for _, l := range seen {
		vni := passageVNI(l.name)
		wanted := slices.ContainsFunc(w.network.passages, func(p passage) bool { return p.vni == vni })
		if vni == 0 || l.kind != "veth" || l.alias != mark(w.network.uid) || wanted {
			continue
		}
		unknown, err := w.unknown(vni)
		if err != nil {
			return err
		}
		if unknown {
			if err := w.keepPassage(l, vni); err != nil {
				return err
			}
			continue
		}
		did(w, []change{change("remove " + l.name)})
		if err := w.tenant.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index}}); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove %s: %w", l.name, err)
		}
	}
	return nil
}

// keepPassage reads from the routes where a passage leads. It is a passage out:
// those in are in this Network's own part.
func (w *work) keepPassage(l link, vni uint32) error {
	routes, err := w.routesOf(l.index)
	if err != nil {
		return err
	}
	p := passage{vni: vni, mtu: l.mtu, out: true}
	for _, r := range routes {
		if dst := toPrefix(r.Dst); dst.IsValid() {
			p.cidrs = append(p.cidrs, dst)
		}
	}
	slices.SortFunc(p.cidrs, compareAddress)
	w.network.passages = append(w.network.passages, p)
	slices.SortFunc(w.network.passages, func(a, b passage) int { return cmp.Compare(a.vni, b.vni) })
	return nil
}

// passages configures this Network's ends, and creates missing pairs.
func (w *work) passages() error {
	for _, p := range w.network.passages {
		if err := w.ensurePassage(p); err != nil {
			return fmt.Errorf("passage to Network %s: %w", p.name, err)
		}
	}
	return nil
}

func (w *work) ensurePassage(p passage) error {
	want := passageLink(w.network, p)
	seen, err := listLink(w.tenant.Handle, want.name)
	if err != nil {
		return err
	}
	if len(seen) == 0 {
		made, err := w.createPassage(want, p)
		if err != nil || !made {
			return err
		}
		if seen, err = listLink(w.tenant.Handle, want.name); err != nil {
			return err
		}
	}
	before := w.changes
	if err := w.mend(w.tenant, []link{want}, seen); err != nil {
		return err
	}
	if w.changes > before {
		if err := w.carryPassage(want.name, p); err != nil {
			return err
		}
	}
	index := seen[want.name].index
	if err := w.passageNeighbours(index, w.network.speaks6(p)); err != nil {
		return err
	}
	return w.setRoutes(index, want.name, passageRoutes(w.network, p, index))
}

// createPassage creates both ends. If the other Network's namespace does not exist
// yet, that Network creates them later.
func (w *work) createPassage(want link, p passage) (bool, error) {
	other, err := openPlace(filepath.Join(w.dir, namespaceName(p.name, p.uid)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer other.close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = want.name, want.mtu, want.mac[:]
	did(w, []change{change("add " + want.name)})
	err = w.tenant.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: passageName(w.network.vni), PeerMTU: uint32(want.mtu),
		PeerHardwareAddr: want.mac[:], PeerNamespace: netlink.NsFd(other.ns)})
	if errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("%s in its namespace leads elsewhere; remove it", passageName(w.network.vni))
	}
	return err == nil, err
}

// carryPassage makes both ends carry at once. The first end comes up when the second
// one does.
func (w *work) carryPassage(name string, p passage) error {
	other, err := openPlace(filepath.Join(w.dir, namespaceName(p.name, p.uid)))
	if err != nil {
		return err
	}
	defer other.close()
	return errors.Join(w.tenant.carry(name), other.carry(passageName(w.network.vni)))
}

// passageNeighbours sets permanent neighbours, so the kernel never resolves them.
func (w *work) passageNeighbours(index int, ipv6 bool) error {
	want := passageMAC()
	for _, ip := range passageGateways() {
		if ip.Is6() && !ipv6 {
			continue
		}
		list, err := kernel.List(func() ([]netlink.Neigh, error) { return w.tenant.NeighList(index, int(family(ip))) })
		if err != nil {
			return fmt.Errorf("list its neighbours: %w", err)
		}
		if slices.ContainsFunc(list, func(n netlink.Neigh) bool {
			return toAddr(n.IP) == ip && n.State&unix.NUD_PERMANENT != 0 && slices.Equal(n.HardwareAddr, want[:])
		}) {
			continue
		}
		did(w, []change{change("set neighbour " + ip.String())})
		if err := w.tenant.NeighSet(&netlink.Neigh{LinkIndex: index, Family: int(family(ip)), State: unix.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: want[:]}); err != nil {
			return fmt.Errorf("set its neighbour %s: %w", ip, err)
		}
	}
	return nil
}

// passageRoutes returns the routes to the other Network. Packets of the namespace
// itself, mostly ICMP errors, have an address of the Network as their source.
func passageRoutes(n network, p passage, index int) []netlink.Route {
	var list []netlink.Route
	gateways := passageGateways()
	for _, cidr := range p.cidrs {
		r := netlink.Route{LinkIndex: index, Dst: toAddress(cidr.Masked()).IPNet, Gw: gateways[0].AsSlice(), Protocol: Protocol, Flags: int(netlink.FLAG_ONLINK)}
		switch {
		case cidr.Addr().Is6() && !n.speaks6(p):
			continue
		case cidr.Addr().Is6():
			r.Gw, r.Priority = gateways[1].AsSlice(), metric6
		case n.lease.Bits() < 31:
			r.Src = n.lease.Addr().Next().AsSlice()
		}
		list = append(list, r)
	}
	return list
}

// setRoutes makes our routes of an interface equal the wanted ones.
func (w *work) setRoutes(index int, name string, want []netlink.Route) error {
	seen, err := w.routesOf(index)
	if err != nil {
		return err
	}
	for _, r := range want {
		if slices.ContainsFunc(seen, func(s netlink.Route) bool { return sameRoute(s, r) }) {
			continue
		}
		did(w, []change{change("set route " + toPrefix(r.Dst).String())})
		if err := w.tenant.RouteReplace(&r); err != nil {
			return fmt.Errorf("set the route to %s by %s: %w", toPrefix(r.Dst), name, err)
		}
	}
	for _, s := range seen {
		if slices.ContainsFunc(want, func(r netlink.Route) bool { return sameKey(s, r) }) {
			continue
		}
		did(w, []change{change("remove route " + toPrefix(s.Dst).String())})
		if err := w.tenant.RouteDel(&s); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to %s by %s: %w", toPrefix(s.Dst), name, err)
		}
	}
	return nil
}

// sameKey reports whether one route replaces the other.
func sameKey(a, b netlink.Route) bool {
	return toPrefix(a.Dst) == toPrefix(b.Dst) && a.Priority == b.Priority
}

func sameRoute(a, b netlink.Route) bool {
	return sameKey(a, b) && a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src) && len(a.MultiPath) == 0
}

// routesOf lists our routes of an interface of the namespace.
func (w *work) routesOf(index int) ([]netlink.Route, error) {
	list, err := kernel.List(func() ([]netlink.Route, error) {
		return w.tenant.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: index, Protocol: Protocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes: %w", err)
	}
	for i, r := range list {
		if r.Dst == nil && r.Family == netlink.FAMILY_V4 {
			list[i].Dst = &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		}
	}
	return list, nil
}

func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(toAddr(n.IP), bits)
}
