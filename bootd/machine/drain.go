package machine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// guestsOn names the Guests that are on the Machine.
func (j judge) guestsOn(which func(*api.Guest) bool) []string {
	var names []string
	for _, g := range j.guests() {
		if which(g) {
			names = append(names, g.Metadata.Name)
		}
	}
	slices.Sort(names)
	return names
}

// anyGuest is every Guest.
func anyGuest(*api.Guest) bool { return true }

// expendable reports whether a Guest can start elsewhere with empty disks when its host is
// lost: it leaves no disk behind that has to be kept.
func expendable(g *api.Guest) bool {
	return !slices.ContainsFunc(g.Spec.Disks, func(d api.Disk) bool { return d.Retain })
}

// runs reports whether a Guest has anything to lose.
func runs(g *api.Guest) bool { return g.Status.State != api.GuestStopped }

// drainDeadline is the reason that a drain is over although Guests are left.
const drainDeadline = "DrainDeadline"

// drainEvery is how often a drain is looked at.
const drainEvery = 5 * time.Second

// drain has the Guests of a host move elsewhere, before its power is touched. It
// is over when none is left, at its deadline, or when the host is not there to be
// asked.
func (j judge) drain() (a action, over bool) {
	left := j.guestsOn(anyGuest)
	leaving := j.machine.Status.Conditions.Get(api.CondDrained)
	deadline := time.Duration(j.site.Guests.DrainDeadline)
	switch {
	case len(left) == 0 || !j.machine.Status.Conditions.Is(api.CondConnected):
		if leaving != nil {
			return action{do: doDrained}, false
		}
		return action{}, true
	case leaving != nil && leaving.Reason == drainDeadline:
		return action{}, true
	case leaving != nil && j.now.Sub(leaving.Time) > deadline:
		message := fmt.Sprintf("after %s these Guests are still on it, and go down with it: %s", deadline, some(left))
		return action{do: doDrainOver, reason: drainDeadline, message: message, event: event{api.Warning, drainDeadline, message}, again: drainEvery}, false
	}
	a = action{do: doDrain, reason: "Leaving", again: drainEvery,
		message: fmt.Sprintf("these Guests are still on it: %s; it continues without them after %s", some(left), deadline)}
	if leaving == nil {
		a.event = event{api.Normal, "Draining", fmt.Sprintf("%d Guests are to leave: %s", len(left), some(left))}
	}
	return a, false
}

func some(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// condShuttingDown is set while a Machine that is to be Off still has power.
const condShuttingDown = "ShuttingDown"

// hasToShutDown reports whether a Machine that is to boot again shuts down before
// that, for the sake of the Guests that are on it. One that is silent is just
// reset.
func (j judge) hasToShutDown() bool {
	m := j.machine
	if m.Spec.BMC == nil || m.Status.Power == string(hardware.PowerOff) {
		return false
	}
	return m.Status.Conditions.Is(condShuttingDown) || m.Status.Conditions.Is(api.CondConnected) && len(j.guestsOn(runs)) > 0
}

// shutDown has a Machine's system shut down, and cuts its power only when it has
// had its time for that.
func (j judge) shutDown() action {
	if held, brakes := j.powerBrake(); brakes {
		return held
	}
	return j.ask(action{ask: askShutdown, patience: j.shutdownTime()})
}

// shutdownTime is how long a Machine has to shut down: two minutes, after its
// Guests have had their own time.
func (j judge) shutdownTime() time.Duration {
	longest := time.Duration(0)
	for _, g := range j.guests() {
		if runs(g) {
			longest = max(longest, g.Spec.StopTimeout.Or(api.GuestStopTimeout))
		}
	}
	return longest + 2*time.Minute
}

// lost reports whether a silent host is to be taken for lost: the Site says so,
// and there are Guests that can go on elsewhere.
func (j judge) lost(silent time.Duration) bool {
	after := time.Duration(j.site.Guests.FenceAfter)
	return after > 0 && silent >= after && j.machine.Spec.BMC != nil && len(j.guestsOn(expendable)) > 0
}

// fence switches a lost host off and makes sure of it, so that its Guests can be
// started elsewhere and never run twice. Then it is booted again.
func (j judge) fence() action {
	if j.machine.Status.Conditions.Is(api.CondFenced) {
		return action{again: drainEvery} // until the Guests have left
	}
	if held, brakes := j.powerBrake(); brakes {
		return held
	}
	return j.ask(action{ask: askFence})
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
