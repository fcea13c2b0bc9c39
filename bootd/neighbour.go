package bootd

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
)

// neighbour returns the MAC under which the kernel knows an address.
func neighbour(iface string, addr netip.Addr) (api.MAC, bool) {
	mac, ok := kernel.Neighbour(iface, addr)
	return api.MAC(mac.String()), ok
}

// source returns the address that the kernel would use towards a peer. Nothing is sent.
func source(peer netip.Addr) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer, 9)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find bootd's address towards %s: %w", peer, err)
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
