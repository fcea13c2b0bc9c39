package overlay

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// repairInterval is the minimum time between two events about repairs of the same
// Network or host: drift that another program causes at every pass must not fill
// bootd's events.
const repairInterval = 10 * time.Minute

// repairs reports repaired drift to bootd. The ledger's lock guards it.
type repairs struct {
	host     nodeagent.Host // nil while the agent does not run the Overlay
	reported map[string]reportedRepair
	now      func() time.Time
}

type reportedRepair struct {
	at         time.Time
	unreported int // changes since, not reported by an event
}

// report reports repairs of a Network or, without one, of the host's filter.
func (r *repairs) report(n network, changes int, first string) {
	event := api.Event{Kind: "Network", Name: n.name, UID: n.uid, Type: api.Warning, Reason: "Repaired"}
	what := "Network " + n.name
	if n.uid == "" {
		event.Kind, what = "Machine", "the host's filter"
	}
	was := r.reported[n.uid]
	if r.host == nil || !was.at.IsZero() && r.now().Sub(was.at) < repairInterval {
		was.unreported += changes
		r.reported[n.uid] = was
		return
	}
	event.Message = fmt.Sprintf("%s was not as it had been left, and was mended: %s", what, first)
	if changes > 1 {
		event.Message += fmt.Sprintf(" and %d more changes", changes-1)
	}
	if was.unreported > 0 {
		event.Message += fmt.Sprintf("; %d more since the last event", was.unreported)
	}
	r.reported[n.uid] = reportedRepair{at: r.now()}
	r.host.Event(event)
}
