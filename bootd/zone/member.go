package zone

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/store"
)

// DrainAnnotation on a Machine asks its neighbours for any other path than
// through it (RFC 8326), and keeps it from being a reflector.
const DrainAnnotation = "rackweft/bgp-drain"

// Draining reports whether a host is to be left by traffic.
func Draining(m *api.Machine) bool {
	return m.Metadata.Annotations[DrainAnnotation] == "true" || m.Spec.State != api.StateActive || m.Status.Phase == api.PhaseDraining
}

// Member is a Machine of a Zone as its speakers see it.
type Member struct {
	Machine *api.Machine
	// Addresses are of its underlay: one IPv4, and one IPv6 where it has one.
	Addresses []netip.Addr
	Subnet    *api.Subnet
	// Fault says why it takes no part in BGP; it has no Addresses then.
	Fault string
}

// V4 is the address that sessions run over.
func (m Member) V4() netip.Addr { return m.Addresses[0] }

// Members lists the Machines of a Zone, by name. They are shared, and must not
// be changed.
func (p *Parts) Members(zone string) []Member { return store.Derived(p.Cache, membersOf)[zone] }

// members are those of each Zone.
type members map[string][]Member

// membersOf finds the members of all Zones. An address that a host merely
// reports is its word alone: it counts only where it could be the host's, and
// nobody else has or reports it.
func membersOf(cache *store.Cache) members {
	machines := store.CachedList[api.Machine](cache)
	taken := takenAddresses(cache, machines)
	reported := map[netip.Addr]int{}
	for _, m := range machines {
		if _, s := underlay(cache, m); s != nil {
			for _, a := range reportedAddresses(cache, m) {
				reported[a]++
			}
		}
	}
	zones := members{}
	for _, m := range machines {
		if m.Spec.Zone == "" || m.Metadata.DeletionTimestamp != nil || m.Metadata.Labels[api.DiscoveredLabel] == "true" {
			continue
		}
		member := Member{Machine: m}
		link, s := underlay(cache, m)
		member.Subnet = s
		switch {
		case s == nil:
			member.Fault = "it has no link on a production Subnet of Zone " + m.Spec.Zone
		case s.Spec.Zone != m.Spec.Zone:
			member.Fault = fmt.Sprintf("its link %s is on Subnet %s of Zone %s", link.Name, s.Metadata.Name, s.Spec.Zone)
		case len(link.Addresses) > 0:
			member.Addresses = oneOfEach(link.Addresses)
		default:
			member.Addresses, member.Fault = usable(s, reportedAddresses(cache, m), taken, reported)
		}
		if member.Fault == "" && (len(member.Addresses) == 0 || !member.Addresses[0].Is4()) {
			member.Addresses, member.Fault = nil, fmt.Sprintf("its link %s has no IPv4 address: pin one out of Subnet %s", link.Name, s.Metadata.Name)
		}
		zones[m.Spec.Zone] = append(zones[m.Spec.Zone], member)
	}
	return zones
}

// underlay is a Machine's first link on a production Subnet, as
// network.Underlay finds it.
func underlay(cache *store.Cache, m *api.Machine) (api.Link, *api.Subnet) {
	for _, l := range m.Spec.Links {
		if s, ok := store.Cached[api.Subnet](cache, l.Subnet); ok && s.Spec.Purpose == api.Production {
			return l, s
		}
	}
	return api.Link{}, nil
}

// reportedAddresses are those that a host says are on its underlay.
func reportedAddresses(cache *store.Cache, m *api.Machine) []netip.Addr {
	u := network.Underlay(cache, m)
	if m.Status.Host == nil || u.Interface == "" || len(u.Addresses) > 0 {
		return nil
	}
	var list []netip.Addr
	for _, nic := range m.Status.Host.NICs {
		if nic.Name != u.Interface {
			continue
		}
		for _, p := range nic.Addresses {
			if a := p.Addr(); a.IsGlobalUnicast() && !a.Is4In6() && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
	}
	return list
}

// takenAddresses are those that something in particular has.
func takenAddresses(cache *store.Cache, machines []*api.Machine) map[netip.Addr]string {
	taken := map[netip.Addr]string{}
	for _, s := range store.CachedList[api.Subnet](cache) {
		taken[s.Spec.Gateway] = "the gateway of Subnet " + s.Metadata.Name
	}
	for _, z := range store.CachedList[api.Zone](cache) {
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

func usable(s *api.Subnet, reported []netip.Addr, taken map[netip.Addr]string, times map[netip.Addr]int) ([]netip.Addr, string) {
	var good []netip.Addr
	fault := ""
	for _, a := range reported {
		_, inside := s.Prefix(a)
		switch {
		case !inside:
		case taken[a] != "":
			fault = fmt.Sprintf("it reports the address %s, which is %s: pin one of its own", a, taken[a])
		case times[a] > 1:
			fault = fmt.Sprintf("it reports the address %s, and so does another Machine: pin each its own", a)
		default:
			good = append(good, a)
		}
	}
	if good = oneOfEach(good); len(good) > 0 && good[0].Is4() {
		return good, ""
	}
	return nil, fault
}

// oneOfEach is the first address of each family, IPv4 first.
func oneOfEach(list []netip.Addr) []netip.Addr {
	var both []netip.Addr
	for _, is4 := range []bool{true, false} {
		if i := slices.IndexFunc(list, func(a netip.Addr) bool { return a.Is4() == is4 && !a.IsLinkLocalUnicast() }); i >= 0 {
			both = append(both, list[i])
		}
	}
	return both
}
