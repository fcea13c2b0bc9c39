package machine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// guestsOn names the Guests that are on a host.
func (c *Controller) guestsOn(m *api.Machine, which func(*api.Guest) bool) []string {
	var names []string
	for _, g := range store.CachedList[api.Guest](c.Cache) {
		if g.Status.HostUID == m.Metadata.UID && which(g) {
			names = append(names, g.Metadata.Name)
		}
	}
	slices.Sort(names)
	return names
}

// anyGuest is every Guest.
func anyGuest(*api.Guest) bool { return true }

// expendable reports whether a Guest can start elsewhere with empty disks when its host is
// lost: it leaves no disk behind that is to be kept.
func expendable(g *api.Guest) bool {
	return !slices.ContainsFunc(g.Spec.Disks, func(d api.Disk) bool { return d.Retain })
}

// drain has the Guests of a host move elsewhere, before its power is touched. It
// is over when none is left, at its deadline, or when the host is not there to be
// asked; done tells.
func (c *Controller) drain(ctx context.Context, m *api.Machine) (done bool, err error) {
	left := c.guestsOn(m, anyGuest)
	leaving := m.Status.Conditions.Get(api.CondDrained)
	if len(left) == 0 || !m.Status.Conditions.Is(api.CondConnected) {
		return true, c.drained(ctx, m, leaving)
	}
	deadline := time.Duration(site.Spec(c.Cache).Guests.DrainDeadline)
	if leaving != nil && leaving.Reason == drainDeadline {
		return true, nil
	}
	if leaving != nil && time.Since(leaving.Time) > deadline {
		message := fmt.Sprintf("after %s these Guests are still on it, and go down with it: %s", deadline, some(left))
		c.Event(m, api.Warning, drainDeadline, message)
		return false, c.mutate(ctx, m, func(m *api.Machine) {
			m.Status.Conditions.Set(time.Now(), api.CondDrained, api.False, drainDeadline, message)
		})
	}
	if leaving == nil {
		c.Event(m, api.Normal, "Draining", fmt.Sprintf("%d Guests are to leave: %s", len(left), some(left)))
	}
	return false, c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Phase = api.PhaseDraining
		m.Status.Conditions.Set(time.Now(), api.CondDrained, api.False, "Leaving", fmt.Sprintf("these Guests are still on it: %s; it continues without them after %s", some(left), deadline))
	})
}

// hasToShutDown reports whether a Machine that is to boot again shuts down before
// that, for the sake of the Guests that are on it. One that is silent is just
// reset.
func (c *Controller) hasToShutDown(m *api.Machine) bool {
	if m.Spec.BMC == nil || m.Status.Power == string(hardware.PowerOff) {
		return false
	}
	return m.Status.Conditions.Is(condShuttingDown) || m.Status.Conditions.Is(api.CondConnected) && len(c.guestsOn(m, runs)) > 0
}

// runs reports whether a Guest has anything to lose.
func runs(g *api.Guest) bool { return g.Status.State != api.GuestStopped }

// drainDeadline is the reason that a drain is over although Guests are left.
const drainDeadline = "DrainDeadline"

func (c *Controller) drained(ctx context.Context, m *api.Machine, leaving *api.Condition) error {
	if leaving == nil {
		return nil
	}
	return c.mutate(ctx, m, func(m *api.Machine) { m.Status.Conditions.Remove(api.CondDrained) })
}

func some(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// drainEvery is how often a drain is looked at.
const drainEvery = 5 * time.Second

// lost reports whether a silent host is to be taken for lost: the Site says so,
// and there are Guests that can go on elsewhere.
func (c *Controller) lost(m *api.Machine, silent time.Duration) bool {
	after := time.Duration(site.Spec(c.Cache).Guests.FenceAfter)
	return after > 0 && silent >= after && m.Spec.BMC != nil && len(c.guestsOn(m, expendable)) > 0
}

// fence switches a lost host off and makes sure of it, so that its Guests can be
// started elsewhere and never run twice. Then it is booted again.
func (c *Controller) fence(ctx context.Context, m *api.Machine) (time.Duration, error) {
	if m.Status.Conditions.Is(api.CondFenced) {
		return drainEvery, nil // until the Guests have left
	}
	if reason, message := c.powerBrake(m); reason != "" {
		return c.hold(ctx, m, reason, message)
	}
	var power hardware.PowerState
	wait, err := c.withBMC(ctx, m, "fence", func(ctx context.Context, b BMC) (err error) {
		if power, err = b.PowerState(ctx); err != nil || power == hardware.PowerOff {
			return err
		}
		if err := b.PowerOff(ctx); err != nil {
			return err
		}
		power, err = b.PowerState(ctx)
		return err
	})
	if err != nil {
		return heldOr(wait, err)
	}
	if power != hardware.PowerOff {
		return drainEvery, nil // it takes a moment; ask again
	}
	guests := c.guestsOn(m, expendable)
	c.Event(m, api.Warning, "Fenced", fmt.Sprintf("it is silent, and its BMC confirms that it has no power now: %s start elsewhere", some(guests)))
	return drainEvery, c.mutate(ctx, m, func(m *api.Machine) {
		m.Status.Power = string(power)
		m.Status.Conditions.Set(time.Now(), api.CondFenced, api.True, "PoweredOff", "its BMC confirmed that it has no power")
	})
}
