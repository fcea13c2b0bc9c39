package zone

import (
	"context"
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/network"
	"github.com/rackweft/rackweft/bootd/part"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
)

// Kind describes what a host's speaker is. A join changes that of the reflectors
// alone, whose readiness is judged by its digest.
func (p *Parts) Kind() part.Kind {
	return part.Kind{Name: api.PartBGP, Digests: true, Compile: p.compile, Concerns: p.concerns, Follow: p.follow}
}

// follow reports the reflectors of Zones in which hosts got or lost a lease that
// they advertise: reflectors accept what a host has a lease of.
func (p *Parts) follow(ctx context.Context, fn func(part.Hosts)) error {
	if p == nil || p.Networks == nil {
		return nil
	}
	return p.Networks.Subscribe(ctx, func(c network.Change) {
		var hosts part.Hosts
		for name := range c.Networks {
			if n, ok := store.Cached[api.Network](p.Cache, name); ok && n.Spec.Advertise {
				hosts.Names = append(hosts.Names, Reflectors(p.Cache, n.Spec.Zone)...)
			}
		}
		fn(hosts)
	})
}

// concerns finds the hosts whose bgp part may differ after a change.
func (p *Parts) concerns(ch store.Change) part.Hosts {
	if p == nil {
		return part.Hosts{}
	}
	switch ch.Kind.Name {
	case "Zone":
		return part.Hosts{All: Changes(ch)}
	case "Subnet":
		return part.Hosts{All: true}
	case "Secret":
		return part.Hosts{All: p.opensUplink(ch.Name)}
	case "Machine":
		old, _ := ch.Old.(*api.Machine)
		now, _ := ch.New.(*api.Machine)
		return p.neighbors(old, now)
	}
	return part.Hosts{} // what a host announces of a Network changes its Network's part, too
}

// opensUplink reports whether a Secret is the key of an uplink.
func (p *Parts) opensUplink(secret string) bool {
	return slices.ContainsFunc(p.Cache.CachedReferrers("Secret", secret), func(o api.Object) bool {
		_, ok := o.(*api.Zone)
		return ok
	})
}

// neighbors are the hosts to which a Machine is a neighbour, before a change or
// after it.
func (p *Parts) neighbors(old, now *api.Machine) part.Hosts {
	var hosts part.Hosts
	if sameNeighbor(p.Cache, old, now) {
		return hosts
	}
	for _, m := range []*api.Machine{old, now} {
		if m == nil || m.Spec.Zone == "" {
			continue
		}
		names := Reflectors(p.Cache, m.Spec.Zone)
		if slices.Contains(names, m.Metadata.Name) {
			hosts.Zones = append(hosts.Zones, m.Spec.Zone)
		}
		hosts.Names = append(hosts.Names, names...)
	}
	return hosts
}

// Reflectors lists the names of a Zone's reflectors.
func Reflectors(cache *store.Cache, zone string) []string {
	var names []string
	if z, ok := store.Cached[api.Zone](cache, zone); ok {
		for _, r := range z.Status.Reflectors {
			names = append(names, r.Machine)
		}
	}
	return names
}

// Changes reports whether a change of a Zone may change parts of its hosts: a change of its spec, its reflectors,
// or its hosts' loopbacks.
func Changes(c store.Change) bool {
	old, _ := c.Old.(*api.Zone)
	now, _ := c.New.(*api.Zone)
	return old == nil || now == nil || old.Metadata.UID != now.Metadata.UID || old.Metadata.Generation != now.Metadata.Generation || !reflectAlike(old, now) || !sameLoopbacks(old, now)
}

// reflectAlike reports whether the same hosts reflect, and the same have uplinks: no part contains any other
// progress.
func reflectAlike(a, b *api.Zone) bool {
	return slices.EqualFunc(a.Status.Reflectors, b.Status.Reflectors, func(x, y api.ReflectorStatus) bool {
		return x.Machine == y.Machine && x.UID == y.UID && x.State.HasUplinks() == y.State.HasUplinks()
	})
}

// sameLoopbacks reports whether the same addresses are chosen for the same hosts.
func sameLoopbacks(a, b *api.Zone) bool {
	return slices.EqualFunc(a.Status.Loopbacks, b.Status.Loopbacks, func(x, y api.LoopbackStatus) bool {
		return x.UID == y.UID && slices.Equal(x.Addresses, y.Addresses)
	})
}

// sameNeighbor reports whether a Machine is the same to its neighbours.
func sameNeighbor(cache *store.Cache, old, now *api.Machine) bool {
	if old == nil || now == nil {
		return false
	}
	a, b := old.Metadata, now.Metadata
	was, _ := site.Claims(cache, old)
	is, _ := site.Claims(cache, now)
	return a.UID == b.UID && a.Generation == b.Generation && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(was, is)
}
