package overlay

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Entries are the kernel's entries for a peer, as in flannel's vxlan backend:
//
//	fdb        peer's MAC → peer's VTEP           where to send a frame
//	neighbour  peer's lease .0 → peer's MAC       what to write into it
//	route      peer's lease via its .0, onlink    which packets it is for
//
// with one difference that is not visible on the wire: the gateway is in a nexthop
// object (Linux 5.3), to which the route refers. A route with a gateway of its own
// is a fib_info, which the kernel looks up in a hash that ignores the gateway: all
// routes of a device are then in one chain, and programming them is quadratic. The
// hash includes the nexthop's id.
type (
	mac      [6]byte
	fdbEntry struct {
		mac mac
		dst netip.Addr
		// What rackweft never sets but others may: needed to delete theirs.
		port    uint16
		vni     uint32
		ifindex uint32
		state   uint16
	}
	neighbour struct {
		ip  netip.Addr
		mac mac
	}
	nexthop struct {
		id  uint32
		via netip.Addr
	}
	route struct {
		dst     destination
		nexthop uint32 // 0: it has a gateway of its own
	}
	// destination identifies a route in its table. Ours have metric 0 in IPv4, and
	// the default in IPv6, which has no metric 0.
	destination struct {
		netip.Prefix
		metric uint32
	}
)

// Of linux/neighbour.h and linux/rtnetlink.h.
const (
	ndaProtocol = 12
	rtaNHID     = 30
	metric6     = 1024 // the kernel's default for IPv6 routes
)

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

func (e fdbEntry) String() string  { return fmt.Sprintf("fdb %s dst %s", e.mac, e.dst) }
func (n neighbour) String() string { return fmt.Sprintf("neighbour %s lladdr %s", n.ip, n.mac) }
func (n nexthop) String() string   { return fmt.Sprintf("nexthop %d via %s", n.id, n.via) }
func (r route) String() string     { return fmt.Sprintf("route %s nexthop %d", r.dst.Prefix, r.nexthop) }

// entries holds the entries of one Network's VXLAN device, as wanted or as seen.
type entries struct {
	fdb        map[mac][]fdbEntry // one per MAC, unless another program appended
	neighbours map[netip.Addr]mac
	nexthops   map[uint32]netip.Addr // an invalid address means a nexthop unlike ours
	routes     map[destination]uint32
}

func newEntries(size int) entries {
	return entries{
		fdb: make(map[mac][]fdbEntry, size), neighbours: make(map[netip.Addr]mac, size),
		nexthops: make(map[uint32]netip.Addr, size), routes: make(map[destination]uint32, size),
	}
}

func (e entries) count() int { return len(e.fdb) + len(e.neighbours) + len(e.nexthops) + len(e.routes) }

// wantEntries returns the entries for a checked list of peers.
func wantEntries(peers []peer) entries {
	e := newEntries(len(peers))
	for _, p := range peers {
		e.fdb[p.mac] = []fdbEntry{{mac: p.mac, dst: p.vtep, state: unix.NUD_PERMANENT}}
		e.reach(p.mac, nexthopID(p.lease), destination{Prefix: p.lease})
		if p.direct {
			delete(e.routes, destination{Prefix: p.lease}) // the other entries stay, unused
		}
		if p.lease6.IsValid() {
			e.reach(p.mac, nexthopID6(p.lease), destination{p.lease6, metric6})
		}
	}
	return e
}

// reach adds the entries that lead to a lease, whose first address is its gateway.
func (e entries) reach(m mac, id uint32, dst destination) {
	e.neighbours[dst.Addr()] = m
	e.nexthops[id] = dst.Addr()
	e.routes[dst] = id
}

// nexthopID is the gateway's address: unique in the namespace, no state needed.
func nexthopID(lease netip.Prefix) uint32 {
	b := lease.Addr().As4()
	return binary.BigEndian.Uint32(b[:])
}

// nexthopID6 is the ID for the IPv6 lease of a host. It is odd: an IPv4 lease's first
// address is even, because no lease is longer than a /31.
func nexthopID6(lease netip.Prefix) uint32 { return nexthopID(lease) | 1 }

// verb is the kind of an entryOp.
type verb int

const (
	create  verb = iota // refused if there is an entry already
	replace             // replaces the present entry, without a gap
	remove
)

func (v verb) String() string { return [...]string{"create", "replace", "remove"}[v] }

// entryOp changes one entry: a fdbEntry, neighbour, nexthop or route.
type entryOp struct {
	verb  verb
	entry fmt.Stringer
}

func (o entryOp) String() string { return o.verb.String() + " " + o.entry.String() }

// diffEntries lists the operations that turn seen into want. Entries that others
// depend on are added first and removed last, so that no packet is misrouted.
func diffEntries(want, seen entries) []entryOp {
	var ops []entryOp
	op := func(v verb, e fmt.Stringer) { ops = append(ops, entryOp{v, e}) }

	for _, m := range pick(want.fdb, compareMAC, func(m mac) bool { return !slices.Equal(seen.fdb[m], want.fdb[m]) }) {
		diffFDB(want.fdb[m][0], seen.fdb[m], op)
	}
	for _, ip := range pick(want.neighbours, netip.Addr.Compare, differs(want.neighbours, seen.neighbours)) {
		op(replace, neighbour{ip, want.neighbours[ip]})
	}
	for _, id := range pick(want.nexthops, cmp.Compare[uint32], differs(want.nexthops, seen.nexthops)) {
		op(put(seen.nexthops, id), nexthop{id, want.nexthops[id]})
	}
	for _, dst := range pick(want.routes, compareDestination, differs(want.routes, seen.routes)) {
		op(put(seen.routes, dst), route{dst, want.routes[dst]})
	}

	for _, dst := range pick(seen.routes, compareDestination, absent(want.routes)) {
		op(remove, route{dst, seen.routes[dst]})
	}
	for _, id := range pick(seen.nexthops, cmp.Compare[uint32], absent(want.nexthops)) {
		op(remove, nexthop{id, seen.nexthops[id]})
	}
	for _, ip := range pick(seen.neighbours, netip.Addr.Compare, absent(want.neighbours)) {
		op(remove, neighbour{ip, seen.neighbours[ip]})
	}
	for _, m := range pick(seen.fdb, compareMAC, absent(want.fdb)) {
		for _, e := range seen.fdb[m] {
			op(remove, e)
		}
	}
	return ops
}

// diffFDB leaves exactly one destination for a MAC. A replacement replaces the
// destination that the kernel has first, so all but one are removed before.
func diffFDB(want fdbEntry, seen []fdbEntry, op func(verb, fmt.Stringer)) {
	right := slices.Index(seen, want)
	for i, e := range seen {
		if i != right && (right >= 0 || i > 0) {
			op(remove, e)
		}
	}
	switch {
	case len(seen) == 0:
		op(create, want)
	case right < 0:
		op(replace, want)
	}
}

func compareMAC(a, b mac) int { return slices.Compare(a[:], b[:]) }

func compareDestination(a, b destination) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()), cmp.Compare(a.metric, b.metric))
}

// pick returns the keys of m that are wanted, sorted.
func pick[K comparable, V any](m map[K]V, compare func(a, b K) int, wanted func(K) bool) []K {
	var keys []K
	for k := range m {
		if wanted(k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compare)
	return keys
}

func differs[K, V comparable](want, seen map[K]V) func(K) bool {
	return func(k K) bool {
		v, ok := seen[k]
		return !ok || v != want[k]
	}
}

func absent[K comparable, V any](want map[K]V) func(K) bool {
	return func(k K) bool {
		_, ok := want[k]
		return !ok
	}
}

// put replaces our entries only.
func put[K comparable, V any](seen map[K]V, k K) verb {
	if _, ok := seen[k]; ok {
		return replace
	}
	return create
}

// applyEntries applies ops to the device, as many as the kernel accepts. An error
// says how many were refused, and why the first one was.
func (c *rtnl) applyEntries(ifindex int, ops []entryOp) error {
	messages := make([]message, len(ops))
	for i, o := range ops {
		messages[i] = o.message(ifindex)
	}
	refused, err := c.do(messages)
	if err != nil {
		return err
	}
	for i := range ops {
		if gone(ops[i], refused[i]) {
			delete(refused, i)
		}
	}
	for i, o := range ops {
		if refused[i] != nil {
			return fmt.Errorf("%d of %d entries refused; %s: %w", len(refused), len(ops), o, explain(o, refused[i]))
		}
	}
	return nil
}

// gone reports whether an entry to remove is already gone: with its nexthop, or with
// a MAC's last destination.
func gone(o entryOp, err error) bool {
	return o.verb == remove && (err == unix.ENOENT || err == unix.ESRCH)
}

func explain(o entryOp, err error) error {
	if o.verb == create && err == unix.EEXIST {
		return fmt.Errorf("an entry of another program is in its place; remove it: %w", err)
	}
	return err
}

// message is the operation in rtnetlink's terms.
func (o entryOp) message(ifindex int) message {
	switch e := o.entry.(type) {
	case fdbEntry:
		return o.fdbMessage(e, ifindex)
	case neighbour:
		return o.neighbourMessage(e, ifindex)
	case nexthop:
		return o.nexthopMessage(e, ifindex)
	case route:
		return o.routeMessage(e, ifindex)
	}
	panic(fmt.Sprintf("overlay: no entry is a %T", o.entry))
}

// begin creates a message of the verb's type.
func (o entryOp) begin(add, del uint16, header []byte) message {
	m := message{typ: add, body: header}
	switch o.verb {
	case create:
		m.flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	case replace:
		m.flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	case remove:
		m.typ = del
	}
	return m
}

// ndmsg is struct ndmsg of linux/neighbour.h.
func ndmsg(family uint8, ifindex int, state uint16, flags uint8) []byte {
	b := []byte{family, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(ifindex))
	b = binary.NativeEndian.AppendUint16(b, state)
	return append(b, flags, unix.RTN_UNICAST)
}

func (o entryOp) fdbMessage(e fdbEntry, ifindex int) message {
	m := o.begin(unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, ndmsg(unix.AF_BRIDGE, ifindex, unix.NUD_PERMANENT, unix.NTF_SELF))
	m.attr(unix.NDA_LLADDR, e.mac[:])
	if e.dst.IsValid() {
		m.attr(unix.NDA_DST, e.dst.AsSlice())
	}
	if e.port != 0 {
		m.attr(unix.NDA_PORT, binary.BigEndian.AppendUint16(nil, e.port))
	}
	if e.vni != 0 {
		m.attr32(unix.NDA_VNI, e.vni)
	}
	if e.ifindex != 0 {
		m.attr32(unix.NDA_IFINDEX, e.ifindex)
	}
	return m
}

func (o entryOp) neighbourMessage(n neighbour, ifindex int) message {
	m := o.begin(unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, ndmsg(family(n.ip), ifindex, unix.NUD_PERMANENT, 0))
	m.attr(unix.NDA_DST, n.ip.AsSlice())
	if o.verb != remove {
		m.attr(unix.NDA_LLADDR, n.mac[:])
		m.attr(ndaProtocol, []byte{Protocol})
	}
	return m
}

func (o entryOp) nexthopMessage(n nexthop, ifindex int) message {
	// struct nhmsg of linux/nexthop.h: family, scope, protocol, reserved, flags
	header := []byte{unix.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0}
	if o.verb != remove {
		header[0], header[2] = family(n.via), Protocol
		binary.NativeEndian.PutUint32(header[4:], unix.RTNH_F_ONLINK)
	}
	m := o.begin(unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP, header)
	m.attr32(unix.NHA_ID, n.id)
	if o.verb != remove {
		m.attr(unix.NHA_GATEWAY, n.via.AsSlice())
		m.attr32(unix.NHA_OIF, uint32(ifindex))
	}
	return m
}

func (o entryOp) routeMessage(r route, ifindex int) message {
	// struct rtmsg: family, dst bits, src bits, tos, table, protocol, scope, type, flags
	header := []byte{family(r.dst.Addr()), byte(r.dst.Bits()), 0, 0,
		unix.RT_TABLE_MAIN, Protocol, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	if o.verb == remove {
		header[6], header[7] = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC // any
	}
	m := o.begin(unix.RTM_NEWROUTE, unix.RTM_DELROUTE, header)
	m.attr(unix.RTA_DST, r.dst.Addr().AsSlice())
	if r.dst.metric != 0 {
		m.attr32(unix.RTA_PRIORITY, r.dst.metric)
	}
	if r.nexthop != 0 {
		m.attr32(rtaNHID, r.nexthop)
	} else {
		m.attr32(unix.RTA_OIF, uint32(ifindex))
	}
	return m
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// listEntries lists the kernel's entries for the device: all FDB entries and
// permanent neighbours, because the device is ours, and the nexthops and routes with
// our protocol number.
func (c *rtnl) listEntries(ifindex, size int) (entries, error) {
	e := newEntries(size)
	lists := []struct {
		what  string
		m     message
		begin func()
		each  func([]byte)
	}{
		{"fdb", message{typ: unix.RTM_GETNEIGH, body: ndmsg(unix.AF_BRIDGE, ifindex, 0, 0)},
			func() { clear(e.fdb) }, func(b []byte) { e.seeFDB(b, ifindex) }},
		{"neighbours", message{typ: unix.RTM_GETNEIGH, body: ndmsg(unix.AF_UNSPEC, ifindex, 0, 0)},
			func() { clear(e.neighbours) }, func(b []byte) { e.seeNeighbour(b, ifindex) }},
		{"nexthops", message{typ: unix.RTM_GETNEXTHOP, body: make([]byte, 8)},
			func() { clear(e.nexthops) }, func(b []byte) { e.seeNexthop(b, ifindex) }},
		{"routes", message{typ: unix.RTM_GETROUTE, body: make([]byte, 12)},
			func() { clear(e.routes) }, func(b []byte) { e.seeRoute(b, ifindex) }},
	}
	for _, l := range lists {
		if err := c.dump(l.m, l.begin, l.each); err != nil {
			return e, fmt.Errorf("list the %s: %w", l.what, err)
		}
	}
	return e, nil
}

func (e entries) seeFDB(b []byte, ifindex int) {
	if len(b) < unix.SizeofNdMsg || toUint32(b[4:]) != uint32(ifindex) {
		return
	}
	entry := fdbEntry{state: binary.NativeEndian.Uint16(b[8:])}
	eachAttr(b[unix.SizeofNdMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			copy(entry.mac[:], v)
		case unix.NDA_DST:
			entry.dst = toAddr(v)
		case unix.NDA_PORT:
			if len(v) == 2 {
				entry.port = binary.BigEndian.Uint16(v)
			}
		case unix.NDA_VNI:
			entry.vni = toUint32(v)
		case unix.NDA_IFINDEX:
			entry.ifindex = toUint32(v)
		}
	})
	e.fdb[entry.mac] = append(e.fdb[entry.mac], entry)
}

func (e entries) seeNeighbour(b []byte, ifindex int) {
	if len(b) < unix.SizeofNdMsg || toUint32(b[4:]) != uint32(ifindex) {
		return
	}
	state := binary.NativeEndian.Uint16(b[8:])
	var n neighbour
	eachAttr(b[unix.SizeofNdMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			copy(n.mac[:], v)
		case unix.NDA_DST:
			n.ip = toAddr(v)
		}
	})
	if state&unix.NUD_PERMANENT != 0 { // the kernel manages the others
		e.neighbours[n.ip] = n.mac
	}
}

func (e entries) seeNexthop(b []byte, ifindex int) {
	if len(b) < 8 || b[2] != Protocol {
		return
	}
	onlink := toUint32(b[4:])&unix.RTNH_F_ONLINK != 0
	var id, oif uint32
	var via netip.Addr
	eachAttr(b[8:], func(typ uint16, v []byte) {
		switch typ {
		case unix.NHA_ID:
			id = toUint32(v)
		case unix.NHA_OIF:
			oif = toUint32(v)
		case unix.NHA_GATEWAY:
			via = toAddr(v)
		}
	})
	if !onlink || oif != uint32(ifindex) {
		via = netip.Addr{}
	}
	e.nexthops[id] = via
}

func (e entries) seeRoute(b []byte, ifindex int) {
	if len(b) < unix.SizeofRtMsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 || b[5] != Protocol || b[4] != unix.RT_TABLE_MAIN {
		return
	}
	var id, oif, metric uint32
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	eachAttr(b[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.RTA_DST:
			dst = toAddr(v)
		case unix.RTA_OIF:
			oif = toUint32(v)
		case unix.RTA_PRIORITY:
			metric = toUint32(v)
		case rtaNHID:
			id = toUint32(v)
		}
	})
	if oif == uint32(ifindex) {
		e.routes[destination{netip.PrefixFrom(dst, int(b[1])), metric}] = id
	}
}
