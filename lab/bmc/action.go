package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// action returns what a ResetType does to a server whose power state was power
// at the request.
func (s *system) action(kind string, power Power) func(context.Context) error {
	switch kind {
	case "On":
		return s.Machine.PowerOn
	case "ForceOff":
		return s.Machine.PowerOff
	case "ForceRestart":
		return s.Machine.Reset
	case "PowerCycle":
		return s.powerCycle
	case "Nmi":
		return s.Machine.NMI
	case "PushPowerButton":
		if power == Off {
			return s.Machine.PowerOn
		}
	}
	// GracefulShutdown, GracefulRestart, and the button of a server that is on.
	// As on real machines, the operating system decides how to react.
	return s.Machine.PressButton
}

func (s *system) powerCycle(ctx context.Context) error {
	if err := s.Machine.PowerOff(ctx); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	if err := s.Machine.PowerOn(ctx); err != nil {
		return fmt.Errorf("power on: %w", err)
	}
	return nil
}

func resetTypes() []string {
	return []string{"On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "PowerCycle", "Nmi", "PushPowerButton"}
}

// reset implements ComputerSystem.Reset.
func (s *system) reset(w http.ResponseWriter, r *http.Request) {
	var body struct{ ResetType string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, malformedJSON())
		return
	}
	kind := body.ResetType
	if !slices.Contains(resetTypes(), kind) {
		fail(w, http.StatusBadRequest, message{ID: "Base.1.16.ActionParameterNotSupported", Severity: "Warning",
			Args:       []string{kind, "ComputerSystem.Reset"},
			Text:       "The parameter ResetType '" + kind + "' for the action ComputerSystem.Reset is not supported on the target resource.",
			Resolution: "Choose one of ResetType@Redfish.AllowableValues."})
		return
	}
	power := s.Machine.Power()
	if kind == "On" && power == On {
		fail(w, http.StatusConflict, wrongState("The server is already powered on."))
		return
	}
	if kind != "On" && kind != "PushPowerButton" && power == Off {
		fail(w, http.StatusConflict, wrongState("The server is powered off; "+kind+" needs it powered on."))
		return
	}
	fault := s.bmc.Faults.now()
	if fault.reset == ResetIgnored {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.mu.Lock()
	s.restart = kind == "GracefulRestart" && fault.reset != ResetTaskFails
	s.mu.Unlock()
	if fault.reset != ResetDone {
		s.bmc.accept(w, "Reset of "+s.ID, fault.powerDelay, s.inTask(fault.reset, s.action(kind, power)))
		return
	}
	if fault.powerDelay > 0 {
		s.bmc.later(fault.powerDelay, kind, s.action(kind, power))
		w.WriteHeader(http.StatusNoContent)
		return
	}
	// The request stays valid when the client hangs up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	err := s.action(kind, power)(ctx)
	if errors.Is(err, ErrOff) {
		fail(w, http.StatusConflict, wrongState("The server went off before "+kind+" could be done."))
		return
	}
	if err != nil {
		s.bmc.log.Warn("action failed", "bmc", s.bmc.config.Address.String(), "action", kind, "error", err)
		fail(w, http.StatusInternalServerError, internal(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// inTask is an action whose task ends as the fault says.
func (s *system) inTask(fault ResetAnswer, do func(context.Context) error) func(context.Context) (ended bool, err error) {
	return func(ctx context.Context) (bool, error) {
		if fault == ResetTaskFails {
			return true, errors.New("the power supply does not answer")
		}
		err := do(ctx)
		return fault != ResetTaskHangs, err
	}
}
