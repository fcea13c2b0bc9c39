package beacon

import (
	"context"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/store"
)

// Parts makes the parts of Beacons.
type Parts struct {
	Cache *store.Cache
	Key   func(one, other string) string // of two uids
}

// Kind describes the parts.
func (p Parts) Kind() part.Kind {
	return part.Kind{Name: "beacon", Object: "Beacon", Compile: p.compile, Concerns: concerns}
}

// compile adds the parts of a Zone's Beacons, and tombstones of those that are
// being deleted.
func (p Parts) compile(_ context.Context, m *api.Machine, s *part.Spec) error {
	for _, b := range store.CachedList[api.Beacon](p.Cache) {
		name, uid := api.BeaconPartName(b.Metadata.Name), b.Metadata.UID
		if b.Spec.Zone != m.Spec.Zone {
			continue
		}
		if b.Metadata.DeletionTimestamp != nil {
			s.Bury(api.Tombstone{Part: name, UID: uid}, store.RevisionOf(b))
			continue
		}
		if err := s.Put(name, api.BeaconPart{UID: uid, Address: b.Spec.Address, Password: p.Key(m.Metadata.UID, uid)}); err != nil {
			return err
		}
	}
	return nil
}

// concerns finds the hosts whose parts may differ after a change: those of a
// Beacon's Zone, when more than its status is new.
func concerns(c store.Change) part.Hosts {
	old, _ := c.Old.(*api.Beacon)
	now, _ := c.New.(*api.Beacon)
	if old != nil && now != nil && old.Metadata.Generation == now.Metadata.Generation && now.Metadata.DeletionTimestamp == nil {
		return part.Hosts{}
	}
	var hosts part.Hosts
	for _, b := range []*api.Beacon{old, now} {
		if b != nil {
			hosts.Zones = append(hosts.Zones, b.Spec.Zone)
		}
	}
	return hosts
}
