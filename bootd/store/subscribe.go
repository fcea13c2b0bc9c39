package store

import (
	"context"
	"slices"
	"sync"

	"github.com/rackweft/rackweft/api"
)

// Change is what became of one object since a subscriber last heard of it.
// Both objects are shared and must not be changed.
type Change struct {
	Kind api.Kind
	Name string
	// Old is nil for an object that is new to the subscriber, New for one that
	// was deleted. When their uids differ it was deleted and made anew.
	Old, New api.Object
	Revision int64
}

// Subscribe calls fn with every object of the kinds (all kinds when none is
// given) that is in the cache, then with every change after the cache has
// taken it, until ctx ends. Changes of one object that come while fn is busy
// are joined into one, so a slow fn never holds up the cache and nothing grows
// without bound. fn is called by the goroutine that called Subscribe.
func (c *Cache) Subscribe(ctx context.Context, fn func(Change), kinds ...api.Kind) error {
	f := &feed{pending: map[feedKey]*Change{}, wake: make(chan struct{}, 1)}
	for _, k := range kinds {
		f.plurals = append(f.plurals, k.Plural)
	}
	c.attach(f)
	defer c.detach(f)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.wake:
		}
		for {
			change, ok := f.take()
			if !ok {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			fn(change)
		}
	}
}

func (c *Cache) attach(f *feed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.each(f.put)
	c.feeds[f] = struct{}{}
}

// Mirror calls fn with every object that is in the cache, and from then on with
// each change before the cache's revision says that it was taken: what fn keeps
// is never behind Revision. fn runs under the cache's lock, so it must be quick
// and must not call the cache. It is called for as long as the cache lives.
func (c *Cache) Mirror(fn func(Change)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.each(fn)
	c.mirrors = append(c.mirrors, fn)
}

// each calls fn with every object as if it were new. The caller holds mu.
func (c *Cache) each(fn func(Change)) {
	for _, k := range api.Kinds() {
		t := c.byPlural[k.Plural]
		if t == nil {
			continue
		}
		for _, name := range t.names {
			fn(Change{Kind: t.kind, Name: name, New: t.objects[name], Revision: c.revision})
		}
	}
}

func (c *Cache) detach(f *feed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.feeds, f)
}

// feed is one subscriber's queue: at most one Change for each object.
type feed struct {
	plurals []string // empty: all
	wake    chan struct{}

	mu      sync.Mutex
	order   []feedKey
	pending map[feedKey]*Change
}

type feedKey struct{ plural, name string }

func (f *feed) put(c Change) {
	if len(f.plurals) > 0 && !slices.Contains(f.plurals, c.Kind.Plural) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := feedKey{c.Kind.Plural, c.Name}
	if waiting := f.pending[k]; waiting != nil {
		waiting.New, waiting.Revision = c.New, c.Revision
		return
	}
	f.pending[k] = &c
	f.order = append(f.order, k)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take returns the oldest Change; one of an object that came and went
// unheard of is dropped.
func (f *feed) take() (Change, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.order) > 0 {
		k := f.order[0]
		f.order = f.order[1:]
		c := f.pending[k]
		delete(f.pending, k)
		if c.Old != nil || c.New != nil {
			return *c, true
		}
	}
	f.order = nil
	return Change{}, false
}
