package recovery

import (
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// bounded leaves out what cannot be so.
func bounded(r api.Recount) api.Recount {
	r.Networks = slices.DeleteFunc(r.Networks[:min(len(r.Networks), maxItems)], func(n api.HeldNetwork) bool { return !valid(n) })
	r.Guests = slices.DeleteFunc(r.Guests[:min(len(r.Guests), maxItems)], func(g api.HeldGuest) bool {
		return api.ValidateName(g.Name) != nil || api.ValidateName(g.UID) != nil || g.Network != "" && api.ValidateName(g.Network) != nil || len(g.Addresses) > 4
	})
	named := func(n string) bool { return api.ValidateName(n) != nil }
	r.Hosts = slices.DeleteFunc(r.Hosts[:min(len(r.Hosts), maxItems)], named)
	r.Flannelds = slices.DeleteFunc(r.Flannelds[:min(len(r.Flannelds), maxItems)], func(f api.HeldFlanneld) bool { return named(f.Network) || f.MAC == "" })
	r.Loopbacks = r.Loopbacks[:min(len(r.Loopbacks), 16)]
	return r
}

// valid reports whether what a host says of a Network can be so.
func valid(n api.HeldNetwork) bool {
	v4 := n.Lease.IsValid() && n.Lease.Addr().Is4() && n.Lease == n.Lease.Masked() && n.Lease.Bits() >= 8 && n.Lease.Bits() <= 31
	v6 := n.Lease6 == netip.Prefix{} || n.Lease6.IsValid() && n.Lease6.Addr().Is6() && n.Lease6 == n.Lease6.Masked()
	return api.ValidateName(n.Name) == nil && api.ValidateName(n.UID) == nil && n.VNI > 0 && n.VNI < 1<<24 && v4 && v6
}
