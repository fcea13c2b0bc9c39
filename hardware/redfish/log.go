package redfish

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// logPages bounds how much of one log is read.
const logPages = 16

// logEntry is what we read of a LogEntry (DSP0268).
type logEntry struct {
	Created   text `json:"Created"`
	Sensor    text `json:"SensorType"`
	MessageID text `json:"MessageId"`
	Message   text `json:"Message"`
}

// bootWords are what logs say of a server that boots, in lower case. Sources: IPMI 2.0 table 42-3 (sensor type 1Dh) as
// BMCs spell it, Dell's event messages, OpenBMC's registry, HPE's event log.
func bootWords() []string {
	return []string{
		"systemboot/restart", "system boot/restart", "system boot / restart", "system boot initiated", "initiated by power up",
		"initiated by hard reset", "initiated by warm reset", "sys1000", "sys1003", "openbmc.0.1.dcpoweron",
		"server reset", "server power restored", "system restarted",
	}
}

// boots reports whether the entry tells of a boot of the server.
func (e logEntry) boots() bool {
	said := strings.ToLower(string(e.Sensor + " | " + e.MessageID + " | " + e.Message))
	return slices.ContainsFunc(bootWords(), func(word string) bool { return strings.Contains(said, word) })
}

// loggedBoot is the last boot of the server that its logs record, for BMCs that report no time of the reset; the result is empty
// where there is none, or the logs cannot be read.
func (r *driver) loggedBoot(ctx context.Context, sys system, m manager, e hardware.ResetEvidence) (hardware.ResetEvidence, error) {
	var last logEntry
	var when time.Time
	for _, services := range []text{sys.LogServices.ID, m.LogServices.ID} {
		entries, err := r.eventLogs(ctx, string(services))
		if err != nil {
			return e, err
		}
		for _, entry := range entries {
			at, ok := bmcTime(entry.Created, m.Offset)
			if ok && entry.boots() && !at.Before(when) {
				last, when = entry, at
			}
		}
	}
	if when.Year() < 2000 {
		return e, nil
	}
	e.Told = append(e.Told, hardware.Trace{Source: "LogEntry", Value: string(last.Created)})
	if e.Now.IsZero() || !when.After(e.Now.Add(clockSlack)) {
		e.Known, e.At, e.Source, e.Value = true, when, "LogEntry", string(last.Created)
	}
	return e, nil
}

// eventLogs reads the entries of the event logs in a collection of log services. Dumps, journals and POST codes are left alone.
func (r *driver) eventLogs(ctx context.Context, collection string) (entries []logEntry, err error) {
	if collection == "" {
		return nil, nil
	}
	services, err := r.members(ctx, collection)
	if err != nil {
		return nil, ignoreRefusal(err)
	}
	for _, at := range services {
		if !isEventLog(at) {
			continue
		}
		var service struct {
			Entries link `json:"Entries"`
		}
		if _, err := r.get(ctx, at, &service); ignoreRefusal(err) != nil {
			return nil, err
		}
		more, err := r.logEntries(ctx, string(service.Entries.ID))
		if err != nil {
			return nil, err
		}
		entries = append(entries, more...)
	}
	return entries, nil
}

// isEventLog goes by the names that vendors give their logs of events.
func isEventLog(at string) bool {
	name := strings.ToLower(path.Base(at))
	return slices.ContainsFunc([]string{"sel", "event", "log1", "lclog", "iml", "iel"}, func(s string) bool { return strings.Contains(name, s) })
}

// logEntries reads one log's entries as its pages have them.
func (r *driver) logEntries(ctx context.Context, at string) (entries []logEntry, err error) {
	for pages := 0; at != "" && pages < logPages; pages++ {
		var page struct {
			Members []logEntry `json:"Members"`
			Next    text       `json:"Members@odata.nextLink"`
		}
		if _, err := r.get(ctx, at, &page); err != nil {
			return entries, ignoreRefusal(err)
		}
		entries = append(entries, page.Members...)
		at = string(page.Next)
	}
	return entries, nil
}
