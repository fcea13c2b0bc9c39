package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func TestSensors(t *testing.T) {
	b := newBootd(t)
	twenty(b)
	low, high := 600.0, 42.0
	b.sensors = api.Sensors{Read: time.Now(), Readings: []api.SensorReading{
		{Name: "01-Inlet Ambient", Kind: "temperature", Unit: "Cel", Value: 21.5, Health: "OK", HighCritical: &high},
		{Name: "Fan 1\x1b[2J", Kind: "fan", Unit: "RPM", Value: 7200, LowCritical: &low},
	}}
	b.refuse["GET /v1/machines/r1u02/sensors"] = &api.Problem{Status: 409, Title: "Conflict", Detail: "Machine r1u02 is Failed: sensors are read while it is Active"}
	r := b.run(t, "", "machine", "sensors", "r1u02", "r1u01")
	if r.code != exitFailed || !strings.Contains(r.err, "r1u02 is Failed") || !strings.Contains(r.err, "1 Machine of 2 without readings") {
		t.Errorf("exit code %d, standard error\n%s", r.code, r.err)
	}
	var got []string
	for line := range strings.Lines(r.out) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{"MACHINE SENSOR VALUE HEALTH CRITICAL", "r1u01 01-Inlet Ambient 21.5 °C OK ≥ 42"}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || !strings.HasSuffix(got[2], "7200 RPM ≤ 600") || strings.Contains(r.out, "\x1b[2J") {
		t.Errorf("printed %q", got)
	}

	r = b.run(t, "", "machine", "sensors", "-l", "tier=app", "-o", "json")
	var all []struct {
		Machine  string
		Readings []api.SensorReading
	}
	if err := json.Unmarshal([]byte(r.out), &all); err != nil || r.code != 0 || len(all) != 10 || all[0].Machine != "r1u01" || len(all[0].Readings) != 2 {
		t.Errorf("exit code %d, %v: %s", r.code, err, r.out)
	}
	b.sensors.Readings = nil
	b.run(t, "", "machine", "sensors", "r1u01").want(t, 0, "", "the BMC of r1u01 reports no sensors")
	if r = b.run(t, "", "machine", "sensors"); r.code != exitUsage {
		t.Errorf("exit code %d without names", r.code)
	}
}
