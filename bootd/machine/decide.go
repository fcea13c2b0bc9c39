package machine

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
)

// judge decides the action for one Machine at one time. It has no clock,
// reads no store and asks no BMC.
type judge struct {
	facts
	now time.Time
}

// decide is the next thing to do with a Machine: that of the first case that
// holds.
func decide(f facts, now time.Time) action {
	j, m, s := judge{f, now}, f.machine, &f.machine.Status
	switch r := pending(m); {
	case IsDiscovered(m):
		return j.discovered()
	case f.restored:
		return j.restored(r)
	case f.claimed && m.Metadata.DeletionTimestamp == nil:
		return j.hold("HostUnknown", fmt.Sprintf("a host of this name runs that bootd has not known since it was restored: weftctl restore accept %s, or write-off %[1]s to have it provisioned over", m.Metadata.Name))
	case m.Metadata.DeletionTimestamp != nil:
		return j.remove()
	case s.Attempt.Open() && now.After(s.Attempt.Deadline):
		return j.expire()
	case r != nil:
		return j.serve(r)
	case f.missing != "":
		return action{do: doMissing, reason: "Missing", message: f.missing}
	case !s.Conditions.Is(api.CondReferences) || s.ObservedGeneration != m.Metadata.Generation || s.Phase == "":
		return action{do: doFound, reason: "Found", message: "everything that the spec names exists" + f.unserved}
	case m.Spec.BMC != nil && !s.Conditions.Is(api.CondInspected) && !s.Attempt.Open():
		return j.inspect()
	}
	a := j.toState()
	a.beside = true
	return a
}

// decideTag decides the action on the AssetTag, in addition to what the state asks for.
func decideTag(f facts, now time.Time) action {
	if !tagDue(f.machine) {
		return action{}
	}
	return judge{f, now}.putTagBack()
}

// decideURL decides the action on a boot URL that its BMC has.
func decideURL(f facts, now time.Time) action {
	if !urlDue(f.machine) {
		return action{}
	}
	return judge{f, now}.takeURLBack()
}

// decideHealth asks a BMC that failed before whether it is well again, when its
// back-off is over: nothing else may need it for a long time.
func decideHealth(f facts, now time.Time) action {
	cond := f.machine.Status.Conditions.Get(api.CondBMC)
	if f.machine.Spec.BMC == nil || cond == nil || cond.Status != api.False {
		return action{}
	}
	return judge{f, now}.ask(action{ask: askHealth})
}

// toState is the next step towards the state that the spec asks for.
func (j judge) toState() action {
	switch j.machine.Spec.State {
	case api.StateMaintenance:
		return j.maintain()
	case api.StateOff:
		return j.turnOff()
	default:
		return j.activate()
	}
}

// ask asks the BMC, unless it is left alone for a while after an error.
func (j judge) ask(a action) action {
	held := j.held(a)
	left, why := held.left(j.now)
	known := j.machine.Status.Conditions.Get(api.CondBMC)
	switch {
	case left > 0 && held.ofBMC() && (known == nil || known.Status != api.False):
		return action{do: doSick, reason: held.reason, message: why, again: max(left, a.again)}
	case left > 0:
		return action{again: max(left, a.again)}
	}
	a.do = doAsk
	return a
}

// hold holds the Machine back; it is tried again when something changes, and
// every so often.
func (j judge) hold(reason, message string) action {
	a := action{do: doHold, reason: reason, message: message, again: 15 * time.Second}
	if old := j.machine.Status.Conditions.Get(api.CondHeld); old == nil || old.Reason != reason {
		a.event = event{api.Warning, reason, message}
	}
	return a
}

func (j judge) paused() action {
	return j.hold("Paused", "the Site is paused: set spec.paused of the Site to false")
}

// brake holds the Machine back while no further BootAttempt may be opened.
func (j judge) brake() (held action, brakes bool) {
	if j.site.Paused {
		return j.paused(), true
	}
	limit, load := j.site.Limits.Provisioning, j.opened()
	if load.total >= limit.Total {
		return j.hold(limitTotal, fmt.Sprintf("%d machines are being provisioned, as many as the Site's limits.provisioning.total allows", load.total)), true
	}
	if rack := j.machine.Spec.Location.Rack; rack != "" && load.inRack >= limit.PerRack {
		return j.hold(limitPerRack, fmt.Sprintf("%d machines of rack %s are being provisioned, as many as the Site's limits.provisioning.perRack allows", load.inRack, rack)), true
	}
	return action{}, false
}

// powerBrake holds the Machine back while its power may not be changed. Machines
// that are being provisioned have a brake of their own.
func (j judge) powerBrake() (held action, brakes bool) {
	if j.site.Paused {
		return j.paused(), true
	}
	limit, load := j.site.Limits.Power, j.switched()
	if load.total >= limit.Total {
		return j.hold(limitTotal, fmt.Sprintf("the power of %d machines is being changed, as many as the Site's limits.power.total allows", load.total)), true
	}
	if rack := j.machine.Spec.Location.Rack; rack != "" && load.inRack >= limit.PerRack {
		return j.hold(limitPerRack, fmt.Sprintf("the power of %d machines of rack %s is being changed, as many as the Site's limits.power.perRack allows", load.inRack, rack)), true
	}
	return action{}, false
}

// restoredEvery is how often the BMC of a Machine is asked, whose host has not
// reported after a restore, whether it has power at all.
const restoredEvery = 30 * time.Second

// discovered forgets a Machine that no one has registered for long.
func (j judge) discovered() action {
	if left := discoveredAge - j.now.Sub(j.machine.Status.LastSeen); left > 0 {
		return action{again: left}
	}
	return action{do: doForget}
}

// restored leaves a Machine alone until the restored Site knows what it runs. A
// BMC is only asked for the power state: one without power runs nothing.
func (j judge) restored(r *api.Request) action {
	m := j.machine
	switch {
	case r != nil:
		return finish(r, "bootd was restored and waits for its hosts: weftctl restore status")
	case m.Status.Conditions.Is(api.CondAccounted) || m.Spec.BMC == nil || m.Status.Conditions.Is(api.CondConnected):
		return action{again: store.HeldRecheck}
	}
	return j.ask(action{ask: askRestored, again: restoredEvery})
}

// remove ends a Machine that is being deleted: whatever was given to it is revoked at once, then its AssetTag is put
// back, if its BMC lets it.
func (j judge) remove() action {
	m := j.machine
	switch {
	case m.Status.Attempt.Open() || m.Status.HostKey != "":
		return action{do: doRevoke, message: "the Machine is being deleted"}
	case !control.HasFinalizer(m, TagFinalizer):
		return action{}
	case m.Status.AssetTag == nil:
		return action{do: doForgetTag}
	case j.now.Sub(*m.Metadata.DeletionTimestamp) < tagPatience:
		return j.putTagBack()
	}
	return action{do: doForgetTag, event: j.tagLost("the Machine is deleted, and its BMC did not answer")}
}

// putTagBack gives the system the AssetTag back that a nonce took the place of.
func (j judge) putTagBack() action {
	if j.machine.Spec.BMC == nil {
		return action{do: doTagBack, event: j.tagLost("the Machine has no BMC in its spec any more")}
	}
	return j.ask(action{ask: askTagBack})
}

// tagLost says which tag a person has to restore.
func (j judge) tagLost(why string) event {
	return event{api.Warning, "AssetTagNotRestored", fmt.Sprintf("the system's AssetTag was %q, and a spent nonce is in its place: %s", j.machine.Status.AssetTag.Value, why)}
}

// expire fails an attempt whose window is over.
func (j judge) expire() action {
	message := overdue(j.machine, j.required(j.machine)) + saidLast(j.said())
	return action{do: doExpire, message: message, event: event{api.Warning, "BootFailed", message}}
}

// serve carries a request out. A power command that a killed bootd left
// running is not repeated: it may have been carried out.
func (j judge) serve(r *api.Request) action {
	switch {
	case r.State == api.RequestRunning && r.Verb == api.VerbPower && r.Argument == "reset":
		return finish(r, "bootd was stopped while it ran; ask again if the machine was not reset")
	case r.State == api.RequestRunning && r.Verb == api.VerbResetBMC:
		return finish(r, "bootd was stopped while it ran; ask again if the BMC was not restarted")
	case j.site.Paused && (r.Verb == api.VerbPower || r.Verb == api.VerbReprovision):
		return finish(r, "the Site is paused")
	case r.Verb == api.VerbReprovision:
		a := j.reprovision(r)
		a.request = r
		return a
	}
	if r.State == api.RequestPending && r.Verb == api.VerbPower {
		if held, brakes := j.powerBrake(); brakes {
			return held
		}
	}
	a := action{ask: askRequest, request: r}
	if r.Verb == api.VerbInspect {
		a.ask = askInventory
	}
	if left, why := j.held(a).left(j.now); left > 0 {
		return finish(r, why)
	}
	a.do = doAsk
	return a
}

// reprovision opens another BootAttempt, once the Machine's Guests have left and
// those that did not have shut down.
func (j judge) reprovision(r *api.Request) action {
	// A bootd that was killed before it finished the request has opened the
	// attempt already.
	if a := j.machine.Status.Attempt; a != nil && a.Request == r.ID {
		return finish(r, "")
	}
	if a, over := j.drain(); !over {
		return a
	}
	if j.hasToShutDown() {
		return j.shutDown()
	}
	return j.open("reprovision asked for by "+r.By, 0, api.StageRequested)
}

// finish ends a request; failure says why it failed, empty when it was carried out.
func finish(r *api.Request, failure string) action {
	a := action{do: doFinish, request: r, event: event{api.Normal, "RequestDone", fmt.Sprintf("%s, asked for by %s", words(r), r.By)}}
	if failure != "" {
		a.message = failureOf(r, failure)
		a.event = event{api.Warning, "RequestFailed", words(r) + ": " + a.message}
	}
	return a
}

// inspect reads the Machine's inventory from its BMC.
func (j judge) inspect() action {
	if j.machine.Status.Phase == api.PhaseRegistered {
		return action{do: doInspect}
	}
	return j.ask(action{ask: askInventory})
}

// maintain leaves the Machine alone.
func (j judge) maintain() action {
	if j.machine.Status.Phase == api.PhaseMaintenance {
		return action{}
	}
	return action{do: doMaintain, message: "put into Maintenance"}
}

// turnOff shuts a Machine down that is to be Off.
func (j judge) turnOff() action {
	m := j.machine
	if m.Spec.BMC == nil {
		return action{}
	}
	if a, over := j.drain(); !over {
		return a
	}
	switch {
	case m.Status.Attempt != nil:
		return action{do: doRetire, reason: "Off", message: "state is Off"}
	case m.Status.Power == string(hardware.PowerOff) && m.Status.Phase == api.PhaseAvailable:
		return action{}
	}
	return j.shutDown()
}
