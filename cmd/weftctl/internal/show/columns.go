package show

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// Printer prints the state of objects at a given time, with the colours of a terminal.
type Printer struct {
	Paint func(terminal.Colour, string) string
	Now   time.Time
}

// Header holds the titles of a kind's columns.
func (p Printer) Header(k api.Kind, wide bool) []string {
	var titles []string
	for _, c := range p.columns(k, wide) {
		titles = append(titles, c.Title)
	}
	return titles
}

// Row holds an object's cells under Header. An unknown value is a dash.
func (p Printer) Row(o api.Object, wide bool) []string {
	var cells []string
	for _, c := range p.columns(api.KindOf(o), wide) {
		cell := orDash(terminal.Columns, terminal.Clean(c.Value(o)))
		if colour := colourOf(c.Title, cell); colour != terminal.Plain {
			cell = p.Paint(colour, cell)
		}
		cells = append(cells, cell)
	}
	return cells
}

// colourOf is the colour of a cell by its text.
func colourOf(title, cell string) terminal.Colour {
	switch {
	case title == "PHASE":
		return phaseColour(api.Phase(cell))
	case title == "READY" && cell == "yes", title == "POWER" && cell == "On":
		return terminal.Green
	case title == "READY" && cell != "-":
		return terminal.Red
	case title == "PAUSED" && cell == "yes", title == "AGENT" && strings.HasSuffix(cell, " (away)"):
		return terminal.Yellow
	}
	return terminal.Plain
}

func orDash(columns func(string) int, cell string) string {
	if columns(cell) == 0 {
		return "-"
	}
	return cell
}

func (p Printer) columns(k api.Kind, all bool) []api.Column {
	list := []api.Column{{Title: "NAME", Value: func(o api.Object) string { return o.Meta().Name }}}
	if k.Columns != nil {
		list = append(list, k.Columns()...)
	}
	list = append(list, api.Column{Title: "AGE", Value: func(o api.Object) string { return p.Age(o.Meta().CreationTimestamp) }})
	if all {
		return append(list, api.Column{Title: "LABELS", Value: labels})
	}
	return slices.DeleteFunc(list, func(c api.Column) bool { return c.Wide })
}

// Age is the time since an event.
func (p Printer) Age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return terminal.Short(p.Now.Sub(t).Truncate(time.Second))
}

// Phase is a phase in the colour of its state.
func (p Printer) Phase(phase api.Phase) string {
	phase = api.Phase(terminal.Clean(string(phase)))
	return p.Paint(phaseColour(phase), string(phase))
}

func phaseColour(phase api.Phase) terminal.Colour {
	switch phase {
	case api.PhaseActive:
		return terminal.Green
	case api.PhaseFailed:
		return terminal.Red
	case api.PhaseProvisioning, api.PhaseInspecting, api.PhaseDraining, api.PhaseDeprovisioning:
		return terminal.Cyan
	case api.PhaseDiscovered, api.PhaseMaintenance:
		return terminal.Yellow
	}
	return terminal.Plain
}

// Stage is the stage of the current BootAttempt, or the one at which the last failed.
func (p Printer) Stage(m *api.Machine) string { return m.Status.Attempt.Progress() }

// Address is the address of a Machine.
func Address(m *api.Machine) string {
	words := make([]string, 0, len(m.Reached()))
	for _, a := range m.Reached() {
		words = append(words, a.String())
	}
	return strings.Join(words, ",")
}

func labels(o api.Object) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(o.Meta().Labels)) {
		list = append(list, k+"="+o.Meta().Labels[k])
	}
	return strings.Join(list, ",")
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
