// Package loopback manages addresses on lo. Ours have the protocol number of
// our routes (IFA_PROTO, Linux 5.18); others are never changed.
package loopback

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
)

// ifaProto is IFA_PROTO of linux/if_addr.h.
const ifaProto = 11

// address is an address of lo.
type address struct {
	prefix netip.Prefix
	ours   bool
}

// Sync makes want our addresses on lo, in the network namespace of this thread.
// An existing address that is not ours is left and accepted. The error names
// each address that could not be added or removed.
func Sync(want []netip.Addr) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	have, err := list(lo.Index)
	if err != nil {
		return fmt.Errorf("list the addresses of lo: %w", err)
	}
	var faults []error
	for _, a := range have {
		if a.ours && !slices.Contains(want, a.prefix.Addr()) {
			if err := change(unix.RTM_DELADDR, 0, lo.Index, a.prefix); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				faults = append(faults, fmt.Errorf("remove %s from lo: %w", a.prefix.Addr(), err))
			}
		}
	}
	for _, a := range want {
		if slices.ContainsFunc(have, func(h address) bool { return h.prefix.Addr() == a }) {
			continue
		}
		err := change(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, lo.Index, api.HostPrefix(a))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			faults = append(faults, fmt.Errorf("add %s to lo: %w", a, err))
		}
	}
	return errors.Join(faults...)
}

func list(link int) ([]address, error) {
	r := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	messages, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	if err != nil {
		return nil, err
	}
	var out []address
	for _, m := range messages {
		a, on, err := parse(m)
		if err != nil {
			return nil, err
		}
		if on == link {
			out = append(out, a)
		}
	}
	return out, nil
}

// parse parses an RTM_NEWADDR: struct ifaddrmsg and attributes.
func parse(m []byte) (a address, link int, err error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return a, 0, fmt.Errorf("invalid address message of %d bytes", len(m))
	}
	head := nl.DeserializeIfAddrmsg(m)
	padding := make([]byte, -len(m)&(unix.RTA_ALIGNTO-1)) // without it the library panics
	attributes, err := nl.ParseRouteAttr(append(slices.Clip(m), padding...)[unix.SizeofIfAddrmsg:])
	if err != nil {
		return a, 0, fmt.Errorf("invalid address message: %w", err)
	}
	var local, peer netip.Addr
	for _, attribute := range attributes {
		switch attribute.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attribute.Value)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(attribute.Value)
		case ifaProto:
			a.ours = len(attribute.Value) == 1 && attribute.Value[0] == api.BGPRouteProtocol
		}
	}
	if !local.IsValid() {
		local = peer // IPv6 sends only the peer's address when both are equal
	}
	a.prefix = netip.PrefixFrom(local, int(head.Prefixlen))
	return a, int(head.Index), nil
}

func change(typ, flags, link int, p netip.Prefix) error {
	r := nl.NewNetlinkRequest(typ, flags|unix.NLM_F_ACK)
	m := nl.NewIfAddrmsg(unix.AF_INET6)
	if p.Addr().Is4() {
		m.Family = unix.AF_INET
	}
	m.Index, m.Prefixlen, m.IfAddrmsg.Flags = uint32(link), uint8(p.Bits()), unix.IFA_F_NODAD
	r.AddData(m)
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
	if typ == unix.RTM_NEWADDR {
		r.AddData(nl.NewRtAttr(ifaProto, []byte{api.BGPRouteProtocol}))
	}
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
