package hostspec

import (
	"context"
	"maps"
	"net/netip"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/zone"
)

// basePart compiles the part that every host has.
func (c *Compiler) basePart() part.Kind {
	return part.Kind{
		Name: api.PartBase,
		Compile: func(_ context.Context, m *api.Machine, s *part.Spec) error {
			s.Base = c.base(m)
			return s.Put(api.PartBase, s.Base)
		},
		Concerns: c.baseConcerns,
	}
}

// baseConcerns finds the hosts whose base part may differ after a change. Those of
// an encrypted Zone receive each other's keys from tellMeshes.
func (c *Compiler) baseConcerns(ch store.Change) part.Hosts {
	switch ch.Kind.Name {
	case "Site", "Subnet":
		return part.Hosts{All: true}
	case "Zone":
		return part.Hosts{All: zone.Changes(ch)}
	case "Machine":
		old, _ := ch.Old.(*api.Machine)
		now, _ := ch.New.(*api.Machine)
		return part.Hosts{All: network.ClosedChanges(c.Cache, old, now), Names: []string{ch.Name}}
	}
	return part.Hosts{}
}

func (c *Compiler) base(m *api.Machine) api.BasePart {
	b := api.BasePart{UID: m.Metadata.UID, Zone: m.Spec.Zone, Labels: maps.Clone(m.Metadata.Labels), Underlay: network.Underlay(c.Cache, m)}
	b.Underlay.Encryption = c.encryption(m)
	b.NTP = site.Spec(c.Cache).NTP
	b.Underlay.Closed = store.Derived(c.Cache, closedOf)
	b.Underlay.Transit = zone.Transit(c.Cache, m)
	if c.API != nil {
		b.API = c.API(m)
	}
	return b
}

// closed lists the prefixes that no tenant may reach: the same for every host.
type closed []netip.Prefix

func closedOf(c *store.Cache) closed { return network.Closed(c) }
