package redfish

import (
	"context"
	"net/http"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// lastReset takes the best evidence that the system has.
func (r *driver) lastReset(ctx context.Context) (hardware.ResetEvidence, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return hardware.ResetEvidence{}, err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return hardware.ResetEvidence{}, err
	}
	now, ok := bmcTime(m.DateTime, m.Offset)
	if !ok {
		now, _ = http.ParseTime(r.transport.date)
	}
	e := evidence(sys, m.Offset, now)
	if len(e.Told) > 0 || e.POST != "" {
		return e, nil
	}
	return r.loggedBoot(ctx, sys, m, e)
}

// evidence takes the first reported time that is possible: LastResetTime is the reset itself, LastStateTime (of
// BootProgress) is after it, and so is HPE's end of device discovery. A time before 2000 or in the BMC's own future is invalid:
// its clock was wrong then, or is wrong now. One in the future still shows a reset when it changes. While an HPE server is
// in POST, what it tells is of the POST before.
func evidence(sys system, offset text, now time.Time) hardware.ResetEvidence {
	hpe := sys.hpe()
	e := hardware.ResetEvidence{Now: now, POST: string(hpe.PostState)}
	for _, told := range []struct {
		value  text
		source string
	}{
		{sys.LastResetTime, "LastResetTime"},
		{sys.BootProgress.LastStateTime, "BootProgress.LastStateTime"},
		{hpe.Discovered, "Oem.Hpe.PostDiscoveryCompleteTimeStamp"},
	} {
		at, ok := bmcTime(told.value, offset)
		if !ok || at.Year() < 2000 || told.value == hpe.Discovered && e.InPOST() {
			continue
		}
		e.Told = append(e.Told, hardware.Trace{Source: told.source, Value: string(told.value)})
		if e.Known || !now.IsZero() && at.After(now.Add(clockSlack)) {
			continue
		}
		e.Known, e.At, e.Source, e.Value = true, at, told.source, string(told.value)
	}
	return e
}

// clockSlack: the manager's clock and the system's times may be rounded differently.
const clockSlack = 5 * time.Second
