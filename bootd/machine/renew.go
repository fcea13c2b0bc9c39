package machine

import (
	"cmp"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// Renew makes a Machine of a backup one to begin with: its BootAttempt and the
// tokens of that are dead, what was asked for is not done again, and what was
// seen of its power counts for nothing. The key of a host that had joined stays:
// the host may have come to Active since.
func Renew(m *api.Machine, backup, now time.Time) {
	why := fmt.Sprintf("bootd was restored from a backup of %s", backup.UTC().Format(time.RFC3339))
	if a := m.Status.Attempt; a.Open() {
		key := m.Status.HostKey
		Fail(m, now, why+": this BootAttempt and its tokens are dead")
		m.Status.HostKey = key
	}
	for i := range m.Status.Requests {
		if r := &m.Status.Requests[i]; r.State == api.RequestPending || r.State == api.RequestRunning {
			r.State, r.Message = api.RequestFailed, why+": ask again"
		}
	}
	m.Status.BootAsked, m.Status.Power = time.Time{}, string(hardware.PowerUnknown)
	for _, old := range []string{api.CondHeld, api.CondDrained, api.CondFenced, condShuttingDown, api.CondApplied} {
		m.Status.Conditions.Remove(old)
	}
	m.Status.Conditions.Set(now, api.CondConnected, api.False, "Restored", why+", and its host has not come back yet")
}

// Adopt makes a Machine Active whose host runs by the key that the store has: it
// may have come to that after the backup was taken. It reports whether anything
// changed.
func Adopt(m *api.Machine, now time.Time) bool {
	joined := ""
	if m.Status.Host != nil {
		joined = m.Status.Host.AttemptID
	}
	a := m.Status.Attempt
	active := m.Status.Phase == api.PhaseActive && a != nil && a.Result == api.ResultActive && (joined == "" || joined == a.ID)
	if active || m.Status.HostKey == "" {
		return false
	}
	if m.Status.Attempt == nil {
		m.Status.Attempt = &api.BootAttempt{ID: uuid.NewString(), Number: 1, Generation: m.Metadata.Generation, Started: now.UTC(), Deadline: now.UTC()}
	}
	a = m.Status.Attempt
	a.ID = cmp.Or(joined, a.ID)
	a.Stage, a.Result, a.Finished = api.StageApplied, api.ResultActive, now.UTC()
	a.Message = "its host runs: it had come to that before bootd was restored"
	m.Status.Phase = api.PhaseActive
	m.Status.Conditions.Set(now, api.CondProvision, api.True, "Active", a.Message)
	return true
}

// Accept makes a host's key the Machine's, on a person's word, and the Machine
// the one that the host was joined as.
func Accept(m *api.Machine, key string, now time.Time) {
	m.Status.HostKey = key
	Adopt(m, now)
	m.Status.Conditions.Set(now, api.CondAccounted, api.False, api.AccountedWaiting, "its host's key was accepted; it has not reported yet")
}
