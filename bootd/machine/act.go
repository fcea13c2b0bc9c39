package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
)

// act does what was decided for a Machine. A request that it serves, and that is
// Pending, is marked as Running first.
func (c *Controller) act(ctx context.Context, f facts, a action) (time.Duration, error) {
	if r := a.request; r != nil && r.State == api.RequestPending && a.do != doFinish {
		if wait, err := c.begin(ctx, f, r); err != nil || wait > 0 {
			return wait, err
		}
	}
	return c.do(ctx, f, a)
}

func (c *Controller) do(ctx context.Context, f facts, a action) (time.Duration, error) {
	switch a.do {
	case doNothing:
		return a.again, nil
	case doForget:
		return a.again, c.forget(ctx, f.machine)
	case doOpen:
		return c.open(ctx, f.machine, a)
	case doAsk:
		return c.ask(ctx, f, a)
	}
	return a.again, c.write(ctx, f, a)
}

// write puts an action into the Machine's status, and tells of it.
func (c *Controller) write(ctx context.Context, f facts, a action) error {
	if a.decision.Question != "" {
		c.Decision(a.decision) // its BMC has done it already
	}
	holds := false
	err := mutate(ctx, c.Env, f.machine, func(fresh *api.Machine) { holds = f.write(a, fresh, time.Now()) })
	if err == nil && holds && a.event.reason != "" {
		c.Event(f.machine, a.event.typ, a.event.reason, a.event.message)
	}
	return err
}

// ask asks the BMC, and does what follows from its answer.
func (c *Controller) ask(ctx context.Context, f facts, a action) (time.Duration, error) {
	is, err := c.bmcs().ask(ctx, f.machine, a)
	var held *fault
	switch r := a.request; {
	case err == nil:
		if a.ask == askWellbeing && is.unread == nil {
			c.Sensors.keep(f.machine.Metadata.Name, time.Now(), is.health.Readings)
		}
		f = c.facts(f.machine) // what is around the Machine may have changed meanwhile
		return c.do(ctx, f, outcome(f, time.Now(), a, is))
	case r != nil && r.Verb != api.VerbReprovision:
		return c.do(ctx, f, finish(r, err.Error()))
	case errors.As(err, &held):
		return max(held.wait, a.again), nil // the condition says why
	}
	return 0, err
}

// begin marks a request as Running, when the brakes allow it. They are counted
// under the lock, and the mark is in the cache before the next one counts.
func (c *Controller) begin(ctx context.Context, f facts, r *api.Request) (time.Duration, error) {
	if r.Verb == api.VerbPower {
		c.opening.Lock()
		defer c.opening.Unlock()
		f = c.facts(f.machine)
		if held, brakes := (judge{f, time.Now()}).powerBrake(); brakes {
			return c.do(ctx, f, held)
		}
	}
	return 0, mutate(ctx, c.Env, f.machine, func(fresh *api.Machine) { setRequest(fresh, r.ID, api.RequestRunning, "") })
}

// open opens a BootAttempt, and ends the request that asked for it. The brakes are
// counted again under the lock: others may have opened theirs since.
func (c *Controller) open(ctx context.Context, m *api.Machine, a action) (time.Duration, error) {
	c.opening.Lock()
	defer c.opening.Unlock()
	f := c.facts(m)
	again := judge{f, time.Now()}.open(a.reason, a.retry, a.stage)
	if again.do != doOpen {
		return c.do(ctx, f, again)
	}
	again.answer = a.answer
	var opened *api.BootAttempt
	err := control.Write(ctx, c.Env, m, func(fresh *api.Machine) bool {
		if opened = nil; f.write(again, fresh, time.Now()) {
			opened = fresh.Status.Attempt
		}
		return opened != nil
	})
	if err != nil {
		return 0, fmt.Errorf("open a BootAttempt for %s: %w", m.Metadata.Name, err)
	}
	if opened == nil {
		return 0, nil // what has changed since brings the Machine back here
	}
	c.Event(m, api.Normal, "BootAttempt", fmt.Sprintf("BootAttempt %d opened: %s", opened.Number, a.reason))
	c.Decision(api.Decision{Machine: m.Metadata.Name, Question: "boot", Answer: "opened", Reason: a.reason, Attempt: opened.ID})
	if a.request == nil {
		return 0, nil
	}
	return c.do(ctx, f, finish(a.request, ""))
}

// forget deletes a Machine that was only discovered.
func (c *Controller) forget(ctx context.Context, m *api.Machine) error {
	if err := c.Store.Delete(ctx, api.KindOf(m), m.Metadata.Name, m.Metadata.ResourceVersion); err != nil {
		return fmt.Errorf("forget discovered Machine %s: %w", m.Metadata.Name, err)
	}
	return nil
}

// bmcs are the BMCs as the controller calls them.
func (c *Controller) bmcs() bmcs {
	return bmcs{Env: c.Env, use: c.Use, tags: tags{c.Env, c.Nonce}, urls: urls{Env: c.Env, of: c.BootURL, media: c.MediaURL, ca: c.CA}, holds: &c.holds}
}
