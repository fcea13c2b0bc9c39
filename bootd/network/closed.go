package network

import (
	"net/netip"
	"net/url"
	"slices"

	"go4.org/netipx"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Closed lists the prefixes that no tenant may reach: those of every Subnet of the Site, and every BMC outside of
// them, with neighbouring BMCs in one prefix, because every host gets the list. It is sorted.
func Closed(c *store.Cache) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range store.CachedList[api.Subnet](c) {
		list = append(list, s.Spec.Prefixes...)
	}
	var bmcs netipx.IPSetBuilder
	for _, m := range store.CachedList[api.Machine](c) {
		if a, ok := bmcAddress(m); ok && !slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) }) {
			bmcs.Add(a)
		}
	}
	set, _ := bmcs.IPSet() // it refuses invalid addresses, of which there are none
	list = append(list, set.Prefixes()...)
	slices.SortFunc(list, comparePrefix)
	return slices.Compact(list)
}

// ClosedChanges reports whether a change of a Machine may change Closed.
func ClosedChanges(c *store.Cache, old, now *api.Machine) bool {
	was, _ := bmcAddress(old)
	is, _ := bmcAddress(now)
	inside := func(a netip.Addr) bool {
		return !a.IsValid() || slices.ContainsFunc(store.CachedList[api.Subnet](c), func(s *api.Subnet) bool { _, ok := s.Prefix(a); return ok })
	}
	return was != is && !(inside(was) && inside(is))
}

// bmcAddress returns false for a BMC with a name instead of an address.
func bmcAddress(m *api.Machine) (netip.Addr, bool) {
	if m == nil || m.Spec.BMC == nil {
		return netip.Addr{}, false
	}
	u, err := url.Parse(m.Spec.BMC.Address)
	if err != nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return a.Unmap().WithZone(""), err == nil
}
