package overlay

import (
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
	"github.com/rackweft/rackweft/internal/nft"
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
	out, in []nft.Rule
	policy  nftables.ChainPolicy // of what no rule decides
	sources bool                 // the guest may send from what it announces
}

// Of linux/if_ether.h, and of ICMPv6 (RFC 4443, 4861, 3810).
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	icmpMLDQuery  = 130
	icmpRouterAsk = 133
	icmpRouter    = 134
	icmpNeighbour = 135
	icmpAnswer    = 136
	icmpRedirect  = 137
	icmpMLDv2     = 143
	igmpQuery     = 0x11
	dhcpServer    = 67
	dhcpClient    = 68
	dhcpv6Server  = 547
	dhcpHardware  = 8 + 28 // of UDP: chaddr (RFC 2131 §2)
	arpSenderMAC  = 8
	arpSenderIPv4 = 14
	arpTargetIPv4 = 24
	icmpTarget    = 8 // of neighbour solicitations and advertisements
)

// limitBurst is let through at once beside a second's worth: one frame as
// large as a guest with segmentation offload sends.
const limitBurst = 1 << 16

// limitMost is a limit that is none: beyond it the kernel's arithmetic ends.
const limitMost = 1e10

func linkLocal() netip.Prefix { return netip.MustParsePrefix("fe80::/10") }

// targetNot matches neighbour discovery about what is none of the addresses
// and not of the link.
func targetNot(addresses []netip.Addr) nft.Term {
	t := nft.IPv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpNeq, linkLocal())
	for _, a := range addresses {
		not := nft.IPv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpNeq, whole(a))
		t.Text += " " + not.Text
		t.Exprs = append(t.Exprs, not.Exprs...)
	}
	return t
}

func target(a netip.Addr) nft.Term {
	return nft.IPv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpEq, whole(a))
}

// fromSources matches what comes from where the guest announces to be.
func fromSources(tap string, v4 bool) nft.Term {
	set, offset, size := sources.Set(nil, tap, v4).Name, uint32(nft.IPv6Source), uint32(16)
	if v4 {
		offset, size = nft.IPv4Source, 4
	}
	return nft.Term{Text: "saddr @" + set, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}}
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

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
		f.out = []nft.Rule{{nft.Above(l.out, limitBurst), nft.Counted(bridge + counterLimitedOut), nft.Drop()}}
	}
	if isLimit(l.in) {
		f.in = []nft.Rule{{nft.Above(l.in, limitBurst), nft.Counted(bridge + counterLimitedIn), nft.Drop()}}
	}
	return f
}

// rulesOut are for what the guest sends.
func rulesOut(p guestPort) []nft.Rule {
	v4, v6 := byFamily(p.addresses)
	var rules []nft.Rule
	let := func(terms ...nft.Term) { rules = append(rules, append(terms, nft.Accept())) }
	refuse := func(terms ...nft.Term) {
		rules = append(rules, append(terms, nft.Counted(p.tap+counterSpoofed), nft.Drop()))
	}

	if isLimit(p.limits.out) {
		rules = append(rules, nft.Rule{nft.Above(p.limits.out, limitBurst), nft.Counted(p.tap + counterLimitedOut), nft.Drop()})
	}
	// Most of all packets are done with here: three comparisons for each.
	for _, a := range v4 {
		let(nft.EtherHeader(gatewayMAC(), p.mac, etherIPv4), nft.InHeader("ip saddr", nft.IPv4Source, a.AsSlice()), nft.Protocol("tcp", unix.IPPROTO_TCP))
	}
	for _, a := range v6 {
		let(nft.EtherHeader(gatewayMAC(), p.mac, etherIPv6), nft.IPv6From(whole(a)), nft.Protocol("tcp", unix.IPPROTO_TCP))
	}
	refuse(nft.EtherSourceNot(p.mac))
	refuse(nft.EtherTo(0x01, 0x80, 0xc2, 0, 0)) // past the bridge (IEEE 802.1D, 7.12.6)
	refuse(nft.UDP(Port))
	refuse(nft.Ether(etherIPv4), nft.UDPFrom(dhcpServer))
	refuse(nft.Ether(etherIPv4), nft.Protocol("igmp", unix.IPPROTO_IGMP), nft.InTransport("type", 0, igmpQuery))
	for _, a := range v4 {
		let(nft.Ether(etherIPv4), nft.InHeader("ip saddr", nft.IPv4Source, a.AsSlice()))
	}
	if p.peers {
		let(nft.Ether(etherIPv4), fromSources(p.tap, true))
		let(nft.Ether(etherIPv6), fromSources(p.tap, false))
	}
	let(nft.Ether(etherIPv4), nft.InHeader("ip saddr", nft.IPv4Source, make([]byte, 4)), nft.UDPFrom(dhcpClient), nft.UDP(dhcpServer))

	// Ethernet and IPv4 (RFC 826); the sender of a probe has no address yet (RFC 5227).
	for _, a := range append(slices.Clone(v4), netip.IPv4Unspecified()) {
		let(nft.Ether(etherARP), nft.InHeader("arp header", 0, []byte{0, 1, 8, 0, 6, 4}),
			nft.InHeader("arp sender", arpSenderMAC, append(slices.Clone(p.mac[:]), a.AsSlice()...)))
	}
	rules6Out(v6, let, refuse)
	refuse()
	return rules
}

func rules6Out(addresses []netip.Addr, let, refuse func(...nft.Term)) {
	refuse(nft.Ether(etherIPv6), nft.UDPFrom(dhcpv6Server))
	for _, routers := range []byte{icmpRouter, icmpRedirect, icmpMLDQuery} {
		refuse(nft.Ether(etherIPv6), nft.ICMPv6Type(routers))
	}
	gateway := gatewayAddress6().Addr()
	refuse(nft.Ether(etherIPv6), nft.IPv6From(whole(gateway)))
	refuse(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpAnswer), target(gateway))
	refuse(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpAnswer), targetNot(addresses))
	for _, a := range addresses {
		let(nft.Ether(etherIPv6), nft.IPv6From(whole(a)))
	}
	// What is of the link goes no further than the gateway.
	let(nft.Ether(etherIPv6), nft.IPv6From(linkLocal()), nft.IPv6To(linkLocal()))
	let(nft.Ether(etherIPv6), nft.IPv6From(linkLocal()), nft.IPv6To(netip.MustParsePrefix("ff02::/16")))
	// A guest that has no address yet (RFC 4862 §5.4.2).
	none := nft.IPv6From(whole(netip.IPv6Unspecified()))
	refuse(nft.Ether(etherIPv6), none, nft.ICMPv6Type(icmpNeighbour), targetNot(addresses))
	for _, kind := range []byte{icmpNeighbour, icmpRouterAsk, icmpMLDv2} {
		let(nft.Ether(etherIPv6), none, nft.ICMPv6Type(kind))
	}
}

// rulesIn are for what the guest is sent: by its gateway, for itself.
func rulesIn(p guestPort) []nft.Rule {
	v4, v6 := byFamily(p.addresses)
	rules := []nft.Rule{{nft.EtherSourceNot(gatewayMAC()), nft.Drop()}}
	let := func(terms ...nft.Term) { rules = append(rules, append(terms, nft.Accept())) }
	if isLimit(p.limits.in) {
		rules = append(rules, nft.Rule{nft.EtherTo(p.mac[:]...), nft.Above(p.limits.in, limitBurst), nft.Counted(p.tap + counterLimitedIn), nft.Drop()})
	}
	// Linux has no way to keep a router from sending IPv6 redirects: a guest would
	// be told to send to its neighbour itself, which no port lets it do.
	rules = append(rules, nft.Rule{nft.EtherHeader(p.mac, gatewayMAC(), etherIPv6), nft.ICMPv6Type(icmpRedirect), nft.Drop()})
	let(nft.EtherTo(p.mac[:]...))
	// What goes to all on the link, if it is about this guest.
	for _, a := range v4 {
		let(nft.Ether(etherARP), nft.InHeader("arp target", arpTargetIPv4, a.AsSlice()))
	}
	let(nft.Ether(etherIPv4), nft.UDPFrom(dhcpServer), nft.UDP(dhcpClient), nft.InTransport("chaddr", dhcpHardware, p.mac[:]...))
	let(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpRouter))
	for _, a := range append(slices.Clone(v6), linkLocal().Addr()) {
		about := target(a)
		if a == linkLocal().Addr() {
			about = nft.IPv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpEq, linkLocal())
		}
		let(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpNeighbour), about)
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
	tables, err := t.ListTablesOfFamily(t.table.Family)
	if err != nil {
		return fmt.Errorf("list the nftables tables: %w", err)
	}
	t.there = slices.ContainsFunc(tables, func(s *nftables.Table) bool { return s.Name == tableName })
	if !t.there {
		return nil
	}
	chains, err := t.ListChainsOfTableFamily(t.table.Family)
	if err != nil {
		return fmt.Errorf("list the nftables chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == tableName {
			t.chains[ch.Name] = ch
		}
	}
	sets, err := t.GetSets(t.table)
	if err != nil {
		return fmt.Errorf("list the nftables sets: %w", err)
	}
	for _, s := range sets {
		if sources.IsSet(s.Name) {
			t.sets[s.Name] = true
		}
	}
	objects, err := t.GetNamedObjects(t.table)
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
		rules, err := t.GetRules(t.table, seen)
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
func ruleOf(table *nftables.Table, ch *nftables.Chain, r nft.Rule) *nftables.Rule {
	out := &nftables.Rule{Table: table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment, r.Comment())}
	for _, t := range r {
		out.Exprs = append(out.Exprs, t.Exprs...)
	}
	return out
}
