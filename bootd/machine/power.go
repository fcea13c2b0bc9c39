package machine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// inspect reads the Machine's inventory from its BMC.
func (c *Controller) inspect(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if m.Status.Phase == api.PhaseRegistered {
		if err := c.mutate(ctx, m, func(m *api.Machine) { m.Status.Phase = api.PhaseInspecting }); err != nil {
			return 0, err
		}
	}
	return heldOr(c.readInventory(ctx, m))
}

// readInventory asks the BMC what the Machine is made of, and writes it down.
func (c *Controller) readInventory(ctx context.Context, m *api.Machine) (time.Duration, error) {
	var inv hardware.Inventory
	var power hardware.PowerState
	wait, err := c.withBMC(ctx, m, "inspect", func(ctx context.Context, b BMC) (err error) {
		if power, err = b.PowerState(ctx); err != nil {
			return err
		}
		inv, err = b.Inventory(ctx)
		return err
	})
	if err != nil {
		return wait, err
	}
	status, message := inspected(m, inv)
	return 0, c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Inventory = inventory(inv)
		m.Status.Power = string(power)
		m.Status.Conditions.Set(time.Now(), api.CondInspected, api.True, status, message)
		if m.Status.Phase == api.PhaseInspecting {
			m.Status.Phase = api.PhaseAvailable
		}
	})
}

// powerUp tells the BMC to boot the Machine from the network, now.
func (c *Controller) powerUp(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if site.Spec(c.Cache).Paused {
		return c.hold(ctx, m, "Paused", "the Site is paused: set spec.paused of the Site to false")
	}
	if nonceDue(m) {
		return c.writeNonce(ctx, m)
	}
	did := ""
	wait, err := c.withBMC(ctx, m, "power on", func(ctx context.Context, b BMC) (err error) {
		did, err = bootFromNetwork(ctx, b, m)
		return err
	})
	if err != nil {
		return heldOr(wait, err)
	}
	c.Decision(api.Decision{Machine: m.Metadata.Name, Question: "power", Answer: did, Reason: m.Status.Attempt.Reason, Attempt: m.Status.Attempt.ID})
	return 0, c.mutate(ctx, m, func(fresh *api.Machine) {
		Advance(fresh, m.Status.Attempt.ID, api.StagePowerOn, time.Now(), Window(c.Cache))
		fresh.Status.Power = string(hardware.PowerOn)
	})
}

// bootFromNetwork sets the one-time boot target before the power action, as the
// firmware reads it only then.
func bootFromNetwork(ctx context.Context, b BMC, m *api.Machine) (did string, err error) {
	power, err := b.PowerState(ctx)
	if err != nil {
		return "", err
	}
	if power == hardware.PowerOn {
		// A bootd that was killed after the power command must not repeat it.
		since, known, err := resetSince(ctx, b, actFrom(m.Status.Attempt))
		if err == nil && known && since {
			return "already reset in this BootAttempt", nil
		}
	}
	boot := hardware.Boot{Target: hardware.BootPXE}
	switch m.Spec.Boot.Firmware {
	case "uefi":
		boot.Mode = hardware.ModeUEFI
	case "bios":
		boot.Mode = hardware.ModeLegacy
	}
	if err := b.SetBootOnce(ctx, boot); err != nil {
		return "", err
	}
	if power == hardware.PowerOn {
		return "reset", b.ForceRestart(ctx)
	}
	return "powered on", b.PowerOn(ctx)
}

// actFrom is from when on a reset may be the attempt's own: one from before its nonce was written did not show it.
func actFrom(a *api.BootAttempt) time.Time {
	if a.Nonce != nil && a.Nonce.State == api.NonceWritten {
		return a.Nonce.Time
	}
	return a.Started
}

// resetSince reports whether the BMC says that the Machine was reset after t,
// by the BMC's own clock, which may be off from ours.
func resetSince(ctx context.Context, b BMC, t time.Time) (since, known bool, err error) {
	e, err := b.LastReset(ctx)
	if err != nil || !e.Known {
		return false, false, err
	}
	age, ok := e.Age()
	if !ok {
		return false, false, nil
	}
	const resolution = 2 * time.Second // BMCs give whole seconds
	return time.Since(t)+resolution >= age, true, nil
}

// confirm decides on an unsolicited network boot.
func (c *Controller) confirm(ctx context.Context, m *api.Machine, after time.Time, what string) (time.Duration, error) {
	const serve = "its network boot is answered 503"
	retry := 0
	if a := m.Status.Attempt; a.Open() || a.Result == api.ResultFailed {
		retry = a.Retry + 1
	}
	switch m.Spec.Boot.Unsolicited {
	case api.BootRefuse:
		if m.Status.Attempt.Open() {
			return 0, c.twoBoot(ctx, m)
		}
		return c.hold(ctx, m, "UnsolicitedBootRefused", serve+": spec.boot.unsolicited is refuse")
	case api.BootAllow:
		return c.open(ctx, m, what+" (unsolicited boots are allowed)", retry, api.StagePowerOn)
	}
	if m.Spec.BMC == nil {
		if m.Status.Attempt.Open() {
			return 0, c.twoBoot(ctx, m)
		}
		return c.hold(ctx, m, "UnsolicitedBootUnconfirmed", serve+": it has no BMC that could confirm a reset; weftctl machine reprovision asks for the boot, or set spec.boot.unsolicited to allow")
	}
	if retry > api.MaxRetries {
		return c.hold(ctx, m, "ResetLoop", fmt.Sprintf("%s: it was reset %d times in a row without reaching Active; read its console, then weftctl machine reprovision", serve, retry))
	}
	var since, known bool
	wait, err := c.withBMC(ctx, m, "confirm a reset", func(ctx context.Context, b BMC) (err error) {
		since, known, err = resetSince(ctx, b, after)
		return err
	})
	switch {
	case err != nil:
		return heldOr(wait, err)
	case !since && m.Status.Attempt.Open():
		return 0, c.twoBoot(ctx, m)
	case !known:
		return c.hold(ctx, m, "UnsolicitedBootUnconfirmed", serve+": its BMC tells no time of the last reset; weftctl machine reprovision asks for the boot, or set spec.boot.unsolicited to allow")
	case !since:
		return c.hold(ctx, m, "UnsolicitedBootForged", serve+": its BMC says that it was not reset; something else may be using its MAC")
	}
	return c.open(ctx, m, what+" (confirmed by its BMC)", retry, api.StagePowerOn)
}

// twoBoot fails an attempt whose pointer was taken, and in which something asks
// for a boot script all the same although no reset is known: two boot with the
// Machine's MAC.
func (c *Controller) twoBoot(ctx context.Context, m *api.Machine) error {
	t := api.Taker{What: "script", Time: time.Now().UTC()}
	if len(m.Status.Addresses) > 0 {
		t.Address = m.Status.Addresses[0]
	}
	message := ""
	err := c.mutate(ctx, m, func(fresh *api.Machine) {
		message = ""
		if attemptID(fresh) == attemptID(m) && fresh.Status.Attempt.Open() {
			SecondTaker(fresh, attemptID(m), t)
			message = fresh.Status.Attempt.Message
		}
	})
	if err == nil && message != "" {
		c.Event(m, api.Warning, string(api.CauseSecondTaker), message)
	}
	return err
}

// checkPower looks whether an Active Machine whose host is silent still has
// power, and boots it again when it has none.
func (c *Controller) checkPower(ctx context.Context, m *api.Machine) (time.Duration, error) {
	const every = 2 * time.Minute
	if m.Spec.BMC == nil {
		return 0, nil
	}
	var power hardware.PowerState
	wait, err := c.withBMC(ctx, m, "read the power state", func(ctx context.Context, b BMC) (err error) {
		power, err = b.PowerState(ctx)
		return err
	})
	if err != nil {
		return heldOr(wait, err)
	}
	if power == hardware.PowerOff {
		return c.open(ctx, m, "it was found powered off", 0, api.StageRequested)
	}
	if m.Status.Power == string(power) {
		return every, nil
	}
	return every, c.mutate(ctx, m, func(m *api.Machine) { m.Status.Power = string(power) })
}

// condShuttingDown stands while a Machine that is to be Off still has power.
const condShuttingDown = "ShuttingDown"

// powerBrake says why the Machine's power may not be changed now; an empty
// reason means that it may. Machines that are being provisioned have a brake of
// their own.
func (c *Controller) powerBrake(m *api.Machine) (reason, message string) {
	s := site.Spec(c.Cache)
	if s.Paused {
		return "Paused", "the Site is paused: set spec.paused of the Site to false"
	}
	total, inRack := 0, 0
	for _, other := range store.CachedList[api.Machine](c.Cache) {
		if other.Metadata.UID == m.Metadata.UID || !powerInMotion(other) {
			continue
		}
		total++
		if other.Spec.Location.Rack == m.Spec.Location.Rack {
			inRack++
		}
	}
	limit := s.Limits.Power
	if total >= limit.Total {
		return "LimitTotal", fmt.Sprintf("the power of %d machines is being changed, as many as the Site's limits.power.total allows", total)
	}
	if rack := m.Spec.Location.Rack; rack != "" && inRack >= limit.PerRack {
		return "LimitPerRack", fmt.Sprintf("the power of %d machines of rack %s is being changed, as many as the Site's limits.power.perRack allows", inRack, rack)
	}
	return "", ""
}

// powerInMotion reports whether the Machine is being shut down or a power verb
// is being carried out on it.
func powerInMotion(m *api.Machine) bool {
	if m.Status.Conditions.Is(condShuttingDown) {
		return true
	}
	r := pending(m)
	return r != nil && r.State == api.RequestRunning && r.Verb == api.VerbPower
}

// turnOff shuts a Machine down that is to be Off.
func (c *Controller) turnOff(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if m.Spec.BMC == nil {
		return 0, nil
	}
	if done, err := c.drain(ctx, m); err != nil || !done {
		return drainEvery, err
	}
	if m.Status.Attempt != nil {
		return 0, c.mutate(ctx, m, func(m *api.Machine) {
			if m.Spec.State != api.StateOff {
				return
			}
			Fail(m, time.Now(), "state is Off")
			archive(m)
			m.Status.Phase = api.PhaseDeprovisioning
			m.Status.HostKey = ""
			m.Status.Conditions.Set(time.Now(), api.CondProvision, api.False, "Off", "state is Off")
		})
	}
	if m.Status.Power == string(hardware.PowerOff) && m.Status.Phase == api.PhaseAvailable {
		return 0, nil
	}
	off, wait, err := c.shutDown(ctx, m)
	if err != nil || !off {
		return wait, err
	}
	return 0, c.mutate(ctx, m, func(m *api.Machine) { m.Status.Phase = api.PhaseAvailable })
}

// shutDown has a Machine's system shut down, and cuts its power only when it has
// had its time for that; off tells.
func (c *Controller) shutDown(ctx context.Context, m *api.Machine) (off bool, wait time.Duration, err error) {
	if reason, message := c.powerBrake(m); reason != "" {
		wait, err = c.hold(ctx, m, reason, message)
		return false, wait, err
	}
	patience := c.shutdownTime(m)
	var power hardware.PowerState
	asked := m.Status.Conditions.Get(condShuttingDown)
	wait, err = c.withBMC(ctx, m, "power off", func(ctx context.Context, b BMC) (err error) {
		if power, err = b.PowerState(ctx); err != nil || power == hardware.PowerOff {
			return err
		}
		if asked == nil {
			return ignoreUnsupported(b.GracefulShutdown(ctx))
		}
		if time.Since(asked.Time) > patience {
			return b.PowerOff(ctx)
		}
		return nil
	})
	if err != nil {
		wait, err = heldOr(wait, err)
		return false, wait, err
	}
	off = power == hardware.PowerOff
	return off, 5 * time.Second, c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Power = string(power)
		if !off {
			m.Status.Conditions.Set(time.Now(), condShuttingDown, api.True, "Asked", fmt.Sprintf("asked to shut down; forced off after %s", patience))
			return
		}
		m.Status.Conditions.Remove(condShuttingDown)
		m.Status.Conditions.Remove(api.CondHeld)
	})
}

// shutdownTime is how long a Machine has to shut down: two minutes, after its
// Guests have had their own time.
func (c *Controller) shutdownTime(m *api.Machine) time.Duration {
	longest := time.Duration(0)
	for _, g := range store.CachedList[api.Guest](c.Cache) {
		if g.Status.HostUID == m.Metadata.UID && runs(g) {
			longest = max(longest, g.Spec.StopTimeout.Or(api.GuestStopTimeout))
		}
	}
	return longest + 2*time.Minute
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, hardware.ErrUnsupported) {
		return nil
	}
	return err
}
