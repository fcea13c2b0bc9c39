package bootd

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
)

// neighbour looks an address up in the kernel's neighbour table. An entry is
// there for whoever has just sent something: the kernel had to answer.
func neighbour(iface string, addr netip.Addr) (api.MAC, bool) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return "", false
	}
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := kernel.List(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Index, family) })
	if err != nil {
		return "", false
	}
	for _, n := range list {
		known := n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 && len(n.HardwareAddr) == 6
		if a, ok := netip.AddrFromSlice(n.IP); ok && known && a.Unmap() == addr {
			return api.MAC(n.HardwareAddr.String()), true
		}
	}
	return "", false
}

// source is the address that the kernel would use towards a peer. Nothing is
// sent.
func source(peer netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer, 9)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find bootd's address towards %s: %w", peer, err)
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
