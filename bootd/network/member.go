package network

import (
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
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
	for _, l := range m.Spec.Links {
		s, ok := store.Cached[api.Subnet](c, l.Subnet)
		if !ok || s.Spec.Purpose != api.Production {
			continue
		}
		u := api.Underlay{Interface: l.Name, Addresses: l.Addresses, MTU: l.MTU}
		if u.MTU == 0 {
			u.MTU = s.Spec.MTU
		}
		return u
	}
	return api.Underlay{}
}

// VTEP is the address that other hosts reach a host's VTEP by: the first that
// its production link is pinned to, or else that the host reports there. IPv4
// comes first. It is the zero Addr when there is none.
func VTEP(c *store.Cache, m *api.Machine) netip.Addr {
	u := Underlay(c, m)
	addrs := u.Addresses
	if len(addrs) == 0 && m.Status.Host != nil {
		for _, nic := range m.Status.Host.NICs {
			if nic.Name != u.Interface || u.Interface == "" {
				continue
			}
			for _, p := range nic.Addresses {
				if a := p.Addr(); !a.IsLinkLocalUnicast() {
					addrs = append(addrs, a)
				}
			}
		}
	}
	var found netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			return a
		}
		if !found.IsValid() {
			found = a
		}
	}
	return found
}

const (
	defaultMTU = 1500
	overheadV4 = 50 // outer IPv4, UDP, VXLAN and the inner Ethernet header
	overheadV6 = 70
)

// MTU is a Network's on a host: what its underlay leaves.
func MTU(u api.Underlay, vtep netip.Addr) int {
	mtu := u.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	if vtep.Is6() {
		return mtu - overheadV6
	}
	return mtu - overheadV4
}
