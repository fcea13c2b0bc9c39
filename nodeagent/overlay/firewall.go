package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/nft"
)

// tableName is the nftables table, of family inet, that is ours in every
// namespace that we filter in. No other table is looked at.
const tableName = "rackweft"

// ruleset is what the table should be in one namespace.
type ruleset struct {
	chains []chain
	// vteps are set where UDP 8472 is filtered.
	vteps *vteps
}

type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	policy   nftables.ChainPolicy
	rules    []nft.Rule
}

// icmpError is an error by which a host answers a packet that it cannot take.
type icmpError struct {
	family, protocol, kind byte
	proto, dport           uint32 // where it quotes the packet's protocol and UDP port, from the start of the ICMP header
}

// refusals are the errors of a packet's last host, of ICMP (RFC 792) and of
// ICMPv6 (RFC 4443 §3): destination unreachable, and time exceeded (of fragments).
func refusals() []icmpError {
	const header, inIPv4, inIPv6 = 8, 9, 6
	v4 := icmpError{unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, 3, header + inIPv4, header + 20 + 2}
	v6 := icmpError{unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, 1, header + inIPv6, header + 40 + 2}
	late4, late6 := v4, v6
	late4.kind, late6.kind = 11, 3
	return []icmpError{v4, late4, v6, late6}
}

// aboutVXLAN matches such an error when it quotes a packet for a VTEP.
func aboutVXLAN(e icmpError) nft.Term {
	is := func(offset, size uint32, data ...byte) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
	}
	return nft.Term{Text: fmt.Sprintf("l4proto %d type %d about udp dport %d", e.protocol, e.kind, Port), Exprs: slices.Concat([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, nft.Family(e.family),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{e.protocol}},
	}, is(0, 1, e.kind), is(e.proto, 1, unix.IPPROTO_UDP), is(e.dport, 2, binary.BigEndian.AppendUint16(nil, Port)...))}
}

// vtep is who may send to a VNI.
type vtep struct {
	addr netip.Addr
	vni  uint32
}

// vteps are the elements of the sets vtep4 and vtep6: address and VNI together,
// so that a host cannot send into a Network that it is no member of.
type vteps struct {
	want map[vtep]bool
	// ours says of which VNIs all is known: others are left alone.
	ours func(vni uint32) bool
}

func vtepSet(t *nftables.Table, v6 bool) *nftables.Set {
	name, addr := "vtep4", nftables.TypeIPAddr
	if v6 {
		name, addr = "vtep6", nftables.TypeIP6Addr
	}
	return &nftables.Set{Table: t, Name: name, Concatenation: true, KeyType: nftables.MustConcatSetType(addr, nftables.TypeMark)}
}

// fromVTEP matches a VXLAN packet by its outer source and its VNI (RFC 7348 §5:
// the three octets after flags and reserved ones).
func fromVTEP(v6 bool) nft.Term {
	// The key stands in registers side by side. The kernel tells them by these
	// names: 9 is NFT_REG32_01, behind the first 4 bytes of NFT_REG_1; NFT_REG_2
	// is behind all 16.
	family, offset, size, behind, set := byte(unix.NFPROTO_IPV4), uint32(nft.IPv4Source), uint32(4), uint32(9), "vtep4"
	if v6 {
		family, offset, size, behind, set = unix.NFPROTO_IPV6, nft.IPv6Source, 16, 2, "vtep6"
	}
	const udpHeader, vniOffset = 8, 4
	return nft.Term{Text: "saddr . vni @" + set, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, nft.Family(family),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Payload{DestRegister: behind, Base: expr.PayloadBaseTransportHeader, Offset: udpHeader + vniOffset, Len: 3},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}}
}

func (v vtep) key() []byte {
	b := binary.BigEndian.AppendUint32(v.addr.AsSlice(), v.vni<<8)
	return b
}

func vtepOf(key []byte) (vtep, bool) {
	if len(key) != 8 && len(key) != 20 {
		return vtep{}, false
	}
	addr, _ := netip.AddrFromSlice(key[:len(key)-4])
	return vtep{addr, binary.BigEndian.Uint32(key[len(key)-4:]) >> 8}, true
}

// egressRules are what tenants that leave the host may do.
type egressRules struct {
	networks []network
	underlay string
	uplinks  []string
	closed   []netip.Prefix // where none may go
	transit  []netip.Prefix // that others send to by way of this host, and its underlay
	router   bool           // the host forwards for others, too
}

// hostRules filter in the host's own namespace.
func hostRules(v *vteps, e *egressRules) *ruleset {
	input := chain{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept, rules: []nft.Rule{
			{nft.IIF(egressPrefix + "*"), nft.Drop()},
			{nft.UDP(Port), fromVTEP(false), nft.Accept()},
			{nft.UDP(Port), fromVTEP(true), nft.Accept()},
			{nft.UDP(Port), nft.Drop()},
		}}
	if e == nil {
		return &ruleset{chains: []chain{input}, vteps: v}
	}
	forward := chain{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept, rules: []nft.Rule{
			{nft.IIF(egressPrefix + "*"), nft.UDP(Port), nft.Drop()},
			{nft.IIF(egressPrefix + "*"), nft.OIF(egressPrefix + "*"), nft.Drop()},
			// Egress has no IPv6. It is refused here, too, should the host forward it.
			{nft.IIF(egressPrefix + "*"), nft.IPv6(), nft.Drop()},
		}}
	forward.rules = append(forward.rules, directHostRules(e.networks, e.underlay)...)
	answering, entering := advertisedHostRules(e.networks)
	forward.rules = append(forward.rules, answering...)
	for _, p := range e.closed {
		forward.rules = append(forward.rules, nft.Rule{nft.IIF(egressPrefix + "*"), nft.To(p), nft.Drop()})
	}
	forward.rules = append(forward.rules, entering...)
	forward.rules = append(forward.rules,
		nft.Rule{nft.OIF(egressPrefix + "*"), nft.Answers(), nft.Accept()},
		nft.Rule{nft.OIF(egressPrefix + "*"), nft.Drop()})
	if !e.router {
		// Forwarding is on at the uplinks for the answers' sake, and for what is in
		// transit by the underlay: for nothing else.
		for _, p := range e.transit {
			forward.rules = append(forward.rules, nft.Rule{nft.IIF(e.underlay), nft.OIF(e.underlay), nft.To(p), nft.Accept()})
		}
		for _, name := range e.uplinks {
			forward.rules = append(forward.rules, nft.Rule{nft.IIF(name), nft.NotOIF(egressPrefix + "*"), nft.Drop()})
		}
	}
	nat := chain{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
		priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept, rules: []nft.Rule{
			{nft.From(egressPool()), nft.NotOIF(egressPrefix + "*"), nft.Masquerade()},
		}}
	chains := []chain{input, forward, nat}
	if len(e.transit) > 0 {
		// Who sends by way of this host stays with it: what a redirect would have it
		// remember outlives the route that it is about.
		chains = append(chains, chain{name: "output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput,
			priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept, rules: []nft.Rule{{nft.OIF(e.underlay), nft.Redirect(), nft.Drop()}}})
	}
	return &ruleset{chains: chains, vteps: v}
}

// tenantRules filter in a Network's namespace: what is not named is dropped.
func tenantRules(n network) *ruleset {
	bridge, vxlan := bridgeName(n.vni), vxlanName(n.vni)
	input := chain{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop, rules: []nft.Rule{
			{nft.IIF("lo"), nft.Accept()},
			{nft.ICMP(), nft.Accept()},
			{nft.ICMPv6(), nft.Accept()}, // neighbour discovery and router solicitations, too
			// What guests are served at their gateway: names, config. Their addresses
			// come from packet sockets, before this; what the kernel saw of DHCP it
			// would only refuse.
			{nft.IIF(bridge), nft.UDP(53), nft.Accept()},
			{nft.IIF(bridge), nft.TCP(53), nft.Accept()},
			{nft.IIF(bridge), nft.TCP(80), nft.Accept()},
		}}
	input.rules = append(input.rules, peeringRules(n)...)
	forward := chain{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop, rules: []nft.Rule{
			{nft.UDP(Port), nft.Drop()}, // a guest must not speak to VTEPs
		}}
	let := func(sources []netip.Prefix, terms ...nft.Term) {
		for _, source := range sources {
			forward.rules = append(forward.rules, append(append(nft.Rule{}, terms...), nft.From(source), nft.Accept()))
		}
		if len(n.cidrs) == 0 {
			forward.rules = append(forward.rules, append(append(nft.Rule{}, terms...), nft.Accept()))
		}
	}
	let(n.sources(), nft.IIF(bridge), nft.OIF(vxlan))
	let(n.sources(), nft.IIF(vxlan), nft.OIF(bridge))
	let(n.sources(), nft.IIF(bridge), nft.OIF(bridge))
	chains := []chain{input}
	if n.direct {
		forward.rules = append(forward.rules, directTenantRules(n)...)
	}
	if n.advertise {
		forward.rules = append(forward.rules, advertisedTenantRules(n)...)
	}
	if n.masquerade || n.advertise {
		for _, cidr := range only4(n.sources()) { // what is no lease is nowhere, and not outside
			forward.rules = append(forward.rules, nft.Rule{nft.IIF(bridge), nft.OIF(egressInside), nft.To(cidr), nft.Drop()})
		}
		leaving := slices.Concat(n.cidrs, n.told())
		if n.masquerade { // what guests announce nobody outside may see: there it may be somebody else's
			leaving = n.sources()
		}
		let(leaving, nft.IIF(bridge), nft.OIF(egressInside))
		forward.rules = append(forward.rules, nft.Rule{nft.IIF(egressInside), nft.OIF(bridge), nft.Answers(), nft.Accept()})
	}
	if n.masquerade {
		nat := chain{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
			priority: nftables.ChainPriorityNATSource, policy: nftables.ChainPolicyAccept}
		for _, cidr := range only4(n.cidrs) {
			if n.direct {
				nat.rules = append(nat.rules, nft.Rule{nft.OIF(egressInside), nft.To(cidr), nft.Accept()})
			}
		}
		nat.rules = append(nat.rules, nft.Rule{nft.OIF(egressInside), nft.Masquerade()})
		chains = append(chains, nat)
	}
	forward.rules = append(forward.rules, passageRules(n)...)
	return &ruleset{chains: append(chains, forward)}
}

// filter makes the table in the namespace what want says and reports what it
// changed; no ruleset at all removes it.
func filter(ns netns.NsHandle, want *ruleset) (changes []change, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { err = errors.Join(err, c.CloseLasting()) }()
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list the nftables tables: %w", err)
	}
	there := slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	if want == nil {
		if !there {
			return nil, nil
		}
		c.DelTable(table)
		return []change{"remove nftables table"}, flush(c)
	}
	if !there {
		c.AddTable(table)
		if err := flush(c); err != nil {
			return nil, err
		}
		changes = append(changes, "add nftables table")
	}
	// Elements come before the rules that ask for them.
	if want.vteps != nil {
		set, err := setVTEPs(c, table, *want.vteps)
		changes = append(changes, set...)
		if err != nil {
			return changes, err
		}
	}
	set, err := setChains(c, table, want.chains)
	return append(changes, set...), err
}

// change tells of one, for the log.
type change string

func (c change) String() string { return string(c) }

func flush(c *nftables.Conn) error {
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change the nftables table %s: %w", tableName, err)
	}
	return nil
}

// setChains replaces all chains in one transaction when any differs.
func setChains(c *nftables.Conn, table *nftables.Table, want []chain) ([]change, error) {
	all, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, fmt.Errorf("list the nftables chains: %w", err)
	}
	seen := slices.DeleteFunc(all, func(ch *nftables.Chain) bool { return ch.Table.Name != tableName })
	alike, err := chainsAlike(c, table, want, seen)
	if err != nil || alike {
		return nil, err
	}
	for _, ch := range seen {
		ch.Table = table
		c.FlushChain(ch)
	}
	for _, ch := range seen {
		c.DelChain(ch)
	}
	for _, w := range want {
		ch := c.AddChain(&nftables.Chain{Name: w.name, Table: table, Hooknum: w.hook, Priority: w.priority, Type: w.kind, Policy: &w.policy})
		for _, r := range w.rules {
			c.AddRule(ruleOf(table, ch, r))
		}
	}
	return []change{"replace nftables chains"}, flush(c)
}

func chainsAlike(c *nftables.Conn, table *nftables.Table, want []chain, seen []*nftables.Chain) (bool, error) {
	if len(seen) != len(want) {
		return false, nil
	}
	for _, w := range want {
		i := slices.IndexFunc(seen, func(s *nftables.Chain) bool { return s.Name == w.name })
		if i < 0 || !chainAlike(w, seen[i]) {
			return false, nil
		}
		rules, err := c.GetRules(table, seen[i])
		if err != nil {
			return false, fmt.Errorf("list the nftables rules: %w", err)
		}
		if !slices.EqualFunc(w.rules, rules, ruleAlike) {
			return false, nil
		}
	}
	return true, nil
}

// ruleAlike compares a rule with what the kernel executes, as it says itself.
func ruleAlike(w nft.Rule, s *nftables.Rule) bool {
	comment, _ := userdata.GetString(s.UserData, userdata.TypeComment)
	if comment != w.Comment() {
		return false
	}
	i := 0
	for _, t := range w {
		for _, e := range t.Exprs {
			if i == len(s.Exprs) || !reflect.DeepEqual(e, s.Exprs[i]) {
				return false
			}
			i++
		}
	}
	return i == len(s.Exprs)
}

func chainAlike(w chain, s *nftables.Chain) bool {
	return s.Hooknum != nil && *s.Hooknum == *w.hook && s.Priority != nil && *s.Priority == *w.priority &&
		s.Type == w.kind && s.Policy != nil && *s.Policy == w.policy
}

// setVTEPs makes the sets' elements those that are wanted.
func setVTEPs(c *nftables.Conn, table *nftables.Table, v vteps) ([]change, error) {
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list the nftables sets: %w", err)
	}
	var changes []change
	for _, v6 := range []bool{false, true} {
		set := vtepSet(table, v6)
		var seen []nftables.SetElement
		if slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == set.Name }) {
			if seen, err = c.GetSetElements(set); err != nil {
				return changes, fmt.Errorf("list the nftables set %s: %w", set.Name, err)
			}
		} else {
			if err := c.AddSet(set, nil); err != nil {
				return changes, fmt.Errorf("add the nftables set %s: %w", set.Name, err)
			}
			if err := flush(c); err != nil {
				return changes, err
			}
		}
		add, del := diffVTEPs(v, seen, v6)
		changes = append(changes, slices.Repeat([]change{"add VTEP"}, len(add))...)
		changes = append(changes, slices.Repeat([]change{"remove VTEP"}, len(del))...)
		if err := errors.Join(inChunks(c, set, add, c.SetAddElements), inChunks(c, set, del, c.SetDeleteElements)); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

func diffVTEPs(v vteps, seen []nftables.SetElement, v6 bool) (add, del []nftables.SetElement) {
	there := map[vtep]bool{}
	for _, e := range seen {
		have, ok := vtepOf(e.Key)
		there[have] = ok
		if ok && !v.want[have] && v.ours(have.vni) {
			del = append(del, nftables.SetElement{Key: e.Key})
		}
	}
	for w := range v.want {
		if w.addr.Is6() == v6 && !there[w] {
			add = append(add, nftables.SetElement{Key: w.key()})
		}
	}
	slices.SortFunc(add, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	return add, del
}

// inChunks keeps each message within the 64 KiB that an attribute may have,
// and each transaction within the socket's buffer.
func inChunks(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement, do func(*nftables.Set, []nftables.SetElement) error) error {
	for part := range slices.Chunk(elements, 1000) {
		if err := do(set, part); err != nil {
			return fmt.Errorf("change the nftables set %s: %w", set.Name, err)
		}
		if err := flush(c); err != nil {
			return err
		}
	}
	return nil
}
