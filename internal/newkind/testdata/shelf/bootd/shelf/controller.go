// Package shelf says of each Shelf whether its Zone is there.
package shelf

import (
	"context"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
)

// Controller keeps Shelves true to their Zones.
type Controller struct{ control.Env }

// Control is the controller's loop.
func (c *Controller) Control() *control.Controller[*api.Shelf] {
	return &control.Controller[*api.Shelf]{Env: c.Env, Kinds: []string{"Shelf", "Zone"}, Workers: 1, Due: c.due, Step: c.step}
}

func (c *Controller) due(ch store.Change) []string {
	if ch.Kind.Name == "Shelf" {
		return []string{ch.Name}
	}
	var names []string
	for _, o := range c.Cache.CachedReferrers(ch.Kind.Name, ch.Name) {
		if s, ok := o.(*api.Shelf); ok {
			names = append(names, s.Metadata.Name)
		}
	}
	return names
}

func (c *Controller) step(ctx context.Context, s *api.Shelf) (time.Duration, error) {
	_, there := store.Cached[api.Zone](c.Cache, s.Spec.Zone)
	return 0, control.Report(ctx, c.Env, s, judge(there), nil)
}

func judge(there bool) control.Finding {
	if !there {
		return control.Finding{Status: api.False, Reason: "NoZone", Message: "its Zone does not exist: apply it"}
	}
	return control.Finding{Status: api.True, Reason: "InZone", Message: "its Zone exists"}
}
