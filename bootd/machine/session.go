package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// session is one in which a Machine's BMC is asked one question.
type session struct {
	BMC
	machine *api.Machine
	tags    tags
}

// ask asks it.
func (s session) ask(ctx context.Context, a action) (is answer, err error) {
	switch a.ask {
	case askHealth, askRestored, askPower:
		is.power, err = s.PowerState(ctx)
	case askInventory:
		if is.power, err = s.PowerState(ctx); err == nil {
			is.inventory, err = s.Inventory(ctx)
		}
	case askBoot:
		is.did, err = s.bootFromNetwork(ctx)
	case askReset:
		is.reset, err = s.resetSince(ctx, a.after)
	case askShutdown:
		is.power, err = s.shutDown(ctx, a.patience)
	case askFence:
		is.power, err = s.fence(ctx)
	case askNonce:
		is.tag, err = s.tags.writeNonce(ctx, s.BMC, s.machine)
	case askTagBack:
		err = setAside(s.SetAssetTag(ctx, s.machine.Status.AssetTag.Value), &is.tag.refused)
	case askRequest:
		err = s.request(ctx, a.request)
	default:
		err = fmt.Errorf("no question %q", a.ask)
	}
	return is, err
}

// order gives a power order.
func (s session) order(ctx context.Context, o order) error {
	switch o {
	case orderOn:
		return s.PowerOn(ctx)
	case orderOff:
		return s.PowerOff(ctx)
	case orderReset:
		return s.ForceRestart(ctx)
	case orderShutdown:
		return ignoreUnsupported(s.GracefulShutdown(ctx))
	}
	return nil
}

// bootFromNetwork sets the one-time boot target before the power action, as the
// firmware reads it only then.
func (s session) bootFromNetwork(ctx context.Context) (did string, err error) {
	power, err := s.PowerState(ctx)
	if err != nil {
		return "", err
	}
	var since reset
	if power == hardware.PowerOn {
		since, _ = s.resetSince(ctx, actFrom(s.machine.Status.Attempt)) // without an answer it is reset
	}
	o, did := bootOrder(power, since)
	if o == orderNone {
		return did, nil
	}
	if err := s.SetBootOnce(ctx, bootTarget(s.machine)); err != nil {
		return "", err
	}
	return did, s.order(ctx, o)
}

// resetSince asks for the last reset, and whether it was after t.
func (s session) resetSince(ctx context.Context, t time.Time) (reset, error) {
	e, err := s.LastReset(ctx)
	if err != nil {
		return reset{}, err
	}
	return resetAfter(e, t, time.Now()), nil
}

// shutDown returns the power state before it did anything.
func (s session) shutDown(ctx context.Context, patience time.Duration) (hardware.PowerState, error) {
	power, err := s.PowerState(ctx)
	if err != nil {
		return power, err
	}
	asked := s.machine.Status.Conditions.Get(condShuttingDown)
	return power, s.order(ctx, shutdownOrder(power, asked, patience, time.Now()))
}

// fence cuts the power, and returns the power state that is then.
func (s session) fence(ctx context.Context) (hardware.PowerState, error) {
	power, err := s.PowerState(ctx)
	if err != nil || power == hardware.PowerOff {
		return power, err
	}
	if err := s.PowerOff(ctx); err != nil {
		return power, err
	}
	return s.PowerState(ctx)
}

// request carries out what a person has asked for.
func (s session) request(ctx context.Context, r *api.Request) error {
	if r.Verb == api.VerbIdentify {
		return s.Identify(ctx, r.Argument == "on")
	}
	if o := order(r.Argument); o != orderReset {
		return s.order(ctx, o)
	}
	power, err := s.PowerState(ctx)
	if err != nil {
		return err
	}
	return s.order(ctx, resetOrder(power))
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, hardware.ErrUnsupported) {
		return nil
	}
	return err
}

// setAside keeps a BMC's refusal out of its condition: a BMC without asset tags is well.
func setAside(err error, refused *error) error {
	if errors.Is(err, hardware.ErrUnsupported) {
		*refused = err
		return nil
	}
	return err
}
