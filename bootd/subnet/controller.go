// Package subnet owns Subnets: when they are put into service, and whether bootd serves each, and if not, why.
package subnet

import (
	"context"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait"
)

// Controller keeps the Ready condition of Subnets in line with how they are served.
type Controller struct {
	control.Env
	// Judge says how a Subnet is served; not ok until its spec has been applied. Served is set when it has, or
	// when the served Subnets change.
	Judge  func(*api.Subnet) (found control.Finding, ok bool)
	Served wait.Signal
}

// Control returns the controller.
func (c *Controller) Control() *control.Controller[*api.Subnet] {
	return &control.Controller[*api.Subnet]{
		Env: c.Env, Kinds: []string{"Subnet"}, Workers: 1, Step: c.step,
		Due:     func(ch store.Change) []string { return []string{ch.Name} },
		Sources: []control.Source{c.served},
	}
}

// served enqueues all Subnets whenever the served Subnets change.
func (c *Controller) served(ctx context.Context, due func(...string)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.Served:
		}
		for _, s := range store.CachedList[api.Subnet](c.Cache) {
			due(s.Metadata.Name)
		}
	}
}

func (c *Controller) step(ctx context.Context, s *api.Subnet) (time.Duration, error) {
	found, ok := c.Judge(s)
	if !ok {
		return 0, nil
	}
	// In a storm of changes all Subnets are due all the time.
	if old := s.Status.Conditions.Get(api.CondReady); old != nil && old.Status == found.Status && old.Reason == found.Reason && old.Message == found.Message {
		return 0, nil
	}
	return 0, control.Report(ctx, c.Env, s, found, nil)
}
