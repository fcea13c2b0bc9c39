package machine

import (
	"errors"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// write puts an action into the Machine as the store has it now, which may have
// changed since the action was decided. It reports whether the action still
// holds; it reports nothing else either. It may run several times.
func (f facts) write(a action, m *api.Machine, now time.Time) bool {
	s := &m.Status
	set := func(condition string, status api.ConditionStatus) {
		s.Conditions.Set(now, condition, status, a.reason, a.message)
	}
	switch a.do {
	case doHold:
		set(api.CondHeld, api.True)
		if s.Attempt == nil {
			s.Phase = api.PhaseAvailable
		}
	case doMissing:
		set(api.CondReferences, api.False)
		if s.Attempt == nil {
			s.Phase = api.PhaseRegistered
		}
	case doFound:
		s.ObservedGeneration = f.machine.Metadata.Generation
		s.Conditions.Remove(api.CondObeys) // of the spec before
		set(api.CondReferences, api.True)
		if s.Phase == "" || s.Phase == api.PhaseDiscovered {
			s.Phase = api.PhaseRegistered
		}
	case doInspect:
		s.Phase = api.PhaseInspecting
	case doMaintain:
		return writeMaintain(a, m, now)
	case doRetire:
		return writeRetire(a, m, now)
	case doActive:
		s.Phase = api.PhaseActive
		s.Conditions.Remove(api.CondHeld)
		s.Conditions.Remove(api.CondDrained)
	case doAsked:
		set(api.CondTrust, api.Unknown)
	case doAskedLong:
		set(api.CondTrust, api.False)
	case doAskedOnce:
		askedNoMore(m, now)
	case doDrain:
		s.Phase = api.PhaseDraining
		set(api.CondDrained, api.False)
	case doDrainOver:
		set(api.CondDrained, api.False)
	case doDrained:
		s.Conditions.Remove(api.CondDrained)
	case doRevoke:
		Fail(m, now, a.message)
		s.HostKey = ""
	case doForgetTag:
		forgetTag(m)
	case doSick:
		set(api.CondBMC, api.False)
	case doFinish:
		endRequest(m, a)
	default:
		return f.writeAttempt(a, m, now)
	}
	return true
}

// writeAttempt is write for what happens to the BootAttempt: one that is another
// than was looked at, or is over, is left alone.
func (f facts) writeAttempt(a action, m *api.Machine, now time.Time) bool {
	same := attemptID(m) == attemptID(f.machine)
	open := same && m.Status.Attempt.Open()
	switch a.do {
	case doOpen:
		return same && f.writeOpen(a, m, now)
	case doExpire:
		if !open || !now.After(m.Status.Attempt.Deadline) {
			return false
		}
		Fail(m, now, a.message)
	case doSucceed:
		if !m.Status.Attempt.Open() || !ready(m) {
			return false
		}
		Advance(m, m.Status.Attempt.ID, api.StageApplied, now, window(f.site))
		succeed(m, now)
	case doTwoBoot:
		if !open {
			return false
		}
		SecondTaker(m, attemptID(m), judge{f, now}.scriptTaker())
	case doGiveUp:
		if !same || m.Status.Attempt.Result != api.ResultFailed {
			return false
		}
		m.Status.Conditions.Set(now, api.CondTrust, api.False, a.reason, m.Status.Attempt.Message+". "+remedy(m))
	case doNonced:
		if open && m.Status.Attempt.Nonce != nil {
			*m.Status.Attempt.Nonce = api.Nonce{State: api.NonceWritten, Time: now.UTC()}
		}
	case doNoURL:
		if !open {
			return false
		}
		m.Status.Conditions.Set(now, api.CondTrust, api.False, a.reason, a.message)
		Fail(m, now, a.message)
	case doNoNonce:
		return open && writeNoNonce(a, m, now)
	default:
		return f.writeAnswer(a, m, now)
	}
	return true
}

// writeAnswer is write for what the BMC has answered.
func (f facts) writeAnswer(a action, m *api.Machine, now time.Time) bool {
	s := &m.Status
	switch a.do {
	case doAccount, doPower, doReport, doShutting, doOff, doFence, doUnseen:
		s.Power = string(a.answer.power)
	}
	switch a.do {
	case doAccount:
		if a.answer.power == hardware.PowerOff && !s.Conditions.Is(api.CondAccounted) {
			s.Conditions.Set(now, api.CondAccounted, api.True, api.AccountedOff, "its BMC says that it has no power, so it runs nothing")
		}
	case doHealthy:
		status := api.False
		if a.answer.health.State == "OK" {
			status = api.True
		}
		s.Conditions.Set(now, api.CondHealthy, status, a.reason, a.message)
	case doReport:
		f.writeInventory(a, m, now)
	case doPowered:
		Advance(m, attemptID(f.machine), api.StagePowerOn, now, window(f.site))
		s.Power = string(hardware.PowerOn)
	case doUnseen:
		return writeUnseen(a, m, attemptID(f.machine), now)
	case doSeen:
		if s.Attempt != nil && attemptID(m) == attemptID(f.machine) {
			s.Attempt.Reset = a.answer.seen
		}
	case doShutting:
		s.Conditions.Set(now, condShuttingDown, api.True, a.reason, a.message)
	case doOff:
		s.Conditions.Remove(condShuttingDown)
		s.Conditions.Remove(api.CondHeld)
		if a.request == nil {
			s.Phase = api.PhaseAvailable
		}
	case doFence:
		s.Conditions.Set(now, api.CondFenced, api.True, a.reason, a.message)
	case doURLBack:
		if urlDue(m) {
			s.BootURL = nil
		}
	case doTagBack:
		if saved := f.machine.Status.AssetTag; s.AssetTag != nil && *s.AssetTag == *saved && tagDue(m) {
			forgetTag(m)
		}
	}
	return true
}

// writeOpen puts a BootAttempt into the Machine.
func (f facts) writeOpen(a action, m *api.Machine, now time.Time) bool {
	if m.Status.Attempt.Open() {
		end := Abort
		if a.retry > 0 { // it was reset in mid-boot, and not asked for another
			end = Fail
		}
		end(m, now, "superseded: "+a.reason)
	}
	openAttempt(m, now, a, window(f.site))
	m.Status.Attempt.Inputs = f.inputs()
	if a.stage == api.StagePowerOn {
		m.Status.Attempt.Reset = a.answer.seen
	}
	if f.required(m).Level == api.TrustNonce {
		wantNonce(m, now)
	}
	if r := pending(m); r != nil && r.Verb == api.VerbReprovision {
		m.Status.Attempt.Request = r.ID
	}
	return true
}

func writeMaintain(a action, m *api.Machine, now time.Time) bool {
	if m.Spec.State != api.StateMaintenance {
		return false
	}
	Abort(m, now, a.message)
	m.Status.Phase = api.PhaseMaintenance
	return true
}

func writeRetire(a action, m *api.Machine, now time.Time) bool {
	if m.Spec.State != api.StateOff {
		return false
	}
	Abort(m, now, a.message)
	archive(m)
	m.Status.Phase = api.PhaseDeprovisioning
	m.Status.HostKey = ""
	m.Status.Conditions.Set(now, api.CondProvision, api.False, a.reason, a.message)
	return true
}

// writeNoNonce fails an open attempt whose nonce cannot be written.
func writeNoNonce(a action, m *api.Machine, now time.Time) bool {
	m.Status.Attempt.Nonce = &api.Nonce{State: api.NonceFailed, Message: a.answer.tag.refused.Error(), Time: now.UTC()}
	m.Status.Conditions.Set(now, api.CondTrust, api.False, a.reason, a.message)
	Fail(m, now, a.message)
	if a.answer.tag.own {
		forgetTag(m)
	}
	return true
}

// writeUnseen notes that the attempt's power command was accepted, and that nothing shows it.
func writeUnseen(a action, m *api.Machine, attempt string, now time.Time) bool {
	at := m.Status.Attempt
	if !at.Open() || at.ID != attempt || at.Command == nil {
		return false
	}
	at.Command.Problem, at.Command.Unfinished = a.answer.unseen.Error(), errors.Is(a.answer.unseen, hardware.ErrUnfinished)
	m.Status.Conditions.Set(now, api.CondProvision, api.False, a.reason, a.message)
	return true
}

// endRequest writes what came of a request.
func endRequest(m *api.Machine, a action) {
	state := api.RequestDone
	if a.message != "" {
		state = api.RequestFailed
	}
	setRequest(m, a.request.ID, state, a.message)
}
