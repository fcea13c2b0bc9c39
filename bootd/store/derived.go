package store

import (
	"reflect"
	"sync"
)

// Derived returns what fn computes from a cache's objects, once per revision. It is cached by its type, which
// must be fn's own, is shared and must not be modified. fn may call Derived.
func Derived[T any](c *Cache, fn func(*Cache) T) T {
	return derivedOf(c, reflect.TypeFor[T]()).value(c, func() any { return fn(c) }).(T)
}

// derived is a result for a cache's revision.
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
	revision := c.Revision() // read first: newer objects are at worst computed again
	if d.made == nil || d.revision != revision || revision == 0 {
		d.made, d.revision = fn(), revision
	}
	return d.made
}
