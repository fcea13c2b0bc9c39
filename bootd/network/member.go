package network

import (
	"cmp"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/inet"
)

// member reports whether a Machine without a lease of a Network should get one: every Active host of the
// Network's Zone.
//
// Placement of Guests could restrict it here to the hosts that have a Guest on the Network.
func member(n *api.Network, m *api.Machine) bool {
	return stays(n, m) && m.Status.Phase == api.PhaseActive
}

// stays reports whether a Machine keeps its lease: through reboots, re-provisioning and while it is off. It loses
// it when it leaves the Zone or is deleted.
func stays(n *api.Network, m *api.Machine) bool {
	return m.Spec.Zone == n.Spec.Zone
}

// Underlay is the link that carries a Machine's tenant traffic: its first one on a production Subnet. It is empty
// when there is none.
func Underlay(c *store.Cache, m *api.Machine) api.Underlay {
	l, s := site.Link(c, m)
	if s == nil {
		return api.Underlay{}
	}
	return api.Underlay{Interface: l.Name, Addresses: l.Addresses, MTU: cmp.Or(l.MTU, s.Spec.MTU)}
}

// VTEP is the address at which other hosts reach a host's VTEP, the first of its underlay. It is the zero Addr
// when there is none.
func VTEP(c *store.Cache, m *api.Machine) netip.Addr {
	addrs := site.UnderlayOf(c, m).Addresses
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	return addrs[0]
}

const defaultMTU = 1500

// MTU is a Network's MTU on a host: what its underlay's MTU and encryption leave.
func MTU(u api.Underlay, vtep netip.Addr) int {
	mtu := u.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	mtu -= inet.VXLANOverhead(vtep)
	if u.Encryption != nil {
		mtu -= inet.WireGuardOverhead(vtep)
	}
	return mtu
}
