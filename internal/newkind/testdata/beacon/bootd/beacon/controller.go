// Package beacon owns Beacons: the part that hosts receive of each, and what is
// said of it.
package beacon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
)

// Finalizer keeps a deleted Beacon until every host has given it up.
const Finalizer = "rackweft/beacon"

// Controller keeps the status of Beacons true to what hosts report.
type Controller struct{ control.Env }

// Control is the controller as it runs.
func (c *Controller) Control() *control.Controller[*api.Beacon] {
	return &control.Controller[*api.Beacon]{Env: c.Env, Kinds: []string{"Beacon", "Machine"}, Workers: 1, Due: c.due, Step: c.step}
}

func (c *Controller) due(ch store.Change) []string {
	if ch.Kind.Name == "Beacon" {
		return []string{ch.Name}
	}
	var names []string
	for _, b := range store.CachedList[api.Beacon](c.Cache) {
		names = append(names, b.Metadata.Name)
	}
	return names
}

func (c *Controller) step(ctx context.Context, b *api.Beacon) (time.Duration, error) {
	machines := store.CachedList[api.Machine](c.Cache)
	if b.Metadata.DeletionTimestamp != nil {
		if left(b, machines) {
			return 0, nil
		}
		return 0, control.Write(ctx, c.Env, b, func(b *api.Beacon) bool { return control.DropFinalizer(b, Finalizer) })
	}
	if !control.HasFinalizer(b, Finalizer) { // before any host receives it
		return 0, control.Write(ctx, c.Env, b, func(b *api.Beacon) bool { return control.AddFinalizer(b, Finalizer) })
	}
	applied, found := judge(b, machines)
	return 0, control.Report(ctx, c.Env, b, found, func(b *api.Beacon) bool {
		news := b.Status.Hosts != applied
		b.Status.Hosts = applied
		return news
	})
}

// left reports whether a host of its Zone may have anything of a deleted Beacon.
func left(b *api.Beacon, machines []*api.Machine) bool {
	for _, m := range machines {
		if m.Spec.Zone != b.Spec.Zone || m.Status.Host == nil {
			continue
		}
		if m.Status.Host.Revision < store.RevisionOf(b) {
			return true
		}
		for key := range m.Status.Host.Parts {
			if name, _, _ := strings.Cut(key, "@"); name == api.BeaconPartName(b.Metadata.Name) {
				return true
			}
		}
	}
	return false
}

func judge(b *api.Beacon, machines []*api.Machine) (applied int, f control.Finding) {
	of := 0
	for _, m := range machines {
		if m.Spec.Zone != b.Spec.Zone {
			continue
		}
		of++
		if h := m.Status.Host; h != nil && h.Parts[api.BeaconPartName(b.Metadata.Name)].State == api.PartApplied {
			applied++
		}
	}
	if applied < of {
		return applied, control.Finding{Status: api.False, Reason: "Waiting", Message: fmt.Sprintf("%d of %d hosts have applied it", applied, of)}
	}
	return applied, control.Finding{Status: api.True, Reason: "Applied", Message: "every host of its Zone has applied it"}
}
