package redfish

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

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

// power asks for the action until the BMC accepts it, or its refusal is meant, and looks whether it happened. What was
// accepted, or may have been, is not sent again.
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
			return r.happened(ctx, does, sys, err)
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

// happened looks whether a command did what it was sent for; err is how sending it ended. A command without an answer
// (the BMC broke the connection, its task does not end) may have been carried out all the same.
func (r *driver) happened(ctx context.Context, v verb, before system, err error) error {
	lost := errors.Is(err, hardware.ErrNotSeen) || errors.Is(err, hardware.ErrUnreachable)
	if err != nil && !lost || v == verbShutdown {
		return err
	}
	waited := time.Duration(0)
	if errors.Is(err, hardware.ErrUnfinished) {
		waited = watchLimit // its task had that time
	}
	seen, lookErr := r.watch(ctx, v, before, lost, waited)
	switch {
	case seen:
		return nil
	case err != nil:
		return err
	case lookErr != nil:
		return fmt.Errorf("%w: %w", hardware.ErrNotSeen, lookErr)
	}
	return fmt.Errorf("%w within %s: it shows the server as it was before: look at its console, and at the BMC's log", hardware.ErrNotSeen, watchLimit)
}

const watchLimit = time.Minute // how long a power action may take to show

// watch looks until the action shows. A restart shows by the reported last reset, the boot or POST: where nothing
// of that is reported, it is taken on trust, unless its answer was lost. It looks once where that time is over already.
func (r *driver) watch(ctx context.Context, v verb, before system, lost bool, waited time.Duration) (bool, error) {
	if v == verbRestart && before.traces() == (traces{power: before.PowerState}) && !lost {
		return true, nil
	}
	var lookErr error
	for {
		var sys system
		if sys, _, lookErr = r.system(ctx); lookErr == nil && v.shows(before, sys) {
			return true, nil
		}
		if lost && lookErr != nil || waited >= watchLimit {
			return false, lookErr
		}
		wait := min(2*time.Second+waited/4, watchLimit-waited)
		if err := r.transport.pause(ctx, wait); err != nil {
			return false, err
		}
		waited += wait
	}
}

// traces are what a reset leaves behind in a system.
type traces struct{ power, reset, progress, progressTime, post, discovered text }

func (s system) traces() traces {
	hpe := s.hpe()
	return traces{power: s.PowerState, reset: s.LastResetTime, progress: s.BootProgress.LastState, progressTime: s.BootProgress.LastStateTime,
		post: hpe.PostState, discovered: hpe.Discovered}
}

// shows reports whether the system shows the action.
func (v verb) shows(before, now system) bool {
	if v == verbRestart {
		return before.traces() != now.traces()
	}
	return v.reached(powerState(now))
}

// reset sends the best reset type that the system allows, and the next one when the BMC does not know it.
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
	kinds := slices.DeleteFunc(v.resetTypes(), func(kind text) bool { return len(allowed) > 0 && !slices.Contains(allowed, kind) })
	if len(kinds) == 0 {
		return fmt.Errorf("%w: system %s allows the reset types %s", hardware.ErrUnsupported, sys.ID, allowed)
	}
	var before []string
	for i, kind := range kinds {
		_, err := r.send(ctx, http.MethodPost, string(action.Target), "", map[string]text{"ResetType": kind})
		var no *refusal
		if !errors.As(err, &no) || !no.otherResetType() || i == len(kinds)-1 {
			return refusedBefore(err, before)
		}
		before = append(before, no.Error())
	}
	return nil
}

// otherResetType: the BMC does not know the reset type; nothing was done.
func (r *refusal) otherResetType() bool {
	return r.says("ActionParameterNotSupported") || r.says("ActionParameterValueNotInList") || r.says("ActionParameterUnknown") ||
		r.says("ActionParameterValueFormatError")
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
