package network

import (
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// Lease is one lease of a Network in etcd.
type Lease struct {
	Kind          api.MemberKind
	Lease, Lease6 netip.Prefix
	// VTEP and MAC belong to the lease's host; empty when it is not a VXLAN lease of this Network.
	VTEP netip.Addr
	MAC  api.MAC
	// Machine and its UID are of the host; empty for a stock flanneld and a
	// reservation.
	Machine, UID string
	Guest        string // that the lease follows
	Buried       bool   // its host must remove the Network
}

// Leases lists every lease of a Network, by prefix, including those that hosts do not receive, such as
// reservations.
func (x *Index) Leases(network string) []Lease {
	l := x.layout(network)
	var list []Lease
	for subnet, k := range l.subnets {
		if _, known := l.hosts[subnet]; known {
			continue
		}
		lease := Lease{Kind: api.MemberReservation, Lease: subnet}
		if k.TTL {
			lease.Kind = api.MemberFlanneld
		}
		lease.VTEP, lease.MAC, _ = parseLease(k.Value, l.of.vni)
		list = append(list, lease)
	}
	for subnet, h := range l.hosts {
		lease := Lease{Kind: api.MemberHost, Lease: subnet, Lease6: h.Lease6, Machine: h.Machine, UID: h.UID, Guest: h.Guest, Buried: h.Buried > 0}
		if h.Guest != "" {
			lease.Kind = api.MemberGuest
		}
		lease.VTEP, lease.MAC, _ = parseLease(l.subnets[subnet].Value, l.of.vni)
		list = append(list, lease)
	}
	slices.SortFunc(list, func(a, b Lease) int { return comparePrefix(a.Lease, b.Lease) })
	return list
}
