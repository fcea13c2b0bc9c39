package store

import (
	"maps"
	"slices"

	"github.com/rackweft/rackweft/api"
)

// With returns the cache as it would be with another object: replacing the one of its name, or in addition. It
// never changes, so it cannot be subscribed to or waited for; the objects are shared.
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
	// Its subscribers are not notified: next has none.
	if t := next.byPlural[api.KindOf(o).Plural]; t != nil {
		next.set(t, o.Meta().Name, o, c.revision)
	}
	return next
}
