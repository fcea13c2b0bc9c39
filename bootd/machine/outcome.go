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

// outcome is what to do after the BMC has answered the request of a.
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
		return x.powered()
	case askSeen:
		return action{do: doSeen, answer: is}
	case askReset:
		return x.confirmed()
	case askShutdown:
		return x.shut()
	case askFence:
		return x.fenced()
	case askNonce:
		return x.nonced()
	case askWellbeing:
		return x.wellbeing()
	case askTagBack:
		return x.tagIsBack()
	case askURLBack:
		return x.urlIsBack()
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

// powered follows what came of the power command.
func (x answered) powered() action {
	switch {
	case x.is.url.refused != nil:
		return x.urlRefused()
	case x.is.unseen != nil:
		message := fmt.Sprintf("the BMC accepted the command (%s), and it was not seen to be carried out; it is not sent again in this BootAttempt: %s", x.is.did, x.is.unseen)
		return action{do: doUnseen, answer: x.is, reason: "NotSeen", message: message, event: event{api.Warning, "PowerNotSeen", message},
			decision: x.decision("power", "not seen", message), again: time.Minute}
	case x.is.did == "":
		return action{again: 15 * time.Second} // the attempt is over, or its command is on its way
	}
	return action{do: doPowered, decision: x.decision("power", x.is.did, x.machine.Status.Attempt.Reason)}
}

// report writes the inventory down, and ends the request that asked for it.
func (x answered) report() action {
	a := action{do: doReport, answer: x.is}
	if r := x.asked.request; r != nil {
		a = finish(r, "")
		a.do, a.answer = doReport, x.is
	}
	if x.is.unread != nil {
		return a
	}
	a.reason, a.message = inspected(x.machine, x.is.inventory)
	if old := x.machine.Status.Conditions.Get(api.CondInspected); a.reason != "Read" && x.asked.request == nil && (old == nil || old.Reason != a.reason) {
		a.event = event{api.Warning, a.reason, a.message}
	}
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
	a := x.open(x.asked.reason+" (confirmed by its BMC)", x.asked.retry, api.StagePowerOn)
	a.answer.seen = x.is.seen
	return a
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

// nonced fails an attempt whose level cannot be reached: the Machine would stay at its firmware's prompt until
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

// bootOrder is how a Machine that has its boot target is made to boot.
func bootOrder(power hardware.PowerState) (o order, did string) {
	if power == hardware.PowerOn {
		return orderReset, "reset"
	}
	return orderOn, "powered on"
}

// sentOrder is what is left to do of a power command that may have been sent, when bootd was stopped or the BMC was lost
// before its answer was written down. A reset that may have been carried out is not sent again, and what does not show may
// be on its way for a minute: did is empty then.
func sentOrder(c *api.PowerCommand, power hardware.PowerState, r reset, now time.Time) (o order, did string) {
	switch {
	case power == hardware.PowerOn && order(c.Order) == orderOn:
		return orderNone, "powered on already in this BootAttempt"
	case power != hardware.PowerOff && r.known && r.since:
		return orderNone, "already reset in this BootAttempt"
	case now.Sub(c.Time) < time.Minute && (power != hardware.PowerOn || r.known):
		return orderNone, ""
	case power != hardware.PowerOn:
		return orderOn, "powered on"
	case r.known:
		return orderReset, "reset"
	}
	return orderNone, "a reset may have been sent before; it is not sent again"
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

// resetSince reports whether a Machine was reset after t. What the BMC reports now is compared with what it reported of the
// reset that is known: another value is another reset, whatever its clock shows. Where there is nothing to compare, the age
// counts.
func resetSince(seen *api.ResetSeen, e hardware.ResetEvidence, t, now time.Time) reset {
	if e.InPOST() {
		another := seen == nil || seen.Post != e.POST // nothing follows from one that was seen before
		return reset{since: another, known: another}
	}
	for _, trace := range e.Told {
		if was, ok := traceOf(seen, trace.Source); ok {
			return reset{since: !sameTrace(was, trace.Value), known: true}
		}
	}
	return resetAfter(e, t, now)
}

// traceOf finds what was reported before. The end of a POST that was seen running is no other reset.
func traceOf(seen *api.ResetSeen, source string) (value string, ok bool) {
	if seen == nil || (hardware.ResetEvidence{POST: seen.Post}).InPOST() && source != "LastResetTime" {
		return "", false
	}
	for _, trace := range seen.Traces {
		if trace.Source == source {
			return trace.Value, true
		}
	}
	return "", false
}

// sameTrace: BMCs that count back to the reset are off by a second or two each time.
func sameTrace(a, b string) bool {
	x, errX := time.Parse(time.RFC3339, a)
	y, errY := time.Parse(time.RFC3339, b)
	if errX != nil || errY != nil {
		return a == b
	}
	return x.Sub(y).Abs() < 5*time.Second
}

// seen is what the BMC tells, to be compared with later.
func seen(e hardware.ResetEvidence, now time.Time) *api.ResetSeen {
	s := &api.ResetSeen{Time: now.UTC(), Post: e.POST}
	for _, trace := range e.Told {
		s.Traces = append(s.Traces, api.ResetTrace(trace))
	}
	return s
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
