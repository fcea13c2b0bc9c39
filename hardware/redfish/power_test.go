package redfish

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfishtest"
)

// TestPowerIsLookedAt: what a BMC says it did is seen in the server within a minute, and is never sent
// again.
func TestPowerIsLookedAt(t *testing.T) {
	for name, test := range map[string]struct {
		vendor string
		traits []redfishtest.Trait
		on     bool // the server, before
		err    error
	}{
		"nothing happens to a server that is on":  {"hpe-ilo5", []redfishtest.Trait{redfishtest.ResetDoesNothing}, true, hardware.ErrNotSeen},
		"nothing happens to a server that is off": {"dell-idrac9", []redfishtest.Trait{redfishtest.ResetDoesNothing}, false, hardware.ErrNotSeen},
		"the answer is lost":                      {"dell-idrac9", []redfishtest.Trait{redfishtest.ResetAnswerLost}, true, nil},
		"the answer and the reset are lost":       {"dell-idrac9", []redfishtest.Trait{redfishtest.ResetAnswerLost, redfishtest.ResetDoesNothing}, true, hardware.ErrUnreachable},
		"the power state lags":                    {"dell-idrac9", []redfishtest.Trait{redfishtest.PowerLags}, false, nil},
		"a task":                                  {"hpe-ilo5", []redfishtest.Trait{redfishtest.ResetTask}, true, nil},
		"a task that is removed":                  {"hpe-ilo5", []redfishtest.Trait{redfishtest.ResetTask, redfishtest.TaskVanishes}, true, nil},
		"a task that never ends":                  {"dell-idrac9", []redfishtest.Trait{redfishtest.ResetTask, redfishtest.TaskNeverEnds, redfishtest.ResetDoesNothing}, true, hardware.ErrNotSeen},
		"a task that never ends, of a reset":      {"dell-idrac9", []redfishtest.Trait{redfishtest.ResetTask, redfishtest.TaskNeverEnds}, true, nil},
		"a server that waits in POST":             {"hpe-ilo7", nil, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := redfishtest.StartVendor(t, test.vendor, test.traits...)
			v, err := redfishtest.VendorOf(test.vendor)
			if err != nil {
				t.Fatal(err)
			}
			if s.On(v.System) != test.on {
				s.Press(v.System)
				s.Clock.Advance(time.Hour) // it was long ago
			}
			before := len(s.Booted())
			b, err := dial(t.Context(), hardware.Endpoint{Address: s.URL, Username: redfishtest.Username, Password: redfishtest.Password}, quiet(), s.Clock.Pause)
			if err != nil {
				t.Fatal(err)
			}
			begun := s.Clock.Now()
			err = b.ForceRestart(t.Context())
			if test.err == nil && err != nil || test.err != nil && !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if took := s.Clock.Now().Sub(begun); took > 61*time.Second {
				t.Errorf("it was known after %s", took)
			}
			posts := 0
			for _, sent := range s.Sent(http.MethodPost) {
				if strings.Contains(sent, "ComputerSystem.Reset") {
					posts++
				}
			}
			if posts != 1 {
				t.Errorf("%d resets were sent, want 1", posts)
			}
			if boots := len(s.Booted()) - before; test.err == nil && boots != 1 {
				t.Errorf("it booted %d times, want once", boots)
			}
			if err := b.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAnotherResetType: one that the BMC does not know has done nothing.
func TestAnotherResetType(t *testing.T) {
	m := vendorMock(t, "hpe-ilo5")
	reset := m.tree[hpeSystem]["Actions"].(map[string]any)["#ComputerSystem.Reset"].(map[string]any)
	delete(reset, "ResetType@Redfish.AllowableValues")
	m.fail(http.MethodPost, hpeSystem+"/Actions/ComputerSystem.Reset", says(http.StatusBadRequest, "Base.1.8.ActionParameterNotSupported"))
	b, _ := m.open(t, m.endpoint())
	m.set(hpeSystem, "PowerState", "On")
	if err := b.ForceRestart(t.Context()); err != nil {
		t.Fatal(err)
	}
	sent := m.sent(http.MethodPost)
	if len(sent) != 2 || !strings.Contains(sent[0], "ForceRestart") || !strings.Contains(sent[1], "PowerCycle") {
		t.Errorf("sent %q", sent)
	}
}

// TestEvidence: the reported last reset is passed on unchanged, unless it cannot be.
func TestEvidence(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		tree          string
		source, value string
		inPOST        bool
	}{
		"a reset time":             {`{"LastResetTime":"2026-03-01T11:00:00Z"}`, "LastResetTime", "2026-03-01T11:00:00Z", false},
		"of 1970":                  {`{"LastResetTime":"1970-01-01T00:02:17+00:00"}`, "", "", false},
		"of the future":            {`{"LastResetTime":"2026-03-01T13:00:00Z"}`, "", "", false},
		"of the future, and boot":  {`{"LastResetTime":"2026-03-02T13:00:00Z","BootProgress":{"LastStateTime":"2026-03-01T11:00:00Z"}}`, "BootProgress.LastStateTime", "2026-03-01T11:00:00Z", false},
		"none":                     {`{}`, "", "", false},
		"HPE that runs":            {`{"Oem":{"Hpe":{"PostState":"FinishedPost","PostDiscoveryCompleteTimeStamp":"2026-03-01T06:00:00Z"}}}`, hpeSource, "2026-03-01T06:00:00Z", false},
		"HPE that found no disk":   {`{"Oem":{"Hpe":{"PostState":"InPostDiscoveryComplete","PostDiscoveryCompleteTimeStamp":"2026-03-01T06:00:00Z"}}}`, hpeSource, "2026-03-01T06:00:00Z", false},
		"HPE in POST":              {`{"Oem":{"Hpe":{"PostState":"InPost","PostDiscoveryCompleteTimeStamp":"2026-02-01T06:00:00Z"}}}`, "", "", true},
		"HPE without discovery":    {`{"Oem":{"Hpe":{"PostState":"FinishedPost","PostDiscoveryCompleteTimeStamp":null}}}`, "", "", false},
		"HPE with an odd property": {`{"Oem":{"Hpe":[]}}`, "", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var sys system
			if err := json.Unmarshal([]byte(test.tree), &sys); err != nil {
				t.Fatal(err)
			}
			e := evidence(sys, "+00:00", now)
			if e.Known != (test.source != "") || e.Source != test.source || e.Value != test.value || e.InPOST() != test.inPOST || !e.Now.Equal(now) {
				t.Errorf("%+v", e)
			}
		})
	}
}

const hpeSource = "Oem.Hpe.PostDiscoveryCompleteTimeStamp"

// TestLoggedBoot: a BMC that tells no time of the last reset has it in its event log.
func TestLoggedBoot(t *testing.T) {
	const logs = "/redfish/v1/Systems/1/LogServices"
	entry := func(id, created, sensor, message string) map[string]any {
		return map[string]any{"@odata.id": logs + "/SEL/Entries/" + id, "Id": id, "Created": created, "SensorType": sensor, "Message": message}
	}
	for name, test := range map[string]struct {
		entries []any
		value   string
	}{
		"no entries": {nil, ""},
		"none of a boot": {[]any{entry("1", "2016-06-01T11:00:00Z", "Power Supply", "Power supply 1 lost its power"),
			entry("2", "2016-06-01T11:30:00Z", "System Event", "The log was cleared")}, ""},
		"the last boot": {[]any{entry("1", "2016-06-01T10:00:00Z", "System Boot / Restart Initiated", "Initiated by hard reset"),
			entry("2", "2016-06-01T11:00:00Z", "System Boot / Restart Initiated", "Initiated by power up"),
			entry("3", "2016-06-01T11:30:00Z", "Fan", "Fan 3 is slow")}, "2016-06-01T11:00:00Z"},
		"the newest first": {[]any{entry("2", "2016-06-01T11:00:00Z", "", "System Boot Initiated"), entry("1", "2016-06-01T10:00:00Z", "", "System Boot Initiated")},
			"2016-06-01T11:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			m := vendorMock(t, "supermicro-x10")
			m.set("/redfish/v1/Systems/1", "LogServices", map[string]any{"@odata.id": logs})
			m.tree[logs] = map[string]any{"Members": []any{map[string]any{"@odata.id": logs + "/SEL"}, map[string]any{"@odata.id": logs + "/Dump"}}}
			m.tree[logs+"/SEL"] = map[string]any{"Entries": map[string]any{"@odata.id": logs + "/SEL/Entries"}}
			m.tree[logs+"/SEL/Entries"] = map[string]any{"Members": test.entries}
			b, _ := m.open(t, m.endpoint())
			e, err := b.LastReset(t.Context())
			if err != nil || e.Value != test.value || e.Known != (test.value != "") || len(e.Told) != min(len(test.value), 1) {
				t.Errorf("%+v, %v; want %q", e, err, test.value)
			}
		})
	}
}

// FuzzLoggedBoot: whatever a log says.
func FuzzLoggedBoot(f *testing.F) {
	f.Add([]byte(`{"Created":"2016-06-01T11:00:00Z","SensorType":"System Boot / Restart Initiated","Message":7}`))
	f.Add([]byte(`{"MessageId":["x"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e logEntry
		if decode(data, &e) != nil {
			return
		}
		if e.boots() && e.Sensor == "" && e.MessageID == "" && e.Message == "" {
			t.Errorf("an entry that says nothing tells of a boot: %+v", e)
		}
	})
}
