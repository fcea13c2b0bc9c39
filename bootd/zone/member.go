package zone

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
)

// ShutdownAnnotation on a Machine makes its neighbours prefer any other path (RFC 8326), and prevents that it is
// a reflector.
const ShutdownAnnotation = "rackweft/bgp-drain"

// Draining reports whether traffic should leave a host.
func ShuttingDown(m *api.Machine) bool {
	return m.Metadata.Annotations[ShutdownAnnotation] == "true" || m.Spec.State != api.StateActive || m.Status.Phase == api.PhaseDraining
}

// Member is a Machine of a Zone, as relevant for BGP.
type Member struct {
	Machine *api.Machine
	// Addresses are of its underlay: one IPv4, and one IPv6 where it has one.
	Addresses []netip.Addr
	Subnet    *api.Subnet
	// Fault says why it does not take part in BGP; it has no Addresses then.
	Fault string
}

// V4 is the address of its sessions.
func (m Member) V4() netip.Addr { return m.Addresses[0] }

// Members lists the Machines of a Zone, by name. They are shared, and must not be modified.
func (p *Parts) Members(zone string) []Member { return store.Derived(p.Cache, membersOf)[zone] }

// members are those of each Zone.
type members map[string][]Member

// membersOf finds the members of all Zones.
func membersOf(cache *store.Cache) members {
	zones := members{}
	for _, m := range store.CachedList[api.Machine](cache) {
		if m.Spec.Zone == "" || m.Metadata.DeletionTimestamp != nil || m.Metadata.Labels[api.DiscoveredLabel] == "true" {
			continue
		}
		member := Member{Machine: m}
		link, s := site.Link(cache, m)
		member.Subnet = s
		switch {
		case s == nil:
			member.Fault = "it has no link on a production Subnet of Zone " + m.Spec.Zone
		case s.Spec.Zone != m.Spec.Zone:
			member.Fault = fmt.Sprintf("its link %s is on Subnet %s of Zone %s", link.Name, s.Metadata.Name, s.Spec.Zone)
		default:
			member.Addresses, member.Fault = speaks(site.UnderlayOf(cache, m))
		}
		if member.Fault == "" && len(member.Addresses) == 0 {
			member.Fault = fmt.Sprintf("its link %s has no IPv4 address: pin one from Subnet %s", link.Name, s.Metadata.Name)
		}
		zones[m.Spec.Zone] = append(zones[m.Spec.Zone], member)
	}
	return zones
}

// speaks lists the addresses that a speaker uses; its sessions run over IPv4.
func speaks(u site.Underlay) (addrs []netip.Addr, fault string) {
	if addrs = oneOfEach(u.Addresses); len(addrs) > 0 && addrs[0].Is4() {
		return addrs, ""
	}
	return nil, u.Fault
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
