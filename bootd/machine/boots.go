package machine

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
)

// boot judges a Machine by its BootAttempt, which is open or the last.
type boot struct {
	judge
	attempt *api.BootAttempt
}

// activate opens and follows BootAttempts until one reaches Active.
func (j judge) activate() action {
	m := j.machine
	x := boot{j, m.Status.Attempt}
	first := x.attempt == nil || x.attempt.Result == api.ResultAborted
	switch {
	case first && m.Spec.BMC == nil && m.Spec.Boot.Unsolicited == api.BootAllow && j.askedNow():
		return j.open("it boots by itself (unsolicited boots are allowed)", 0, api.StagePowerOn)
	case first:
		return j.open("state is Active", 0, api.StageRequested)
	case x.attempt.Open():
		return x.follow()
	case x.attempt.Result == api.ResultFailed:
		return x.retry()
	default:
		return x.watch()
	}
}

// askedNow reports whether the Machine asks for a boot that is not answered.
func (j judge) askedNow() bool { return j.now.Sub(j.machine.Status.BootAsked) < 4*bootAskedEvery }

// askedSince reports whether it does so, and began after a time.
func (j judge) askedSince(t time.Time) bool {
	return j.machine.Status.BootAsked.After(t) && j.askedNow()
}

// open starts a BootAttempt when the brakes allow it.
func (j judge) open(reason string, retry int, stage api.Stage) action {
	m := j.machine
	if m.Spec.BMC == nil && stage == api.StageRequested {
		return j.hold("NoBMC", "it has no BMC in its spec: power it on by hand; its boot is served when spec.boot.unsolicited is allow")
	}
	if held, brakes := j.brake(); brakes {
		return held
	}
	if level := j.required(m).Level; m.Spec.BMC != nil && (level == api.TrustNonce || level == api.TrustBMC) {
		stage = api.StageRequested // the firmware reads AssetTag and boot URL at a reset
	}
	return action{do: doOpen, reason: reason, retry: retry, stage: stage}
}

// follow drives an open BootAttempt: it powers the Machine on, then watches the
// stages that the boot servers record.
func (x boot) follow() action {
	a := x.attempt
	switch {
	case a.Stage == api.StageRequested && (a.Command == nil || a.Command.Problem == ""):
		return x.powerUp()
	case ready(x.machine):
		return action{do: doSucceed, event: event{api.Normal, "Active", fmt.Sprintf("Active %s after BootAttempt %d was opened", x.now.Sub(a.Started).Round(time.Second), a.Number)}}
	case a.Reached(api.StagePointer) && x.askedSince(a.Started):
		at, ok := reachedAt(a, api.StagePointer)
		if !ok {
			at = a.Started
		}
		return x.confirm(at, "it was reset in mid-boot")
	}
	return action{again: min(a.Deadline.Sub(x.now)+time.Second, time.Minute)}
}

// powerUp has the BMC boot the Machine from the network, now.
func (j judge) powerUp() action {
	switch {
	case j.site.Paused:
		return j.paused()
	case nonceDue(j.machine):
		return j.ask(action{ask: askNonce})
	}
	return j.ask(action{ask: askBoot})
}

// retry opens another attempt after a failed one, a few times.
func (x boot) retry() action {
	a := x.attempt
	allowed := x.askedSince(a.Finished) && x.machine.Spec.Boot.Unsolicited == api.BootAllow
	most := retries(x.site, a)
	wait := a.Finished.Add(30 * time.Second << a.Retry).Sub(x.now)
	again := x.again()
	switch {
	case a.Retry >= most && a.Cause == api.CauseSecondTaker:
		return x.giveUp()
	case again != "" && x.machine.Spec.BMC != nil && (a.Command == nil || !a.Command.Unfinished):
		return x.open(again+" after: "+a.Message, 0, api.StageRequested)
	case a.Retry >= most && allowed:
		return x.open("unsolicited boot, allowed by policy", a.Retry, api.StagePowerOn)
	case a.Retry >= most, a.Command != nil && a.Command.Unfinished:
		return action{}
	case x.machine.Spec.BMC == nil && allowed:
		return x.open("it boots by itself (unsolicited boots are allowed) after: "+a.Message, a.Retry+1, api.StagePowerOn)
	case wait > 0:
		return action{again: wait}
	}
	return x.open(fmt.Sprintf("retry %d of %d after: %s", a.Retry+1, most, a.Message), a.Retry+1, api.StageRequested)
}

// again says why retries begin again: a person took the Machine out of Maintenance, or what it boots with was changed.
func (x boot) again() string {
	if x.machine.Status.Phase == api.PhaseMaintenance {
		return "state is Active again"
	}
	return changed(x.attempt, x.machine, x.inputs())
}

// giveUp says once that no further attempt is opened, and what to do.
func (x boot) giveUp() action {
	const reason = "TooManySecondTakers"
	if old := x.machine.Status.Conditions.Get(api.CondTrust); old != nil && old.Reason == reason {
		return action{}
	}
	return action{do: doGiveUp, reason: reason, event: event{api.Warning, reason, remedy(x.machine)}}
}

// watch keeps an Active Machine Active.
func (x boot) watch() action {
	const patience = time.Minute
	connected := x.machine.Status.Conditions.Get(api.CondConnected)
	if connected != nil && connected.Status == api.True {
		return x.watchConnected()
	}
	if x.askedSince(x.attempt.Finished) {
		return x.confirm(x.attempt.Finished, "it was reset")
	}
	if connected != nil {
		silent := x.now.Sub(connected.Time)
		if x.lost(silent) {
			return x.fence()
		}
		if silent < patience {
			return action{again: patience - silent}
		}
	}
	return x.checkPower()
}

// watchConnected is for one whose host holds its stream.
func (x boot) watchConnected() action {
	s := &x.machine.Status
	switch {
	case x.askedSince(x.attempt.Finished):
		return x.askedBeside()
	case asks(x.machine):
		return action{do: doAskedOnce}
	case s.Phase != api.PhaseActive || s.Conditions.Get(api.CondHeld) != nil || s.Conditions.Get(api.CondDrained) != nil:
		return action{do: doActive}
	case x.machine.Spec.BMC != nil && (x.attempt.Reset == nil || x.attempt.Reset.Time.Before(x.attempt.Finished)):
		return x.ask(action{ask: askSeen, after: x.attempt.Finished})
	}
	return action{}
}

// askedBeside says that something with the MAC and address of an Active Machine
// asks for a boot while its host holds its stream: one of the two is not the
// Machine. Nothing is done about it, or whoever forges a MAC could stop any host.
func (x boot) askedBeside() action {
	const beside = "BootAskedBesideHost"
	old := x.machine.Status.Conditions.Get(api.CondTrust)
	a := action{again: 4 * bootAskedEvery}
	switch {
	case old != nil && old.Reason == beside:
		return a
	case old == nil || old.Reason != bootAsked:
		a.do, a.reason = doAsked, bootAsked
		a.message = "something with its MAC and address asks for a boot script while its host holds its stream: it may have been reset just now"
		return a
	case x.now.Sub(old.Time) < bootAskedPatience:
		return a
	}
	a.do, a.reason = doAskedLong, beside
	a.message = "something with its MAC and address has been asking for a boot script for minutes while its host holds its stream: one of the two is not this Machine; " +
		"find which port uses the MAC, and weftctl machine reprovision " + x.machine.Metadata.Name + " when it is not the host's"
	a.event = event{api.Warning, beside, a.message}
	return a
}

// checkPower looks whether an Active Machine whose host is silent still has
// power, and boots it again when it has none.
func (x boot) checkPower() action {
	if x.machine.Spec.BMC == nil {
		return action{}
	}
	return x.ask(action{ask: askPower})
}

// refused is how every answer begins that holds an unsolicited boot back.
const refused = "its network boot is answered 503"

// confirm decides on an unsolicited network boot. A reset after the given time
// confirms it.
func (x boot) confirm(after time.Time, what string) action {
	m, retry, open := x.machine, 0, x.attempt.Open()
	if open || x.attempt.Result == api.ResultFailed {
		retry = x.attempt.Retry + 1
	}
	switch {
	case m.Spec.Boot.Unsolicited == api.BootRefuse && open:
		return x.twoBoot()
	case m.Spec.Boot.Unsolicited == api.BootRefuse:
		return x.hold("UnsolicitedBootRefused", refused+": spec.boot.unsolicited is refuse")
	case m.Spec.Boot.Unsolicited == api.BootAllow:
		return x.open(what+" (unsolicited boots are allowed)", retry, api.StagePowerOn)
	case m.Spec.BMC == nil && open:
		return x.twoBoot()
	case m.Spec.BMC == nil:
		return x.hold("UnsolicitedBootUnconfirmed", refused+": it has no BMC that could confirm a reset; weftctl machine reprovision asks for the boot, or set spec.boot.unsolicited to allow")
	case retry > api.MaxRetries:
		return x.hold("ResetLoop", fmt.Sprintf("%s: it was reset %d times in a row without reaching Active; %s, then weftctl machine reprovision", refused, retry, lookAt(x.machine)))
	}
	return x.ask(action{ask: askReset, after: after, reason: what, retry: retry})
}

// twoBoot fails an attempt whose pointer was taken, and in which something asks
// for a boot script all the same although no reset is known: two boot with the
// Machine's MAC.
func (j judge) twoBoot() action {
	message := SecondText(j.machine.Status.Attempt, j.scriptTaker())
	return action{do: doTwoBoot, event: event{api.Warning, string(api.CauseSecondTaker), message}}
}

// scriptTaker is what asks for the boot script.
func (j judge) scriptTaker() api.Taker {
	t := api.Taker{What: "script", Time: j.now.UTC()}
	if known := j.machine.Status.Addresses; len(known) > 0 {
		t.Address = known[0]
	}
	return t
}
