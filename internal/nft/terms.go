package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is a list of terms. Its digest is stored as a comment, for readers and
// for a cheap first comparison; the comparison that counts is of the kernel's
// expressions.
type Rule []Term

// Term is a part of a rule, as nft(8) writes it and as the kernel has it.
type Term struct {
	Text  string
	Exprs []expr.Any
}

// Join returns the terms as one.
func Join(terms ...Term) Term {
	var texts []string
	var exprs []expr.Any
	for _, t := range terms {
		texts = append(texts, t.Text)
		exprs = append(exprs, t.Exprs...)
	}
	return Term{strings.Join(texts, " "), exprs}
}

// As returns the term with another text.
func (t Term) As(text string) Term {
	t.Text = text
	return t
}

func (r Rule) comment() string {
	var texts []string
	for _, t := range r {
		texts = append(texts, t.Text)
	}
	sum := sha256.Sum256([]byte(strings.Join(texts, " ")))
	return hex.EncodeToString(sum[:8])
}

// Accept and Drop are final verdicts of a chain.
func Accept() Term { return verdict("accept", expr.VerdictAccept) }
func Drop() Term   { return verdict("drop", expr.VerdictDrop) }

func verdict(text string, kind expr.VerdictKind) Term {
	return Term{text, []expr.Any{&expr.Verdict{Kind: kind}}}
}

// Masquerade translates a connection's source to the address of its outgoing
// interface.
func Masquerade() Term { return Term{"masquerade", []expr.Any{&expr.Masq{}}} }

// IIF and OIF match an interface's name; a trailing * matches any name with
// that prefix.
func IIF(name string) Term { return interfaceTerm("iifname", expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func OIF(name string) Term { return interfaceTerm("oifname", expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }

func NotOIF(name string) Term {
	return interfaceTerm("oifname !=", expr.MetaKeyOIFNAME, expr.CmpOpNeq, name)
}

func interfaceTerm(text string, key expr.MetaKey, op expr.CmpOp, name string) Term {
	data, wild := []byte(name), strings.HasSuffix(name, "*")
	if wild {
		data = data[:len(data)-1]
	} else {
		data = append(data, make([]byte, unix.IFNAMSIZ-len(data))...)
	}
	return Term{text + " " + name, []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}}
}

// Protocol matches by the protocol number of the IP payload.
func Protocol(name string, number byte) Term {
	return Term{"meta l4proto " + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}}
}

// ICMP and ICMPv6 match all messages of the protocol.
func ICMP() Term   { return Protocol("icmp", unix.IPPROTO_ICMP) }
func ICMPv6() Term { return Protocol("ipv6-icmp", unix.IPPROTO_ICMPV6) }

// Redirect matches an ICMP redirect (RFC 792).
func Redirect() Term {
	const typ = 5
	t := ICMP()
	t.Text = "icmp type redirect"
	t.Exprs = append(t.Exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{typ}})
	return t
}

func port(name string, number byte, dport uint16) Term {
	t := Protocol(name, number)
	t.Text = fmt.Sprintf("%s dport %d", name, dport)
	t.Exprs = append(t.Exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, dport)})
	return t
}

// UDP and TCP match by the destination port.
func UDP(dport uint16) Term { return port("udp", unix.IPPROTO_UDP, dport) }
func TCP(dport uint16) Term { return port("tcp", unix.IPPROTO_TCP, dport) }

func family(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}
}

// Offsets of addresses in the headers of IPv4 and IPv6.
const (
	IPv4Source      = 12
	IPv4Destination = 16
	IPv6Source      = 8
	IPv6Destination = 24
)

// From and To match packets by their addresses.
func From(p netip.Prefix) Term { return addressTerm("saddr", IPv4Source, IPv6Source, p) }
func To(p netip.Prefix) Term   { return addressTerm("daddr", IPv4Destination, IPv6Destination, p) }

func addressTerm(text string, offset4, offset6 uint32, p netip.Prefix) Term {
	text, protocol, offset, size := "ip "+text, byte(unix.NFPROTO_IPV4), offset4, uint32(4)
	if p.Addr().Is6() {
		text, protocol, offset, size = "ip6"+text[2:], unix.NFPROTO_IPV6, offset6, 16
	}
	return Term{text + " " + p.String(), append(family(protocol),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask(p), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})}
}

func mask(p netip.Prefix) []byte { return net.CIDRMask(p.Bits(), p.Addr().BitLen()) }

// IPv4 and IPv6 match packets of the family.
func IPv4() Term { return Term{"meta nfproto ipv4", family(unix.NFPROTO_IPV4)} }

func IPv6() Term { return Term{"meta nfproto ipv6", family(unix.NFPROTO_IPV6)} }

// Answers matches packets of connections that were accepted before.
func Answers() Term {
	bits := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	return Term{"ct state established,related", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}}
}

// TowardsOpener matches packets towards the side that opened their connection.
func TowardsOpener() Term {
	const reply = 1 // IP_CT_DIR_REPLY
	return Term{"ct direction reply", []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}}}}
}

// TTL matches IPv4 packets by their time to live.
func TTL(value byte) Term {
	const offset = 8 // in the header of IPv4
	return Term{fmt.Sprintf("ip ttl %d", value), append(family(unix.NFPROTO_IPV4),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}})}
}
