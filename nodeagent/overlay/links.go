package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/nodeagent/overlay/dhcp"
)

// link is an interface of a Network, as wanted or as seen. The fields of a
// VXLAN are zero for others.
type link struct {
	name      string
	kind      string
	alias     string
	mtu       int
	mac       mac // zero when wanted: any
	up        bool
	addresses []netip.Prefix // sorted

	vni      uint32
	underlay int        // index of the interface that carries it, in the host's namespace
	source   netip.Addr // source address of the outer packets
	port     int
	learning bool

	index   int // when seen
	traffic Traffic
}

// gatewayMAC and gatewayAddress are the gateway of every guest, the same on every
// host, so that they stay when a guest moves.
func gatewayMAC() mac { return mac{0x02, 0x00, 0xa9, 0xfe, 0x01, 0x01} }

func gatewayAddress() netip.Prefix { return netip.PrefixFrom(dhcp.Gateway4(), 32) }

// gatewayAddress6 is the same in IPv6. Link-local addresses are separate on each
// host: traffic between bridges is routed, bridges are never joined.
func gatewayAddress6() netip.Prefix { return netip.PrefixFrom(dhcp.Gateway6(), 64) }

// vxlanName is flannel's name of the device.
func vxlanName(vni uint32) string { return fmt.Sprintf("flannel.%d", vni) }

func bridgeName(vni uint32) string { return fmt.Sprintf("br-%d", vni) }

// mark is the alias of interfaces that belong to the Network with that uid.
func mark(uid string) string { return "rackweft:" + uid }

// wantLinks returns the interfaces inside a Network's namespace, in the order of
// their creation.
func wantLinks(n network) []link {
	vtep := netip.PrefixFrom(n.lease.Addr(), 32)
	vxlan := link{name: vxlanName(n.vni), kind: "vxlan", alias: mark(n.uid), mtu: n.mtu, mac: n.mac, up: true,
		addresses: []netip.Prefix{vtep},
		vni:       n.vni, underlay: n.underlay, source: n.source, port: Port}
	bridge := link{name: bridgeName(n.vni), kind: "bridge", alias: mark(n.uid), mtu: n.mtu, mac: gatewayMAC(), up: true,
		addresses: []netip.Prefix{gatewayAddress(), metadataAddress()}}
	if first := n.lease.Addr().Next(); n.lease.Bits() < 31 {
		bridge.addresses = append(bridge.addresses, netip.PrefixFrom(first, n.lease.Bits()))
	}
	if n.lease6.IsValid() {
		bridge.addresses = append(bridge.addresses, gatewayAddress6(), netip.PrefixFrom(n.lease6.Addr().Next(), n.lease6.Bits()))
	}
	slices.SortFunc(bridge.addresses, compareAddress)
	return []link{{name: "lo", kind: "device", alias: mark(n.uid), up: true}, vxlan, bridge}
}

func compareAddress(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// linkVerb is the kind of a linkOp.
type linkVerb string

const (
	addLink       linkVerb = "add"
	removeLink    linkVerb = "remove"
	setAlias      linkVerb = "set alias of"
	setMTU        linkVerb = "set MTU of"
	setMAC        linkVerb = "set MAC of"
	setUp         linkVerb = "set up"
	addAddress    linkVerb = "add address to"
	removeAddress linkVerb = "remove address from"
)

// linkOp changes one interface towards want.
type linkOp struct {
	verb    linkVerb
	want    link
	address netip.Prefix
}

func (o linkOp) String() string {
	s := string(o.verb) + " " + o.want.name
	if o.address.IsValid() {
		s += " " + o.address.String()
	}
	return s
}

// diffLinks lists the operations that turn seen, by name, into want. Interfaces that
// are not in want are left alone. Its error names other programs' interfaces that are
// in the way.
func diffLinks(want []link, seen map[string]link) ([]linkOp, error) {
	var ops []linkOp
	var faults []error
	for _, w := range want {
		s, there := seen[w.name]
		if there && s.alias != "" && s.alias != w.alias {
			faults = append(faults, fmt.Errorf("%s is marked %q, not %q: it is not this Network's; rename or remove it", w.name, s.alias, w.alias))
			continue
		}
		if there && !alike(w, s) {
			ops = append(ops, linkOp{verb: removeLink, want: s})
			there = false
		}
		if !there {
			// As the kernel creates it: mark, MTU and MAC are set with it or right after.
			ops = append(ops, linkOp{verb: addLink, want: w}, linkOp{verb: setAlias, want: w})
			s = link{alias: w.alias, mtu: w.mtu, mac: w.mac}
			if w.kind == "bridge" {
				s.mtu = 0
			}
		}
		ops = append(ops, diffLink(w, s)...)
	}
	return ops, errors.Join(faults...)
}

// alike reports whether the differences can be changed in place.
func alike(w, s link) bool {
	return w.kind == s.kind && w.vni == s.vni && w.underlay == s.underlay && w.source == s.source &&
		w.port == s.port && w.learning == s.learning
}

func diffLink(w, s link) []linkOp {
	var ops []linkOp
	op := func(differs bool, v linkVerb) {
		if differs {
			ops = append(ops, linkOp{verb: v, want: w})
		}
	}
	op(s.alias != w.alias, setAlias)
	op(w.mtu != 0 && s.mtu != w.mtu, setMTU)
	op(w.mac != mac{} && s.mac != w.mac, setMAC)
	op(!s.up, setUp)
	if w.kind == "device" { // lo keeps its addresses
		return ops
	}
	for _, a := range w.addresses {
		if !slices.Contains(s.addresses, a) {
			ops = append(ops, linkOp{verb: addAddress, want: w, address: a})
		}
	}
	for _, a := range s.addresses {
		if !slices.Contains(w.addresses, a) {
			ops = append(ops, linkOp{verb: removeAddress, want: w, address: a})
		}
	}
	return ops
}

// listLinks lists the interfaces of h's namespace with their addresses.
func listLinks(h *netlink.Handle) (map[string]link, error) {
	list, err := kernel.List(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	addrs, err := kernel.List(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	byIndex := map[int]link{}
	for _, l := range list {
		byIndex[l.Attrs().Index] = seenLink(l)
	}
	for _, a := range addrs {
		l := byIndex[a.LinkIndex]
		bits, _ := a.Mask.Size()
		l.addresses = append(l.addresses, netip.PrefixFrom(toAddr(a.IP), bits))
		byIndex[a.LinkIndex] = l
	}
	out := map[string]link{}
	for l := range maps.Values(byIndex) {
		slices.SortFunc(l.addresses, compareAddress)
		out[l.name] = l
	}
	return out, nil
}

func seenLink(l netlink.Link) link {
	a := l.Attrs()
	s := link{name: a.Name, kind: l.Type(), alias: a.Alias, mtu: a.MTU, up: a.Flags&net.FlagUp != 0, index: a.Index}
	copy(s.mac[:], a.HardwareAddr)
	if a.Statistics != nil {
		s.traffic = trafficOf(*a.Statistics)
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		s.vni, s.underlay, s.port, s.learning = uint32(v.VxlanId), v.VtepDevIndex, v.Port, v.Learning
		s.source = toAddr(v.SrcAddr)
		if v.L2miss || v.L3miss || v.Proxy || v.RSC || v.GBP || v.FlowBased || len(v.Group) > 0 {
			s.port = -1 // a VXLAN with other settings matches none of ours
		}
	}
	return s
}

// applyLinks applies ops in order and stops at the first failure: later ones build on
// it. host is the namespace of the underlay.
func applyLinks(host, tenant *netlink.Handle, ns netns.NsHandle, ops []linkOp) error {
	for _, o := range ops {
		if err := applyLink(host, tenant, ns, o); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	return nil
}

func applyLink(host, tenant *netlink.Handle, ns netns.NsHandle, o linkOp) error {
	switch o.verb {
	case addLink:
		return createLink(host, ns, o.want)
	case removeLink:
		return tenant.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: o.want.index}})
	}
	l, err := tenant.LinkByName(o.want.name)
	if err != nil {
		return err
	}
	switch o.verb {
	case setAlias:
		return tenant.LinkSetAlias(l, o.want.alias)
	case setMTU:
		return tenant.LinkSetMTU(l, o.want.mtu)
	case setMAC:
		return tenant.LinkSetHardwareAddr(l, o.want.mac[:])
	case setUp:
		return tenant.LinkSetUp(l)
	case addAddress:
		return tenant.AddrReplace(l, toAddress(o.address))
	case removeAddress:
		return tenant.AddrDel(l, toAddress(o.address))
	}
	panic("overlay: no linkOp is " + string(o.verb))
}

// createLink creates an interface in ns, from the host's namespace: a VXLAN's UDP
// socket stays in the namespace of the request, but the interface must not appear
// there, where udev would change its MAC and its name might be in use.
func createLink(host *netlink.Handle, ns netns.NsHandle, w link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = w.name, w.mtu, netlink.NsFd(ns)
	attrs.HardwareAddr = w.mac[:]
	var err error
	switch w.kind {
	case "vxlan":
		err = host.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(w.vni), VtepDevIndex: w.underlay,
			SrcAddr: w.source.AsSlice(), Port: w.port, Learning: w.learning})
	case "bridge":
		// Until its MTU has been set, a bridge follows the smallest MTU of its ports.
		attrs.MTU = 0
		err = host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	default:
		return fmt.Errorf("no rackweft link is a %s", w.kind)
	}
	if w.kind == "vxlan" && errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("VNI %d is in use on this host by something else (another Network that is still being removed, or a flanneld): %w", w.vni, err)
	}
	return err
}

// carry makes interfaces that have just come up send at once. Until the kernel has
// noticed a carrier (linkwatch: within a second or two), it drops outgoing packets.
// From Linux 6.8 on, a query for the interface makes it look.
func (p place) carry(names ...string) error {
	for _, name := range names {
		if _, err := p.LinkByName(name); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
			return fmt.Errorf("look at %s: %w", name, err)
		}
	}
	return nil
}

func toAddress(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // no duplicates are possible: peers have leases of their own
	}
	return a
}
