package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

const maxRequests = 10

// AddRequest writes a verb into the Machine's status for the controller to
// serve. A repeated id answers with the request that stands there.
func AddRequest(m *api.Machine, r api.Request) (api.Request, error) {
	for _, old := range m.Status.Requests {
		if old.ID == r.ID {
			return old, nil
		}
	}
	if err := checkRequest(m, r); err != nil {
		return r, err
	}
	r.State, r.Time = api.RequestPending, time.Now().UTC()
	m.Status.Requests = append(m.Status.Requests, r)
	if n := len(m.Status.Requests); n > maxRequests {
		m.Status.Requests = slices.Delete(m.Status.Requests, 0, n-maxRequests)
	}
	return r, nil
}

func checkRequest(m *api.Machine, r api.Request) error {
	if IsDiscovered(m) {
		return fmt.Errorf("machine %s is only discovered: apply a Machine with its MAC first", m.Metadata.Name)
	}
	if m.Spec.BMC == nil {
		return fmt.Errorf("machine %s has no BMC in its spec, so nothing can be asked of it", m.Metadata.Name)
	}
	switch r.Verb {
	case api.VerbPower:
		if !slices.Contains([]string{"on", "off", "reset"}, r.Argument) {
			return fmt.Errorf("power %q: it may be on, off or reset", r.Argument)
		}
	case api.VerbIdentify:
		if !slices.Contains([]string{"on", "off"}, r.Argument) {
			return fmt.Errorf("identify %q: it may be on or off", r.Argument)
		}
	case api.VerbReprovision, api.VerbInspect:
		if m.Spec.State != api.StateActive && r.Verb == api.VerbReprovision {
			return fmt.Errorf("machine %s has state %s: only one that is to be Active is provisioned", m.Metadata.Name, m.Spec.State)
		}
	default:
		return fmt.Errorf("no verb is called %q", r.Verb)
	}
	return nil
}

func pending(m *api.Machine) *api.Request {
	for i := range m.Status.Requests {
		if s := m.Status.Requests[i].State; s == api.RequestPending || s == api.RequestRunning {
			return &m.Status.Requests[i]
		}
	}
	return nil
}

// serve carries a request out. A power command that a killed bootd left
// running is not repeated: it may have been carried out.
func (c *Controller) serve(ctx context.Context, m *api.Machine, r *api.Request) (time.Duration, error) {
	if r.State == api.RequestRunning && r.Verb == api.VerbPower && r.Argument == "reset" {
		return 0, c.finish(ctx, m, r, errors.New("bootd was stopped while it ran; ask again if the machine was not reset"))
	}
	if site.Spec(c.Cache).Paused && (r.Verb == api.VerbPower || r.Verb == api.VerbReprovision) {
		return 0, c.finish(ctx, m, r, errors.New("the Site is paused"))
	}
	if r.State == api.RequestPending {
		if wait, err := c.begin(ctx, m, r); err != nil || wait > 0 {
			return wait, err
		}
	}
	switch r.Verb {
	case api.VerbReprovision:
		// A bootd that was killed before it finished the request has opened the
		// attempt already.
		if m.Status.Attempt != nil && m.Status.Attempt.Request == r.ID {
			return 0, c.finish(ctx, m, r, nil)
		}
		if done, err := c.drain(ctx, m); err != nil || !done {
			return drainEvery, err
		}
		if c.hasToShutDown(m) {
			if off, wait, err := c.shutDown(ctx, m); err != nil || !off {
				return wait, err
			}
		}
		wait, err := c.open(ctx, m, "reprovision asked for by "+r.By, 0, api.StageRequested)
		if err != nil || wait > 0 {
			return wait, err
		}
		return 0, c.finish(ctx, m, r, nil)
	case api.VerbInspect:
		_, err := c.readInventory(ctx, m)
		return 0, c.finish(ctx, m, r, c.said(m, err))
	}
	_, err := c.withBMC(ctx, m, words(r), func(ctx context.Context, b BMC) error { return ask(ctx, b, r) })
	return 0, c.finish(ctx, m, r, c.said(m, err))
}

// begin marks a request as Running, when the brakes allow it. They are counted
// under the lock, and the mark is in the cache before the next one counts.
func (c *Controller) begin(ctx context.Context, m *api.Machine, r *api.Request) (time.Duration, error) {
	if r.Verb == api.VerbPower {
		c.opening.Lock()
		defer c.opening.Unlock()
		if reason, message := c.powerBrake(m); reason != "" {
			return c.hold(ctx, m, reason, message)
		}
	}
	return 0, c.setRequest(ctx, m, r.ID, api.RequestRunning, "")
}

// said is what the BMC condition says of an error that stands there already.
func (c *Controller) said(m *api.Machine, err error) error {
	if !errors.Is(err, errHeld) {
		return err
	}
	now, ok := store.Cached[api.Machine](c.Cache, m.Metadata.Name)
	if !ok {
		return err
	}
	if cond := now.Status.Conditions.Get(api.CondBMC); cond != nil && cond.Status == api.False {
		return errors.New(cond.Message)
	}
	return err
}

// words are a request as a person says it: "power reset", "inspect".
func words(r *api.Request) string { return strings.TrimSpace(string(r.Verb) + " " + r.Argument) }

func ask(ctx context.Context, b BMC, r *api.Request) error {
	switch {
	case r.Verb == api.VerbIdentify:
		return b.Identify(ctx, r.Argument == "on")
	case r.Argument == "on":
		return b.PowerOn(ctx)
	case r.Argument == "off":
		return b.PowerOff(ctx)
	}
	power, err := b.PowerState(ctx)
	if err != nil {
		return err
	}
	if power == hardware.PowerOff {
		return b.PowerOn(ctx)
	}
	return b.ForceRestart(ctx)
}

func (c *Controller) finish(ctx context.Context, m *api.Machine, r *api.Request, err error) error {
	state, message := api.RequestDone, ""
	if err != nil {
		state, message = api.RequestFailed, strings.TrimPrefix(err.Error(), words(r)+": ")
		c.Event(m, api.Warning, "RequestFailed", words(r)+": "+message)
	} else {
		c.Event(m, api.Normal, "RequestDone", fmt.Sprintf("%s, asked for by %s", words(r), r.By))
	}
	return c.setRequest(ctx, m, r.ID, state, message)
}

func (c *Controller) setRequest(ctx context.Context, m *api.Machine, id, state, message string) error {
	return c.mutate(ctx, m, func(m *api.Machine) {
		for i := range m.Status.Requests {
			if m.Status.Requests[i].ID == id {
				m.Status.Requests[i].State, m.Status.Requests[i].Message = state, message
			}
		}
	})
}
