package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
	"github.com/rackweft/rackweft/hardware"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// situation is a Machine and what matters of its Site. What a row of a table
// changes in it, it names.
type situation struct {
	*api.Machine
	facts *facts
	load  struct{ opened, switched load }
	on    []*api.Guest
	// inputs are what a BootAttempt depends on now.
	inputs []string
}

type change func(*situation)

// given is a Machine that is inspected and that has no BootAttempt.
func given(changes ...change) facts {
	m := &api.Machine{Base: named("r1u01")}
	m.Metadata.UID, m.Metadata.Generation = "uid-1", 3
	m.Spec = api.MachineSpec{State: api.StateActive, Location: api.Location{Rack: "r1"}, BMC: &api.BMC{Address: "https://198.18.1.1"},
		Boot: api.Boot{Unsolicited: api.BootConfirm}}
	m.Status.Phase, m.Status.ObservedGeneration = api.PhaseAvailable, 3
	for _, is := range []string{api.CondReferences, api.CondInspected, api.CondBMC} {
		m.Status.Conditions.Set(ago(time.Hour), is, api.True, "Found", "")
	}
	site := new(api.Site)
	site.SetDefaults()
	site.Spec.Guests.DrainDeadline = api.Duration(15 * time.Minute)
	f := facts{machine: m, site: site.Spec, said: func() string { return "" }, required: func(*api.Machine) trust.Requirement { return trust.Requirement{Level: api.TrustToken, Of: "the Site"} }}
	s := &situation{Machine: m, facts: &f}
	f.held = func(action) hold { return hold{} }
	f.inputs = func() []string { return s.inputs }
	f.guests = func() []*api.Guest { return s.on }
	f.opened = func() load { return s.load.opened }
	f.switched = func() load { return s.load.switched }
	for _, c := range changes {
		c(s)
	}
	return f
}

// attempt is a BootAttempt of ten minutes ago that has come to a stage.
func attempt(stage api.Stage) change {
	return func(s *situation) {
		s.Status.Phase = api.PhaseProvisioning
		s.Status.Attempt = &api.BootAttempt{ID: "a", Number: 1, Reason: "state is Active", Started: ago(10 * time.Minute), Deadline: noon.Add(20 * time.Minute),
			Stage: stage, Stages: []api.StageTime{{Stage: stage, Time: ago(5 * time.Minute)}}}
	}
}

// ended is one that ended five minutes ago.
func ended(result api.AttemptResult, changes ...func(*api.BootAttempt)) change {
	return func(s *situation) {
		attempt(api.StageApplied)(s)
		a := s.Status.Attempt
		a.Result, a.Message, a.Finished, a.Generation = result, "the test", ago(5*time.Minute), 3
		for _, c := range changes {
			c(a)
		}
		s.Status.Phase = api.PhaseActive
		if result == api.ResultFailed {
			s.Status.Phase = api.PhaseFailed
		}
	}
}

func input(kind string, generation int64) string {
	return fmt.Sprintf("%s x 01234567 %d", kind, generation)
}
func with(now ...string) change { return func(s *situation) { s.inputs = now } }
func madeOf(then ...string) func(*api.BootAttempt) {
	return func(a *api.BootAttempt) { a.Inputs = then }
}

func retried(n int) func(*api.BootAttempt) { return func(a *api.BootAttempt) { a.Retry = n } }
func resetSeen(a *api.BootAttempt)         { a.Reset = &api.ResetSeen{Time: a.Finished} }
func secondTaker(a *api.BootAttempt)       { a.Cause = api.CauseSecondTaker }

func is(condition string, status api.ConditionStatus, reason string, since time.Time) change {
	return func(s *situation) {
		s.Status.Conditions.Remove(condition)
		s.Status.Conditions.Set(since, condition, status, reason, "the words of "+reason)
	}
}

func requested(verb api.Verb, argument, state string) change {
	return func(s *situation) {
		s.Status.Requests = []api.Request{{ID: "x", Verb: verb, Argument: argument, State: state, By: "root"}}
	}
}

func state(state api.MachineState) change { return func(s *situation) { s.Spec.State = state } }
func phase(phase api.Phase) change        { return func(s *situation) { s.Status.Phase = phase } }
func unsolicited(p api.UnsolicitedBoot) change {
	return func(s *situation) { s.Spec.Boot.Unsolicited = p }
}
func asksSince(d time.Duration) change { return func(s *situation) { s.Status.BootAsked = ago(d) } }
func inventoried(d time.Duration, attempt string) change {
	return func(s *situation) { s.Status.Inventory = &api.Inventory{Read: ago(d), Attempt: attempt} }
}
func neverLeftPOST(a *api.BootAttempt) { a.Stages = []api.StageTime{{Stage: api.StagePowerOn}} }
func power(p hardware.PowerState) change {
	return func(s *situation) { s.Status.Power = string(p) }
}
func noBMC(s *situation)  { s.Spec.BMC = nil }
func paused(s *situation) { s.facts.site.Paused = true }
func bmcHeld(s *situation) {
	s.facts.held = func(action) hold { return hold{until: noon.Add(time.Minute), why: "the words of the BMC"} }
}
func connected(s *situation) { is(api.CondConnected, api.True, "Connected", ago(time.Hour))(s) }
func needsNonce(s *situation) {
	s.facts.required = func(*api.Machine) trust.Requirement { return trust.Requirement{Level: api.TrustNonce, Of: "the Site"} }
}
func tagged(s *situation) {
	s.Status.AssetTag = &api.SavedAssetTag{Value: ownTag, Attempt: "a"}
	s.Metadata.Finalizers = []string{TagFinalizer}
}
func silent(d time.Duration) change {
	return is(api.CondConnected, api.False, "Disconnected", ago(d))
}
func deletedSince(d time.Duration) change {
	return func(s *situation) { at := ago(d); s.Metadata.DeletionTimestamp = &at }
}

// guest is one on the Machine.
func guest(disks ...api.Disk) change {
	return func(s *situation) {
		g := &api.Guest{Base: named("web"), Spec: api.GuestSpec{Disks: disks}}
		s.on = append(s.on, g)
	}
}
func fenceAfter(d time.Duration) change {
	return func(s *situation) { s.facts.site.Guests.FenceAfter = api.Duration(d) }
}
func opened(total, inRack int) change {
	return func(s *situation) { s.load.opened = load{total, inRack} }
}
func switched(total, inRack int) change {
	return func(s *situation) { s.load.switched = load{total, inRack} }
}

// same compares actions; the messages that are wanted are parts of those that are.
func same(t *testing.T, got, want action) {
	t.Helper()
	for _, x := range []struct{ got, want *string }{{&got.message, &want.message}, {&got.event.message, &want.event.message}} {
		if *x.want != "" && strings.Contains(*x.got, *x.want) || *x.want == "" && want.event.reason == "" {
			*x.got = *x.want
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("it is to be\n %+v, want\n %+v", got, want)
	}
}

func held(reason, message string) action {
	return action{do: doHold, reason: reason, message: message, again: 15 * time.Second, event: event{api.Warning, reason, message}}
}

func beside(a action) action { a.beside = true; return a }

func serving(s facts, a action) action { a.request = &s.machine.Status.Requests[0]; return a }

type decisionRow struct {
	name  string
	given facts
	want  action
}

func judgeRows(t *testing.T, rows []decisionRow) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			before, err := json.Marshal(r.given.machine)
			if err != nil {
				t.Fatal(err)
			}
			same(t, decide(r.given, noon), r.want)
			if after, err := json.Marshal(r.given.machine); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the Machine was changed to %s, %v", after, err)
			}
		})
	}
}

// TestDecideOrder has a row for each case before the state that the spec asks for.
// Every one of them also has what a later case would act on: an earlier one goes first.
func TestDecideOrder(t *testing.T) {
	discovered := func(s *situation) { s.Metadata.Labels = map[string]string{api.DiscoveredLabel: "true"} }
	seen := func(d time.Duration) change { return func(s *situation) { s.Status.LastSeen = ago(d) } }
	restored := func(s *situation) { s.facts.restored = true }
	claimed := func(s *situation) { s.facts.claimed = true }
	missing := func(s *situation) { s.facts.missing = "no Profile is called" }
	overdue := func(s *situation) { attempt(api.StageDHCP)(s); s.Status.Attempt.Deadline = ago(time.Second) }
	generation := func(s *situation) { s.Metadata.Generation++ }
	uninspected := func(s *situation) { s.Status.Conditions.Remove(api.CondInspected) }
	reset := requested(api.VerbPower, "reset", api.RequestPending)

	g := given(restored, reset)
	waits := finish(&g.machine.Status.Requests[0], "bootd was restored and waits for its hosts: weftctl restore status")
	judgeRows(t, []decisionRow{
		{"discovered", given(discovered, seen(time.Hour), restored, claimed), action{again: 23 * time.Hour}},
		{"discovered long ago", given(discovered, seen(25*time.Hour), restored, claimed), action{do: doForget}},
		{"restored, something was asked for", g, waits},
		{"restored, accounted for", given(restored, claimed, is(api.CondAccounted, api.True, api.AccountedReport, noon)), action{again: store.HeldRecheck}},
		{"restored, no BMC", given(restored, noBMC), action{again: store.HeldRecheck}},
		{"restored, connected", given(restored, connected), action{again: store.HeldRecheck}},
		{"restored, unknown", given(restored, claimed, overdue), action{do: doAsk, ask: askRestored, again: restoredEvery}},
		{"restored, unknown, BMC held", given(restored, bmcHeld), action{again: time.Minute}},
		{"claimed", given(claimed, overdue, reset), held("HostUnknown", "weftctl restore accept r1u01, or write-off r1u01")},
		{"deleted, claimed", given(claimed, deletedSince(0), overdue), action{do: doRevoke, message: "the Machine is being deleted"}},
		{"deleted, key of a host", given(deletedSince(0), func(s *situation) { s.Status.HostKey = "key" }), action{do: doRevoke, message: "the Machine is being deleted"}},
		{"deleted", given(deletedSince(0), reset), action{}},
		{"deleted, tag forgotten already", given(deletedSince(0), tagged, func(s *situation) { s.Status.AssetTag = nil }), action{do: doForgetTag}},
		{"deleted, tag saved", given(deletedSince(time.Minute), tagged), action{do: doAsk, ask: askTagBack}},
		{"deleted, tag saved, BMC held", given(deletedSince(time.Minute), tagged, bmcHeld), action{again: time.Minute}},
		{"deleted, tag saved, no BMC", given(deletedSince(time.Minute), tagged, noBMC),
			action{do: doTagBack, event: event{api.Warning, "AssetTagNotRestored", `was "row 3, u 7"`}}},
		{"deleted, tag saved, BMC silent for long", given(deletedSince(tagPatience), tagged),
			action{do: doForgetTag, event: event{api.Warning, "AssetTagNotRestored", "its BMC did not answer"}}},
		{"overdue", given(overdue, reset, missing), action{do: doExpire, message: "after stage DHCP", event: event{api.Warning, "BootFailed", "after stage DHCP"}}},
		{"missing", given(missing, generation), action{do: doMissing, reason: "Missing", message: "no Profile is called"}},
		{"new generation", given(generation, uninspected, func(s *situation) { s.facts.unserved = "; but" }), action{do: doFound, reason: "Found", message: "exists; but"}},
		{"references never looked at", given(is(api.CondReferences, api.False, "Missing", noon)), action{do: doFound, reason: "Found", message: "exists"}},
		{"no phase", given(phase("")), action{do: doFound, reason: "Found", message: "exists"}},
		{"to be inspected, Registered", given(uninspected, phase(api.PhaseRegistered), state(api.StateOff)), action{do: doInspect}},
		{"to be inspected", given(uninspected, phase(api.PhaseInspecting)), action{do: doAsk, ask: askInventory}},
		{"to be inspected, BMC held", given(uninspected, phase(api.PhaseInspecting), bmcHeld), action{again: time.Minute}},
		{"uninspected, no BMC", given(uninspected, noBMC, state(api.StateMaintenance)), beside(action{do: doMaintain, message: "put into Maintenance"})},
		{"uninspected, but booting", given(uninspected, attempt(api.StageRequested)), beside(action{do: doAsk, ask: askBoot})},
	})
}

// TestDecideRequest has a row for each way in which a request is served.
func TestDecideRequest(t *testing.T) {
	const pending, running = api.RequestPending, api.RequestRunning
	leaving := is(api.CondDrained, api.False, "Leaving", ago(time.Minute))
	for _, r := range []struct {
		name  string
		given facts
		want  action
		fails string // the request ends, with these words
		done  bool   // or without any
	}{
		{name: "BMC reset, bootd was killed", given: given(requested(api.VerbResetBMC, "", running)), fails: "bootd was stopped while it ran"},
		{name: "reset, bootd was killed", given: given(requested(api.VerbPower, "reset", running)), fails: "bootd was stopped while it ran"},
		{name: "off, bootd was killed", given: given(requested(api.VerbPower, "off", running), switched(100, 8)), want: action{do: doAsk, ask: askRequest}},
		{name: "power, paused", given: given(requested(api.VerbPower, "on", pending), paused), fails: "the Site is paused"},
		{name: "reprovision, paused", given: given(requested(api.VerbReprovision, "", pending), paused), fails: "the Site is paused"},
		{name: "identify, paused", given: given(requested(api.VerbIdentify, "on", pending), paused), want: action{do: doAsk, ask: askRequest}},
		{name: "power", given: given(requested(api.VerbPower, "on", pending)), want: action{do: doAsk, ask: askRequest}},
		{name: "power, BMC held", given: given(requested(api.VerbPower, "on", pending), bmcHeld), fails: "the words of the BMC"},
		{name: "inspect", given: given(requested(api.VerbInspect, "", pending)), want: action{do: doAsk, ask: askInventory}},
		{name: "inspect, BMC held", given: given(requested(api.VerbInspect, "", pending), bmcHeld), fails: "the words of the BMC"},
		{name: "reprovision", given: given(requested(api.VerbReprovision, "", pending), ended(api.ResultActive), connected),
			want: action{do: doOpen, reason: "reprovision asked for by root", stage: api.StageRequested}},
		{name: "reprovision, attempt opened", given: given(requested(api.VerbReprovision, "", running), attempt(api.StageDHCP), func(s *situation) { s.Status.Attempt.Request = "x" }), done: true},
		{name: "reprovision, Guests on it", given: given(requested(api.VerbReprovision, "", pending), connected, guest()),
			want: action{do: doDrain, reason: "Leaving", message: "web; it continues without them after 15m0s", again: drainEvery, event: event{api.Normal, "Draining", "1 Guests are to leave: web"}}},
		{name: "reprovision, Guests have left", given: given(requested(api.VerbReprovision, "", running), connected, leaving), want: action{do: doDrained}},
		{name: "reprovision, Guests did not leave", given: given(requested(api.VerbReprovision, "", running), connected, guest(), is(api.CondDrained, api.False, drainDeadline, noon)),
			want: action{do: doAsk, ask: askShutdown, patience: 2*time.Minute + api.GuestStopTimeout}},
		{name: "reprovision, Guests did not leave, silent", given: given(requested(api.VerbReprovision, "", running), silent(time.Minute), guest()),
			want: action{do: doOpen, reason: "reprovision asked for by root", stage: api.StageRequested}},
		{name: "reprovision, shut down", given: given(requested(api.VerbReprovision, "", running), power(hardware.PowerOff)),
			want: action{do: doOpen, reason: "reprovision asked for by root", stage: api.StageRequested}},
		{name: "reprovision, shutting down", given: given(requested(api.VerbReprovision, "", running), is(condShuttingDown, api.True, "Asked", noon), bmcHeld), want: action{again: time.Minute}},
		{name: "reprovision, brake", given: given(requested(api.VerbReprovision, "", running), opened(100, 0)), want: held("LimitTotal", "100 machines are being provisioned")},
	} {
		t.Run(r.name, func(t *testing.T) {
			want := r.want
			switch {
			case r.fails != "":
				want = action{do: doFinish, message: r.fails, event: event{api.Warning, "RequestFailed", r.fails}}
			case r.done:
				want = action{do: doFinish, event: event{api.Normal, "RequestDone", "reprovision, asked for by root"}}
			}
			same(t, decide(r.given, noon), serving(r.given, want))
		})
	}
	judgeRows(t, []decisionRow{ // it stays Pending
		{"power, brake of the Site", given(requested(api.VerbPower, "on", pending), switched(100, 0)), held("LimitTotal", "the power of 100 machines is being changed")},
		{"power, brake of the rack", given(requested(api.VerbPower, "on", pending), switched(8, 8)), held("LimitPerRack", "the power of 8 machines of rack r1 is being changed")},
	})
}

// TestDecideState has a row for each step towards Maintenance and Off, and the brakes.
func TestDecideState(t *testing.T) {
	off := state(api.StateOff)
	shut := action{do: doAsk, ask: askShutdown, patience: 2 * time.Minute}
	rows := []decisionRow{
		{"Maintenance", given(state(api.StateMaintenance), attempt(api.StageDHCP)), action{do: doMaintain, message: "put into Maintenance"}},
		{"in Maintenance", given(state(api.StateMaintenance), phase(api.PhaseMaintenance)), action{}},
		{"Off, no BMC", given(off, noBMC, ended(api.ResultActive)), action{}},
		{"Off, Guests leave", given(off, connected, guest(), is(api.CondDrained, api.False, "Leaving", ago(time.Minute))),
			action{do: doDrain, reason: "Leaving", message: "these Guests are still on it: web", again: drainEvery}},
		{"Off, Guests have not left", given(off, connected, guest(), is(api.CondDrained, api.False, "Leaving", ago(16*time.Minute))),
			action{do: doDrainOver, reason: drainDeadline, message: "after 15m0s these Guests", again: drainEvery, event: event{api.Warning, drainDeadline, "after 15m0s these Guests"}}},
		{"Off, drain over", given(off, connected, guest(), ended(api.ResultActive), is(api.CondDrained, api.False, drainDeadline, ago(time.Minute))),
			action{do: doRetire, reason: "Off", message: "state is Off"}},
		{"Off, drained", given(off, connected, ended(api.ResultActive), is(api.CondDrained, api.False, "Leaving", ago(time.Minute))), action{do: doDrained}},
		{"Off, an attempt that ended", given(off, ended(api.ResultActive)), action{do: doRetire, reason: "Off", message: "state is Off"}},
		{"Off, is off", given(off, power(hardware.PowerOff)), action{}},
		{"Off, has power", given(off, power(hardware.PowerOn)), shut},
		{"Off, phase is behind", given(off, power(hardware.PowerOff), phase(api.PhaseDeprovisioning)), shut},
		{"Off, BMC held", given(off, bmcHeld), action{again: time.Minute}},
		{"Off, brake", given(off, switched(100, 0)), held("LimitTotal", "limits.power.total")},
		{"Off, paused", given(off, paused), held("Paused", "the Site is paused")},
		{"Active, paused", given(paused), held("Paused", "the Site is paused")},
		{"Active, held for that already", given(paused, is(api.CondHeld, api.True, "Paused", noon)), action{do: doHold, reason: "Paused", message: "the Site is paused", again: 15 * time.Second}},
		{"Active, brake of the Site", given(opened(100, 0)), held("LimitTotal", "limits.provisioning.total")},
		{"Active, brake of the rack", given(opened(8, 8)), held("LimitPerRack", "8 machines of rack r1 are being provisioned")},
		{"Active, in no rack", given(opened(8, 8), func(s *situation) { s.Spec.Location.Rack = "" }), action{do: doOpen, reason: "state is Active", stage: api.StageRequested}},
	}
	for i := range rows {
		rows[i].want.beside = true
	}
	judgeRows(t, rows)
}

// TestDecideBoot has a row for each step of a Machine that is to be Active.
func TestDecideBoot(t *testing.T) {
	const refusedBy = "its network boot is answered 503: "
	failed, active := api.ResultFailed, api.ResultActive
	longAgo := func(a *api.BootAttempt) { a.Finished = ago(time.Hour) }
	applied := func(s *situation) {
		connected(s)
		is(api.CondApplied, api.True, "Applied", noon)(s)
		s.Status.Host = &api.HostStatus{AttemptID: "a"}
	}
	nonce := func(s *situation) { s.Status.Attempt.Nonce = &api.Nonce{State: api.NoncePending} }
	sent := func(problem string) change {
		return func(s *situation) { s.Status.Attempt.Command = &api.PowerCommand{Order: "reset", Problem: problem} }
	}
	asked := is(api.CondTrust, api.Unknown, bootAsked, ago(time.Second))
	askedLong := is(api.CondTrust, api.Unknown, bootAsked, ago(bootAskedPatience))
	opens := func(reason string, retry int, stage api.Stage) action {
		return action{do: doOpen, reason: reason, retry: retry, stage: stage}
	}
	two := action{do: doTwoBoot, event: event{api.Warning, "SecondTaker", "although no reset is known since then"}}
	confirms := func(after time.Time, what string, retry int) action {
		return action{do: doAsk, ask: askReset, after: after, reason: what, retry: retry}
	}
	rows := []decisionRow{
		{"first", given(), opens("state is Active", 0, api.StageRequested)},
		{"first, no BMC", given(noBMC, asksSince(0)), held("NoBMC", "power it on by hand")},
		{"first, no BMC, asks and may", given(noBMC, asksSince(0), unsolicited(api.BootAllow)), opens("it boots by itself (unsolicited boots are allowed)", 0, api.StagePowerOn)},
		{"first, no BMC, asked once", given(noBMC, asksSince(time.Minute), unsolicited(api.BootAllow)), held("NoBMC", "power it on by hand")},

		{"power on", given(attempt(api.StageRequested)), action{do: doAsk, ask: askBoot}},
		{"power on, paused", given(attempt(api.StageRequested), paused), held("Paused", "the Site is paused")},
		{"power on, BMC held", given(attempt(api.StageRequested), bmcHeld), action{again: time.Minute}},
		{"power on, nonce first", given(attempt(api.StageRequested), nonce), action{do: doAsk, ask: askNonce}},
		{"power on, sent", given(attempt(api.StageRequested), sent("")), action{do: doAsk, ask: askBoot}},
		{"power on, not seen", given(attempt(api.StageRequested), sent("the BMC's words")), action{again: time.Minute}},
		{"on its way", given(attempt(api.StageDHCP), asksSince(0)), action{again: time.Minute}},
		{"on its way, nearly overdue", given(attempt(api.StageDHCP), func(s *situation) { s.Status.Attempt.Deadline = noon.Add(9 * time.Second) }), action{again: 10 * time.Second}},
		{"applied", given(attempt(api.StageJoined), applied), action{do: doSucceed, event: event{api.Normal, "Active", "Active 10m0s after BootAttempt 1 was opened"}}},
		{"another attempt's host", given(attempt(api.StageJoined), applied, func(s *situation) { s.Status.Host.AttemptID = "b" }), action{again: time.Minute}},

		{"reset in mid-boot", given(attempt(api.StagePointer), asksSince(0)), confirms(ago(5*time.Minute), "it was reset in mid-boot", 1)},
		{"reset in mid-boot, stage skipped", given(attempt(api.StageConfig), asksSince(0)), confirms(ago(10*time.Minute), "it was reset in mid-boot", 1)},
		{"reset in mid-boot, stopped asking", given(attempt(api.StageConfig), asksSince(time.Minute)), action{again: time.Minute}},
		{"reset in mid-boot, refused", given(attempt(api.StageConfig), asksSince(0), unsolicited(api.BootRefuse)), two},
		{"reset in mid-boot, no BMC", given(attempt(api.StageConfig), asksSince(0), noBMC), two},
		{"reset in mid-boot, allowed", given(attempt(api.StageConfig), asksSince(0), unsolicited(api.BootAllow)), opens("it was reset in mid-boot (unsolicited boots are allowed)", 1, api.StagePowerOn)},
		{"reset in mid-boot, allowed, nonce", given(attempt(api.StageConfig), asksSince(0), unsolicited(api.BootAllow), needsNonce), opens("it was reset in mid-boot (unsolicited boots are allowed)", 1, api.StageRequested)},
		{"reset in mid-boot too often", given(attempt(api.StageConfig), asksSince(0), func(s *situation) { s.Status.Attempt.Retry = api.MaxRetries }), held("ResetLoop", refusedBy+"it was reset")},

		{"failed just now", given(ended(failed, func(a *api.BootAttempt) { a.Finished = ago(time.Second) })), action{again: 29 * time.Second}},
		{"failed", given(ended(failed)), opens("retry 1 of 2 after: the test", 1, api.StageRequested)},
		{"command unfinished", given(ended(failed, func(a *api.BootAttempt) { a.Command = &api.PowerCommand{Problem: "x", Unfinished: true} })), action{}},
		{"command not seen", given(ended(failed, func(a *api.BootAttempt) { a.Command = &api.PowerCommand{Problem: "x"} })), opens("retry 1 of 2 after: the test", 1, api.StageRequested)},
		{"failed for the last time", given(ended(failed, retried(api.MaxRetries))), action{}},
		{"failed for the last time, asks", given(ended(failed, retried(api.MaxRetries)), asksSince(0)), action{}},
		{"failed for the last time, asks and may", given(ended(failed, retried(api.MaxRetries)), asksSince(0), unsolicited(api.BootAllow)), opens("unsolicited boot, allowed by policy", api.MaxRetries, api.StagePowerOn)},
		{"failed, no BMC, asks and may", given(ended(failed, longAgo), noBMC, asksSince(0), unsolicited(api.BootAllow)), opens("it boots by itself (unsolicited boots are allowed) after: the test", 1, api.StagePowerOn)},
		{"failed, no BMC", given(ended(failed, longAgo), noBMC), held("NoBMC", "power it on by hand")},
		{"failed for the last time, spec changed", given(ended(failed, retried(api.MaxRetries), madeOf(input("Machine", 2))), with(input("Machine", 3))),
			opens("Machine x was changed after: the test", 0, api.StageRequested)},
		{"failed for the last time, nothing changed", given(ended(failed, retried(api.MaxRetries), madeOf(input("Machine", 3), input("Layer", 1))), with(input("Machine", 3), input("Layer", 1))), action{}},
		{"failed for the last time, Layer changed", given(ended(failed, retried(api.MaxRetries), madeOf(input("Machine", 3), input("Layer", 1))), with(input("Machine", 3), input("Layer", 2))),
			opens("Layer x was changed after: the test", 0, api.StageRequested)},
		{"failed just now, Secret changed", given(ended(failed, func(a *api.BootAttempt) { a.Finished = noon }, madeOf(input("Secret", 1))), with(input("Secret", 2))),
			opens("Secret x was changed after: the test", 0, api.StageRequested)},
		{"failed for the last time, inputs not recorded", given(ended(failed, retried(api.MaxRetries), func(a *api.BootAttempt) { a.Generation = 2 })),
			opens("Machine r1u01 was changed after: the test", 0, api.StageRequested)},
		{"failed for the last time, no BMC, changed", given(ended(failed, longAgo, retried(api.MaxRetries), madeOf(input("Layer", 1))), noBMC, with(input("Layer", 2))), action{}},
		{"failed, command unfinished, changed", given(ended(failed, madeOf(input("Layer", 1)), func(a *api.BootAttempt) { a.Command = &api.PowerCommand{Unfinished: true} }), with(input("Layer", 2))), action{}},
		{"failed for the last time, back from Maintenance", given(ended(failed, retried(api.MaxRetries)), phase(api.PhaseMaintenance)),
			opens("state is Active again after: the test", 0, api.StageRequested)},
		{"second taker again, changed", given(ended(failed, secondTaker, retried(api.DefaultTrustRetries), madeOf(input("Layer", 1))), with(input("Layer", 2))),
			action{do: doGiveUp, reason: "TooManySecondTakers", event: event{api.Warning, "TooManySecondTakers", "bootd opens no further BootAttempt by itself"}}},
		{"aborted", given(ended(api.ResultAborted), phase(api.PhaseMaintenance)), opens("state is Active", 0, api.StageRequested)},
		{"aborted, no BMC, asks and may", given(ended(api.ResultAborted), noBMC, asksSince(0), unsolicited(api.BootAllow)), opens("it boots by itself (unsolicited boots are allowed)", 0, api.StagePowerOn)},
		{"runs, back from Maintenance", given(ended(active, resetSeen), connected, phase(api.PhaseMaintenance)), action{do: doActive}},
		{"second taker", given(ended(failed, secondTaker), func(s *situation) { n := 3; s.facts.site.Trust.Retries = &n }), opens("retry 1 of 3 after: the test", 1, api.StageRequested)},
		{"second taker again", given(ended(failed, secondTaker, retried(api.DefaultTrustRetries)), asksSince(0), unsolicited(api.BootAllow)),
			action{do: doGiveUp, reason: "TooManySecondTakers", event: event{api.Warning, "TooManySecondTakers", "bootd opens no further BootAttempt by itself"}}},
		{"second taker again, said", given(ended(failed, secondTaker, retried(api.DefaultTrustRetries)), is(api.CondTrust, api.False, "TooManySecondTakers", noon)), action{}},

		{"runs", given(ended(active, resetSeen), connected), action{}},
		{"runs, was held", given(ended(active), connected, is(api.CondHeld, api.True, "Paused", noon)), action{do: doActive}},
		{"runs, drain called off", given(ended(active), connected, is(api.CondDrained, api.False, "Leaving", noon)), action{do: doActive}},
		{"runs, reset unseen", given(ended(active), connected), action{do: doAsk, ask: askSeen, after: ago(5 * time.Minute)}},
		{"runs, reset unseen, no BMC", given(ended(active), connected, noBMC), action{}},
		{"runs, reset seen before", given(ended(active, resetSeen), connected, func(s *situation) { s.Status.Attempt.Reset.Time = ago(time.Hour) }), action{do: doAsk, ask: askSeen, after: ago(5 * time.Minute)}},
		{"runs, phase is behind", given(ended(active), connected, phase(api.PhaseDraining)), action{do: doActive}},
		{"runs, something asks", given(ended(active), connected, asksSince(0)), action{do: doAsked, reason: bootAsked, message: "it may have been reset just now", again: 4 * bootAskedEvery}},
		{"runs, something asked just now", given(ended(active), connected, asksSince(0), asked), action{again: 4 * bootAskedEvery}},
		{"runs, something asks for minutes", given(ended(active), connected, asksSince(0), askedLong), action{do: doAskedLong, reason: "BootAskedBesideHost", message: "weftctl machine reprovision r1u01",
			again: 4 * bootAskedEvery, event: event{api.Warning, "BootAskedBesideHost", "one of the two is not this Machine"}}},
		{"runs, something asks, said", given(ended(active), connected, asksSince(0), is(api.CondTrust, api.False, "BootAskedBesideHost", noon)), action{again: 4 * bootAskedEvery}},
		{"runs, nothing asks any more", given(ended(active), connected, asked), action{do: doAskedOnce}},

		{"silent, asks", given(ended(active), silent(time.Second), asksSince(0)), confirms(ago(5*time.Minute), "it was reset", 0)},
		{"silent, asks, refused", given(ended(active), silent(time.Second), asksSince(0), unsolicited(api.BootRefuse)), held("UnsolicitedBootRefused", refusedBy+"spec.boot.unsolicited is refuse")},
		{"silent, asks, allowed", given(ended(active), silent(time.Second), asksSince(0), unsolicited(api.BootAllow)), opens("it was reset (unsolicited boots are allowed)", 0, api.StagePowerOn)},
		{"silent, asks, no BMC", given(ended(active), silent(time.Second), asksSince(0), noBMC), held("UnsolicitedBootUnconfirmed", refusedBy+"it has no BMC")},
		{"silent, asks, BMC held", given(ended(active), silent(time.Second), asksSince(0), bmcHeld), action{again: time.Minute}},
		{"silent for a moment", given(ended(active), silent(20*time.Second)), action{again: 40 * time.Second}},
		{"silent", given(ended(active), silent(time.Hour), guest()), action{do: doAsk, ask: askPower}},
		{"silent, no BMC", given(ended(active), silent(time.Hour), noBMC), action{}},
		{"never connected", given(ended(active)), action{do: doAsk, ask: askPower}},
		{"lost", given(ended(active), silent(time.Hour), guest(), fenceAfter(5*time.Minute)), action{do: doAsk, ask: askFence}},
		{"lost, brake", given(ended(active), silent(time.Hour), guest(), fenceAfter(5*time.Minute), switched(8, 8)), held("LimitPerRack", "limits.power.perRack")},
		{"lost, fenced", given(ended(active), silent(time.Hour), guest(), fenceAfter(5*time.Minute), is(api.CondFenced, api.True, "PoweredOff", noon)), action{again: drainEvery}},
		{"lost, Guests keep disks", given(ended(active), silent(time.Hour), guest(api.Disk{Retain: true}), fenceAfter(5*time.Minute)), action{do: doAsk, ask: askPower}},
		{"lost, too early", given(ended(active), silent(4*time.Minute), guest(), fenceAfter(5*time.Minute)), action{do: doAsk, ask: askPower}},
	}
	for i := range rows {
		rows[i].want.beside = true
	}
	judgeRows(t, rows)
}

// TestDecideBeside: what is seen to beside the state.
func TestDecideBeside(t *testing.T) {
	nonced := func(s *situation) {
		attempt(api.StageDHCP)(s)
		s.Status.Attempt.Nonce = &api.Nonce{State: api.NonceWritten}
	}
	sick := is(api.CondBMC, api.False, "Unreachable", noon)
	read := action{do: doAsk, ask: askInventory, reading: true}
	for _, r := range []struct {
		name   string
		decide func(facts, time.Time) action
		given  facts
		want   action
	}{
		{"own tag", decideTag, given(), action{}},
		{"nonce in use", decideTag, given(tagged, nonced), action{}},
		{"nonce spent", decideTag, given(tagged, nonced, func(s *situation) { s.Status.Attempt.Stage = api.StagePointer }), action{do: doAsk, ask: askTagBack}},
		{"nonce spent, BMC held", decideTag, given(tagged, bmcHeld), action{again: time.Minute}},
		{"nonce spent, no BMC", decideTag, given(tagged, noBMC), action{do: doTagBack, event: event{api.Warning, "AssetTagNotRestored", "has no BMC in its spec any more"}}},
		{"no inventory yet", decideInventory, given(), action{}},
		{"inventory of today", decideInventory, given(inventoried(6*time.Hour, "")), action{again: 18*time.Hour + spread(given().machine, 6*time.Hour)}},
		{"inventory of last week", decideInventory, given(inventoried(7*24*time.Hour, "")), read},
		{"inventory from before the boot", decideInventory, given(ended(api.ResultActive), inventoried(time.Hour, "")), read},
		{"inventory from before a boot that failed after POST", decideInventory, given(ended(api.ResultFailed), inventoried(time.Hour, "")), read},
		{"inventory from before a boot that failed before POST", decideInventory, given(ended(api.ResultFailed, neverLeftPOST), inventoried(6*time.Hour, "")),
			action{again: 18*time.Hour + spread(given().machine, 6*time.Hour)}},
		{"inventory of the boot", decideInventory, given(ended(api.ResultActive), inventoried(6*time.Hour, "a")), action{again: 18*time.Hour + spread(given().machine, 6*time.Hour)}},
		{"inventory in mid-boot", decideInventory, given(attempt(api.StageDHCP), inventoried(7*24*time.Hour, "")), action{}},
		{"inventory of a sick BMC", decideInventory, given(sick, inventoried(7*24*time.Hour, "")), action{}},
		{"inventory of a BMC held", decideInventory, given(bmcHeld, inventoried(7*24*time.Hour, "")), action{again: time.Minute}},
		{"BMC well", decideHealth, given(), action{}},
		{"BMC sick", decideHealth, given(sick), action{do: doAsk, ask: askHealth}},
		{"BMC sick and held", decideHealth, given(sick, bmcHeld), action{again: time.Minute}},
		{"no BMC", decideHealth, given(sick, noBMC), action{}},
	} {
		t.Run(r.name, func(t *testing.T) { same(t, r.decide(r.given, noon), r.want) })
	}
}

// TestOutcome has a row for each thing that a BMC may answer.
func TestOutcome(t *testing.T) {
	refuses := errors.New("asset tag: unsupported")
	on, off := answer{power: hardware.PowerOn}, answer{power: hardware.PowerOff}
	known := func(since bool) answer { return answer{reset: reset{since: since, known: true}} }
	active, booting := ended(api.ResultActive), attempt(api.StagePointer)
	confirm := action{ask: askReset, reason: "it was reset", retry: 1}
	inspecting := given(requested(api.VerbInspect, "", api.RequestRunning))
	full := answer{inventory: hardware.Inventory{NICs: []hardware.NIC{{MAC: "52:54:00:01:01:00"}}}}
	const unseen = "the BMC accepted the command (reset), and it was not seen to be carried out; it is not sent again in this BootAttempt: BMC accepted it, but it was not seen to happen: the BMC's words"
	lost := fmt.Errorf("%w: the BMC's words", hardware.ErrNotSeen)
	booted := api.Decision{Machine: "r1u01", Question: "power", Answer: "reset", Reason: "state is Active", Attempt: "a"}
	for _, r := range []struct {
		name  string
		given facts
		asked action
		is    answer
		want  action
	}{
		{"health", given(), action{ask: askHealth}, on, action{}},
		{"restored", given(), action{ask: askRestored}, off, action{do: doAccount, answer: off, again: restoredEvery}},
		{"power is as it was", given(active, power(hardware.PowerOn)), action{ask: askPower}, on, action{again: 2 * time.Minute}},
		{"power is on again", given(active), action{ask: askPower}, on, action{do: doPower, answer: on, again: 2 * time.Minute}},
		{"no power", given(active), action{ask: askPower}, off, action{do: doOpen, reason: "it was found powered off", stage: api.StageRequested}},
		{"no power, brake", given(active, opened(100, 0)), action{ask: askPower}, off, held("LimitTotal", "100 machines")},
		{"inventory", given(), action{ask: askInventory}, full, action{do: doReport, answer: full, reason: "Read", message: "serial"}},
		{"inventory without NICs", given(), action{ask: askInventory}, answer{}, action{do: doReport, reason: "NoNICs", message: "lists no NIC",
			event: event{api.Warning, "NoNICs", "lists no NIC"}}},
		{"inventory without NICs again", given(is(api.CondInspected, api.True, "NoNICs", noon)), action{ask: askInventory}, answer{},
			action{do: doReport, reason: "NoNICs", message: "lists no NIC"}},
		{"inventory that cannot be read again", given(), action{ask: askInventory}, answer{unread: errors.New("no JSON")}, action{do: doReport, answer: answer{unread: errors.New("no JSON")}}},
		{"inventory asked for", inspecting, serving(inspecting, action{ask: askInventory}), full,
			serving(inspecting, action{do: doReport, answer: full, reason: "Read", message: "serial", event: event{api.Normal, "RequestDone", "inspect, asked for by root"}})},
		{"boots", given(booting), action{ask: askBoot}, answer{did: "reset"}, action{do: doPowered, decision: booted}},
		{"boots, attempt over", given(booting), action{ask: askBoot}, answer{}, action{again: 15 * time.Second}},
		{"boots, unseen", given(booting), action{ask: askBoot}, answer{did: "reset", unseen: lost}, action{do: doUnseen, answer: answer{did: "reset", unseen: lost}, reason: "NotSeen",
			message: "accepted the command (reset), and it was not seen", event: event{api.Warning, "PowerNotSeen", "not sent again in this BootAttempt"}, again: time.Minute,
			decision: api.Decision{Machine: "r1u01", Question: "power", Answer: "not seen", Reason: unseen, Attempt: "a"}}},
		{"reset", given(active), confirm, known(true), action{do: doOpen, reason: "it was reset (confirmed by its BMC)", retry: 1, stage: api.StagePowerOn}},
		{"reset, brake", given(active, opened(8, 8)), confirm, known(true), held("LimitPerRack", "8 machines of rack r1")},
		{"reset in mid-boot", given(booting), confirm, known(true), action{do: doOpen, reason: "it was reset (confirmed by its BMC)", retry: 1, stage: api.StagePowerOn}},
		{"not reset", given(active), confirm, known(false), held("UnsolicitedBootForged", "something else may be using its MAC")},
		{"not reset in mid-boot", given(booting), confirm, known(false), action{do: doTwoBoot, event: event{api.Warning, "SecondTaker", "although no reset is known"}}},
		{"tells nothing of resets", given(active), confirm, answer{}, held("UnsolicitedBootUnconfirmed", "its BMC tells no time of the last reset")},
		{"tells nothing of resets in mid-boot", given(booting), confirm, answer{}, action{do: doTwoBoot, event: event{api.Warning, "SecondTaker", "although no reset is known"}}},
		{"shuts down", given(), action{ask: askShutdown, patience: 2 * time.Minute}, on,
			action{do: doShutting, answer: on, reason: "Asked", message: "forced off after 2m0s", again: 5 * time.Second}},
		{"has shut down", given(), action{ask: askShutdown}, off, action{do: doOff, answer: off}},
		{"has shut down to be provisioned", inspecting, serving(inspecting, action{ask: askShutdown}), off, serving(inspecting, action{do: doOff, answer: off})},
		{"fence, still on", given(guest()), action{ask: askFence}, on, action{again: drainEvery}},
		{"fence", given(guest()), action{ask: askFence}, off, action{do: doFence, answer: off, reason: "PoweredOff", message: "its BMC confirmed that it has no power",
			again: drainEvery, event: event{api.Warning, "Fenced", "web start elsewhere"}}},
		{"nonce", given(booting), action{ask: askNonce}, answer{tag: tagAnswer{saved: true, own: true}},
			action{do: doNonced, decision: api.Decision{Machine: "r1u01", Question: "nonce", Answer: "written to the AssetTag", Reason: "trust level nonce is required by the Site", Attempt: "a"}}},
		{"nonce of another attempt", given(booting), action{ask: askNonce}, answer{tag: tagAnswer{own: true}}, action{}},
		{"nonce refused", given(booting), action{ask: askNonce}, answer{tag: tagAnswer{refused: refuses}},
			action{do: doNoNonce, answer: answer{tag: tagAnswer{refused: refuses}}, reason: "LevelNotReached", message: "does not take the system's AssetTag: asset tag: unsupported",
				event: event{api.Warning, "LevelNotReached", "trust level nonce is required (by the Site)"}}},
		{"tag is back", given(tagged, booting), action{ask: askTagBack}, answer{},
			action{do: doTagBack, decision: api.Decision{Machine: "r1u01", Question: "nonce", Answer: "the AssetTag is back", Reason: "the nonce is spent", Attempt: "a"}}},
		{"tag refused", given(tagged), action{ask: askTagBack}, answer{tag: tagAnswer{refused: refuses}},
			action{do: doTagBack, event: event{api.Warning, "AssetTagNotRestored", "a spent nonce is in its place: asset tag: unsupported"}}},
		{"request", inspecting, serving(inspecting, action{ask: askRequest}), answer{},
			serving(inspecting, action{do: doFinish, event: event{api.Normal, "RequestDone", "asked for by root"}})},
	} {
		t.Run(r.name, func(t *testing.T) { same(t, outcome(r.given, noon, r.asked, r.is), r.want) })
	}
}

// TestOrders: what a BMC does with the power, by the state that it tells.
func TestOrders(t *testing.T) {
	on, off := hardware.PowerOn, hardware.PowerOff
	boot := func(p hardware.PowerState) order { o, _ := bootOrder(p); return o }
	sent := func(o order, age time.Duration, p hardware.PowerState, r reset) order {
		got, did := sentOrder(&api.PowerCommand{Order: string(o), Time: ago(age)}, p, r, noon)
		if did == "" {
			return "wait"
		}
		return got
	}
	unknown, before, since := reset{}, reset{known: true}, reset{known: true, since: true}
	asked := func(d time.Duration) *api.Condition { return &api.Condition{Time: ago(d)} }
	for name, r := range map[string]struct{ got, want order }{
		"boot, off":                          {boot(off), orderOn},
		"boot, no state":                     {boot(hardware.PowerUnknown), orderOn},
		"boot, on":                           {boot(on), orderReset},
		"on was sent, on":                    {sent(orderOn, time.Second, on, unknown), orderNone},
		"on was sent just now, off":          {sent(orderOn, time.Second, off, unknown), "wait"},
		"on was sent, off":                   {sent(orderOn, time.Hour, off, unknown), orderOn},
		"reset was sent, and is seen":        {sent(orderReset, time.Second, on, since), orderNone},
		"reset was sent, unknown":            {sent(orderReset, time.Hour, on, unknown), orderNone},
		"reset was sent just now, not seen":  {sent(orderReset, time.Second, on, before), "wait"},
		"reset was sent just now, off":       {sent(orderReset, time.Second, off, since), "wait"},
		"reset was sent, and did not come":   {sent(orderReset, time.Hour, on, before), orderReset},
		"reset was sent, off":                {sent(orderReset, time.Hour, off, since), orderOn},
		"shut down, off":                     {shutdownOrder(off, nil, time.Minute, noon), orderNone},
		"shut down, first":                   {shutdownOrder(on, nil, time.Minute, noon), orderShutdown},
		"shut down, asked":                   {shutdownOrder(on, asked(time.Minute), time.Minute, noon), orderNone},
		"shut down, asked, out of patience":  {shutdownOrder(on, asked(time.Hour), time.Minute, noon), orderOff},
		"shut down, off, asked long ago":     {shutdownOrder(off, asked(time.Hour), time.Minute, noon), orderNone},
		"a person's reset":                   {resetOrder(on), orderReset},
		"a person's reset of one without it": {resetOrder(off), orderOn},
	} {
		if r.got != r.want {
			t.Errorf("%s: %q, want %q", name, r.got, r.want)
		}
	}
}

// TestResetSince: what the BMC reports now is compared with the recorded reset; its age does not count.
func TestResetSince(t *testing.T) {
	const hpe, last = "Oem.Hpe.PostDiscoveryCompleteTimeStamp", "LastResetTime"
	told := func(source, value, post string) hardware.ResetEvidence {
		e := hardware.ResetEvidence{POST: post, Now: noon}
		if value != "" {
			e.Known, e.At, e.Source, e.Value = true, ago(time.Hour), source, value
			e.Told = []hardware.Trace{{Source: source, Value: value}}
		}
		return e
	}
	unknown, before, since := reset{}, reset{known: true}, reset{known: true, since: true}
	for name, r := range map[string]struct {
		seen *hardware.ResetEvidence
		now  hardware.ResetEvidence
		want reset
	}{
		"the same value":                        {new(told(last, "2026-06-01T11:00:00Z", "")), told(last, "2026-06-01T11:00:00Z", ""), before},
		"counted back":                          {new(told(last, "2026-06-01T11:00:00Z", "")), told(last, "2026-06-01T11:00:02Z", ""), before},
		"another value":                         {new(told(last, "2026-06-01T11:00:00Z", "")), told(last, "2026-06-01T06:00:00Z", ""), since},
		"another that is no time":               {new(told(last, "once", "")), told(last, "twice", ""), since},
		"another property":                      {new(told(last, "2026-06-01T11:00:00Z", "")), told(hpe, "2026-06-01T11:00:00Z", ""), before},
		"nothing to compare with, old":          {nil, told(last, "2026-06-01T11:00:00Z", ""), before},
		"nothing told":                          {nil, told("", "", ""), unknown},
		"nothing told, once more":               {new(told("", "", "")), told("", "", ""), unknown},
		"HPE, in POST":                          {nil, told("", "", "InPost"), since},
		"HPE, in POST after it ran":             {new(told(hpe, "2026-06-01T11:00:00Z", "FinishedPost")), told("", "", "InPost"), since},
		"HPE, in a POST that was seen":          {new(told("", "", "InPost")), told("", "", "InPost"), unknown},
		"HPE, the end of that POST":             {new(told("", "", "InPost")), told(hpe, "2026-06-01T11:00:00Z", "FinishedPost"), before},
		"HPE, finished for hours":               {new(told(hpe, "2026-06-01T06:00:00Z", "FinishedPost")), told(hpe, "2026-06-01T06:00:00Z", "FinishedPost"), before},
		"HPE, at the end of POST for hours":     {nil, told(hpe, "2026-06-01T06:00:00Z", "InPostDiscoveryComplete"), before},
		"HPE, at the end of another POST":       {new(told(hpe, "2026-06-01T06:00:00Z", "FinishedPost")), told(hpe, "2026-06-01T11:59:00Z", "InPostDiscoveryComplete"), since},
		"HPE, nothing to find, finished before": {nil, told("", "", "FinishedPost"), unknown},
	} {
		var was *api.ResetSeen
		if r.seen != nil {
			was = seen(*r.seen, ago(time.Minute))
		}
		if got := resetSince(was, r.now, ago(time.Minute), noon); got != r.want {
			t.Errorf("%s: %+v, want %+v", name, got, r.want)
		}
	}
}

// TestResetAfter: by the BMC's clock, which gives whole seconds and may be off from ours.
func TestResetAfter(t *testing.T) {
	theirs := noon.Add(-100 * time.Hour)
	evidence := func(age time.Duration) hardware.ResetEvidence {
		return hardware.ResetEvidence{Known: true, At: theirs.Add(-age), Now: theirs}
	}
	for name, r := range map[string]struct {
		e    hardware.ResetEvidence
		want reset
	}{
		"unknown":               {hardware.ResetEvidence{Now: theirs}, reset{}},
		"no clock":              {hardware.ResetEvidence{Known: true, At: theirs}, reset{}},
		"since":                 {evidence(59 * time.Second), reset{since: true, known: true}},
		"within its resolution": {evidence(62 * time.Second), reset{since: true, known: true}},
		"before":                {evidence(63 * time.Second), reset{known: true}},
	} {
		if got := resetAfter(r.e, ago(time.Minute), noon); got != r.want {
			t.Errorf("%s: %+v, want %+v", name, got, r.want)
		}
	}
}
