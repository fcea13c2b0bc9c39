package nft

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// match compares bytes of a packet with data.
func match(text string, base expr.PayloadBase, offset uint32, op expr.CmpOp, data []byte) Term {
	return Term{fmt.Sprintf("%s %s", text, hex.EncodeToString(data)), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}}
}

// Offsets in the headers of Ethernet, UDP and ICMPv6.
const (
	ethDestination = 0
	ethSource      = 6
	ethType        = 12
	udpSourcePort  = 0
	icmpTarget     = 8 // of neighbour solicitations and advertisements
)

// Ether matches by the EtherType.
func Ether(kind uint16) Term {
	return match("ether type", expr.PayloadBaseLLHeader, ethType, expr.CmpOpEq, []byte{byte(kind >> 8), byte(kind)})
}

// EtherSourceNot matches frames with any other source.
func EtherSourceNot(m [6]byte) Term {
	return match("ether saddr !=", expr.PayloadBaseLLHeader, ethSource, expr.CmpOpNeq, m[:])
}

// EtherTo matches by the first octets of the destination.
func EtherTo(head ...byte) Term {
	return match("ether daddr", expr.PayloadBaseLLHeader, ethDestination, expr.CmpOpEq, head)
}

// EtherHeader matches a complete untagged header in one comparison.
func EtherHeader(to, from [6]byte, kind uint16) Term {
	return match("ether header", expr.PayloadBaseLLHeader, 0, expr.CmpOpEq, slices.Concat(to[:], from[:], []byte{byte(kind >> 8), byte(kind)}))
}

// InHeader and InTransport match octets of the network and the transport header.
func InHeader(text string, offset uint32, data []byte) Term {
	return match(text, expr.PayloadBaseNetworkHeader, offset, expr.CmpOpEq, data)
}

func InTransport(text string, offset uint32, data ...byte) Term {
	return match(text, expr.PayloadBaseTransportHeader, offset, expr.CmpOpEq, data)
}

// ICMPv6Type matches ICMPv6 messages of a type.
func ICMPv6Type(kind byte) Term {
	return Join(Protocol("icmpv6", unix.IPPROTO_ICMPV6), InTransport("type", 0, kind))
}

// UDPFrom matches by the source port.
func UDPFrom(port uint16) Term {
	return Join(Protocol("udp", unix.IPPROTO_UDP), InTransport("sport", udpSourcePort, byte(port>>8), byte(port)))
}

// ipv6Within matches an address at an offset by its prefix, or its complement.
func ipv6Within(text string, base expr.PayloadBase, offset uint32, op expr.CmpOp, p netip.Prefix) Term {
	return Term{fmt.Sprintf("%s %d %s", text, op, p), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: 16},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask(p), Xor: make([]byte, 16)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}}
}

// IPv6From and IPv6To match the addresses of a frame already known to be IPv6.
func IPv6From(p netip.Prefix) Term {
	return ipv6Within("ip6 saddr", expr.PayloadBaseNetworkHeader, IPv6Source, expr.CmpOpEq, p)
}

func IPv6To(p netip.Prefix) Term {
	return ipv6Within("ip6 daddr", expr.PayloadBaseNetworkHeader, IPv6Destination, expr.CmpOpEq, p)
}

// Target and NotTarget match neighbour discovery by its target address (RFC
// 4861 §4.3, §4.4).
func Target(p netip.Prefix) Term {
	return ipv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpEq, p)
}

func NotTarget(p netip.Prefix) Term {
	return ipv6Within("target", expr.PayloadBaseTransportHeader, icmpTarget, expr.CmpOpNeq, p)
}

// Counted counts the packets that have matched so far with a counter of the
// table.
func Counted(name string) Term {
	return Term{"counter name " + name, []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}}
}

// Above matches packets that exceed a rate in bytes per second after a burst.
func Above(limit int64, burst uint32) Term {
	return Term{fmt.Sprintf("limit rate over %d bytes/second burst %d bytes", limit, burst), []expr.Any{
		&expr.Limit{Type: expr.LimitTypePktBytes, Rate: uint64(limit), Unit: expr.LimitTimeSecond, Burst: burst, Over: true}}}
}

// Field is a part of a packet.
type Field struct {
	base        expr.PayloadBase
	offset, len uint32
}

// NetworkField and TransportField are octets of a header.
func NetworkField(offset, octets uint32) Field {
	return Field{expr.PayloadBaseNetworkHeader, offset, octets}
}

func TransportField(offset, octets uint32) Field {
	return Field{expr.PayloadBaseTransportHeader, offset, octets}
}

// InSet matches packets whose fields, concatenated, are a key of the set.
func InSet(set string, fields ...Field) Term {
	var exprs []expr.Any
	word := uint32(0)
	for _, f := range fields {
		exprs = append(exprs, &expr.Payload{DestRegister: register(word), Base: f.base, Offset: f.offset, Len: f.len})
		word += (f.len + 3) / 4
	}
	return Term{"@" + set, append(exprs, &expr.Lookup{SourceRegister: 1, SetName: set})}
}

// register returns the number by which the kernel lists the register that
// starts at a word: those of 16 octets are NFT_REG_1 and up, those of 4
// NFT_REG32_00 and up.
func register(word uint32) uint32 {
	if word%4 == 0 {
		return unix.NFT_REG_1 + word/4
	}
	return unix.NFT_REG32_00 + word
}
