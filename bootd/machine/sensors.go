package machine

import (
	"sync"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// sensorsFor is how long readings count without newer ones: the BMC is asked every healthEvery.
const sensorsFor = 3 * healthEvery

// Sensors remembers what the sensors of Machines measured when their BMCs were last asked, and is the collector of its
// metrics. The zero value remembers nothing yet. It is safe for concurrent use.
type Sensors struct {
	mu   sync.Mutex
	last map[string]measured // by Machine
}

type measured struct {
	at       time.Time
	readings []hardware.Reading
}

// keep remembers readings of a Machine in place of the earlier ones.
func (s *Sensors) keep(machine string, at time.Time, readings []hardware.Reading) {
	for i := range readings { // a thousand servers have the same few names
		r := &readings[i]
		r.Name, r.Health = unique.Make(r.Name).Value(), unique.Make(r.Health).Value()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]measured{}
	}
	s.last[machine] = measured{at, readings}
}

func (s *Sensors) forget(machine string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, machine)
}

// Of returns what the sensors of a Machine measured, false where that is not known, or is old.
func (s *Sensors) Of(machine string) (api.Sensors, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is, ok := s.last[machine]
	if !ok || time.Since(is.at) > sensorsFor {
		return api.Sensors{}, false
	}
	out := api.Sensors{Read: is.at.UTC(), Readings: make([]api.SensorReading, len(is.readings))}
	for i, r := range is.readings {
		out.Readings[i] = api.SensorReading{Name: r.Name, Kind: string(r.Kind), Unit: r.Unit, Value: r.Value, Health: r.Health, LowCritical: r.LowCritical, HighCritical: r.HighCritical}
	}
	return out, true
}

// gauges are the metrics by unit. Names and units are Prometheus's base units.
func gauges() map[string]*prometheus.Desc {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("rackweft_machine_"+name, help, []string{"machine", "sensor"}, nil)
	}
	return map[string]*prometheus.Desc{
		"Cel": desc("temperature_celsius", "Temperatures of Active Machines, as their BMCs measure them."),
		"RPM": desc("fan_rpm", "Speeds of fans of Active Machines, in rotations per minute."),
		"%":   desc("fan_percent", "Speeds of fans of Active Machines, in per cent of the highest."),
		"W":   desc("power_watts", "Power that Active Machines consume, as their BMCs measure it."),
		"V":   desc("voltage_volts", "Voltages of Active Machines, as their BMCs measure them."),
	}
}

// Describe implements prometheus.Collector.
func (s *Sensors) Describe(to chan<- *prometheus.Desc) {
	for _, d := range gauges() {
		to <- d
	}
}

// Collect implements prometheus.Collector. Of two sensors of one name and unit the first counts.
func (s *Sensors) Collect(to chan<- prometheus.Metric) {
	descriptions := gauges()
	s.mu.Lock()
	defer s.mu.Unlock()
	for machine, is := range s.last {
		if time.Since(is.at) > sensorsFor {
			continue
		}
		seen := map[[2]string]bool{}
		for _, r := range is.readings {
			d, own := descriptions[r.Unit], [2]string{r.Unit, r.Name}
			if d == nil || seen[own] {
				continue
			}
			seen[own] = true
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, r.Value, machine, r.Name)
		}
	}
}
