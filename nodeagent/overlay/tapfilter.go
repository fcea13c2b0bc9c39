package overlay

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/bgp/sources"
	"github.com/rackweft/rackweft/internal/nft"
)

// A guest's tap is filtered at the device itself, in a table of family netdev: at its
// ingress before anything else sees a frame (frames to 01:80:c2:00:00:0x bypass a
// bridge's filters), and at its egress. Two chains, <tap>-out and <tap>-in, drop what
// no rule accepts; without rules they drop everything. Rules are replaced within the
// chains, in one transaction, so that the filter neither opens nor drops packets
// meanwhile.

// Chains and counters of a tap begin with its name.
const (
	chainOut          = "-out" // packets from the guest
	chainIn           = "-in"  // packets to the guest
	counterSpoofed    = "-spoofed"
	counterLimitedOut = "-limited-out"
	counterLimitedIn  = "-limited-in"
)

// tapFilter is the desired filter of one tap.
type tapFilter struct {
	tap     string
	out, in []nft.Rule
	policy  nft.Policy // for packets that no rule decides
	sources bool       // the guest may send from the prefixes that it announces
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
)

// limitBurst is accepted at once in addition to a second's worth: one frame of the
// size that a guest with segmentation offload sends.
const limitBurst = 1 << 16

// limitMost and greater limits are no limit: the kernel's arithmetic would overflow.
const limitMost = 1e10

func linkLocal() netip.Prefix { return netip.MustParsePrefix("fe80::/10") }

// targetNot matches neighbour discovery about other than the addresses and link-local
// ones.
func targetNot(addresses []netip.Addr) nft.Term {
	t := nft.NotTarget(linkLocal())
	for _, a := range addresses {
		t = nft.Join(t, nft.NotTarget(whole(a)))
	}
	return t
}

// fromSources matches packets from the prefixes that the guest announces.
func fromSources(tap string, v4 bool) nft.Term {
	set, field := sources.Set(tap, v4).Name, nft.NetworkField(nft.IPv6Source, 16)
	if v4 {
		field = nft.NetworkField(nft.IPv4Source, 4)
	}
	return nft.InSet(set, field).As("saddr @" + set)
}

func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func isLimit(limit int64) bool { return limit > 0 && limit <= limitMost }

// byFamily splits addresses by family.
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

// openTap accepts the guest's own packets, and nothing else.
func openTap(p guestPort) tapFilter {
	return tapFilter{tap: p.tap, out: rulesOut(p), in: rulesIn(p), policy: nft.PolicyDrop, sources: p.peers}
}

// closedTap accepts nothing.
func closedTap(tap string) tapFilter { return tapFilter{tap: tap, policy: nft.PolicyDrop} }

// limitBridge keeps all guests of a Network together within its limits; their own
// filters decide what they may send.
func limitBridge(bridge string, l limits) tapFilter {
	f := tapFilter{tap: bridge, policy: nft.PolicyAccept}
	if isLimit(l.out) {
		f.out = []nft.Rule{{nft.Above(l.out, limitBurst), nft.Counted(bridge + counterLimitedOut), nft.Drop()}}
	}
	if isLimit(l.in) {
		f.in = []nft.Rule{{nft.Above(l.in, limitBurst), nft.Counted(bridge + counterLimitedIn), nft.Drop()}}
	}
	return f
}

// rulesOut returns the rules for packets from the guest.
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
	// Most packets match here, after three comparisons.
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
	refuse(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpAnswer), nft.Target(whole(gateway)))
	refuse(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpAnswer), targetNot(addresses))
	for _, a := range addresses {
		let(nft.Ether(etherIPv6), nft.IPv6From(whole(a)))
	}
	// Link-local packets go no further than the gateway.
	let(nft.Ether(etherIPv6), nft.IPv6From(linkLocal()), nft.IPv6To(linkLocal()))
	let(nft.Ether(etherIPv6), nft.IPv6From(linkLocal()), nft.IPv6To(netip.MustParsePrefix("ff02::/16")))
	// A guest that has no address yet (RFC 4862 §5.4.2).
	none := nft.IPv6From(whole(netip.IPv6Unspecified()))
	refuse(nft.Ether(etherIPv6), none, nft.ICMPv6Type(icmpNeighbour), targetNot(addresses))
	for _, kind := range []byte{icmpNeighbour, icmpRouterAsk, icmpMLDv2} {
		let(nft.Ether(etherIPv6), none, nft.ICMPv6Type(kind))
	}
}

// rulesIn returns the rules for packets to the guest: from its gateway, to its own
// addresses.
func rulesIn(p guestPort) []nft.Rule {
	v4, v6 := byFamily(p.addresses)
	rules := []nft.Rule{{nft.EtherSourceNot(gatewayMAC()), nft.Drop()}}
	let := func(terms ...nft.Term) { rules = append(rules, append(terms, nft.Accept())) }
	if isLimit(p.limits.in) {
		rules = append(rules, nft.Rule{nft.EtherTo(p.mac[:]...), nft.Above(p.limits.in, limitBurst), nft.Counted(p.tap + counterLimitedIn), nft.Drop()})
	}
	// Linux cannot stop a router from sending IPv6 redirects. They would make a guest
	// send to its neighbour directly, which no port accepts.
	rules = append(rules, nft.Rule{nft.EtherHeader(p.mac, gatewayMAC(), etherIPv6), nft.ICMPv6Type(icmpRedirect), nft.Drop()})
	let(nft.EtherTo(p.mac[:]...))
	// Packets to all on the link, if they concern this guest.
	for _, a := range v4 {
		let(nft.Ether(etherARP), nft.InHeader("arp target", arpTargetIPv4, a.AsSlice()))
	}
	let(nft.Ether(etherIPv4), nft.UDPFrom(dhcpServer), nft.UDP(dhcpClient), nft.InTransport("chaddr", dhcpHardware, p.mac[:]...))
	let(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpRouter))
	for _, a := range append(slices.Clone(v6), linkLocal().Addr()) {
		about := nft.Target(whole(a))
		if a == linkLocal().Addr() {
			about = nft.Target(linkLocal())
		}
		let(nft.Ether(etherIPv6), nft.ICMPv6Type(icmpNeighbour), about)
	}
	return rules
}

// add puts one tap's filter into the ruleset. Package sources fills the sets that its
// rules use.
func (f tapFilter) add(to *nft.Ruleset) {
	to.Counters = append(to.Counters, f.tap+counterSpoofed, f.tap+counterLimitedOut, f.tap+counterLimitedIn)
	if f.sources {
		to.Sets = append(to.Sets, sources.Set(f.tap, true), sources.Set(f.tap, false))
	}
	to.Chains = append(to.Chains,
		nft.Chain{Name: f.tap + chainOut, Hook: nft.Ingress(f.tap), Policy: f.policy, Rules: f.out},
		nft.Chain{Name: f.tap + chainIn, Hook: nft.Egress(f.tap), Policy: f.policy, Rules: f.in})
}

// dropsOf returns the drops of one tap from all counters.
func dropsOf(tap string, counters map[string]uint64) Drops {
	return Drops{Spoofed: counters[tap+counterSpoofed], LimitedOut: counters[tap+counterLimitedOut], LimitedIn: counters[tap+counterLimitedIn]}
}
