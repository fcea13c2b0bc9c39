package network

import (
	"cmp"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/inet"
)

// member reports whether a Machine is to have a lease of a Network that it has
// none of yet: every Active host of the Network's Zone.
//
// This is where placement of Guests is to narrow it down, to the hosts that
// have a Guest on the Network.
func member(n *api.Network, m *api.Machine) bool {
	return stays(n, m) && m.Status.Phase == api.PhaseActive
}

// stays reports whether a Machine keeps a lease that it has: over reboots,
// re-provisioning and while it is off. It loses it with its Zone, or when it is
// deleted.
func stays(n *api.Network, m *api.Machine) bool {
	return m.Spec.Zone == n.Spec.Zone
}

// Underlay is where a Machine's tenant traffic is carried: its first link on a
// production Subnet. It is empty when there is none.
func Underlay(c *store.Cache, m *api.Machine) api.Underlay {
	l, s := site.Link(c, m)
	if s == nil {
		return api.Underlay{}
	}
	return api.Underlay{Interface: l.Name, Addresses: l.Addresses, MTU: cmp.Or(l.MTU, s.Spec.MTU)}
}

// VTEP is the address that other hosts reach a host's VTEP by, the first of its
// underlay's. It is the zero Addr when there is none.
func VTEP(c *store.Cache, m *api.Machine) netip.Addr {
	addrs := site.UnderlayOf(c, m).Addresses
	if len(addrs) == 0 {
		return netip.Addr{}
	}
	return addrs[0]
}

const defaultMTU = 1500

// MTU is a Network's on a host: what its underlay, and the encryption of that,
// leave.
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
