package bmc

import (
	"context"
	"fmt"
)

// action returns what a ResetType does to a server whose power state was power
// at the request.
func (s *Server) action(kind string, power Power) func(context.Context) error {
	switch kind {
	case "On":
		return s.machine.PowerOn
	case "ForceOff":
		return s.machine.PowerOff
	case "ForceRestart":
		return s.machine.Reset
	case "PowerCycle":
		return s.powerCycle
	case "Nmi":
		return s.machine.NMI
	case "PushPowerButton":
		if power == Off {
			return s.machine.PowerOn
		}
	}
	// GracefulShutdown, GracefulRestart, and the button of a server that is on.
	// As on real machines, the operating system decides how to react.
	return s.machine.PressButton
}

func (s *Server) powerCycle(ctx context.Context) error {
	if err := s.machine.PowerOff(ctx); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	if err := s.machine.PowerOn(ctx); err != nil {
		return fmt.Errorf("power on: %w", err)
	}
	return nil
}
