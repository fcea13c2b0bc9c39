package machine

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/trust"
)

const maxHistory = 5

// CondConfig is the condition of a Machine that its Ignition config can be made;
// it is there once a boot has found that it cannot.
const CondConfig = "ConfigCompiled"

// openAttempt starts the BootAttempt of an action; an earlier one is
// moved to the history.
func openAttempt(m *api.Machine, now time.Time, a action, window time.Duration) {
	number := 1
	if old := m.Status.Attempt; old != nil {
		number = old.Number + 1
	}
	archive(m)
	m.Status.Attempt = &api.BootAttempt{
		ID:         uuid.NewString(),
		Number:     number,
		Reason:     a.reason,
		Retry:      a.retry,
		Generation: m.Metadata.Generation,
		Started:    now.UTC(),
		Deadline:   now.Add(window).UTC(),
		Stage:      a.stage,
		Stages:     []api.StageTime{{Stage: a.stage, Time: now.UTC()}},
		Trust:      api.TrustMAC,
	}
	m.Status.Phase = api.PhaseProvisioning
	m.Status.HostKey = ""
	m.Status.BootAsked = time.Time{}
	for _, over := range []string{api.CondHeld, api.CondApplied, api.CondDrained, api.CondFenced, api.CondObeys} {
		m.Status.Conditions.Remove(over)
	}
	m.Status.Conditions.Set(now, api.CondProvision, api.False, "Provisioning", fmt.Sprintf("BootAttempt %d: %s", number, a.reason))
}

// archive moves the current attempt to the history.
func archive(m *api.Machine) {
	a := m.Status.Attempt
	if a == nil {
		return
	}
	a.Inputs = nil
	m.Status.History = slices.Insert(m.Status.History, 0, *a)
	m.Status.History = m.Status.History[:min(len(m.Status.History), maxHistory)]
	m.Status.Attempt = nil
}

// Advance records that the open BootAttempt with that id has come to a stage,
// and moves its deadline on. It reports whether anything changed: a stage that
// was reached before, or an attempt that is over, changes nothing.
func Advance(m *api.Machine, attempt string, stage api.Stage, now time.Time, window time.Duration) bool {
	a := m.Status.Attempt
	if !a.Open() || a.ID != attempt {
		return false
	}
	if slices.ContainsFunc(a.Stages, func(s api.StageTime) bool { return s.Stage == stage }) {
		return false
	}
	a.Stages = append(a.Stages, api.StageTime{Stage: stage, Time: now.UTC()})
	if stage.Index() > a.Stage.Index() {
		a.Stage = stage
	}
	a.Deadline = now.Add(window).UTC()
	return true
}

// Fail closes the open BootAttempt. The Machine's host key goes with it, so
// that whatever joined in it is refused from now on.
func Fail(m *api.Machine, now time.Time, message string) {
	a := m.Status.Attempt
	if !a.Open() {
		return
	}
	a.Result, a.Message, a.Finished = api.ResultFailed, message, now.UTC()
	m.Status.Phase = api.PhaseFailed
	m.Status.HostKey = ""
	m.Status.Conditions.Set(now, api.CondProvision, api.False, "BootFailed", message)
}

// Abort closes the open BootAttempt, which has not failed: something else is asked for.
func Abort(m *api.Machine, now time.Time, message string) {
	a := m.Status.Attempt
	if !a.Open() {
		return
	}
	a.Result, a.Message, a.Finished = api.ResultAborted, message, now.UTC()
	m.Status.HostKey = ""
	m.Status.Conditions.Set(now, api.CondProvision, api.False, "Aborted", message)
}

// succeed closes the open BootAttempt as Active.
func succeed(m *api.Machine, now time.Time) {
	a := m.Status.Attempt
	a.Result, a.Finished = api.ResultActive, now.UTC()
	a.Message = fmt.Sprintf("Active %s after power-on", now.Sub(a.Started).Round(time.Second))
	m.Status.Phase = api.PhaseActive
	m.Status.Conditions.Set(now, api.CondProvision, api.True, "Active", a.Message)
	m.Status.Conditions.Set(now, api.CondTrust, api.True, "Reached", fmt.Sprintf("trust level %s: %s", a.Trust, a.TrustWhy))
}

// ready reports whether the host that joined in the attempt runs its HostSpec.
func ready(m *api.Machine) bool {
	return m.Status.Attempt.Reached(api.StageJoined) &&
		m.Status.Conditions.Is(api.CondConnected) && m.Status.Conditions.Is(api.CondApplied) &&
		m.Status.Host != nil && m.Status.Host.AttemptID == m.Status.Attempt.ID
}

// reachedAt is when the attempt first came to a stage.
func reachedAt(a *api.BootAttempt, stage api.Stage) (time.Time, bool) {
	for _, s := range a.Stages {
		if s.Stage == stage {
			return s.Time, true
		}
	}
	return time.Time{}, false
}

// overdue says what an attempt that made no progress was waiting for, and where
// to look. r is the trust level that the Machine's boots must reach.
func overdue(m *api.Machine, r trust.Requirement) string {
	a := m.Status.Attempt
	waited := a.Deadline.Sub(a.Stages[len(a.Stages)-1].Time).Round(time.Second)
	hint := map[api.Stage]string{
		api.StageRequested: "the BMC did not accept the order to power it on" + trouble(m),
		api.StagePowerOn:   fmt.Sprintf("it is powered on, but none of its MACs (%v) sent a DHCP request: check that network boot is enabled on that NIC, its cable and VLAN, and that a Subnet serves it", m.MACs()),
		api.StageDHCP:      "its firmware got an address but fetched no boot loader: check that UDP 69 and 8080/tcp of bootd are open on the provisioning network, and spec.boot.file for odd firmware",
		api.StageLoader:    "iPXE was fetched but asked for no script: " + lookAt(m) + "; its NIC driver may not work (try another spec.boot.file, such as ipxe.efi)",
		api.StageScript:    "it has its boot script but fetched no kernel: " + lookAt(m),
		api.StageKernel:    "it fetched the kernel but no initrd: " + lookAt(m),
		api.StageInitrd:    "kernel and initrd were fetched, but Ignition never asked for its pointer: " + lookAt(m) + "; the initrd may lack this NIC's driver",
		api.StagePointer:   "Ignition has the pointer but never fetched its config over TLS: check that 8443/tcp of bootd is open on the provisioning network",
		api.StageConfig:    "Ignition has its config, but the host did not go on: " + lookAt(m),
		api.StageRootfs:    "the root file system was fetched, but nodeagent never joined: " + lookAt(m) + " (systemctl status nodeagent)",
		api.StageJoined:    "nodeagent joined but has not applied its HostSpec: see condition " + api.CondApplied,
	}[a.Stage]
	if c := m.Status.Conditions.Get(CondConfig); a.Stage == api.StagePointer && c != nil && c.Status == api.False {
		hint = "Ignition asks for its config, which cannot be made: " + c.Message
	}
	if c := a.Command; a.Stage == api.StageRequested && c != nil && c.Problem != "" {
		hint = fmt.Sprintf("the BMC accepted the command (%s), and it was not seen to be carried out: %s", c.Order, c.Problem)
		if c.Unfinished {
			hint += fmt.Sprintf(". It may still be carried out: weftctl machine reprovision %s sends another", m.Metadata.Name)
		}
	}
	if text := untrusted(m, r); text != "" {
		hint = text
	}
	return fmt.Sprintf("no progress for %s after stage %s: %s", waited, a.Stage, hint)
}

// trouble is what the conditions say of the BMC.
func trouble(m *api.Machine) string {
	for _, of := range []string{api.CondPassword, api.CondObeys, api.CondBMC} {
		if c := m.Status.Conditions.Get(of); c != nil && (c.Status == api.False || of == api.CondPassword) {
			return ": " + c.Message
		}
	}
	return ": see condition " + api.CondBMC
}

// untrusted says which trust level kept an attempt from going on; empty when none
// did.
func untrusted(m *api.Machine, r trust.Requirement) string {
	stage := m.Status.Attempt.Stage.Index()
	if given := m.Status.BootURL; given != nil && given.Media && stage >= api.StagePowerOn.Index() && stage < api.StagePointer.Index() {
		return fmt.Sprintf("trust level %s is required (by %s), and Ignition did not come from the image of this BootAttempt, which is in the BMC's virtual CD drive: the BMC must fetch it from bootd over TLS 1.2 or newer (stage Loader), the firmware boot from the drive with UEFI, and the initrd trust the Site's CA in /etc/pki/tls/certs; "+
			"or require another level (spec.trust.minimum; lowering it needs an admin)", r.Level, r.Of)
	}
	if stage < api.StageDHCP.Index() || stage > api.StagePointer.Index() {
		return ""
	}
	if c := m.Status.Conditions.Get(api.CondTrust); c != nil && c.Status == api.False && c.Reason == "LevelNotReached" {
		return c.Message
	}
	if r.Level != api.TrustBMC || stage > api.StageLoader.Index() {
		return ""
	}
	return fmt.Sprintf("trust level %s is required (by %s), and nothing presented the boot URL of this BootAttempt over TLS, which its BMC has: its firmware must boot over HTTPS, speak TLS 1.2 or newer with ECDSA and trust the Site's CA; "+
		"or require another level (spec.trust.minimum; lowering it needs an admin)", r.Level, r.Of)
}
