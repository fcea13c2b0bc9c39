package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Sensors is what the sensors of a Machine measured when its BMC was last asked.
type Sensors struct {
	Read     time.Time       `json:"read" doc:"When the BMC was asked: every 5 minutes while the Machine is Active."`
	Readings []SensorReading `json:"readings" doc:"The readings in the BMC's order, at most 64."`
}

// SensorReading is what one sensor measured.
type SensorReading struct {
	Name         string   `json:"name" doc:"Name of the sensor, as the BMC has it."`
	Kind         string   `json:"kind" doc:"temperature, fan, power or voltage."`
	Unit         string   `json:"unit" doc:"Cel (°C), RPM or % of a fan, W, V."`
	Value        float64  `json:"value" doc:"What was measured, in the unit."`
	Health       string   `json:"health,omitempty" doc:"OK, Warning or Critical, as the BMC has it."`
	LowCritical  *float64 `json:"lowCritical,omitempty" doc:"At or below it the value is critical. Default: no limit."`
	HighCritical *float64 `json:"highCritical,omitempty" doc:"At or above it the value is critical. Default: no limit."`
}

// Sensors returns what the sensors of a Machine measured last.
func (c *Client) Sensors(ctx context.Context, machine string) (*Sensors, error) {
	out := new(Sensors)
	if err := c.call(ctx, http.MethodGet, "/v1/machines/"+url.PathEscape(machine)+"/sensors", nil, out); err != nil {
		return nil, err
	}
	return out, nil
}
