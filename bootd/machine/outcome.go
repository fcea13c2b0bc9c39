package machine

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// answered judges what a BMC has answered.
type answered struct {
	judge
	asked action
	is    answer
}

// outcome is what is to be done now that the BMC has answered what a was to ask.
func outcome(f facts, now time.Time, a action, is answer) action {
	x := answered{judge{f, now}, a, is}
	switch a.ask {
	case askRestored:
		return action{do: doAccount, answer: is, again: restoredEvery}
	case askPower:
		return x.power()
	case askInventory:
		return x.report()
	case askBoot:
		return action{do: doPowered, decision: x.decision("power", is.did, f.machine.Status.Attempt.Reason)}
	case askReset:
		return x.confirmed()
	case askShutdown:
		return x.shut()
	case askFence:
		return x.fenced()
	case askNonce:
		return x.nonced()
	case askTagBack:
		return x.tagIsBack()
	case askRequest:
		return finish(a.request, "")
	}
	return action{}
}

// decision is one about the Machine's BootAttempt.
func (x answered) decision(question, answer, reason string) api.Decision {
	return api.Decision{Machine: x.machine.Metadata.Name, Question: question, Answer: answer, Reason: reason, Attempt: attemptID(x.machine)}
}

// power boots an Active Machine again that has no power.
func (x answered) power() action {
	const every = 2 * time.Minute
	switch {
	case x.is.power == hardware.PowerOff:
		return x.open("it was found powered off", 0, api.StageRequested)
	case x.machine.Status.Power == string(x.is.power):
		return action{again: every}
	}
	return action{do: doPower, answer: x.is, again: every}
}

// report writes the inventory down, and ends the request that asked for it.
func (x answered) report() action {
	a := action{do: doReport, answer: x.is}
	if r := x.asked.request; r != nil {
		a = finish(r, "")
		a.do, a.answer = doReport, x.is
	}
	a.reason, a.message = inspected(x.machine, x.is.inventory)
	return a
}

// confirmed decides on an unsolicited network boot by what the BMC knows of resets.
func (x answered) confirmed() action {
	switch {
	case !x.is.reset.since && x.machine.Status.Attempt.Open():
		return x.twoBoot()
	case !x.is.reset.known:
		return x.hold("UnsolicitedBootUnconfirmed", refused+": its BMC tells no time of the last reset; weftctl machine reprovision asks for the boot, or set spec.boot.unsolicited to allow")
	case !x.is.reset.since:
		return x.hold("UnsolicitedBootForged", refused+": its BMC says that it was not reset; something else may be using its MAC")
	}
	return x.open(x.asked.reason+" (confirmed by its BMC)", x.asked.retry, api.StagePowerOn)
}

// shut waits for a Machine that was asked to shut down.
func (x answered) shut() action {
	if x.is.power == hardware.PowerOff {
		return action{do: doOff, answer: x.is, request: x.asked.request}
	}
	return action{do: doShutting, answer: x.is, reason: "Asked", message: fmt.Sprintf("asked to shut down; forced off after %s", x.asked.patience), again: 5 * time.Second}
}

// fenced has the Guests of a lost host start elsewhere, once it has no power.
func (x answered) fenced() action {
	if x.is.power != hardware.PowerOff {
		return action{again: drainEvery} // it takes a moment; ask again
	}
	return action{do: doFence, answer: x.is, again: drainEvery, reason: "PoweredOff", message: "its BMC confirmed that it has no power",
		event: event{api.Warning, "Fenced", fmt.Sprintf("it is silent, and its BMC confirms that it has no power now: %s start elsewhere", some(x.guestsOn(expendable)))}}
}

// nonced fails an attempt whose level cannot be reached: the Machine would stand at its firmware's prompt until
// the window is over.
func (x answered) nonced() action {
	of := x.required(x.machine).Of
	switch {
	case x.is.tag.refused != nil:
		message := fmt.Sprintf("trust level nonce is required (by %s), and the BMC does not take the system's AssetTag: %s; "+
			"require another level (spec.trust.minimum; lowering it needs an admin)", of, x.is.tag.refused)
		return action{do: doNoNonce, answer: x.is, reason: "LevelNotReached", message: message, event: event{api.Warning, "LevelNotReached", message}}
	case !x.is.tag.saved:
		return action{} // the attempt is over, and its end brings the Machine back here
	}
	return action{do: doNonced, decision: x.decision("nonce", "written to the AssetTag", "trust level nonce is required by "+of)}
}

// tagIsBack ends what was saved of the AssetTag, be it that a person has to put it back.
func (x answered) tagIsBack() action {
	if x.is.tag.refused != nil {
		return action{do: doTagBack, event: x.tagLost(x.is.tag.refused.Error())}
	}
	d := x.decision("nonce", "the AssetTag is back", "the nonce is spent")
	d.Attempt = x.machine.Status.AssetTag.Attempt
	return action{do: doTagBack, decision: d}
}

// order is what the BMC is to do with the power. On, off and reset are the
// arguments of verb power, too.
type order string

const (
	orderNone     order = ""
	orderOn       order = "on"
	orderOff      order = "off"
	orderReset    order = "reset"
	orderShutdown order = "shutdown"
)

// bootOrder is how a Machine that has its boot target is made to boot. A bootd
// that was killed after the power command must not repeat it.
func bootOrder(power hardware.PowerState, r reset) (o order, did string) {
	switch {
	case power != hardware.PowerOn:
		return orderOn, "powered on"
	case r.known && r.since:
		return orderNone, "already reset in this BootAttempt"
	}
	return orderReset, "reset"
}

// shutdownOrder asks a system to shut down, and cuts its power when it has had its time for that.
func shutdownOrder(power hardware.PowerState, asked *api.Condition, patience time.Duration, now time.Time) order {
	switch {
	case power == hardware.PowerOff:
		return orderNone
	case asked == nil:
		return orderShutdown
	case now.Sub(asked.Time) > patience:
		return orderOff
	}
	return orderNone
}

// resetOrder is how a reset is done that a person has asked for: what has no power cannot be reset.
func resetOrder(power hardware.PowerState) order {
	if power == hardware.PowerOff {
		return orderOn
	}
	return orderReset
}

// bootTarget is what the Machine's firmware is to boot from, once.
func bootTarget(m *api.Machine) hardware.Boot {
	boot := hardware.Boot{Target: hardware.BootPXE}
	switch m.Spec.Boot.Firmware {
	case "uefi":
		boot.Mode = hardware.ModeUEFI
	case "bios":
		boot.Mode = hardware.ModeLegacy
	}
	return boot
}

// resetAfter reports whether a Machine was reset after t, by its BMC's own clock, which may be off from ours.
func resetAfter(e hardware.ResetEvidence, t, now time.Time) reset {
	age, ok := e.Age()
	if !ok {
		return reset{}
	}
	const resolution = 2 * time.Second // BMCs give whole seconds
	return reset{since: now.Sub(t)+resolution >= age, known: true}
}

// actFrom is from when on a reset may be the attempt's own: one from before its nonce was written did not show it.
func actFrom(a *api.BootAttempt) time.Time {
	if a.Nonce != nil && a.Nonce.State == api.NonceWritten {
		return a.Nonce.Time
	}
	return a.Started
}
