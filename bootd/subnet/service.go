package subnet

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait"
)

// Service keeps the lease table true to Subnets and Machines. Every bootd has one,
// elected or not.
type Service struct {
	Cache *store.Cache
	// Serve applies all Subnets as they are now.
	Serve func(context.Context) error
	// Reserves reports whether a Machine pins other addresses than before.
	Reserves func(old, now api.Object) bool
	Served   wait.Signal // set each time
	Log      *slog.Logger
}

// Run applies the Subnets after changes, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	kinds, err := api.LookupKinds("Subnet", "Machine", "Site")
	if err != nil {
		return err
	}
	due := wait.NewSignal()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return s.Cache.Subscribe(ctx, func(c store.Change) {
			if specChanged(c) && (c.Kind.Name != "Machine" || s.Reserves(c.Old, c.New)) {
				due.Set()
			}
		}, kinds...)
	})
	g.Go(func() error { return s.applyWhenDue(ctx, due) })
	return g.Wait()
}

// gather is how long changes are gathered, at least, after some were
// applied: the lease table is made again as a whole. In a storm of changes that
// takes a twentieth of the time.
const gather = 100 * time.Millisecond

func (s *Service) applyWhenDue(ctx context.Context, due wait.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-due:
		}
		began := time.Now()
		s.Apply(ctx)
		if err := wait.For(ctx, max(gather, 20*time.Since(began))); err != nil {
			return err
		}
	}
}

// Apply applies the Subnets now.
func (s *Service) Apply(ctx context.Context) {
	if err := s.Serve(ctx); err != nil && ctx.Err() == nil {
		s.Log.Error("Subnets", "error", err)
	}
	s.Served.Set()
}

// specChanged tells a change of an object from one of its status, which changes
// all the time.
func specChanged(c store.Change) bool {
	if c.Old == nil || c.New == nil {
		return true
	}
	old, now := c.Old.Meta(), c.New.Meta()
	return old.Generation != now.Generation || old.UID != now.UID
}
