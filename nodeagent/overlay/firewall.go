package overlay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/nft"
)

// tableName is our nftables table in every namespace that we filter. Other tables are
// ignored.
const tableName = "rackweft"

// filterTable filters packets. The taps' frames are filtered in sources.Table.
func filterTable() nft.Table { return nft.Table{Family: nft.INet, Name: tableName} }

// icmpError is an error with which a host answers a packet that it does not accept.
type icmpError struct {
	family         nft.Term
	protocol, kind byte
	proto, dport   uint32 // where it quotes the packet's protocol and UDP port, from the start of the ICMP header
}

// refusals returns the errors of a packet's last host in ICMP (RFC 792) and ICMPv6
// (RFC 4443 §3): destination unreachable, and time exceeded (of fragments).
func refusals() []icmpError {
	const header, inIPv4, inIPv6 = 8, 9, 6
	v4 := icmpError{nft.IPv4(), unix.IPPROTO_ICMP, 3, header + inIPv4, header + 20 + 2}
	v6 := icmpError{nft.IPv6(), unix.IPPROTO_ICMPV6, 1, header + inIPv6, header + 40 + 2}
	late4, late6 := v4, v6
	late4.kind, late6.kind = 11, 3
	return []icmpError{v4, late4, v6, late6}
}

// aboutVXLAN matches such an error when it quotes a packet for a VTEP.
func aboutVXLAN(e icmpError) nft.Term {
	return nft.Join(e.family, nft.Protocol("icmp", e.protocol), nft.InTransport("type", 0, e.kind),
		nft.InTransport("proto", e.proto, unix.IPPROTO_UDP), nft.InTransport("dport", e.dport, binary.BigEndian.AppendUint16(nil, Port)...)).
		As(fmt.Sprintf("l4proto %d type %d about udp dport %d", e.protocol, e.kind, Port))
}

// vtep is an address that may send to a VNI.
type vtep struct {
	addr netip.Addr
	vni  uint32
}

// vteps holds the elements of the sets vtep4 and vtep6: address and VNI together, so
// that a host cannot send into a Network of which it is not a member.
type vteps struct {
	want map[vtep]bool
	// ours holds the VNIs whose peers are all known: others are left alone.
	ours func(vni uint32) bool
}

// sets returns both sets, for the table that uses them.
func (v *vteps) sets() []nft.Set {
	theirs := func(key []byte) bool {
		have, ok := vtepOf(key)
		return !ok || !v.ours(have.vni)
	}
	v4 := nft.Set{Name: vtep4, Key: []nft.Type{nft.IPv4Address, nft.Mark}, Elements: map[string]bool{}, Keep: theirs, Element: "VTEP"}
	v6 := nft.Set{Name: vtep6, Key: []nft.Type{nft.IPv6Address, nft.Mark}, Elements: map[string]bool{}, Keep: theirs, Element: "VTEP"}
	for w := range v.want {
		if w.addr.Is6() {
			v6.Elements[string(w.key())] = true
		} else {
			v4.Elements[string(w.key())] = true
		}
	}
	return []nft.Set{v4, v6}
}

const vtep4, vtep6 = "vtep4", "vtep6"

// fromVTEP matches a VXLAN packet by its outer source and its VNI (RFC 7348 §5:
// the three octets after flags and reserved ones).
func fromVTEP(v6 bool) nft.Term {
	const udpHeader, vniOffset = 8, 4
	vni := nft.TransportField(udpHeader+vniOffset, 3)
	if v6 {
		return nft.Join(nft.IPv6(), nft.InSet(vtep6, nft.NetworkField(nft.IPv6Source, 16), vni)).As("saddr . vni @" + vtep6)
	}
	return nft.Join(nft.IPv4(), nft.InSet(vtep4, nft.NetworkField(nft.IPv4Source, 4), vni)).As("saddr . vni @" + vtep4)
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

// egressRules holds what tenants that leave the host may do.
type egressRules struct {
	networks []network
	underlay string
	uplinks  []string
	closed   []netip.Prefix // where no tenant may send
	transit  []netip.Prefix // to which others send by way of this host, and its underlay
	router   bool           // the host forwards for others, too
}

// hostTable keeps the set in the table that forwardAtUplinks uses.
func hostTable(v *vteps, chains ...nft.Chain) nft.Ruleset {
	return nft.Ruleset{Sets: v.sets(), Chains: chains, Keep: func(name string) bool { return name == forwardingSet }}
}

// hostRules returns the rules of the host's own namespace.
func hostRules(v *vteps, e *egressRules) nft.Ruleset {
	input := nft.Chain{Name: "input", Hook: nft.Input(), Policy: nft.PolicyAccept, Rules: []nft.Rule{
		{nft.IIF(egressPrefix + "*"), nft.Drop()},
		{nft.UDP(Port), fromVTEP(false), nft.Accept()},
		{nft.UDP(Port), fromVTEP(true), nft.Accept()},
		{nft.UDP(Port), nft.Drop()},
	}}
	if e == nil {
		return hostTable(v, input)
	}
	forward := nft.Chain{Name: "forward", Hook: nft.Forward(), Policy: nft.PolicyAccept, Rules: []nft.Rule{
		{nft.IIF(egressPrefix + "*"), nft.UDP(Port), nft.Drop()},
		{nft.IIF(egressPrefix + "*"), nft.OIF(egressPrefix + "*"), nft.Drop()},
		// Egress has no IPv6. It is refused here, too, should the host forward it.
		{nft.IIF(egressPrefix + "*"), nft.IPv6(), nft.Drop()},
	}}
	forward.Rules = append(forward.Rules, directHostRules(e.networks, e.underlay)...)
	answering, entering := advertisedHostRules(e.networks)
	forward.Rules = append(forward.Rules, answering...)
	for _, p := range e.closed {
		forward.Rules = append(forward.Rules, nft.Rule{nft.IIF(egressPrefix + "*"), nft.To(p), nft.Drop()})
	}
	forward.Rules = append(forward.Rules, entering...)
	forward.Rules = append(forward.Rules,
		nft.Rule{nft.OIF(egressPrefix + "*"), nft.Answers(), nft.Accept()},
		nft.Rule{nft.OIF(egressPrefix + "*"), nft.Drop()})
	if !e.router {
		// Forwarding is on at the uplinks only for the answers, and for transit by the
		// underlay.
		for _, p := range e.transit {
			forward.Rules = append(forward.Rules, nft.Rule{nft.IIF(e.underlay), nft.OIF(e.underlay), nft.To(p), nft.Accept()})
		}
		for _, name := range e.uplinks {
			forward.Rules = append(forward.Rules, nft.Rule{nft.IIF(name), nft.NotOIF(egressPrefix + "*"), nft.Drop()})
		}
	}
	nat := nft.Chain{Name: "postrouting", Hook: nft.SourceNAT(), Policy: nft.PolicyAccept, Rules: []nft.Rule{
		{nft.From(egressPool()), nft.NotOIF(egressPrefix + "*"), nft.Masquerade()},
	}}
	chains := []nft.Chain{input, forward, nat}
	if len(e.transit) > 0 {
		// Hosts that send by way of this host must keep doing so: a redirect would
		// outlive the route that it is about.
		chains = append(chains, nft.Chain{Name: "output", Hook: nft.Output(), Policy: nft.PolicyAccept, Rules: []nft.Rule{{nft.OIF(e.underlay), nft.Redirect(), nft.Drop()}}})
	}
	return hostTable(v, chains...)
}

// tenantRules returns the rules of a Network's namespace; all else is dropped.
func tenantRules(n network) nft.Ruleset {
	bridge, vxlan := bridgeName(n.vni), vxlanName(n.vni)
	input := nft.Chain{Name: "input", Hook: nft.Input(), Policy: nft.PolicyDrop, Rules: []nft.Rule{
		{nft.IIF("lo"), nft.Accept()},
		{nft.ICMP(), nft.Accept()},
		{nft.ICMPv6(), nft.Accept()}, // neighbour discovery and router solicitations, too
		// Services for guests at their gateway: DNS and config. DHCP is served by packet
		// sockets, before these rules; the kernel itself would only refuse it.
		{nft.IIF(bridge), nft.UDP(53), nft.Accept()},
		{nft.IIF(bridge), nft.TCP(53), nft.Accept()},
		{nft.IIF(bridge), nft.TCP(80), nft.Accept()},
	}}
	input.Rules = append(input.Rules, peeringRules(n)...)
	forward := nft.Chain{Name: "forward", Hook: nft.Forward(), Policy: nft.PolicyDrop, Rules: []nft.Rule{
		{nft.UDP(Port), nft.Drop()}, // a guest must not speak to VTEPs
	}}
	let := func(sources []netip.Prefix, terms ...nft.Term) {
		for _, source := range sources {
			forward.Rules = append(forward.Rules, append(append(nft.Rule{}, terms...), nft.From(source), nft.Accept()))
		}
		if len(n.cidrs) == 0 {
			forward.Rules = append(forward.Rules, append(append(nft.Rule{}, terms...), nft.Accept()))
		}
	}
	let(n.sources(), nft.IIF(bridge), nft.OIF(vxlan))
	let(n.sources(), nft.IIF(vxlan), nft.OIF(bridge))
	let(n.sources(), nft.IIF(bridge), nft.OIF(bridge))
	chains := []nft.Chain{input}
	if n.direct {
		forward.Rules = append(forward.Rules, directTenantRules(n)...)
	}
	if n.advertise {
		forward.Rules = append(forward.Rules, advertisedTenantRules(n)...)
	}
	if n.masquerade || n.advertise {
		for _, cidr := range only4(n.sources()) { // addresses without a lease must not leave
			forward.Rules = append(forward.Rules, nft.Rule{nft.IIF(bridge), nft.OIF(egressInside), nft.To(cidr), nft.Drop()})
		}
		leaving := slices.Concat(n.cidrs, n.announceable())
		if n.masquerade { // announced prefixes must not leave: outside they may be in use
			leaving = n.sources()
		}
		let(leaving, nft.IIF(bridge), nft.OIF(egressInside))
		forward.Rules = append(forward.Rules, nft.Rule{nft.IIF(egressInside), nft.OIF(bridge), nft.Answers(), nft.Accept()})
	}
	if n.masquerade {
		nat := nft.Chain{Name: "postrouting", Hook: nft.SourceNAT(), Policy: nft.PolicyAccept}
		for _, cidr := range only4(n.cidrs) {
			if n.direct {
				nat.Rules = append(nat.Rules, nft.Rule{nft.OIF(egressInside), nft.To(cidr), nft.Accept()})
			}
		}
		nat.Rules = append(nat.Rules, nft.Rule{nft.OIF(egressInside), nft.Masquerade()})
		chains = append(chains, nat)
	}
	forward.Rules = append(forward.Rules, passageRules(n)...)
	return nft.Ruleset{Chains: append(chains, forward)}
}
