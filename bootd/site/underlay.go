// Package site answers questions about the objects of a Site that several rooms ask: each is answered once, here.
package site

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Underlay is the network that carries a host's tenant traffic.
type Underlay struct {
	// Addresses are the host's own, IPv4 first: those that its spec pins, or else the reported ones that lie in the
	// Subnet and belong to no other.
	Addresses []netip.Addr
	// Fault says why a reported address is not accepted as the host's own.
	Fault string
}

// Link is a Machine's first link on a production Subnet, which carries its tenant traffic; the Subnet is nil when
// there is none.
func Link(c *store.Cache, m *api.Machine) (api.Link, *api.Subnet) {
	for _, l := range m.Spec.Links {
		if s, ok := store.Cached[api.Subnet](c, l.Subnet); ok && s.Spec.Purpose == api.Production {
			return l, s
		}
	}
	return api.Link{}, nil
}

// Claims returns the addresses that a Machine's spec pins on its underlay, or else those that its host reports
// there, without checking whether they are its own. IPv4 comes first.
func Claims(c *store.Cache, m *api.Machine) (addrs []netip.Addr, pinned bool) {
	link, s := Link(c, m)
	switch {
	case s == nil:
		return nil, false
	case len(link.Addresses) > 0:
		addrs, pinned = slices.Clone(link.Addresses), true
	case m.Status.Host != nil:
		addrs = reported(m.Status.Host, link.Name)
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return addrs, pinned
}

func reported(h *api.HostStatus, link string) (addrs []netip.Addr) {
	for _, nic := range h.NICs {
		if nic.Name != link {
			continue
		}
		for _, p := range nic.Addresses {
			if a := p.Addr(); a.IsGlobalUnicast() && !a.Is4In6() && !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// UnderlayOf returns the underlay of a Machine in the cache.
func UnderlayOf(c *store.Cache, m *api.Machine) Underlay {
	return store.Derived(c, underlaysOf)[m.Metadata.UID]
}

// underlays holds those of all Machines, by uid.
type underlays map[string]Underlay

// underlaysOf gives each address to at most one host. A reported address is not verified: it counts only if it can
// be the host's, and no other has it. An address that two hosts report belongs to neither.
func underlaysOf(c *store.Cache) underlays {
	machines := store.CachedList[api.Machine](c)
	taken, times := takenAddresses(c, machines), map[netip.Addr]int{}
	for _, m := range machines {
		if addrs, pinned := Claims(c, m); !pinned {
			for _, a := range addrs {
				times[a]++
			}
		}
	}
	all := underlays{}
	for _, m := range machines {
		addrs, pinned := Claims(c, m)
		u := Underlay{Addresses: addrs}
		if !pinned {
			_, s := Link(c, m)
			u = believed(s, addrs, taken, times)
		}
		all[m.Metadata.UID] = u
	}
	return all
}

func believed(s *api.Subnet, addrs []netip.Addr, taken map[netip.Addr]string, times map[netip.Addr]int) (u Underlay) {
	for _, a := range addrs {
		_, inside := s.Prefix(a)
		switch {
		case !inside:
		case taken[a] != "":
			u.Fault = fmt.Sprintf("it reports the address %s, which is %s: pin one of its own", a, taken[a])
		case times[a] > 1:
			u.Fault = fmt.Sprintf("it reports the address %s, and so does another Machine: pin each its own", a)
		default:
			u.Addresses = append(u.Addresses, a)
		}
	}
	return u
}

// takenAddresses returns the addresses with a known owner, and that owner.
func takenAddresses(c *store.Cache, machines []*api.Machine) map[netip.Addr]string {
	taken := map[netip.Addr]string{}
	for _, s := range store.CachedList[api.Subnet](c) {
		taken[s.Spec.Gateway] = "the gateway of Subnet " + s.Metadata.Name
	}
	for _, z := range store.CachedList[api.Zone](c) {
		for _, u := range z.Spec.Uplinks {
			taken[u.Address] = "an uplink of Zone " + z.Metadata.Name
		}
	}
	for _, m := range machines {
		for _, l := range m.Spec.Links {
			for _, a := range l.Addresses {
				taken[a] = "pinned by Machine " + m.Metadata.Name
			}
		}
	}
	return taken
}
