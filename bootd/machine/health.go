package machine

import (
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
)

// healthEvery is how often an Active Machine's BMC is asked how the server is.
const healthEvery = 5 * time.Minute

// looks remembers when BMCs were last asked how their servers are. After a start all are asked, a few at once.
type looks struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (l *looks) last(machine string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.at[machine]
}

func (l *looks) looked(machine string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[string]time.Time{}
	}
	l.at[machine] = at
}

func (l *looks) forget(machine string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.at, machine)
}

// decideWellbeing has the BMC of an Active Machine asked how the server is; never during a boot, and no BMC that is silent.
func decideWellbeing(f facts, now time.Time) action {
	m := f.machine
	if m.Spec.BMC == nil || m.Status.Phase != api.PhaseActive || m.Status.Attempt.Open() || !m.Status.Conditions.Is(api.CondBMC) {
		return action{}
	}
	if left := f.healthRead.Add(healthEvery + spread(m, healthEvery/4)).Sub(now); left > 0 {
		return action{again: left}
	}
	return judge{f, now}.ask(action{ask: askWellbeing, reading: true, again: healthEvery})
}

// wellbeing is what follows from how the server is. A BMC that cannot tell leaves the Machine without the condition.
func (x answered) wellbeing() action {
	h, old := x.is.health, x.machine.Status.Conditions.Get(api.CondHealthy)
	if x.is.unread != nil || h.State == "" {
		return action{again: healthEvery}
	}
	a := action{do: doHealthy, answer: x.is, again: healthEvery, reason: h.State, message: "its BMC says that it is well"}
	if h.State != "OK" {
		a.message = "its BMC names no part that is not well: see the BMC's own pages"
		if len(h.Failed) > 0 {
			a.message = strings.Join(h.Failed, "; ")
		}
		a.event = event{api.Warning, "Health" + h.State, a.message}
	} else if old != nil {
		a.event = event{api.Normal, "HealthOK", a.message}
	}
	if old != nil && old.Reason == a.reason && old.Message == a.message {
		return action{again: healthEvery}
	}
	return a
}
