package hardware

// Reading is what one sensor measures.
type Reading struct {
	Name   string
	Kind   ReadingKind
	Unit   string // as UCUM has it: Cel, W, V; RPM or % of a fan
	Value  float64
	Health string // OK, Warning or Critical in the BMC's words; empty when it does not say
	// LowCritical and HighCritical are the limits beyond which the BMC calls it critical, nil where it names none.
	LowCritical, HighCritical *float64
}

// ReadingKind is what a sensor measures.
type ReadingKind string

// The kinds of readings.
const (
	Temperature ReadingKind = "temperature"
	Fan         ReadingKind = "fan"
	Power       ReadingKind = "power" // that is consumed, or that a power supply gives
	Voltage     ReadingKind = "voltage"
)

// MaxReadings bounds how many sensors of a server are kept.
const MaxReadings = 64

// Crossed reports whether the value is beyond a critical limit.
func (r Reading) Crossed() bool {
	return r.HighCritical != nil && r.Value >= *r.HighCritical || r.LowCritical != nil && r.Value <= *r.LowCritical
}
