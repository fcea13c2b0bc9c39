package store

import (
	"context"
	"slices"
	"sync"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// Change is the change of one object since a subscriber was last called for it. Both objects are shared and must
// not be modified.
type Change struct {
	Kind api.Kind
	Name string
	// Old is nil for an object that is new to the subscriber, New for one that
	// was deleted. When their uids differ it was deleted and recreated.
	Old, New api.Object
	Revision int64
}

// Subscribe calls fn with every object of the kinds (all kinds when none is
// given) that is in the cache, then with every change after the cache has applied it, until ctx ends. Changes of
// one object while fn runs are merged into one, so a slow fn never delays the cache and no queue grows without
// bound. fn is called by the goroutine that called Subscribe.
func (c *Cache) Subscribe(ctx context.Context, fn func(Change), kinds ...api.Kind) error {
	return c.Subscription(kinds...).Run(ctx, fn)
}

// Subscription is Subscribe for a caller that checks its progress in between.
func (c *Cache) Subscription(kinds ...api.Kind) *Subscription {
	s := &Subscription{cache: c, pending: map[feedKey]*Change{}, wake: wait.NewSignal()}
	for _, k := range kinds {
		s.plurals = append(s.plurals, k.Plural)
	}
	return s
}

// Subscription is one subscriber's queue: at most one Change for each object.
type Subscription struct {
	cache   *Cache
	plurals []string // empty: all
	wake    wait.Signal

	mu      sync.Mutex
	order   []feedKey
	pending map[feedKey]*Change
	busy    bool // fn has not returned
	handed  int  // changes passed to fn
	begun   bool // the initial content of the cache is pending, or was passed to fn
}

type feedKey struct{ plural, name string }

// Run calls fn as Subscribe does. It may be called once.
func (s *Subscription) Run(ctx context.Context, fn func(Change)) error {
	s.cache.attach(s)
	defer s.cache.detach(s)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		for {
			change, ok := s.take()
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

// Quiet reports whether fn has returned from every change that the cache has applied, and with how many changes
// fn was called so far.
func (s *Subscription) Quiet() (handed int, quiet bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed, s.begun && !s.busy && len(s.order) == 0
}

func (c *Cache) attach(s *Subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.each(s.put)
	c.feeds[s] = struct{}{}
	s.begin()
}

// Mirror calls fn with every object in the cache, and then with each change before the cache's revision includes
// it: what fn builds is never behind Revision. fn runs under the cache's lock, so it must be quick and must not
// call the cache. It is called as long as the cache exists.
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

func (c *Cache) detach(s *Subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.feeds, s)
}

func (s *Subscription) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = true
}

func (s *Subscription) put(c Change) {
	if len(s.plurals) > 0 && !slices.Contains(s.plurals, c.Kind.Plural) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := feedKey{c.Kind.Plural, c.Name}
	if waiting := s.pending[k]; waiting != nil {
		waiting.New, waiting.Revision = c.New, c.Revision
		return
	}
	s.pending[k] = &c
	s.order = append(s.order, k)
	s.wake.Set()
}

// take returns the oldest Change; that of an object which was created and deleted in between is dropped.
func (s *Subscription) take() (Change, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	for len(s.order) > 0 {
		k := s.order[0]
		s.order = s.order[1:]
		c := s.pending[k]
		delete(s.pending, k)
		if c.Old != nil || c.New != nil {
			s.busy = true
			s.handed++
			return *c, true
		}
	}
	s.order = nil
	return Change{}, false
}
