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

// claim is what a Machine has for its underlay: addresses that its spec pins, or else those that its host reports.
type claim struct {
	subnet    *api.Subnet // nil when the Machine has no underlay
	addresses []netip.Addr
	pinned    bool
}

func claimOf(c *store.Cache, m *api.Machine) (cl claim) {
	link, s := Link(c, m)
	switch cl.subnet = s; {
	case s == nil:
		return cl
	case len(link.Addresses) > 0:
		cl.addresses, cl.pinned = slices.Clone(link.Addresses), true
	case m.Status.Host != nil:
		cl.addresses = reported(m.Status.Host, link.Name)
	}
	slices.SortStableFunc(cl.addresses, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return cl
}

// Claims returns the addresses that a Machine's spec pins on its underlay, or else those that its host reports
// there, without checking whether they are its own. IPv4 comes first.
func Claims(c *store.Cache, m *api.Machine) (addrs []netip.Addr, pinned bool) {
	cl := claimOf(c, m)
	return cl.addresses, cl.pinned
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
	claims, times := make([]claim, len(machines)), map[netip.Addr]int{}
	for i, m := range machines {
		claims[i] = claimOf(c, m)
		if !claims[i].pinned {
			for _, a := range claims[i].addresses {
				times[a]++
			}
		}
	}
	var taken map[netip.Addr]string
	if len(times) > 0 {
		taken = takenAddresses(c, machines)
	}
	all := make(underlays, len(machines))
	for i, m := range machines {
		u := Underlay{Addresses: claims[i].addresses}
		if !claims[i].pinned {
			u = believed(claims[i].subnet, claims[i].addresses, taken, times)
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
