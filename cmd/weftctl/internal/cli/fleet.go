package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/manifest"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
	"github.com/rackweft/rackweft/internal/wait"
)

// machineSet says which Machines a command is about: by name, by label, or all.
type machineSet struct {
	selector []string
	all      bool
	yes      bool
}

func (s *machineSet) flags(c *cobra.Command) {
	selectorFlag(c, &s.selector)
	c.Flags().BoolVar(&s.all, "all", false, "every Machine")
	c.Flags().BoolVarP(&s.yes, "yes", "y", false, "do not ask for confirmation")
}

// check refuses a command line that names no Machine, or too many by accident.
func (s *machineSet) check(c *cobra.Command, names []string, words string) error {
	selected := c.Flags().Changed("selector")
	switch {
	case selected && strings.Trim(strings.Join(s.selector, ""), ", ") == "":
		return usagef("%s: -l is empty, which selects every Machine: use --all for that", c.CommandPath())
	case s.all && (selected || len(names) > 0):
		return usagef("%s: --all goes with neither names nor -l", c.CommandPath())
	case !s.all && !selected && len(names) == 0:
		return usagef("%s: want %s", c.CommandPath(), words)
	}
	return nil
}

// find lists the Machines that are meant. Names that do not exist are kept: bootd refuses each of them.
func (s *machineSet) find(ctx context.Context, client *api.Client, names []string) ([]string, error) {
	slices.Sort(names)
	names = slices.Compact(names)
	if !s.all && len(s.selector) == 0 {
		return names, nil
	}
	match, err := parseSelector(s.selector)
	if err != nil {
		return nil, err
	}
	machines, _, err := client.List(ctx, api.KindOf(new(api.Machine)))
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var found []string
	for _, m := range machines {
		name := m.Meta().Name
		if match(m) && (len(names) == 0 || slices.Contains(names, name)) && m.Meta().Labels[api.DiscoveredLabel] != "true" {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no Machine is selected")
	}
	return found, nil
}

// The results of one Machine, in the order in which a table has them.
const (
	resultDone       = "Done"
	resultAsked      = "Asked"      // and not waited for
	resultNotAsked   = "NotAsked"   // the command ended before
	resultUnfinished = "Unfinished" // the command ended before it was done
	resultFailed     = "Failed"
)

// outcome is what came of one Machine.
type outcome struct{ result, message string }

func failed(err error) outcome { return outcome{resultFailed, err.Error()} }

// fleet does one thing to each of several Machines at once, and continues past those that fail.
type fleet struct {
	*app
	doing  string // as people say it: "power on"
	output string
}

func outputFlag(c *cobra.Command, output *string) {
	c.Flags().StringVarP(output, "output", "o", "table", "table, json or yaml")
	complete(c, "output", "table", "json", "yaml")
}

func checkOutput(output string) error {
	if !slices.Contains([]string{"table", "json", "yaml"}, output) {
		return usagef("-o %s: want table, json or yaml", output)
	}
	return nil
}

// fleetTask acts on one Machine; say reports its progress.
type fleetTask func(ctx context.Context, machine string, say func(string)) outcome

// fleetReport is the output as JSON and YAML.
type fleetReport struct {
	Action   string         `json:"action"`
	Request  string         `json:"request,omitzero"`
	Machines []fleetMachine `json:"machines"`
}

// fleetMachine is one Machine of a fleetReport.
type fleetMachine struct {
	Machine string  `json:"machine"`
	Result  string  `json:"result"`
	Seconds float64 `json:"seconds"`
	Message string  `json:"message,omitzero"`
}

// run does the task to every Machine and returns what came of each, failures last.
func (f *fleet) run(ctx context.Context, names []string, do fleetTask) []fleetMachine {
	p := newFleetProgress(f, names)
	var workers sync.WaitGroup
	for _, name := range names {
		workers.Go(func() {
			p.end(name, do(ctx, name, func(state string) { p.say(name, state) }))
		})
	}
	stop := p.draw()
	workers.Wait()
	stop()
	return p.results()
}

// print writes the report, and fails when any Machine is not where it should be.
func (f *fleet) print(r fleetReport) error {
	if err := f.write(r); err != nil {
		return err
	}
	for _, m := range r.Machines {
		if m.Result != resultDone && m.Result != resultAsked {
			return errQuiet
		}
	}
	return nil
}

func (f *fleet) write(r fleetReport) error {
	switch f.output {
	case "json":
		return f.indented(r)
	case "yaml":
		raw, err := manifest.YAML(r)
		if err != nil {
			return err
		}
		return f.out.WriteData(raw)
	}
	t := show.Table{Header: []string{"MACHINE", "RESULT", "TIME", "MESSAGE"}}
	for _, m := range r.Machines {
		t.Rows = append(t.Rows, []string{m.Machine, f.out.Paint(resultColour(m.Result), m.Result),
			terminal.Short(time.Duration(m.Seconds * float64(time.Second))), terminal.Clean(m.Message)})
	}
	return t.Print(f.out, f.bold)
}

func resultColour(result string) terminal.Colour {
	switch result {
	case resultDone:
		return terminal.Green
	case resultFailed:
		return terminal.Red
	case resultAsked:
		return terminal.Plain
	}
	return terminal.Yellow
}

// fleetProgress shows the progress of the Machines: a line for each on a terminal, else a line per change.
type fleetProgress struct {
	fleet *fleet
	names []string
	start time.Time
	width int

	mu     sync.Mutex
	states map[string]string
	ended  map[string]fleetMachine
}

func newFleetProgress(f *fleet, names []string) *fleetProgress {
	p := &fleetProgress{fleet: f, names: names, start: time.Now(), states: map[string]string{}, ended: map[string]fleetMachine{}}
	for _, name := range names {
		p.width = max(p.width, len(name))
	}
	return p
}

// say notes what a Machine is at.
func (p *fleetProgress) say(name, state string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.states[name] == state {
		return
	}
	p.states[name] = state
	if !p.fleet.err.Live() {
		p.fleet.note("machine/%s %s: %s", name, p.fleet.doing, state)
	}
}

// end notes what came of a Machine.
func (p *fleetProgress) end(name string, o outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended[name] = fleetMachine{Machine: name, Result: o.result, Seconds: time.Since(p.start).Seconds(), Message: o.message}
	if !p.fleet.err.Live() {
		p.fleet.note("machine/%s %s: %s", name, p.fleet.doing, strings.TrimSuffix(o.result+": "+o.message, ": "))
	}
}

// redrawFleetEvery is how often the lines of a terminal are drawn.
const redrawFleetEvery = 200 * time.Millisecond

// draw shows the Machines until the returned function is called, which takes the lines away.
func (p *fleetProgress) draw() (stop func()) {
	if !p.fleet.err.Live() {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var drawing sync.WaitGroup
	drawing.Go(func() {
		region := p.fleet.err.Region()
		for {
			region.Draw(p.lines())
			if wait.For(ctx, redrawFleetEvery) != nil {
				region.Draw(nil)
				return
			}
		}
	})
	return func() { cancel(); drawing.Wait() }
}

// lines are a summary and the Machines, those under way first: what is too much for the screen is cut off.
func (p *fleetProgress) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var open, over []string
	bad := 0
	for _, name := range p.names {
		m, ended := p.ended[name]
		if !ended {
			open = append(open, fmt.Sprintf("%-*s  %s", p.width, name, terminal.Clean(p.states[name])))
			continue
		}
		if m.Result == resultFailed {
			bad++
		}
		over = append(over, fmt.Sprintf("%-*s  %s  %s", p.width, name, p.fleet.err.Paint(resultColour(m.Result), m.Result), terminal.Clean(m.Message)))
	}
	summary := fmt.Sprintf("%s  %s: %d of %d finished, %d failed", terminal.Clock(time.Since(p.start)), p.fleet.doing, len(over), len(p.names), bad)
	return append(append([]string{p.fleet.err.Paint(terminal.Dim, summary)}, open...), over...)
}

// results are what came of each, failures last.
func (p *fleetProgress) results() []fleetMachine {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]fleetMachine, len(p.names))
	for i, name := range p.names {
		all[i] = p.ended[name]
	}
	failuresLast(all)
	return all
}

func failuresLast(all []fleetMachine) {
	order := []string{resultDone, resultAsked, resultNotAsked, resultUnfinished, resultFailed}
	slices.SortStableFunc(all, func(a, b fleetMachine) int {
		return slices.Index(order, a.Result) - slices.Index(order, b.Result)
	})
}
