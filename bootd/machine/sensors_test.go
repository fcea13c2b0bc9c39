package machine

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

func TestSensors(t *testing.T) {
	high := 42.0
	s := new(Sensors)
	s.keep("r1u01", time.Now(), []hardware.Reading{
		{Name: "Inlet", Kind: hardware.Temperature, Unit: "Cel", Value: 21.5, Health: "OK", HighCritical: &high},
		{Name: "Inlet", Kind: hardware.Temperature, Unit: "Cel", Value: 99},
		{Name: "Fan 1", Kind: hardware.Fan, Unit: "%", Value: 30},
		{Name: "Fan 1", Kind: hardware.Fan, Unit: "RPM", Value: 7200},
		{Name: "power \"0\"", Kind: hardware.Power, Unit: "W", Value: 180},
	})
	s.keep("r1u02", time.Now().Add(-2*sensorsFor), []hardware.Reading{{Name: "Inlet", Unit: "Cel", Value: 30}})
	want := []string{
		`rackweft_machine_fan_percent r1u01 "Fan 1" 30`, `rackweft_machine_fan_rpm r1u01 "Fan 1" 7200`, `rackweft_machine_power_watts r1u01 "power \"0\"" 180`,
		`rackweft_machine_temperature_celsius r1u01 "Inlet" 21.5`,
	}
	if diff := cmp.Diff(want, gathered(t, s)); diff != "" {
		t.Error(diff)
	}
	got, ok := s.Of("r1u01")
	if want := (api.SensorReading{Name: "Inlet", Kind: "temperature", Unit: "Cel", Value: 21.5, Health: "OK", HighCritical: &high}); !ok || len(got.Readings) != 5 || !cmp.Equal(got.Readings[0], want) {
		t.Errorf("%+v, %t", got, ok)
	}
	if _, ok := s.Of("r1u02"); ok {
		t.Error("old readings count")
	}
	s.forget("r1u01")
	if left := gathered(t, s); len(left) > 0 {
		t.Errorf("metrics of a Machine that is gone: %q", left)
	}
}

// gathered are lines of a metric's name, its Machine, sensor and value.
func gathered(t *testing.T, s *Sensors) (lines []string) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(s)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			lines = append(lines, fmt.Sprintf("%s %s %q %g", f.GetName(), m.Label[0].GetValue(), m.Label[1].GetValue(), m.GetGauge().GetValue()))
		}
	}
	return lines
}
