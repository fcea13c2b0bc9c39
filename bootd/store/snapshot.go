package store

import (
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// With is the cache as it would be with another object: in the place of the one
// of its name, or beside all others. It stands still for ever, so nothing can be
// subscribed to or waited for; the objects are shared.
func (c *Cache) With(o api.Object) *Cache {
	next := NewCache(c.store, c.log)
	c.mu.RLock()
	defer c.mu.RUnlock()
	for plural, t := range c.byPlural {
		to := next.byPlural[plural]
		to.objects, to.names = maps.Clone(t.objects), slices.Clone(t.names)
	}
	for mac, names := range c.macs {
		next.macs[mac] = slices.Clone(names)
	}
	next.revision = c.revision
	// The other's feeds are not told: next has none.
	if t := next.byPlural[api.KindOf(o).Plural]; t != nil {
		next.set(t, o.Meta().Name, o, c.revision)
	}
	return next
}
