package recovery

import (
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
)

const (
	// maxItems limits each list of a recount.
	maxItems = 16384
	// maxAddresses limits a Guest's addresses, maxLoopbacks a host's.
	maxAddresses = 4
	maxLoopbacks = 16
	// maxWord limits free text: a state, the id of a move.
	maxWord = 64
)

// bounded drops invalid entries. What it keeps can be stored, compared and shown: addresses are in canonical
// form, and names are valid.
func bounded(r api.Recount) api.Recount {
	r.Networks = kept(r.Networks, maxItems, validNetwork)
	r.Guests = kept(r.Guests, maxItems, validGuest)
	r.Hosts = kept(r.Hosts, maxItems, validName)
	r.Flannelds = kept(r.Flannelds, maxItems, validFlanneld)
	r.Loopbacks = kept(r.Loopbacks, maxLoopbacks, validAddr)
	return r
}

// kept returns the valid ones among the first entries of a list.
func kept[T any](list []T, most int, valid func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list[:min(len(list), most)]), func(one T) bool { return !valid(one) })
}

func validName(name string) bool { return api.ValidateName(name) == nil }

func validAddr(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

// validLease checks an IPv4 lease. A shorter prefix would cover all other hosts' leases.
func validLease(p netip.Prefix) bool {
	return p.IsValid() && p.Addr().Is4() && p == p.Masked() && p.Bits() >= 8 && p.Bits() <= 31
}

func validNetwork(n api.HeldNetwork) bool {
	v6 := n.Lease6 == netip.Prefix{} || n.Lease6.IsValid() && n.Lease6.Addr().Is6() && !n.Lease6.Addr().Is4In6() && n.Lease6 == n.Lease6.Masked()
	return validName(n.Name) && validName(n.UID) && n.VNI > 0 && n.VNI < 1<<24 && validLease(n.Lease) && v6
}

func validGuest(g api.HeldGuest) bool {
	return validName(g.Name) && validName(g.UID) && (g.Network == "" || validName(g.Network)) && len(g.State) <= maxWord &&
		len(g.Addresses) <= maxAddresses && !slices.ContainsFunc(g.Addresses, func(a netip.Addr) bool { return !validAddr(a) }) && validTransfer(g.Transfer)
}

// validTransfer accepts a host's part in a move, or none. It has no peer where bootd knew none.
func validTransfer(t *api.GuestTransfer) bool {
	if t == nil {
		return true
	}
	peer := t.Peer == api.HostIdentity{} || validName(t.Peer.Host) && validName(t.Peer.UID) && len(t.Peer.Key) <= 2*maxWord
	roles := []string{api.TransferSource, api.TransferTarget, api.TransferBack, api.TransferLeft}
	return peer && slices.Contains(roles, t.Role) && validName(t.ID) && (t.Address == netip.Addr{} || validAddr(t.Address))
}

func validFlanneld(f api.HeldFlanneld) bool {
	return validName(f.Network) && f.MAC != "" && validLease(f.Lease) && validAddr(f.VTEP)
}
