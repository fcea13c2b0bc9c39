package kernel

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Neighbour looks an address up in the kernel's neighbour table. A peer that
// has just received a reply has an entry, because the kernel had to resolve it.
func Neighbour(iface string, addr netip.Addr) (net.HardwareAddr, bool) {
	link, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, false
	}
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := List(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Index, family) })
	if err != nil {
		return nil, false
	}
	for _, n := range list {
		known := n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) == 0 && len(n.HardwareAddr) == 6
		if a, ok := netip.AddrFromSlice(n.IP); ok && known && a.Unmap() == addr {
			return n.HardwareAddr, true
		}
	}
	return nil, false
}
