package nft

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Match compares bytes of a packet with data.
func Match(text string, base expr.PayloadBase, offset uint32, op expr.CmpOp, data []byte) Term {
	return Term{fmt.Sprintf("%s %s", text, hex.EncodeToString(data)), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}}
}

// Offsets in the headers of Ethernet and UDP.
const (
	ethDestination = 0
	ethSource      = 6
	ethType        = 12
	udpSourcePort  = 0
)

func Ether(kind uint16) Term {
	return Match("ether type", expr.PayloadBaseLLHeader, ethType, expr.CmpOpEq, []byte{byte(kind >> 8), byte(kind)})
}

func EtherSourceNot(m [6]byte) Term {
	return Match("ether saddr !=", expr.PayloadBaseLLHeader, ethSource, expr.CmpOpNeq, m[:])
}

func EtherTo(head ...byte) Term {
	return Match("ether daddr", expr.PayloadBaseLLHeader, ethDestination, expr.CmpOpEq, head)
}

func EtherHeader(to, from [6]byte, kind uint16) Term {
	return Match("ether header", expr.PayloadBaseLLHeader, 0, expr.CmpOpEq, slices.Concat(to[:], from[:], []byte{byte(kind >> 8), byte(kind)}))
}

func InHeader(text string, offset uint32, data []byte) Term {
	return Match(text, expr.PayloadBaseNetworkHeader, offset, expr.CmpOpEq, data)
}

func InTransport(text string, offset uint32, data ...byte) Term {
	return Match(text, expr.PayloadBaseTransportHeader, offset, expr.CmpOpEq, data)
}

func ICMPv6Type(kind byte) Term {
	t := Protocol("icmpv6", unix.IPPROTO_ICMPV6)
	kindTerm := InTransport("type", 0, kind)
	return Term{t.Text + " " + kindTerm.Text, append(t.Exprs, kindTerm.Exprs...)}
}

func UDPFrom(port uint16) Term {
	t := Protocol("udp", unix.IPPROTO_UDP)
	sport := InTransport("sport", udpSourcePort, byte(port>>8), byte(port))
	return Term{t.Text + " " + sport.Text, append(t.Exprs, sport.Exprs...)}
}

// IPv6Within matches an address in the IPv6 header or behind it, or what is not.
func IPv6Within(text string, base expr.PayloadBase, offset uint32, op expr.CmpOp, p netip.Prefix) Term {
	return Term{fmt.Sprintf("%s %d %s", text, op, p), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: 16},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask(p), Xor: make([]byte, 16)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}}
}

func IPv6From(p netip.Prefix) Term {
	return IPv6Within("ip6 saddr", expr.PayloadBaseNetworkHeader, IPv6Source, expr.CmpOpEq, p)
}

func IPv6To(p netip.Prefix) Term {
	return IPv6Within("ip6 daddr", expr.PayloadBaseNetworkHeader, IPv6Destination, expr.CmpOpEq, p)
}

func Counted(name string) Term {
	return Term{"counter name " + name, []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}}
}

// Above matches packets beyond so many bytes per second; a burst may
// come at once.
func Above(limit int64, burst uint32) Term {
	return Term{fmt.Sprintf("limit rate over %d bytes/second burst %d bytes", limit, burst), []expr.Any{
		&expr.Limit{Type: expr.LimitTypePktBytes, Rate: uint64(limit), Unit: expr.LimitTimeSecond, Burst: burst, Over: true}}}
}
