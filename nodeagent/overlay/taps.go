package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/bgp/sources"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/internal/nft"
)

const tunDevice = "/dev/net/tun"

// openQueue creates the tap in ns, down and not in a bridge, and opens its queue. The
// device is not persistent: it goes with the queue.
func openQueue(ns netns.NsHandle, name string) (*os.File, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	fd := -1
	err = within(ns, func() (err error) {
		// A tap is created in the namespace of the thread that opens the device.
		if fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return &os.PathError{Op: "open", Path: tunDevice, Err: err}
		}
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0) // an operator may have created it
		}
		return err
	})
	if err == nil {
		return os.NewFile(uintptr(fd), name), nil
	}
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("tap %s has a queue already: a QEMU of this Guest still runs, or another program holds it: %w", name, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("tap %s: the kernel has no taps: have its module tun loaded at boot, before nodeagent: %w", name, err)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("tap %s: an interface of this name is not a tap with a single queue; remove it: %w", name, err)
	}
	return nil, fmt.Errorf("create tap %s: %w", name, err)
}

// guestPorts configures the existing taps by the table of ports. A tap without a port
// is closed. A tap exists only while its QEMU does, and may go at any time: then the
// taps are listed again.
func (w *work) guestPorts() error {
	if w.guestPortsOnce() == nil {
		return nil
	}
	w.stats = nil
	return w.guestPortsOnce()
}

func (w *work) guestPortsOnce() error {
	seen, err := listLinks(w.tenant.Handle)
	if err != nil {
		return err
	}
	w.seen, w.traffic = true, seen[vxlanName(w.network.vni)].traffic
	var present []guestPort
	for _, p := range w.ports {
		if _, there := seen[p.tap]; there {
			p = p.limited(w.network.guestLimits)
			p.peers = w.network.peering != nil
			present = append(present, p)
		}
	}
	closed := w.strays(seen)
	if err := w.filterTaps(present, closed); err != nil {
		return err
	}
	before := w.changes
	if err := w.plug(present, seen); err != nil {
		return err
	}
	if w.changes > before { // the bridge has a carrier when one of its ports has
		if err := w.tenant.carry(append(tapNames(present), bridgeName(w.network.vni))...); err != nil {
			return err
		}
	}
	for i := range w.stats {
		w.stats[i].Traffic = seen[w.stats[i].Interface].traffic.reversed()
	}
	bridge, there := seen[bridgeName(w.network.vni)]
	if !there {
		return nil
	}
	if err := w.portEntries(present, append(closed, tapNames(present)...), seen); err != nil {
		return err
	}
	return w.movedRoutes(bridge.index)
}

// strays returns our taps without a port.
func (w *work) strays(seen map[string]link) []string {
	if !w.complete {
		return nil
	}
	var list []string
	for name, l := range seen {
		asked := slices.ContainsFunc(w.ports, func(p guestPort) bool { return p.tap == name })
		if l.kind == "tuntap" && l.alias == mark(w.network.uid) && strings.HasPrefix(name, tapPrefix) && !asked {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func tapNames(ports []guestPort) []string {
	var names []string
	for _, p := range ports {
		names = append(names, p.tap)
	}
	return names
}

// filterTaps sets the filters, and records what they have dropped. If the list of taps
// is complete, it removes the filters of taps that are gone.
func (w *work) filterTaps(present []guestPort, closed []string) error {
	var want nft.Ruleset
	for _, p := range present {
		openTap(p).add(&want)
	}
	for _, tap := range closed {
		closedTap(tap).add(&want)
	}
	bridge := bridgeName(w.network.vni)
	if w.network.limits != (limits{}) {
		limitBridge(bridge, w.network.limits).add(&want)
	}
	if !w.complete {
		want.Keep = func(string) bool { return true }
	}
	done, err := nft.Apply(w.tenant.ns, sources.Table(), want)
	if err != nil {
		return err
	}
	did(w, done.Changes)
	for _, p := range present {
		w.stats = append(w.stats, PortStats{Guest: p.guest, UID: p.uid, Interface: p.tap, Drops: dropsOf(p.tap, done.Counters)})
	}
	if w.network.limits != (limits{}) {
		w.drops = dropsOf(bridge, done.Counters)
	}
	return nil
}

// plug puts the taps into the bridge, each as a port that reaches the gateway but no
// other port.
func (w *work) plug(present []guestPort, seen map[string]link) error {
	if len(present) == 0 {
		return nil
	}
	bridge, there := seen[bridgeName(w.network.vni)]
	if !there {
		return fmt.Errorf("%s does not exist", bridgeName(w.network.vni))
	}
	c, err := dialRTNL(w.tenant.ns)
	if err != nil {
		return err
	}
	defer c.close()
	bridged, err := c.listBridgePorts()
	if err != nil {
		return err
	}
	var sysctls []sysctl
	for _, p := range present {
		if err := w.plugOne(c, seen[p.tap], bridge.index, bridged[seen[p.tap].index]); err != nil {
			return fmt.Errorf("plug Guest %s in: %w", p.guest, err)
		}
		sysctls = append(sysctls, sysctl{"net/ipv6/conf/" + p.tap + "/disable_ipv6", "1"})
	}
	return w.setSysctls(w.tenant, sysctls)
}

func (w *work) plugOne(c *rtnl, tap link, bridge int, port bridgePort) error {
	want := link{name: tap.name, kind: tap.kind, alias: mark(w.network.uid), mtu: w.network.mtu, up: true, addresses: nil}
	l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: tap.index}}
	if port.master != bridge || port.flags != wantFlags() {
		if tap.alias != "" && tap.alias != want.alias {
			return fmt.Errorf("%s is marked %q, not %q: it is not this Network's; rename or remove it", tap.name, tap.alias, want.alias)
		}
		did(w, []change{change("plug in " + tap.name)})
		// Down until it is isolated, so that nothing passes between guests meanwhile.
		// Its MTU comes first, because a bridge follows the smallest MTU of its ports.
		if err := w.tenant.LinkSetDown(l); err != nil {
			return fmt.Errorf("set %s down: %w", tap.name, err)
		}
		if err := w.tenant.LinkSetMTU(l, want.mtu); err != nil {
			return fmt.Errorf("set MTU of %s: %w", tap.name, err)
		}
		if err := w.tenant.LinkSetMasterByIndex(l, bridge); err != nil {
			return fmt.Errorf("put %s into its bridge: %w", tap.name, err)
		}
		if err := c.setBridgePort(tap.index); err != nil {
			return fmt.Errorf("isolate %s: %w", tap.name, err)
		}
		tap.up, tap.mtu = false, want.mtu
	}
	return w.mend(w.tenant, []link{want}, map[string]link{tap.name: tap})
}

// bridgePort is the state of an interface as a port of a bridge.
type bridgePort struct {
	master int // index of the bridge
	flags  portFlags
}

// portFlags are the flags that decide which ports reach each other: one octet each, by
// attribute number.
type portFlags [nl.IFLA_BRPORT_ISOLATED + 1]byte

// wantFlags returns the flags of a port: only isolated is set. The bridge does not
// learn, does not answer for others, and floods only the gateway's broadcasts.
func wantFlags() (flags portFlags) {
	flags[nl.IFLA_BRPORT_ISOLATED] = 1
	return flags
}

func settable() []uint16 {
	return []uint16{nl.IFLA_BRPORT_MODE, nl.IFLA_BRPORT_GUARD, nl.IFLA_BRPORT_PROTECT, nl.IFLA_BRPORT_LEARNING,
		nl.IFLA_BRPORT_UNICAST_FLOOD, nl.IFLA_BRPORT_MCAST_FLOOD, nl.IFLA_BRPORT_BCAST_FLOOD, nl.IFLA_BRPORT_MCAST_TO_UCAST,
		nl.IFLA_BRPORT_PROXYARP, nl.IFLA_BRPORT_PROXYARP_WIFI, nl.IFLA_BRPORT_NEIGH_SUPPRESS, nl.IFLA_BRPORT_ISOLATED}
}

// ifinfomsg is struct ifinfomsg of linux/rtnetlink.h.
func ifinfomsg(family uint8, index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

// listBridgePorts lists the ports of all bridges by index.
func (c *rtnl) listBridgePorts() (map[int]bridgePort, error) {
	ports := map[int]bridgePort{}
	err := c.dump(message{typ: unix.RTM_GETLINK, body: ifinfomsg(unix.AF_BRIDGE, 0)}, func() { clear(ports) }, func(b []byte) {
		if len(b) < unix.SizeofIfInfomsg {
			return
		}
		var p bridgePort
		eachAttr(b[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) {
			switch typ {
			case unix.IFLA_MASTER:
				p.master = int(toUint32(v))
			case unix.IFLA_PROTINFO:
				p.flags = seeFlags(v)
			}
		})
		ports[int(toUint32(b[4:]))] = p
	})
	if err != nil {
		return nil, fmt.Errorf("list the bridge's ports: %w", err)
	}
	return ports, nil
}

func seeFlags(b []byte) (flags portFlags) {
	eachAttr(b, func(typ uint16, v []byte) {
		if slices.Contains(settable(), typ) && len(v) == 1 {
			flags[typ] = v[0]
		}
	})
	return flags
}

// setBridgePort sets the flags of a port.
func (c *rtnl) setBridgePort(index int) error {
	want := wantFlags()
	var flags message
	for _, typ := range settable() {
		flags.attr(typ, want[typ:typ+1])
	}
	m := message{typ: unix.RTM_SETLINK, body: ifinfomsg(unix.AF_BRIDGE, index)}
	m.attr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, flags.body)
	refused, err := c.do([]message{m})
	return errors.Join(err, refused[0])
}

// bridgeFDB is a bridge's FDB entry: the port of a MAC address.
type bridgeFDB struct {
	index int
	mac   mac
}

// portEntries sets the kernel's entries for the guests, so that it need not resolve
// them: a static FDB entry of the bridge, and permanent neighbours of the gateway. taps
// are all of ours.
func (w *work) portEntries(present []guestPort, taps []string, seen map[string]link) error {
	bridge := seen[bridgeName(w.network.vni)]
	c, err := dialRTNL(w.tenant.ns)
	if err != nil {
		return err
	}
	defer c.close()
	fdb, neighbours, err := c.listPortEntries(bridge.index)
	if err != nil {
		return err
	}
	v6, err := speaksIPv6(w.tenant.ns, bridge.name)
	if err != nil {
		return err
	}
	wantFDB, wantNeighbours := map[bridgeFDB]bool{}, map[netip.Addr]mac{}
	var add, tidy []message
	for _, p := range present {
		entry := bridgeFDB{seen[p.tap].index, p.mac}
		wantFDB[entry] = true
		if !fdb[entry] {
			add = append(add, entry.message(replace))
			did(w, []change{change("add fdb " + p.mac.String())})
		}
		for _, a := range p.addresses {
			if a.Is6() && !v6 {
				continue
			}
			wantNeighbours[a] = p.mac
			if neighbours[a] != p.mac {
				o := entryOp{replace, neighbour{a, p.mac}}
				add = append(add, o.message(bridge.index))
				did(w, []entryOp{o})
			}
		}
	}
	for entry := range fdb {
		ours := slices.ContainsFunc(taps, func(tap string) bool { return seen[tap].index == entry.index })
		if ours && !wantFDB[entry] {
			tidy = append(tidy, entry.message(remove))
		}
	}
	for a, m := range neighbours {
		if _, wanted := wantNeighbours[a]; !wanted && w.complete {
			tidy = append(tidy, entryOp{remove, neighbour{a, m}}.message(bridge.index))
		}
	}
	refused, err := c.do(append(add, tidy...))
	if err != nil {
		return err
	}
	for i := range add {
		if refused[i] != nil {
			return fmt.Errorf("set the gateway's neighbour entry of a guest: %w", refused[i])
		}
	}
	return nil // entries to remove may have gone with their tap
}

func (e bridgeFDB) message(v verb) message {
	m := entryOp{verb: v}.begin(unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, ndmsg(unix.AF_BRIDGE, e.index, unix.NUD_NOARP, unix.NTF_MASTER))
	m.attr(unix.NDA_LLADDR, e.mac[:])
	return m
}

// listPortEntries lists a bridge's FDB entries, except those for its ports' own MAC
// addresses, and our neighbours on it.
func (c *rtnl) listPortEntries(bridge int) (map[bridgeFDB]bool, map[netip.Addr]mac, error) {
	fdb, neighbours := map[bridgeFDB]bool{}, map[netip.Addr]mac{}
	err := c.dump(message{typ: unix.RTM_GETNEIGH, body: ndmsg(unix.AF_BRIDGE, 0, 0, 0)}, func() { clear(fdb) }, func(b []byte) { seeBridgeFDB(b, bridge, fdb) })
	if err != nil {
		return nil, nil, fmt.Errorf("list the bridge's fdb: %w", err)
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := c.dump(message{typ: unix.RTM_GETNEIGH, body: ndmsg(family, bridge, 0, 0)}, func() {}, func(b []byte) { seePortNeighbour(b, bridge, neighbours) })
		if err != nil {
			return nil, nil, fmt.Errorf("list the bridge's neighbours: %w", err)
		}
	}
	return fdb, neighbours, nil
}

func seeBridgeFDB(b []byte, bridge int, into map[bridgeFDB]bool) {
	if len(b) < unix.SizeofNdMsg || binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0 {
		return
	}
	entry, master := bridgeFDB{index: int(toUint32(b[4:]))}, 0
	eachAttr(b[unix.SizeofNdMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			copy(entry.mac[:], v)
		case unix.NDA_MASTER:
			master = int(toUint32(v))
		}
	})
	if master == bridge {
		into[entry] = true
	}
}

func seePortNeighbour(b []byte, bridge int, into map[netip.Addr]mac) {
	if len(b) < unix.SizeofNdMsg || toUint32(b[4:]) != uint32(bridge) {
		return
	}
	permanent := binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT != 0
	var n neighbour
	ours := false
	eachAttr(b[unix.SizeofNdMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			copy(n.mac[:], v)
		case unix.NDA_DST:
			n.ip = toAddr(v)
		case ndaProtocol:
			ours = len(v) == 1 && v[0] == Protocol
		}
	})
	if ours && permanent {
		into[n.ip] = n.mac
	}
}

// speaksIPv6 reports whether an interface accepts IPv6 neighbours.
func speaksIPv6(ns netns.NsHandle, name string) (bool, error) {
	speaks := false
	err := within(ns, func() error {
		value, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
		if os.IsNotExist(err) {
			return nil
		}
		speaks = strings.TrimSpace(string(value)) == "0"
		return err
	})
	if err != nil {
		return false, fmt.Errorf("read whether %s speaks IPv6: %w", name, err)
	}
	return speaks, nil
}

// movedRoutes returns routes to guests that moved here with addresses of other hosts'
// leases: those in the part, and those of the ports.
func (w *work) movedRoutes(bridge int) error {
	seen, err := w.bridgeRoutes(bridge)
	if err != nil {
		return err
	}
	want := w.wantMoved()
	var ops []entryOp
	for _, p := range want {
		if !slices.Contains(seen, p) {
			ops = append(ops, entryOp{create, movedRoute(p)})
		}
	}
	added := len(ops)
	for _, p := range seen {
		if w.complete && !slices.Contains(want, p) {
			ops = append(ops, entryOp{remove, movedRoute(p)})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	did(w, ops[:added])
	c, err := dialRTNL(w.tenant.ns)
	if err != nil {
		return err
	}
	defer c.close()
	return c.applyEntries(bridge, ops)
}

func (w *work) wantMoved() []netip.Prefix {
	n := w.network
	want := slices.Clone(n.moved)
	for _, p := range w.ports {
		for _, a := range p.addresses {
			known := n.lease.Contains(a) || n.lease6.Contains(a) ||
				slices.ContainsFunc(n.moved, func(m netip.Prefix) bool { return m.Contains(a) })
			if !known && (a.Is4() || n.lease6.IsValid()) {
				want = append(want, whole(a))
			}
		}
	}
	return want
}

func movedRoute(p netip.Prefix) route {
	if p.Addr().Is6() {
		return route{dst: destination{p, metric6}}
	}
	return route{dst: destination{Prefix: p}}
}

// bridgeRoutes returns our routes on the bridge.
func (w *work) bridgeRoutes(bridge int) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := kernel.List(func() ([]netlink.Route, error) {
			return w.tenant.RouteListFiltered(family, &netlink.Route{LinkIndex: bridge, Protocol: Protocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list the bridge's routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil {
				bits, _ := r.Dst.Mask.Size()
				list = append(list, netip.PrefixFrom(toAddr(r.Dst.IP), bits))
			}
		}
	}
	return list, nil
}
