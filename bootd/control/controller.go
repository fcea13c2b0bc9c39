package control

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Env is the environment of a controller.
type Env struct {
	Store *store.Store
	Cache *store.Cache
	Event func(o api.Object, typ api.EventType, reason, message string)
	Log   *slog.Logger
}

// Source calls due with the names of objects that are due, until ctx ends.
type Source func(ctx context.Context, due func(names ...string)) error

// Controller brings the objects of one kind to their desired state, one step at a time. T is a pointer to the kind.
type Controller[T api.Object] struct {
	Env
	// Kinds are those whose changes may matter. Default: all.
	Kinds []string
	// Due names the objects that a change may affect.
	Due func(store.Change) []string
	// Gather is how long changes of a kind are collected before the step. Default: none.
	Gather map[string]time.Duration
	// Sources make objects due for reasons other than changes.
	Sources []Source
	// Workers is the number of concurrent steps, each on another object.
	Workers int
	// Step takes the next step with one object. It returns the delay after which to look again: AtOnce, or 0 for
	// the next change only.
	Step func(ctx context.Context, o T) (again time.Duration, err error)
	// Gone is called for an object that is due and not in the cache. Default: nothing.
	Gone func(name string)

	mu      sync.Mutex
	loop    *loop
	changes *store.Subscription
}

// Run runs the controller until ctx ends. It runs on the elected bootd only.
func (c *Controller[T]) Run(ctx context.Context) error {
	if err := c.begin(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.changes.Run(ctx, c.changed) })
	for _, source := range c.Sources {
		g.Go(func() error { return source(ctx, c.due) })
	}
	g.Go(func() error { c.loop.Run(ctx, c.Workers); return ctx.Err() })
	return g.Wait()
}

func (c *Controller[T]) begin() error {
	kinds, err := api.LookupKinds(c.Kinds...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loop, c.changes = newLoop(c.step, c.Log), c.Cache.Subscription(kinds...)
	return nil
}

func (c *Controller[T]) changed(ch store.Change) {
	gather := c.Gather[ch.Kind.Name]
	for _, name := range c.Due(ch) {
		if gather > 0 {
			c.loop.AddSoon(name, gather)
		} else {
			c.loop.Add(name)
		}
	}
}

func (c *Controller[T]) due(names ...string) {
	for _, name := range names {
		c.loop.Add(name)
	}
}

func (c *Controller[T]) step(ctx context.Context, name string) (time.Duration, error) {
	var kind T
	o, ok := c.Cache.CachedObject(api.KindOf(kind), name)
	if ok {
		return c.Step(ctx, o.(T))
	}
	if c.Gone != nil {
		c.Gone(name)
	}
	return 0, nil
}

// Idle returns when there is no work left for the current store: every change was judged, no object is due and no
// step runs. Objects that are due later, as their last step requested, do not count, nor does what Sources have not
// reported yet. Tests wait for it before they check that something did not happen.
func (c *Controller[T]) Idle(ctx context.Context) error {
	revision, err := c.Store.Revision(ctx)
	if err != nil {
		return err
	}
	if err := c.Cache.WaitRevision(ctx, revision); err != nil {
		return err
	}
	for !c.idle() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// idle reads the number of changes before and after the loop: a step that ended in between has made its writes, and
// the objects that these make due must be seen.
func (c *Controller[T]) idle() bool {
	c.mu.Lock()
	due, changes := c.loop, c.changes
	c.mu.Unlock()
	if due == nil {
		return false
	}
	before, quiet := changes.Quiet()
	if !quiet || !due.idle() {
		return false
	}
	after, quiet := changes.Quiet()
	return quiet && before == after
}
