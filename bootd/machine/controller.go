package machine

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
)

// Recorder keeps what people read later: events and decisions.
type Recorder interface {
	Event(o api.Object, typ api.EventType, reason, message string)
	Decision(d api.Decision)
}

// Controller brings Machines to the state that their spec asks for.
type Controller struct {
	control.Env
	Use      Use // of a Machine's BMC
	Decision func(d api.Decision)
	// Said is the last line of a Machine's BootAttempt on its console, empty when there is none.
	Said func(m *api.Machine) string
	// Nonce derives the value that a BootAttempt writes to the system's AssetTag.
	Nonce func(machineUID, attemptID string) string
	// BootURL is the URL that a Machine's BMC boots it from in its open BootAttempt, over TLS with a certificate of CA.
	BootURL func(m *api.Machine) (string, error)
	// MediaURL is the URL of the image that its BMC boots it from in that BootAttempt, where it takes no URL to boot from.
	MediaURL func(m *api.Machine) (string, error)
	CA       *x509.Certificate

	// Sensors keeps what the sensors of Active Machines measure.
	Sensors *Sensors

	// opening serialises the opening of BootAttempts, so that the brakes count
	// right: the cache is brought up to date before the next one counts.
	opening sync.Mutex
	// holds keeps BMCs from being asked too often after an error.
	holds holds
	// looks remembers when BMCs were asked how their servers are.
	looks looks
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, one := range []*control.Controller[*api.Machine]{c.Control(), c.Readings()} {
		g.Go(func() error { return one.Run(ctx) })
	}
	return g.Wait()
}

// Readings is the controller of what is read of BMCs and has time: few are read at once, and no step of the life of a
// Machine waits for it.
func (c *Controller) Readings() *control.Controller[*api.Machine] {
	return &control.Controller[*api.Machine]{Env: c.Env, Due: sameMachine, Workers: 8, Step: c.reading, Gone: c.forgetReadings}
}

func (c *Controller) forgetReadings(machine string) {
	c.looks.forget(machine)
	c.Sensors.forget(machine)
}

// sameMachine: nothing else matters to what a BMC tells.
func sameMachine(ch store.Change) []string {
	if ch.Kind.Name == "Machine" {
		return []string{ch.Name}
	}
	return nil
}

// reading reads what is due of one Machine.
func (c *Controller) reading(ctx context.Context, m *api.Machine) (time.Duration, error) {
	f := c.facts(m)
	again, err := c.act(ctx, f, decideInventory(f, time.Now()))
	now, ok := store.Cached[api.Machine](c.Cache, m.Metadata.Name)
	if err != nil || !ok {
		return again, err
	}
	f = c.facts(now)
	a := decideWellbeing(f, time.Now())
	wait, err := c.act(ctx, f, a)
	if a.do == doAsk {
		c.looks.looked(m.Metadata.Name, time.Now())
	}
	return sooner(again, wait), err
}

// Control is the controller of the life of Machines.
func (c *Controller) Control() *control.Controller[*api.Machine] {
	c.holds.reset()
	return &control.Controller[*api.Machine]{Env: c.Env, Due: c.due, Workers: 16, Step: c.step, Gone: c.holds.forget}
}

// due names the Machines that a change may concern.
func (c *Controller) due(ch store.Change) []string {
	switch {
	case ch.Kind.Name == "Machine":
		return append(c.nextHeld(ch), ch.Name)
	case ch.Kind.Name == "Guest":
		return hostsOf(ch)
	case ch.Kind.Name == "Site":
		var all []string
		for _, m := range store.CachedList[api.Machine](c.Cache) {
			all = append(all, m.Metadata.Name)
		}
		return all
	case ch.Kind.Name != "Image" && sameSpec(ch.Old, ch.New):
		return nil // an Image has to be Ready, of the others the spec alone matters
	}
	return c.referrers(ch.Kind.Name, ch.Name)
}

// hostsOf are the hosts that a Guest was on and is on.
func hostsOf(ch store.Change) (hosts []string) {
	for _, o := range []api.Object{ch.Old, ch.New} {
		if g, ok := o.(*api.Guest); ok && g.Status.Host != "" {
			hosts = append(hosts, g.Status.Host)
		}
	}
	return hosts
}

func sameSpec(a, b api.Object) bool {
	return a != nil && b != nil && a.Meta().UID == b.Meta().UID && a.Meta().Generation == b.Meta().Generation
}

// referrers are the Machines that name an object, be it by their Profile.
func (c *Controller) referrers(kind, name string) (machines []string) {
	if s, ok := store.Cached[api.Secret](c.Cache, name); ok && kind == "Secret" {
		for _, l := range store.CachedList[api.Layer](c.Cache) {
			if forLayers(s, []string{l.Metadata.Name}) {
				machines = append(machines, c.referrers("Layer", l.Metadata.Name)...)
			}
		}
	}
	for _, o := range c.Cache.CachedReferrers(kind, name) {
		switch o := o.(type) {
		case *api.Machine:
			machines = append(machines, o.Metadata.Name)
		case *api.Profile:
			machines = append(machines, c.referrers("Profile", o.Metadata.Name)...)
		}
	}
	return machines
}

// step takes the next step of one Machine, and then sees to its AssetTag and its
// BMC, where the step does not take the Machine elsewhere.
func (c *Controller) step(ctx context.Context, m *api.Machine) (time.Duration, error) {
	f := c.facts(m)
	a := decide(f, time.Now())
	again, err := c.act(ctx, f, a)
	if !a.beside {
		return again, err
	}
	for _, decide := range []func(facts, time.Time) action{decideTag, decideURL, decideHealth} {
		now, ok := store.Cached[api.Machine](c.Cache, m.Metadata.Name)
		if err != nil || !ok {
			return again, err
		}
		var wait time.Duration
		f = c.facts(now)
		wait, err = c.act(ctx, f, decide(f, time.Now()))
		again = sooner(again, wait)
	}
	return again, err
}

// sooner is the earlier of two times to look again; 0 means never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// mutate changes the Machine, when fn changes anything. It fails when the Machine
// is gone: what follows on the change must not be done to its BMC.
func mutate(ctx context.Context, e control.Env, m *api.Machine, fn func(*api.Machine)) error {
	there := false
	err := control.Write(ctx, e, m, func(fresh *api.Machine) bool {
		there = true
		fn(fresh)
		return true
	})
	if err == nil && !there {
		return fmt.Errorf("write Machine %s: %w", m.Metadata.Name, store.ErrNotFound)
	}
	return err
}

func attemptID(m *api.Machine) string {
	if m.Status.Attempt == nil {
		return ""
	}
	return m.Status.Attempt.ID
}

// IsDiscovered reports whether the Machine is not registered.
func IsDiscovered(m *api.Machine) bool { return m.Metadata.Labels[api.DiscoveredLabel] == "true" }

const discoveredAge = 24 * time.Hour
