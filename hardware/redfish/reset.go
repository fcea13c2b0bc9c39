package redfish

import (
	"context"
	"net/http"
	"strings"
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
	return evidence(sys, m.Offset, now), nil
}

// evidence: LastResetTime is the reset itself, LastStateTime (of BootProgress) is after it, and so is HPE's
// end of device discovery. An HPE server in POST has been reset just now.
func evidence(sys system, offset text, now time.Time) hardware.ResetEvidence {
	var hpe struct {
		PostState  text `json:"PostState"`
		Discovered text `json:"PostDiscoveryCompleteTimeStamp"`
	}
	_ = decode(sys.Oem["Hpe"], &hpe) // absent elsewhere
	if strings.HasPrefix(string(hpe.PostState), "InPost") && sys.LastResetTime == "" && !now.IsZero() {
		return hardware.ResetEvidence{Known: true, At: now, Now: now, Source: "Oem.Hpe.PostState"}
	}
	for _, told := range []struct {
		value  text
		source string
	}{
		{sys.LastResetTime, "LastResetTime"},
		{sys.BootProgress.LastStateTime, "BootProgress.LastStateTime"},
		{hpe.Discovered, "Oem.Hpe.PostDiscoveryCompleteTimeStamp"},
	} {
		if at, ok := bmcTime(told.value, offset); ok {
			return hardware.ResetEvidence{Known: true, At: at, Now: now, Source: told.source}
		}
	}
	return hardware.ResetEvidence{Now: now}
}
