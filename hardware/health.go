package hardware

import "slices"

// Health is what a BMC says of how its server is.
type Health struct {
	State  string   // OK, Warning or Critical, the worst that is reported; empty when the BMC reports none
	Failed []string // the parts that are not well, in the BMC's words: name and state
	// Readings are what the sensors measure, at most MaxReadings.
	Readings []Reading
}

const (
	maxFailed = 16 // parts that are named
	maxName   = 64 // bytes of a sensor's name
)

// Worse notes a state, and the part that is in it where there is one.
func (h *Health) Worse(state, part string) {
	if part != "" {
		h.Failed = append(h.Failed, part)
	}
	order := []string{"", "OK", "Warning", "Critical"}
	if slices.Index(order, state) > slices.Index(order, h.State) {
		h.State = state
	}
}

// Bounded is the health within the limits: texts on one line and clipped, the list cut at its end.
func (h Health) Bounded() Health {
	h.Failed = bounded(h.Failed, maxFailed, func(s *string) { clip(maxText, s) })
	h.Readings = bounded(h.Readings, MaxReadings, func(r *Reading) { clip(maxName, &r.Name, &r.Health) })
	return h
}
