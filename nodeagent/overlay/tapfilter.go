package overlay

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/bgp/sources"
)

// A guest's tap is filtered by the device itself, in a table of family netdev:
// at its ingress before anything else sees a frame (frames to 01:80:c2:00:00:0x
// pass a bridge by), and at its egress. Two chains, <tap>-out and <tap>-in,
// drop what no rule lets through; without rules they are a closed door. Rules
// are exchanged within the chains, in one transaction, so that there is neither
// a gap nor an opening.

// Chains and counters of a tap begin with its name.
const (
	chainOut          = "-out" // what the guest sends
	chainIn           = "-in"  // what it is sent
	counterSpoofed    = "-spoofed"
	counterLimitedOut = "-limited-out"
	counterLimitedIn  = "-limited-in"
)

// tapFilter is what the filter of one tap should be.
type tapFilter struct {
	tap     string
	out, in []rule
	policy  nftables.ChainPolicy // of what no rule decides
	sources bool                 // the guest may send from what it announces
}

// Of linux/if_ether.h, and of ICMPv6 (RFC 4443, 4861, 3810).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	icmpMLDQuery   = 130
	icmpRouterAsk  = 133
	icmpRouter     = 134
	icmpNeighbour  = 135
	icmpAnswer     = 136
	icmpRedirect   = 137
	icmpMLDv2      = 143
	igmpQuery      = 0x11
	dhcpServer     = 67
	dhcpClient     = 68
	dhcpv6Server   = 547
	udpSourcePort  = 0
	dhcpHardware   = 8 + 28 // of UDP: chaddr (RFC 2131 §2)
	arpSenderMAC   = 8
	arpSenderIPv4  = 14
	arpTargetIPv4  = 24
	icmpTarget     = 8 // of neighbour solicitations and advertisements
	ipv6Target     = 24
	ethDestination = 0
	ethSource      = 6
	ethType        = 12
)

// limitBurst is let through at once beside a second's worth: one frame as
// large as a guest with segmentation offload sends.
const limitBurst = 1 << 16

// limitMost is a limit that is none: beyond it the kernel's arithmetic ends.
const limitMost = 1e10

// match compares bytes of a packet with data.
func match(text string, base expr.PayloadBase, offset uint32, op expr.CmpOp, data []byte) term {
	return term{fmt.Sprintf("%s %s", text, hex.EncodeToString(data)), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}}
}

func ether(kind uint16) term {
	return match("ether type", expr.PayloadBaseLLHeader, ethType, expr.CmpOpEq, []byte{byte(kind >> 8), byte(kind)})
}

func etherSourceNot(m mac) term {
	return match("ether saddr !=", expr.PayloadBaseLLHeader, ethSource, expr.CmpOpNeq, m[:])
}

func etherTo(head ...byte) term {
	return match("ether daddr", expr.PayloadBaseLLHeader, ethDestination, expr.CmpOpEq, head)
}

func etherHeader(to, from mac, kind uint16) term {
	return match("ether header", expr.PayloadBaseLLHeader, 0, expr.CmpOpEq, slices.Concat(to[:], from[:], []byte{byte(kind >> 8), byte(kind)}))
}

func inHeader(text string, offset uint32, data []byte) term {
	return match(text, expr.PayloadBaseNetworkHeader, offset, expr.CmpOpEq, data)
}

func inTransport(text string, offset uint32, data ...byte) term {
	return match(text, expr.PayloadBaseTransportHeader, offset, expr.CmpOpEq, data)
}

func icmpv6(kind byte) term {
	t := protocol("icmpv6", unix.IPPROTO_ICMPV6)
	kindTerm := inTransport("type", 0, kind)
	return term{t.text + " " + kindTerm.text, append(t.exprs, kindTerm.exprs...)}
}

func udpFrom(port uint16) term {
	t := protocol("udp", unix.IPPROTO_UDP)
	sport := inTransport("sport", udpSourcePort, byte(port>>8), byte(port))
	return term{t.text + " " + sport.text, append(t.exprs, sport.exprs...)}
}

// ipv6Within matches an address in the IPv6 header or behind it, or what is not.
func ipv6Within(text string, base expr.PayloadBase, offset uint32, op expr.CmpOp, p netip.Prefix) term {
	return term{fmt.Sprintf("%s %d %s", text, op, p), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: 16},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: toAddress(p).Mask, Xor: make([]byte, 16)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}}
}

func ipv6From(p netip.Prefix) term {
	return ipv6Within("ip6 saddr", expr.PayloadBaseNetworkHeader, ipv6Source, expr.CmpOpEq, p)
}

func ipv6To(p netip.Prefix) term {
	return ipv6Within("ip6 daddr", expr.PayloadBaseNetworkHeader, ipv6Target, expr.CmpOpEq, p)
}

func linkLocal() netip.Prefix { return netip.MustParsePrefix("fe80::/10") }

// targetNot matches neighbour discovery about what is none of the addresses
// and not of the link.
func targetNot(addresses []netip.Addr) term {
	t := ipv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpNeq, linkLocal())
	for _, a := range addresses {
		not := ipv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpNeq, whole(a))
		t.text += " " + not.text
		t.exprs = append(t.exprs, not.exprs...)
	}
	return t
}

func target(a netip.Addr) term {
	return ipv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpEq, whole(a))
}

// fromSources matches what comes from where the guest announces to be.
func fromSources(tap string, v4 bool) term {
	set, offset, size := sources.Set(nil, tap, v4).Name, uint32(ipv6Source), uint32(16)
	if v4 {
		offset, size = ipv4Source, 4
	}
	return term{"saddr @" + set, []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}}
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func counted(name string) term {
	return term{"counter name " + name, []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}}
}

// above matches packets beyond so many bytes per second.
func above(limit int64) term {
	return term{fmt.Sprintf("limit rate over %d bytes/second burst %d bytes", limit, limitBurst), []expr.Any{
		&expr.Limit{Type: expr.LimitTypePktBytes, Rate: uint64(limit), Unit: expr.LimitTimeSecond, Burst: limitBurst, Over: true}}}
}

func isLimit(limit int64) bool { return limit > 0 && limit <= limitMost }

// byFamily parts addresses.
func byFamily(addresses []netip.Addr) (v4, v6 []netip.Addr) {
	for _, a := range addresses {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6
}

// openTap lets through what is the guest's own, and nothing else.
func openTap(p guestPort) tapFilter {
	return tapFilter{tap: p.tap, out: rulesOut(p), in: rulesIn(p), policy: nftables.ChainPolicyDrop, sources: p.peers}
}

// closedTap lets nothing through.
func closedTap(tap string) tapFilter { return tapFilter{tap: tap, policy: nftables.ChainPolicyDrop} }

// limitBridge keeps all guests of a Network together within its limits; what
// they may send is for their own filters to say.
func limitBridge(bridge string, l limits) tapFilter {
	f := tapFilter{tap: bridge, policy: nftables.ChainPolicyAccept}
	if isLimit(l.out) {
		f.out = []rule{{above(l.out), counted(bridge + counterLimitedOut), drop()}}
	}
	if isLimit(l.in) {
		f.in = []rule{{above(l.in), counted(bridge + counterLimitedIn), drop()}}
	}
	return f
}

// rulesOut are for what the guest sends.
func rulesOut(p guestPort) []rule {
	v4, v6 := byFamily(p.addresses)
	var rules []rule
	let := func(terms ...term) { rules = append(rules, append(terms, accept())) }
	refuse := func(terms ...term) { rules = append(rules, append(terms, counted(p.tap+counterSpoofed), drop())) }

	if isLimit(p.limits.out) {
		rules = append(rules, rule{above(p.limits.out), counted(p.tap + counterLimitedOut), drop()})
	}
	// Most of all packets are done with here: three comparisons for each.
	for _, a := range v4 {
		let(etherHeader(gatewayMAC(), p.mac, etherIPv4), inHeader("ip saddr", ipv4Source, a.AsSlice()), protocol("tcp", unix.IPPROTO_TCP))
	}
	for _, a := range v6 {
		let(etherHeader(gatewayMAC(), p.mac, etherIPv6), ipv6From(whole(a)), protocol("tcp", unix.IPPROTO_TCP))
	}
	refuse(etherSourceNot(p.mac))
	refuse(etherTo(0x01, 0x80, 0xc2, 0, 0)) // past the bridge (IEEE 802.1D, 7.12.6)
	refuse(udp(Port))
	refuse(ether(etherIPv4), udpFrom(dhcpServer))
	refuse(ether(etherIPv4), protocol("igmp", unix.IPPROTO_IGMP), inTransport("type", 0, igmpQuery))
	for _, a := range v4 {
		let(ether(etherIPv4), inHeader("ip saddr", ipv4Source, a.AsSlice()))
	}
	if p.peers {
		let(ether(etherIPv4), fromSources(p.tap, true))
		let(ether(etherIPv6), fromSources(p.tap, false))
	}
	let(ether(etherIPv4), inHeader("ip saddr", ipv4Source, make([]byte, 4)), udpFrom(dhcpClient), udp(dhcpServer))

	// Ethernet and IPv4 (RFC 826); the sender of a probe has no address yet (RFC 5227).
	for _, a := range append(slices.Clone(v4), netip.IPv4Unspecified()) {
		let(ether(etherARP), inHeader("arp header", 0, []byte{0, 1, 8, 0, 6, 4}),
			inHeader("arp sender", arpSenderMAC, append(slices.Clone(p.mac[:]), a.AsSlice()...)))
	}
	rules6Out(v6, let, refuse)
	refuse()
	return rules
}

func rules6Out(addresses []netip.Addr, let, refuse func(...term)) {
	refuse(ether(etherIPv6), udpFrom(dhcpv6Server))
	for _, routers := range []byte{icmpRouter, icmpRedirect, icmpMLDQuery} {
		refuse(ether(etherIPv6), icmpv6(routers))
	}
	gateway := gatewayAddress6().Addr()
	refuse(ether(etherIPv6), ipv6From(whole(gateway)))
	refuse(ether(etherIPv6), icmpv6(icmpAnswer), target(gateway))
	refuse(ether(etherIPv6), icmpv6(icmpAnswer), targetNot(addresses))
	for _, a := range addresses {
		let(ether(etherIPv6), ipv6From(whole(a)))
	}
	// What is of the link goes no further than the gateway.
	let(ether(etherIPv6), ipv6From(linkLocal()), ipv6To(linkLocal()))
	let(ether(etherIPv6), ipv6From(linkLocal()), ipv6To(netip.MustParsePrefix("ff02::/16")))
	// A guest that has no address yet (RFC 4862 §5.4.2).
	none := ipv6From(whole(netip.IPv6Unspecified()))
	refuse(ether(etherIPv6), none, icmpv6(icmpNeighbour), targetNot(addresses))
	for _, kind := range []byte{icmpNeighbour, icmpRouterAsk, icmpMLDv2} {
		let(ether(etherIPv6), none, icmpv6(kind))
	}
}

// rulesIn are for what the guest is sent: by its gateway, for itself.
func rulesIn(p guestPort) []rule {
	v4, v6 := byFamily(p.addresses)
	rules := []rule{{etherSourceNot(gatewayMAC()), drop()}}
	let := func(terms ...term) { rules = append(rules, append(terms, accept())) }
	if isLimit(p.limits.in) {
		rules = append(rules, rule{etherTo(p.mac[:]...), above(p.limits.in), counted(p.tap + counterLimitedIn), drop()})
	}
	// Linux has no way to keep a router from sending IPv6 redirects: a guest would
	// be told to send to its neighbour itself, which no port lets it do.
	rules = append(rules, rule{etherHeader(p.mac, gatewayMAC(), etherIPv6), icmpv6(icmpRedirect), drop()})
	let(etherTo(p.mac[:]...))
	// What goes to all on the link, if it is about this guest.
	for _, a := range v4 {
		let(ether(etherARP), inHeader("arp target", arpTargetIPv4, a.AsSlice()))
	}
	let(ether(etherIPv4), udpFrom(dhcpServer), udp(dhcpClient), inTransport("chaddr", dhcpHardware, p.mac[:]...))
	let(ether(etherIPv6), icmpv6(icmpRouter))
	for _, a := range append(slices.Clone(v6), linkLocal().Addr()) {
		about := target(a)
		if a == linkLocal().Addr() {
			about = ipv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpEq, linkLocal())
		}
		let(ether(etherIPv6), icmpv6(icmpNeighbour), about)
	}
	return rules
}

// tapTable is our table of family netdev, in one namespace.
type tapTable struct {
	*nftables.Conn
	table    *nftables.Table
	there    bool
	chains   map[string]*nftables.Chain
	counters map[string]uint64
	sets     map[string]bool
	wanted   []string // of the sets
	changes  []change
}

func openTapTable(ns netns.NsHandle) (*tapTable, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	t := &tapTable{Conn: c, table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}}
	if err := t.list(); err != nil {
		return nil, errors.Join(err, c.CloseLasting())
	}
	return t, nil
}

// list reads what is there.
func (t *tapTable) list() error {
	t.chains, t.counters, t.sets = map[string]*nftables.Chain{}, map[string]uint64{}, map[string]bool{}
	tables, err := again(func() ([]*nftables.Table, error) { return t.ListTablesOfFamily(t.table.Family) })
	if err != nil {
		return fmt.Errorf("list the nftables tables: %w", err)
	}
	t.there = slices.ContainsFunc(tables, func(s *nftables.Table) bool { return s.Name == tableName })
	if !t.there {
		return nil
	}
	chains, err := again(func() ([]*nftables.Chain, error) { return t.ListChainsOfTableFamily(t.table.Family) })
	if err != nil {
		return fmt.Errorf("list the nftables chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == tableName {
			t.chains[ch.Name] = ch
		}
	}
	sets, err := again(func() ([]*nftables.Set, error) { return t.GetSets(t.table) })
	if err != nil {
		return fmt.Errorf("list the nftables sets: %w", err)
	}
	for _, s := range sets {
		if sources.IsSet(s.Name) {
			t.sets[s.Name] = true
		}
	}
	objects, err := again(func() ([]nftables.Obj, error) { return t.GetNamedObjects(t.table) })
	if err != nil {
		return fmt.Errorf("list the nftables counters: %w", err)
	}
	for _, object := range objects {
		named, ok := object.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if counter, ok := named.Obj.(*expr.Counter); ok {
			t.counters[named.Name] = counter.Packets
		}
	}
	return nil
}

// set makes one tap's filter as it should be, at the next flush.
func (t *tapTable) set(f tapFilter) error {
	if !t.there {
		t.AddTable(t.table)
		t.there = true
		t.changes = append(t.changes, "add nftables table of taps")
	}
	for _, name := range []string{counterSpoofed, counterLimitedOut, counterLimitedIn} {
		if _, ok := t.counters[f.tap+name]; !ok {
			t.AddObj(&nftables.NamedObj{Table: t.table, Name: f.tap + name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
			t.counters[f.tap+name] = 0
		}
	}
	if err := t.setSources(f); err != nil {
		return err
	}
	for _, c := range []chain{
		{name: f.tap + chainOut, hook: nftables.ChainHookIngress, rules: f.out},
		{name: f.tap + chainIn, hook: nftables.ChainHookEgress, rules: f.in},
	} {
		c.kind, c.priority, c.policy = nftables.ChainTypeFilter, nftables.ChainPriorityFilter, f.policy
		if err := t.setChain(f.tap, c); err != nil {
			return err
		}
	}
	return nil
}

// setSources makes the sets that the rules ask for; package sources fills them.
// Those that they ask for no more go with prune.
func (t *tapTable) setSources(f tapFilter) error {
	if !f.sources {
		return nil
	}
	for _, v4 := range []bool{true, false} {
		s := sources.Set(t.table, f.tap, v4)
		t.wanted = append(t.wanted, s.Name)
		if t.sets[s.Name] {
			continue
		}
		if err := t.AddSet(s, nil); err != nil {
			return fmt.Errorf("add the nftables set %s: %w", s.Name, err)
		}
		t.sets[s.Name] = true
		t.changes = append(t.changes, change("add nftables set "+s.Name))
	}
	return nil
}

func (t *tapTable) setChain(tap string, want chain) error {
	seen, there := t.chains[want.name]
	if there && !chainAlike(want, seen) {
		t.removeChain(want.name)
		there = false
	}
	if there {
		seen.Table = t.table
		rules, err := again(func() ([]*nftables.Rule, error) { return t.GetRules(t.table, seen) })
		if err != nil {
			return fmt.Errorf("list the nftables rules of %s: %w", want.name, err)
		}
		if slices.EqualFunc(want.rules, rules, ruleAlike) {
			return nil
		}
		t.FlushChain(seen)
	} else {
		seen = t.AddChain(&nftables.Chain{Name: want.name, Table: t.table, Hooknum: want.hook, Priority: want.priority,
			Type: want.kind, Policy: &want.policy, Device: tap})
		t.chains[want.name] = seen
	}
	t.changes = append(t.changes, change("set nftables chain "+want.name))
	for _, r := range want.rules {
		t.AddRule(ruleOf(t.table, seen, r))
	}
	return nil
}

func (t *tapTable) removeChain(name string) {
	ch := t.chains[name]
	ch.Table = t.table
	t.FlushChain(ch)
	t.DelChain(ch)
	delete(t.chains, name)
}

// prune takes away what belongs to none of the taps, and the table with the last.
func (t *tapTable) prune(taps []string) {
	if !t.there {
		return
	}
	if len(taps) == 0 {
		t.DelTable(t.table)
		t.there = false
		clear(t.chains)
		clear(t.counters)
		clear(t.sets)
		return
	}
	stray := func(name string) bool {
		return !slices.ContainsFunc(taps, func(tap string) bool { return strings.HasPrefix(name, tap+"-") })
	}
	for name := range t.chains {
		if stray(name) {
			t.removeChain(name)
		}
	}
	for name := range t.sets {
		if !slices.Contains(t.wanted, name) {
			t.DelSet(&nftables.Set{Table: t.table, Name: name})
			delete(t.sets, name)
		}
	}
	for name := range t.counters {
		if stray(name) {
			t.DeleteObject(&nftables.NamedObj{Table: t.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
			delete(t.counters, name)
		}
	}
}

func (t *tapTable) drops(tap string) Drops {
	return Drops{Spoofed: t.counters[tap+counterSpoofed], LimitedOut: t.counters[tap+counterLimitedOut], LimitedIn: t.counters[tap+counterLimitedIn]}
}

// ruleOf is the rule as the kernel takes it.
func ruleOf(table *nftables.Table, ch *nftables.Chain, r rule) *nftables.Rule {
	out := &nftables.Rule{Table: table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment())}
	for _, t := range r {
		out.Exprs = append(out.Exprs, t.exprs...)
	}
	return out
}
