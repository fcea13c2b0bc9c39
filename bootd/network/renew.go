package network

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Renew makes the leases of a backup usable: an order to a host to release one is repeated, at a revision of the
// new history.
func Renew(ctx context.Context, s *store.Store) error {
	keys, err := s.Flannel.ReadAll(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		var h hostRecord
		if k.Kind != store.FlannelHost || json.Unmarshal(k.Value, &h) != nil || h.Buried == 0 {
			continue
		}
		h.Buried = 0
		if err := s.Flannel.Write(ctx, store.FlannelWrite{FlannelID: k.FlannelID, At: k.Revision, Value: encode(h)}); err != nil {
			return fmt.Errorf("renew the lease %s of Network %s: %w", k.Subnet, k.Network, err)
		}
	}
	return nil
}

// Claims are a Network and its leases, as reported by its hosts.
type Claims struct {
	Network string // its name
	UID     string
	VNI     uint32
	Leases  []HostLease
}

// HostLease is a host's lease of a Network, as reported by the host.
type HostLease struct {
	Machine, UID string // of the host
	Lease        netip.Prefix
	Lease6       netip.Prefix
	VTEP         netip.Addr // may be unknown
}

// Adopt makes a Network's leases match those that its hosts have. A lease that the store assigns to another host,
// which does not claim it, goes to the host that does. It returns sentences about leases that two hosts claim.
func Adopt(ctx context.Context, s *store.Store, is Claims) (conflicts []string, err error) {
	old, err := readLayout(ctx, s, is.Network)
	if err != nil {
		return nil, err
	}
	a := adoption{store: s, network: is.Network, owner: ownerRecord{UID: is.UID, VNI: is.VNI}, claimed: map[netip.Prefix]HostLease{}}
	for _, l := range byRight(is.Leases, old) {
		if other, ok := overlapping(a.claimed, l.Lease); ok {
			conflicts = append(conflicts, fmt.Sprintf("hosts %s and %s both claim lease %s of Network %s: %s keeps it", other.Machine, l.Machine, l.Lease, is.Network, other.Machine))
			continue
		}
		a.claimed[l.Lease] = l
	}
	if err := replaceOwner(ctx, s, is.Network, is.UID); err != nil {
		return nil, err
	}
	for _, subnet := range slices.SortedFunc(maps.Keys(a.claimed), comparePrefix) {
		if err := a.adopt(ctx, a.claimed[subnet]); err != nil {
			return nil, err
		}
	}
	return conflicts, nil
}

// byRight orders the leases that hosts claim: those that the store has for the
// host come first, then the longer prefixes.
func byRight(leases []HostLease, l *layout) []HostLease {
	stored := func(h HostLease) int {
		if l.hosts[h.Lease].UID == h.UID {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(leases), func(a, b HostLease) int {
		return cmp.Or(cmp.Compare(stored(a), stored(b)), cmp.Compare(b.Lease.Bits(), a.Lease.Bits()))
	})
}

// overlapping finds who has claimed a part of a lease.
func overlapping(claimed map[netip.Prefix]HostLease, lease netip.Prefix) (HostLease, bool) {
	for p, h := range claimed {
		if p.Overlaps(lease) {
			return h, true
		}
	}
	return HostLease{}, false
}

// replaceOwner removes the leases of an earlier Network of this name, which no host has any longer.
func replaceOwner(ctx context.Context, s *store.Store, network, uid string) error {
	l, err := readLayout(ctx, s, network)
	if err != nil || l.of.uid == "" || l.of.uid == uid {
		return err
	}
	return s.Flannel.Drop(ctx, network, l.owner.Revision)
}

// adoption is the leases that one Network's hosts have.
type adoption struct {
	store   *store.Store
	network string
	owner   ownerRecord
	claimed map[netip.Prefix]HostLease
}

func (a adoption) adopt(ctx context.Context, h HostLease) error {
	l, err := readLayout(ctx, a.store, a.network)
	if err != nil {
		return err
	}
	id := func(kind store.FlannelKind, subnet netip.Prefix) store.FlannelID {
		return store.FlannelID{Network: a.network, Kind: kind, Subnet: subnet}
	}
	writes := []store.FlannelWrite{
		{FlannelID: store.FlannelID{Network: a.network, Kind: store.FlannelOwner}, At: l.owner.Revision, Value: encode(a.owner)},
		{FlannelID: id(store.FlannelHost, h.Lease), At: l.hosts[h.Lease].key.Revision,
			Value: encode(hostRecord{Network: a.owner.UID, Machine: h.Machine, UID: h.UID, Lease6: h.Lease6})},
	}
	if h.VTEP.IsValid() {
		writes = append(writes, store.FlannelWrite{FlannelID: id(store.FlannelSubnet, h.Lease), At: l.subnets[h.Lease].Revision,
			Value: leaseValue(a.owner.VNI, h.VTEP, VTEPMAC(h.UID, a.owner.VNI))})
	}
	for _, old := range l.records() { // leases that the store assigns to the host, and the host does not have
		if _, exists := a.claimed[old.key.Subnet]; exists || old.UID != h.UID || old.Guest != "" {
			continue
		}
		writes = append(writes, store.FlannelWrite{FlannelID: old.key.FlannelID, At: old.key.Revision})
		if k, ok := l.subnets[old.key.Subnet]; ok && !k.TTL {
			writes = append(writes, store.FlannelWrite{FlannelID: k.FlannelID, At: k.Revision})
		}
	}
	if err := a.store.Flannel.Write(ctx, writes...); err != nil {
		return fmt.Errorf("take over lease %s of Network %s: %w", h.Lease, a.network, err)
	}
	return nil
}

// Reserve keeps a lease for the stock flanneld that a host has as a peer, unless the lease is already known.
func Reserve(ctx context.Context, s *store.Store, vni uint32, f api.HeldFlanneld) error {
	l, err := readLayout(ctx, s, f.Network)
	if err != nil {
		return err
	}
	_, known := l.subnets[f.Lease]
	_, host := l.hosts[f.Lease]
	if known || host || !f.VTEP.IsValid() || f.Lease != f.Lease.Masked() || !f.Lease.Addr().Is4() {
		return nil
	}
	id := store.FlannelID{Network: f.Network, Kind: store.FlannelSubnet, Subnet: f.Lease}
	return s.PutExpiring(ctx, store.Record{Key: id.String(), Value: leaseValue(vni, f.VTEP, f.MAC), TTL: true})
}

func readLayout(ctx context.Context, s *store.Store, network string) (*layout, error) {
	keys, err := s.Flannel.Read(ctx, network)
	if err != nil {
		return nil, err
	}
	l := newLayout()
	for _, k := range keys {
		l.set(k)
	}
	return l, nil
}
