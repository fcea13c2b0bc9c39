// Package site owns what follows from the objects of a Site for more than one
// room: each question is answered here once.
package site

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Underlay is what carries a host's tenant traffic.
type Underlay struct {
	// Addresses are the host's own, IPv4 first: those that its spec pins, or else
	// those that it reports, as far as they lie in the Subnet and are no one else's.
	Addresses []netip.Addr
	// Fault says why an address that it reports is not taken for its own.
	Fault string
}

// Link is a Machine's first link on a production Subnet, which carries its
// tenant traffic; the Subnet is nil when there is none.
func Link(c *store.Cache, m *api.Machine) (api.Link, *api.Subnet) {
	for _, l := range m.Spec.Links {
		if s, ok := store.Cached[api.Subnet](c, l.Subnet); ok && s.Spec.Purpose == api.Production {
			return l, s
		}
	}
	return api.Link{}, nil
}

// Claims are the addresses that a Machine's spec pins on its underlay, or else
// that its host reports there, whosever they are. IPv4 comes first.
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

// UnderlayOf is a Machine's underlay, as the cache has the Machine.
func UnderlayOf(c *store.Cache, m *api.Machine) Underlay {
	return store.Derived(c, underlaysOf)[m.Metadata.UID]
}

// underlays are those of all Machines, by uid.
type underlays map[string]Underlay

// underlaysOf gives each address to one host. What a host reports is its word
// alone: it counts only where it could be the host's, and no one else has it. One
// that two hosts report is neither's.
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

// takenAddresses are those that something in particular has.
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
