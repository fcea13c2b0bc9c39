package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
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
	if site(c.Cache).Paused && (r.Verb == api.VerbPower || r.Verb == api.VerbReprovision) {
		return 0, c.finish(ctx, m, r, errors.New("the Site is paused"))
	}
	if r.State == api.RequestPending {
		if err := c.setRequest(ctx, m, r.ID, api.RequestRunning, ""); err != nil {
			return 0, err
		}
	}
	switch r.Verb {
	case api.VerbReprovision:
		// A bootd that was killed before it finished the request has opened the
		// attempt already.
		if m.Status.Attempt != nil && m.Status.Attempt.Request == r.ID {
			return 0, c.finish(ctx, m, r, nil)
		}
		wait, err := c.open(ctx, m, "reprovision asked for by "+r.By, 0, api.StageRequested)
		if err != nil || wait > 0 {
			return wait, err
		}
		return 0, c.finish(ctx, m, r, nil)
	case api.VerbInspect:
		if err := c.mutate(ctx, m, func(m *api.Machine) { m.Status.Conditions.Remove(api.CondInspected) }); err != nil {
			return 0, err
		}
		return 0, c.finish(ctx, m, r, nil)
	}
	_, err := c.withBMC(ctx, m, string(r.Verb)+" "+r.Argument, func(ctx context.Context, b BMC) error { return ask(ctx, b, r) })
	if errors.Is(err, errHeld) {
		fresh := m.Status.Conditions.Get(api.CondBMC)
		err = errors.New("the BMC could not be used: see condition " + api.CondBMC)
		if fresh != nil && fresh.Status == api.False {
			err = errors.New(fresh.Message)
		}
	}
	return 0, c.finish(ctx, m, r, err)
}

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
		state, message = api.RequestFailed, err.Error()
		c.Record.Event(m, api.Warning, "RequestFailed", fmt.Sprintf("%s %s: %s", r.Verb, r.Argument, err))
	} else {
		c.Record.Event(m, api.Normal, "RequestDone", fmt.Sprintf("%s %s, asked for by %s", r.Verb, r.Argument, r.By))
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
