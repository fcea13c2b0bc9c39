package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

func (a *objectCommands) waitCommand() *cobra.Command {
	var goal string
	var timeout time.Duration
	var all bool
	c := &cobra.Command{
		Use:   "wait KIND/NAME… | KIND NAME… | KIND --all --for=phase=PHASE|condition=TYPE[=STATUS]|delete",
		Short: "Wait until objects reach a phase or condition, or are deleted",
		Example: `  weftctl wait machine/r1u07 --for=phase=Active
  weftctl wait machines --all --for=condition=HostConnected --timeout=10m
  weftctl wait image/debian-12 --for=condition=Ready`,
		Args:              atLeast(1, "what to wait for, such as machine/r1u07"),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			g, err := parseGoal(goal)
			if err != nil {
				return err
			}
			targets, err := parseTargets(args, false)
			if err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			for _, t := range targets {
				if err := a.wait(ctx, client, t, g, all); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&goal, "for", "", "phase=PHASE, condition=TYPE, condition=TYPE=STATUS, or delete")
	f.DurationVar(&timeout, "timeout", 30*time.Minute, "give up after this time")
	f.BoolVar(&all, "all", false, "every object of the kind")
	complete(c, "for", "phase=Active", "phase=Available", "condition=Ready", "condition=HostConnected", "delete")
	return c
}

// goal is the state that an object should reach.
type goal struct {
	text    string
	gone    bool
	reached func(api.Object) bool
	// hopeless says why an object will not reach it by itself.
	hopeless func(api.Object) string
}

func parseGoal(text string) (goal, error) {
	never := func(api.Object) string { return "" }
	what, value, _ := strings.Cut(text, "=")
	switch {
	case text == "delete":
		return goal{text: "gone", gone: true, reached: func(api.Object) bool { return false }, hopeless: never}, nil
	case what == "phase" && value != "":
		return goal{text: value, reached: func(o api.Object) bool { return string(phaseOf(o)) == value }, hopeless: func(o api.Object) string {
			m, ok := o.(*api.Machine)
			if !ok || value == string(api.PhaseFailed) || !givenUp(m) {
				return ""
			}
			return failure(m)
		}}, nil
	case what == "condition" && value != "":
		typ, status, ok := strings.Cut(value, "=")
		if !ok {
			status = string(api.True)
		}
		return goal{text: strings.TrimSuffix(typ+" "+status, " True"), hopeless: never, reached: func(o api.Object) bool {
			c := api.ConditionsOf(o).Get(typ)
			return c != nil && strings.EqualFold(string(c.Status), status)
		}}, nil
	}
	return goal{}, usagef("invalid --for=%s: want phase=PHASE, condition=TYPE, condition=TYPE=STATUS or delete", text)
}

// givenUp reports whether a Machine has failed and bootd will not try again by itself.
func givenUp(m *api.Machine) bool {
	return m.Status.Phase == api.PhaseFailed && (m.Status.Attempt == nil || m.Status.Attempt.Retry >= api.MaxRetries)
}

// failure says why a Machine failed.
func failure(m *api.Machine) string {
	if at := m.Status.Attempt; at != nil && at.Message != "" {
		return fmt.Sprintf("BootAttempt %d failed at %s: %s", at.Number, at.Stage, at.Message)
	}
	for _, c := range m.Status.Conditions {
		if c.Status == api.False && c.Message != "" {
			return c.Message
		}
	}
	return "it is Failed"
}

func phaseOf(o api.Object) api.Phase {
	if m, ok := o.(*api.Machine); ok {
		return m.Status.Phase
	}
	return ""
}

var errReached = errors.New("reached")

// wait watches a kind until all the objects that are meant have reached the goal.
func (a *objectCommands) wait(ctx context.Context, client *api.Client, t target, g goal, all bool) error {
	if len(t.names) == 0 && !all {
		return usagef("name the %s, or give --all", t.kind.Plural)
	}
	if t.kind.Computed {
		return usagef("a %s is compiled on request and cannot be waited for", t.kind.Name)
	}
	if err := reach(ctx, client); err != nil {
		return err
	}
	w := waiter{app: a.app, target: t, goal: g, open: map[string]bool{}, last: map[string]api.Object{}}
	for _, name := range t.names {
		w.open[name] = true
	}
	err := client.Watch(ctx, t.kind, w.event)
	if errors.Is(err, errReached) {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("gave up waiting for %s: %s", g.text, w.missing())
	}
	return err
}

type waiter struct {
	app    *app
	target target
	goal   goal
	open   map[string]bool // names of objects that do not exist yet
	last   map[string]api.Object
	synced bool
}

func (w *waiter) event(e api.WatchEvent) error {
	if e.Type == api.Synced {
		return w.listed()
	}
	name := e.Object.Meta().Name
	if !w.target.has(name) {
		return nil
	}
	if e.Type == api.Deleted {
		return w.deleted(name)
	}
	w.last[name] = e.Object
	if why := w.goal.hopeless(e.Object); why != "" {
		return fmt.Errorf("%s will not be %s: %s", title(w.target.kind, name), w.goal.text, why)
	}
	if len(w.target.names) == 0 && !w.synced {
		w.open[name] = true
	}
	if w.open[name] && w.goal.reached(e.Object) {
		return w.done(name)
	}
	return nil
}

// listed handles the end of the initial list: an object that is not in it is deleted, or not created yet.
func (w *waiter) listed() error {
	w.synced = true
	if !w.goal.gone {
		return w.check()
	}
	for _, name := range w.names() {
		if w.last[name] == nil {
			if err := w.done(name); err != nil {
				return err
			}
		}
	}
	return w.check()
}

func (w *waiter) deleted(name string) error {
	delete(w.last, name)
	if !w.open[name] {
		return nil
	}
	if w.goal.gone {
		return w.done(name)
	}
	return fmt.Errorf("%s was deleted, so it will not be %s", title(w.target.kind, name), w.goal.text)
}

func (w *waiter) done(name string) error {
	delete(w.open, name)
	if err := w.app.printf("%s is %s\n", title(w.target.kind, name), w.goal.text); err != nil {
		return err
	}
	return w.check()
}

func (w *waiter) check() error {
	if len(w.open) == 0 && w.synced {
		return errReached
	}
	return nil
}

func (w *waiter) names() []string {
	var names []string
	for name := range w.open {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// missing says what is still missing.
func (w *waiter) missing() string {
	var parts []string
	for _, name := range w.names() {
		text := title(w.target.kind, name)
		switch o := w.last[name]; {
		case o == nil:
			text += " does not exist"
		case phaseOf(o) != "":
			text += " is " + string(phaseOf(o))
		default:
			text += " is not"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}
