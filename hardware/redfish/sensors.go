package redfish

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// measure is a measured number, nil where the BMC reports none: null, a text, or what is no finite number.
type measure struct{ *float64 }

// mostMeasured is beyond what any sensor of a server measures: BMCs send 65535 or 2^31 for "none".
const mostMeasured = 65534

func (m *measure) UnmarshalJSON(data []byte) error {
	m.float64 = nil
	value, err := strconv.ParseFloat(strings.Trim(string(data), `" `), 64)
	if err == nil && math.Abs(value) <= mostMeasured { // NaN is not
		m.float64 = &value
	}
	return nil
}

// excerpt is a Sensor in another resource: an object with a reading, or the number itself.
type excerpt struct {
	Reading measure `json:"Reading"`
	RPM     measure `json:"SpeedRPM"`
	Device  text    `json:"DeviceName"`
	Context text    `json:"PhysicalContext"`
	Source  text    `json:"DataSourceUri"`
}

func (e *excerpt) UnmarshalJSON(data []byte) error {
	type plain excerpt
	if err := decode(data, (*plain)(e)); err != nil {
		return err
	}
	if !strings.HasPrefix(strings.TrimSpace(string(data)), "{") {
		return json.Unmarshal(data, &e.Reading)
	}
	return nil
}

// name is the sensor's own, which is unlike others: the device's is the same for all of its sensors.
func (e excerpt) name(or string) string {
	own := ""
	if e.Source != "" {
		own = path.Base(string(e.Source))
	}
	return cmp.Or(own, string(e.Device), string(e.Context), or)
}

// gauge is a part that measures: a member of Temperatures, Fans, Voltages or PowerControl, or a Fan.
type gauge struct {
	part
	Celsius   measure `json:"ReadingCelsius"`
	Volts     measure `json:"ReadingVolts"`
	Watts     measure `json:"PowerConsumedWatts"`
	Reading   measure `json:"Reading"`
	Current   measure `json:"CurrentReading"` // of iLO 4
	Units     text    `json:"ReadingUnits"`
	Speed     excerpt `json:"SpeedPercent"` // of a Fan
	HighLimit measure `json:"UpperThresholdCritical"`
	HighFatal measure `json:"UpperThresholdFatal"`
	LowLimit  measure `json:"LowerThresholdCritical"`
	LowFatal  measure `json:"LowerThresholdFatal"`
}

// reading is what the part measures, false where that is nothing: it is absent, or off.
func (g gauge) reading(kind hardware.ReadingKind) (hardware.Reading, bool) {
	value, unit := g.Reading, ""
	switch kind {
	case hardware.Temperature:
		value, unit = g.Celsius, "Cel"
	case hardware.Voltage:
		value, unit = g.Volts, "V"
	case hardware.Power:
		value, unit = g.Watts, "W"
	case hardware.Fan:
		value, unit = g.fan()
	}
	if value.float64 == nil || g.absent() || g.Status.State == "Disabled" || g.Status.State == "UnavailableOffline" {
		return hardware.Reading{}, false
	}
	name := or(g.FanName, g.Name, g.ID)
	if name == "" {
		name = strings.TrimSpace(string(kind) + " " + string(g.Member)) // HPE's PowerControl has nothing else
	}
	r := hardware.Reading{Name: name, Kind: kind, Unit: unit, Value: *value.float64, Health: g.health()}
	// An upper limit of 0 is none; a lower limit of 0 is none either, but for temperatures below 0.
	if high := cmp.Or(g.HighLimit, g.HighFatal); high.float64 != nil && *high.float64 > 0 {
		r.HighCritical = high.float64
	}
	if low := cmp.Or(g.LowLimit, g.LowFatal); low.float64 != nil && (kind == hardware.Temperature && *low.float64 != 0 || *low.float64 > 0) {
		r.LowCritical = low.float64
	}
	return r, true
}

func (g gauge) fan() (measure, string) {
	switch {
	case g.Speed.RPM.float64 != nil:
		return g.Speed.RPM, "RPM"
	case g.Speed.Reading.float64 != nil:
		return g.Speed.Reading, "%"
	case g.Units == "RPM":
		return g.Reading, "RPM"
	}
	return cmp.Or(g.Reading, g.Current), "%"
}

// measured notes what the parts measure, and a critical limit that is crossed where the BMC does not judge that itself.
func measured(h *hardware.Health, kind hardware.ReadingKind, parts []gauge) {
	for _, p := range parts {
		r, ok := p.reading(kind)
		if !ok {
			continue
		}
		h.Readings = append(h.Readings, r)
		if r.Crossed() && r.Health != "Critical" && r.Health != "Warning" {
			h.Worse("Critical", fmt.Sprintf("%s %s: %g %s is beyond its critical limit", kind, r.Name, r.Value, r.Unit))
		}
	}
}

// excerpts notes what a list of sensors measures.
func excerpts(h *hardware.Health, kind hardware.ReadingKind, unit string, all ...excerpt) {
	for _, e := range all {
		value, of := e.Reading, unit
		if kind == hardware.Fan && e.RPM.float64 != nil {
			value, of = e.RPM, "RPM"
		}
		if value.float64 != nil {
			h.Readings = append(h.Readings, hardware.Reading{Name: e.name(string(kind)), Kind: kind, Unit: of, Value: *value.float64})
		}
	}
}

// environment reads the power that a chassis consumes where it has no Power, and its fans where nothing else reports them.
func (w *walk) environment(ctx context.Context, h *hardware.Health, c chassis) error {
	if c.Power.ID != "" || c.EnvironmentMetrics.ID == "" {
		return nil
	}
	var metrics struct {
		Watts excerpt   `json:"PowerWatts"`
		Fans  []excerpt `json:"FanSpeedsPercent"`
	}
	if ok, err := w.read(ctx, string(c.EnvironmentMetrics.ID), &metrics); !ok {
		return err
	}
	excerpts(h, hardware.Power, "W", metrics.Watts)
	for _, r := range h.Readings {
		if r.Kind == hardware.Fan {
			return nil
		}
	}
	excerpts(h, hardware.Fan, "%", metrics.Fans...)
	return nil
}
