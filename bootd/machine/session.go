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
	urls    urls
	secure  bool // the boot has to reach trust level bmc
	// note writes a power command into the attempt, just before it is sent; false
	// when the attempt is over.
	note func(context.Context, api.PowerCommand) (open bool, err error)
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
		if a.reading {
			is.unread, err = unread(ctx, err)
		}
	case askBoot:
		is, err = s.bootFromNetwork(ctx)
	case askReset, askSeen:
		is, err = s.lastReset(ctx, a.after)
	case askShutdown:
		is.power, err = s.shutDown(ctx, a.patience)
	case askFence:
		is.power, err = s.fence(ctx)
	case askNonce:
		is.tag, err = s.tags.writeNonce(ctx, s.BMC, s.machine)
	case askWellbeing:
		is.health, err = s.Health(ctx)
		is.unread, err = unread(ctx, err)
	case askTagBack:
		err = setAside(s.SetAssetTag(ctx, s.machine.Status.AssetTag.Value), &is.tag.refused)
	case askURLBack:
		err = setAside(s.urls.takeBack(ctx, s.BMC, s.machine), &is.url.refused)
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
// firmware reads it only then. The command is written down before it is sent.
func (s session) bootFromNetwork(ctx context.Context) (is answer, err error) {
	if is.power, err = s.PowerState(ctx); err != nil {
		return is, err
	}
	sent := s.machine.Status.Attempt.Command
	var before *api.ResetSeen
	if is.power == hardware.PowerOn {
		is.reset, before, _ = s.resetSince(ctx, sent) // a BMC without an answer tells nothing
	}
	o, did := bootOrder(is.power)
	if sent != nil {
		o, did = sentOrder(sent, is.power, is.reset, time.Now())
	}
	if o == orderNone {
		is.did = did
		return is, nil
	}
	otherwise, open, err := s.setTarget(ctx)
	if s.secure && errors.Is(err, hardware.ErrUnsupported) {
		is.url.refused = err
		return is, nil
	}
	if err != nil || !open {
		return is, err
	}
	open, err = s.note(ctx, api.PowerCommand{Order: string(o), Time: time.Now().UTC(), Before: before})
	if err != nil || !open {
		return is, err
	}
	is.did = did + otherwise
	err = s.order(ctx, o)
	if errors.Is(err, hardware.ErrNotSeen) {
		is.unseen, err = err, nil
	}
	return is, err
}

// setTarget sets what the attempt boots from; false when the attempt is over.
func (s session) setTarget(ctx context.Context) (otherwise string, open bool, err error) {
	if s.secure {
		return s.urls.give(ctx, s.BMC, s.machine)
	}
	otherwise, err = s.setBoot(ctx, bootTarget(s.machine))
	return otherwise, true, err
}

// setBoot sets the one-time boot as far as the BMC has such a thing; otherwise tells what the firmware decides for itself.
func (s session) setBoot(ctx context.Context, boot hardware.Boot) (otherwise string, err error) {
	err = s.SetBootOnce(ctx, boot)
	if errors.Is(err, hardware.ErrModeUntold) {
		boot.Mode, otherwise = "", ", in the firmware's own boot mode: its BMC tells none"
		err = s.SetBootOnce(ctx, boot)
	}
	if errors.Is(err, hardware.ErrNoOverride) {
		return ", by the firmware's own boot order: its BMC has no boot override", nil
	}
	return otherwise, err
}

// resetSince asks for the last reset, and whether it came after the command was sent.
func (s session) resetSince(ctx context.Context, sent *api.PowerCommand) (reset, *api.ResetSeen, error) {
	e, err := s.LastReset(ctx)
	now := time.Now()
	if err != nil {
		return reset{}, nil, err
	}
	if sent == nil {
		return reset{}, seen(e, now), nil
	}
	return resetSince(sent.Before, e, sent.Time, now), seen(e, now), nil
}

// lastReset asks for the last reset, and whether it is another than the attempt's own.
func (s session) lastReset(ctx context.Context, after time.Time) (is answer, err error) {
	e, err := s.LastReset(ctx)
	if err != nil {
		return is, err
	}
	now := time.Now()
	return answer{reset: resetSince(s.machine.Status.Attempt.Reset, e, after, now), seen: seen(e, now)}, nil
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
	switch r.Verb {
	case api.VerbIdentify:
		return s.Identify(ctx, r.Argument == "on")
	case api.VerbResetBMC:
		return s.ResetBMC(ctx)
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

// unread keeps what is wrong with one reading out of the BMC's condition: one that answers and takes the password is well.
func unread(ctx context.Context, err error) (reading, bmc error) {
	var mismatch *hardware.CertificateMismatchError
	if ctx.Err() != nil || errors.As(err, &mismatch) || errors.Is(err, hardware.ErrUnreachable) || errors.Is(err, hardware.ErrUnauthorized) || errors.Is(err, hardware.ErrPasswordChange) {
		return nil, err
	}
	return err, nil
}

// setAside keeps a BMC's refusal out of its condition: a BMC without asset tags is well.
func setAside(err error, refused *error) error {
	if unable(err) {
		*refused = err
		return nil
	}
	return err
}
