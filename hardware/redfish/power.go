package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/rackweft/rackweft/hardware"
)

func (r *driver) powerState(ctx context.Context) (hardware.PowerState, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return "", err
	}
	return powerState(sys), nil
}

func powerState(sys system) hardware.PowerState {
	switch state := hardware.PowerState(sys.PowerState); state {
	case hardware.PowerOn, hardware.PowerOff, hardware.PowerPoweringOn, hardware.PowerPoweringOff:
		return state
	}
	return hardware.PowerUnknown
}

// resetTypes of a verb, the best first.
func (v verb) resetTypes() []text {
	switch v {
	case verbOn:
		return []text{"On", "ForceOn", "PushPowerButton"}
	case verbOff:
		return []text{"ForceOff"}
	case verbRestart:
		return []text{"ForceRestart", "PowerCycle"}
	default:
		return []text{"GracefulShutdown", "PushPowerButton"}
	}
}

// reached says that nothing is left to do.
func (v verb) reached(state hardware.PowerState) bool {
	switch v {
	case verbOn:
		return state == hardware.PowerOn || state == hardware.PowerPoweringOn
	case verbOff:
		return state == hardware.PowerOff
	case verbShutdown:
		return state == hardware.PowerOff || state == hardware.PowerPoweringOff
	}
	return false
}

// power asks for the action until the server is there or the BMC's refusal is meant.
func (r *driver) power(ctx context.Context, v verb) error {
	for try := 1; ; try++ {
		sys, _, err := r.system(ctx)
		if err != nil {
			return err
		}
		state := powerState(sys)
		if v.reached(state) {
			return nil
		}
		does := v
		if v == verbRestart && state == hardware.PowerOff {
			does = verbOn
		}
		err = r.reset(ctx, sys, does)
		var no *refusal
		if err == nil || !errors.As(err, &no) || no.status != http.StatusBadRequest && no.status != http.StatusConflict {
			return err
		}
		// "Already on" and "too soon" come as the same 400 or 409: look first, then decide.
		now, lookErr := r.powerState(ctx)
		if lookErr != nil {
			return errors.Join(err, lookErr)
		}
		if does.reached(now) {
			return nil
		}
		rule, passing := find(powerRetries(), no)
		if !passing || try >= rule.tries {
			return err
		}
		r.log.Info("BMC is not ready for it, trying again", "refusal", no.Error(), "pause", rule.pause(try))
		if r.transport.pause(ctx, rule.pause(try)) != nil {
			return fmt.Errorf("out of time: %w", err)
		}
	}
}

// reset sends the best reset type that the system allows.
func (r *driver) reset(ctx context.Context, sys system, v verb) error {
	action := sys.Actions.Reset
	if action.Target == "" {
		return fmt.Errorf("%w: system %s has no Reset action: is a licence missing?", hardware.ErrUnsupported, sys.ID)
	}
	allowed := action.Allowable
	if len(allowed) == 0 && action.Info != "" {
		var err error
		if allowed, err = r.actionInfo(ctx, string(action.Info)); err != nil {
			return err
		}
	}
	kind, ok := choose(v.resetTypes(), allowed)
	if !ok {
		return fmt.Errorf("%w: system %s allows the reset types %s", hardware.ErrUnsupported, sys.ID, allowed)
	}
	_, err := r.send(ctx, http.MethodPost, string(action.Target), "", map[string]text{"ResetType": kind})
	return err
}

// choose gives the first wanted value that is allowed; where nothing is listed, the first.
func choose(wanted, allowed []text) (text, bool) {
	for _, value := range wanted {
		if len(allowed) == 0 || slices.Contains(allowed, value) {
			return value, true
		}
	}
	return "", false
}

func (r *driver) actionInfo(ctx context.Context, at string) ([]text, error) {
	var info struct {
		Parameters []struct {
			Name      text   `json:"Name"`
			Allowable []text `json:"AllowableValues"`
		} `json:"Parameters"`
	}
	if _, err := r.get(ctx, at, &info); err != nil {
		return nil, ignoreRefusal(err)
	}
	for _, p := range info.Parameters {
		if p.Name == "ResetType" {
			return p.Allowable, nil
		}
	}
	return nil, nil
}
