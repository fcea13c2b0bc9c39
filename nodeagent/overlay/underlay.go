package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/nodeagent/wireguard"
)

// findUnderlay reads the present state of the underlay.
func findUnderlay(host place, want api.Underlay) (underlay, error) {
	none := underlay{encrypted: want.Encryption != nil}
	if want.Interface == "" && len(want.Addresses) == 0 {
		return none, errors.New("the host's underlay is not known: give the Machine a link in a production Subnet")
	}
	links, err := kernel.List(host.LinkList)
	if err != nil {
		return none, fmt.Errorf("list the host's links: %w", err)
	}
	for _, l := range links {
		if want.Interface != "" && l.Attrs().Name != want.Interface {
			continue
		}
		u, err := seeUnderlay(host, l, want)
		if err != nil {
			return none, err
		}
		u.encrypted = none.encrypted
		u.sealed = slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == wireguard.Name })
		if want.Interface != "" || len(u.addresses) > 0 {
			return u, upAndAddressed(l, u, want)
		}
	}
	if want.Interface == "" {
		return none, fmt.Errorf("no interface of the host has %s", want.Addresses[0])
	}
	return none, fmt.Errorf("underlay %s: no such interface", want.Interface)
}

func seeUnderlay(host place, l netlink.Link, want api.Underlay) (underlay, error) {
	u := underlay{name: l.Attrs().Name, index: l.Attrs().Index, mtu: l.Attrs().MTU, closed: want.Closed, transit: want.Transit}
	addrs, err := kernel.List(func() ([]netlink.Addr, error) { return host.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return u, fmt.Errorf("list the addresses of %s: %w", u.name, err)
	}
	for _, a := range addrs {
		bits, _ := a.Mask.Size()
		u.connected = append(u.connected, netip.PrefixFrom(toAddr(a.IP), bits).Masked())
	}
	for _, w := range want.Addresses {
		if slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return toAddr(a.IP) == w }) {
			u.addresses = append(u.addresses, w)
		}
	}
	return u, nil
}

func upAndAddressed(l netlink.Link, u underlay, want api.Underlay) error {
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("underlay %s: the interface is down", u.name)
	}
	if len(u.addresses) == 0 {
		return fmt.Errorf("underlay %s: the interface lacks the host's addresses %s; see the host's network units", u.name, want.Addresses)
	}
	return nil
}
