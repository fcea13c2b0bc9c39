package bmc

import (
	"context"
	"fmt"
)

// action is what a ResetType does to a server that was in state power when it was asked for.
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
	// GracefulShutdown, GracefulRestart, and the button of a server that is on. What the operating
	// system makes of it is its own affair, as it is in a real machine.
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
