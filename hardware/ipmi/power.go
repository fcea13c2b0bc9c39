package ipmi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// verb is a power action.
type verb int

const (
	verbOn verb = iota
	verbOff
	verbRestart
	verbShutdown
)

// control is the verb in Chassis Control (§28.3).
func (v verb) control() request {
	r := request{name: "Chassis Control", netfn: 0x00, command: 0x02}
	switch v {
	case verbOff:
		r.data = []byte{0}
	case verbOn:
		r.data = []byte{1}
	case verbRestart:
		r.data = []byte{3} // hard reset, the one control that every chassis must have in addition to power down
	case verbShutdown:
		r.data = []byte{5}
	}
	return r
}

// reached says that nothing is left to do.
func (v verb) reached(state hardware.PowerState) bool {
	switch v {
	case verbOn:
		return state == hardware.PowerOn
	case verbOff, verbShutdown:
		return state == hardware.PowerOff
	}
	return false
}

// powerState is Get Chassis Status (§28.2).
func (s *Service) powerState(ctx context.Context) (hardware.PowerState, error) {
	answer, err := s.send(ctx, request{name: "Get Chassis Status", netfn: 0x00, command: 0x01})
	if err != nil {
		return hardware.PowerUnknown, err
	}
	if len(answer) < 3 {
		return hardware.PowerUnknown, fmt.Errorf("BMC answers %d bytes to Get Chassis Status: want 3 at least", len(answer))
	}
	if answer[0]&1 != 0 {
		return hardware.PowerOn, nil
	}
	return hardware.PowerOff, nil
}

// power gives the order once, and looks whether it was carried out.
func (s *Service) power(ctx context.Context, v verb) error {
	state, err := s.powerState(ctx)
	if err != nil {
		return err
	}
	if v.reached(state) {
		return nil
	}
	if v == verbRestart && state == hardware.PowerOff {
		v = verbOn
	}
	err = s.order(ctx, v.control())
	var no *refusal
	if errors.As(err, &no) && no.already() {
		if now, lookErr := s.powerState(ctx); lookErr == nil && v.reached(now) {
			return nil
		}
	}
	lost := errors.Is(err, hardware.ErrUnreachable)
	if err != nil && !lost || v == verbShutdown {
		return err
	}
	return s.happened(ctx, v, err)
}

const watchLimit = time.Minute // how long a power action may take to show

// happened looks until the action shows; lost is why its answer is not known. A restart shows in nothing: the server is on
// before and after it.
func (s *Service) happened(ctx context.Context, v verb, lost error) error {
	if v == verbRestart && lost != nil {
		return fmt.Errorf("%w, and a restart leaves no trace: %w", hardware.ErrNotSeen, lost)
	}
	want := v
	if v == verbRestart {
		want = verbOn
	}
	var lookErr error
	for waited := time.Duration(0); ; {
		var state hardware.PowerState
		if state, lookErr = s.powerState(ctx); lookErr == nil && want.reached(state) {
			return nil
		}
		if waited >= watchLimit {
			break
		}
		pause := min(2*time.Second+waited/4, watchLimit-waited)
		if err := s.pause(ctx, pause); err != nil {
			return fmt.Errorf("%w: %w", hardware.ErrNotSeen, err)
		}
		waited += pause
	}
	return notSeen(lost, lookErr)
}

func notSeen(lost, lookErr error) error {
	switch {
	case lost != nil:
		return lost
	case lookErr != nil:
		return fmt.Errorf("%w: %w", hardware.ErrNotSeen, lookErr)
	}
	return fmt.Errorf("%w within %s: it shows the server as it was before: look at its console, and at the BMC's log", hardware.ErrNotSeen, watchLimit)
}
