package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// resetBMC restarts the BMC itself; the server runs on. It waits until that shows.
func (r *driver) resetBMC(ctx context.Context) error {
	sys, _, err := r.system(ctx)
	if err != nil {
		return err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return err
	}
	action := m.Actions.Reset
	if action.Target == "" {
		return fmt.Errorf("%w: manager %s has no Reset action", hardware.ErrUnsupported, m.Path)
	}
	allowed := action.Allowable
	if len(allowed) == 0 && action.Info != "" {
		if allowed, err = r.actionInfo(ctx, string(action.Info)); err != nil {
			return err
		}
	}
	kind, ok := choose([]text{"GracefulRestart", "ForceRestart"}, allowed)
	if !ok {
		return fmt.Errorf("%w: manager %s allows the reset types %s", hardware.ErrUnsupported, m.Path, allowed)
	}
	_, err = r.send(ctx, http.MethodPost, string(action.Target), "", map[string]text{"ResetType": kind})
	if err != nil && !errors.Is(err, hardware.ErrUnreachable) && !errors.Is(err, hardware.ErrNotSeen) {
		return err // an answer that was lost is no refusal
	}
	return r.restarted(ctx, m)
}

// restarted looks until the BMC has gone away: it does not answer, does not know the login, or reports another restart.
func (r *driver) restarted(ctx context.Context, before manager) error {
	const every = 2 * time.Second
	if r.transport.session == "" && before.LastReset == "" {
		return nil // nothing of it would show
	}
	for waited := time.Duration(0); waited < watchLimit; waited += every {
		if err := r.transport.pause(ctx, every); err != nil {
			return err
		}
		var now manager
		answer, err := r.sendOnce(ctx, http.MethodGet, string(before.Path), "", nil) // not send, which logs in again
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || decode(answer.body, &now) != nil || now.LastReset != before.LastReset {
			return nil
		}
	}
	return fmt.Errorf("%w within %s: the BMC answers as it did before", hardware.ErrNotSeen, watchLimit)
}
