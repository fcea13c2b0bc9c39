package store

import (
	"reflect"
	"sync"
)

// Derived is what fn makes of a cache's objects, made once for each revision. It is
// kept by its type, which is to be fn's own, is shared and must not be changed. fn
// may ask for what else is derived.
func Derived[T any](c *Cache, fn func(*Cache) T) T {
	return derivedOf(c, reflect.TypeFor[T]()).value(c, func() any { return fn(c) }).(T)
}

// derived is what was made of a cache at a revision.
type derived struct {
	mu       sync.Mutex
	revision int64
	made     any
}

func derivedOf(c *Cache, t reflect.Type) *derived {
	d, _ := c.derived.LoadOrStore(t, new(derived))
	return d.(*derived)
}

func (d *derived) value(c *Cache, fn func() any) any {
	d.mu.Lock()
	defer d.mu.Unlock()
	revision := c.Revision() // before the look: what is newer is at worst looked at again
	if d.made == nil || d.revision != revision || revision == 0 {
		d.made, d.revision = fn(), revision
	}
	return d.made
}
