package guest

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
)

// restarts delays the start of a Guest that has ended by itself, according to
// its restart policy and with a growing back-off.
type restarts struct {
	*identity
	record    *ledger
	backoff   time.Duration // before the next start
	notBefore time.Time
	count     int
}

// hold returns why a Guest that has ended is not started now, and when to look
// again.
func (rs *restarts) hold(policy string) (time.Duration, error) {
	e := rs.record.Ended
	if e == nil {
		return 0, nil
	}
	if policy == api.RestartNever || policy == api.RestartOnFailure && !e.Failed {
		return 0, pending(fmt.Sprintf("%s, and its restart policy is %s: restart it, or stop and start it", e.Reason, policy))
	}
	if wait := time.Until(rs.notBefore); wait > 0 {
		return wait, pending(fmt.Sprintf("%s; it is started again in %s", e.Reason, rs.backoff))
	}
	return 0, nil
}

// forget resets the back-off.
func (rs *restarts) forget() { rs.notBefore, rs.backoff = time.Time{}, 0 }

// noteEnd records that the Guest has ended by itself.
func (rs *restarts) noteEnd(e ended) {
	e.Time = time.Now().UTC()
	typ := api.Normal
	edit := func(r *record) { r.Ended = &e }
	if e.Failed {
		typ = api.Warning
		edit = func(r *record) { r.Ended, r.Crash = &e, &e }
	}
	if err := rs.record.change(edit); err != nil {
		rs.log.Warn("cannot record the end of a run", "error", err)
		edit(rs.record.record)
	}
	rs.event(typ, e.Word, e.Reason)
	if time.Since(rs.record.launchTime()) > rs.timing.settled {
		rs.backoff = 0
	}
	rs.backoff = min(max(2*rs.backoff, rs.timing.minBackoff), rs.timing.maxBackoff)
	rs.notBefore = time.Now().Add(rs.backoff)
}
