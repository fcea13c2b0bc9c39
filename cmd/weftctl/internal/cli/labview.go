package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
	"github.com/rackweft/rackweft/internal/wait"
)

// machineError reports a machine that did not become Active.
type machineError struct{ name, why string }

func (e *machineError) Error() string { return fmt.Sprintf("machine %s %s", e.name, e.why) }

// follow shows the machines' progress until all are Active, or one has failed for good.
func (a *labCommands) follow(ctx context.Context, client *api.Client, names []string, start time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	changes := make(chan api.WatchEvent)
	events := make(chan api.Event)
	var sources sync.WaitGroup
	defer sources.Wait()
	defer cancel()
	failed := make(chan error, 1)
	sources.Go(func() {
		failed <- client.Watch(ctx, api.KindOf(new(api.Machine)), func(e api.WatchEvent) error { return send(ctx, changes, e) })
	})
	sources.Go(func() { followEvents(ctx, client, events) })

	v := newView(a.app, names, start)
	defer v.end()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case e := <-changes:
			v.machine(e)
			if done, err := v.verdict(); done || err != nil {
				v.draw()
				return err
			}
		case e := <-events:
			v.event(e)
		case <-tick.C:
			v.draw()
		case err := <-failed:
			if ctx.Err() != nil {
				return v.unfinished()
			}
			return fmt.Errorf("watch the machines: %w", err)
		}
	}
}

func send[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followEvents sends events until ctx ends. It reconnects when bootd restarts, and sends each event once.
func followEvents(ctx context.Context, client *api.Client, to chan<- api.Event) {
	var last time.Time
	for ctx.Err() == nil {
		_ = client.Events(ctx, "Machine", "", true, func(e api.Event) error { // an error of the stream: reconnect
			if !e.Time.After(last) {
				return nil
			}
			last = e.Time
			return send(ctx, to, e)
		})
		_ = wait.For(ctx, time.Second)
	}
}

// view prints the rack: a line per machine on a terminal, else a line per change.
type view struct {
	app     *app
	region  *terminal.Region
	start   time.Time
	names   []string
	states  map[string]*api.Machine
	printed map[string]string // what was last printed of each
	last    map[string]api.Event
	finish  map[string]time.Time
}

func newView(a *app, names []string, start time.Time) *view {
	return &view{app: a, region: a.out.Region(), start: start, names: names, states: map[string]*api.Machine{},
		printed: map[string]string{}, last: map[string]api.Event{}, finish: map[string]time.Time{}}
}

func (v *view) machine(e api.WatchEvent) {
	m, ok := e.Object.(*api.Machine)
	if !ok || e.Type == api.Deleted || !slices.Contains(v.names, m.Metadata.Name) {
		return
	}
	name := m.Metadata.Name
	v.states[name] = m
	if m.Status.Phase == api.PhaseActive {
		if v.finish[name].IsZero() {
			v.finish[name] = time.Now()
		}
	} else {
		delete(v.finish, name)
	}
	v.printChange(name, m)
}

// printChange prints a change where lines cannot be redrawn.
func (v *view) printChange(name string, m *api.Machine) {
	now := string(m.Status.Phase)
	if stage := v.app.printer().Stage(m); stage != "" {
		now += "  " + stage
	}
	if v.app.out.Live() || now == v.printed[name] {
		return
	}
	v.printed[name] = now
	_ = v.app.printf("%s  %s  %s\n", terminal.Clock(time.Since(v.start)), name, now)
}

func (v *view) event(e api.Event) {
	if !slices.Contains(v.names, e.Name) {
		return
	}
	v.last[e.Name] = e
	if e.Type == api.Warning {
		v.region.Print(fmt.Sprintf("%s  %s  %s: %s\n", terminal.Clock(e.Time.Sub(v.start)), e.Name,
			v.app.out.Paint(terminal.Yellow, e.Reason), terminal.Clean(e.Message)))
	}
}

// verdict is done when every machine is Active, and an error when one has failed for good.
func (v *view) verdict() (bool, error) {
	active := 0
	for _, name := range v.names {
		m := v.states[name]
		if m == nil {
			continue
		}
		if givenUp(m) {
			return false, &machineError{name: name, why: "is Failed: " + failure(m)}
		}
		if m.Status.Phase == api.PhaseActive {
			active++
		}
	}
	return active == len(v.names), nil
}

// unfinished names the first machine that is not Active.
func (v *view) unfinished() error {
	for _, name := range v.names {
		m := v.states[name]
		if m == nil {
			return &machineError{name: name, why: "is not known to bootd yet"}
		}
		if m.Status.Phase != api.PhaseActive {
			return &machineError{name: name, why: strings.TrimSpace(fmt.Sprintf("is %s %s", m.Status.Phase, v.app.printer().Stage(m)))}
		}
	}
	return errors.New("interrupted")
}

func (v *view) draw() {
	if !v.app.out.Live() {
		return
	}
	lines := make([]string, 0, len(v.names)+1)
	width := 0
	for _, name := range v.names {
		width = max(width, len(name))
	}
	active := 0
	for _, name := range v.names {
		lines = append(lines, v.line(name, width))
		if m := v.states[name]; m != nil && m.Status.Phase == api.PhaseActive {
			active++
		}
	}
	p := v.app.out
	if active < len(v.names) {
		lines = append(lines, p.Paint(terminal.Dim, fmt.Sprintf("%s  %d of %s Active. Ctrl-C takes everything down.",
			terminal.Clock(time.Since(v.start)), active, count(len(v.names), "machine"))))
	}
	v.region.Draw(lines)
}

// line is one machine: name, phase, a bar of stages, the time so far, the last event.
func (v *view) line(name string, width int) string {
	stages := len(api.Stages())
	phase, stage, reached := "not created yet", "", 0
	clock := time.Since(v.start)
	m := v.states[name]
	if m != nil {
		phase = string(m.Status.Phase)
		if phase == "" {
			phase = "Registered"
		}
		if at := m.Status.Attempt; at != nil {
			reached, stage = at.Stage.Index()+1, string(at.Stage)
		}
	}
	if done := v.finish[name]; !done.IsZero() {
		clock, reached, stage = done.Sub(v.start), stages, "Active"
	}
	colour := terminal.Cyan
	switch api.Phase(phase) {
	case api.PhaseActive:
		colour = terminal.Green
	case api.PhaseFailed:
		colour = terminal.Red
	}
	p := v.app.out
	return fmt.Sprintf("%-*s  %s  %s  %-15s  %s  %s", width, name,
		p.Paint(colour, fmt.Sprintf("%-13s", phase)),
		p.Paint(colour, terminal.Bar(int64(reached), int64(stages), stages)),
		fmt.Sprintf("%2d/%d %s", reached, stages, stage),
		terminal.Clock(clock), p.Paint(terminal.Dim, strings.TrimSpace(terminal.Clean(v.last[name].Message))))
}

// end leaves the last state on the screen.
func (v *view) end() { v.draw() }
