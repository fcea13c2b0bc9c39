package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// verbOptions are the flags of a verb.
type verbOptions struct {
	set     machineSet
	noWait  bool
	timeout time.Duration
	id      string
	output  string
}

// verbCommand is a verb; those with arguments have one of them before the names.
func (a *machineCommands) verbCommand(use, short string, verb api.Verb, arguments ...string) *cobra.Command {
	var o verbOptions
	before := min(len(arguments), 1)
	words := use[strings.IndexByte(use, ' ')+1:] + ", -l SELECTOR or --all"
	c := &cobra.Command{
		Use: use + " | -l SELECTOR | --all", Short: short,
		Long: short + `.

bootd is asked for all of them at once, and its brakes (spec.limits and spec.paused of the Site) say how fast it
carries that out: a Machine that is held back is waited for, and why it waits is shown. One that fails stops no
other. At the end each Machine has a line, failures last.

Ctrl-C and --timeout end the waiting only: what was asked for continues in bootd. The same command with the
--request-id that is printed then waits again, and asks for nothing twice.

Exit codes: 0 every Machine is done (with --no-wait: was asked), 1 any failed or is not finished, 2 usage.`,
		ValidArgsFunction: a.completeVerb(before, arguments),
		RunE: func(c *cobra.Command, args []string) error {
			r := api.Request{Verb: verb}
			if before > 0 {
				if len(args) == 0 {
					return usagef("%s: want %s", c.CommandPath(), words)
				}
				r.Argument, args = args[0], args[1:]
				if !slices.Contains(arguments, r.Argument) {
					return usagef("%s %s: it may be %s", verb, r.Argument, strings.Join(arguments, ", "))
				}
			}
			if err := errors.Join(o.set.check(c, args, words), checkOutput(o.output)); err != nil {
				return err
			}
			if wait, err := c.Flags().GetBool("wait"); err == nil && !wait {
				o.noWait = true
			}
			return a.verb(c.Context(), args, r, o)
		},
	}
	o.set.flags(c)
	outputFlag(c, &o.output)
	c.Flags().BoolVar(&o.noWait, "no-wait", false, "return when bootd has been asked")
	c.Flags().DurationVar(&o.timeout, "timeout", 30*time.Minute, "stop waiting after this time")
	c.Flags().StringVar(&o.id, "request-id", "", "ID of the request, at most 128 characters: one that a Machine has been asked with is not carried out again. Default: a new one")
	c.Flags().Bool("wait", true, "wait until it is done")
	_ = c.Flags().MarkHidden("wait") // the flag is there; true is the default
	return c
}

func (a *machineCommands) completeVerb(before int, arguments []string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) < before {
			return arguments, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(c.Context(), "machines"), cobra.ShellCompDirectiveNoFileComp
	}
}

// verb asks Machines for something, and waits until each has done it or failed.
func (a *machineCommands) verb(ctx context.Context, names []string, r api.Request, o verbOptions) error {
	doing := strings.TrimSpace(string(r.Verb) + " " + r.Argument)
	client, names, err := a.findMachines(ctx, doing, names, o.set)
	if err != nil {
		return err
	}
	if r.ID = o.id; r.ID == "" {
		r.ID = uuid.NewString()
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	f := &fleet{app: a.app, doing: doing, output: o.output}
	asker := newAsker(client, r, o.noWait)
	stop := asker.begin(ctx)
	machines := f.run(ctx, names, asker.ask)
	stop()
	err = f.print(fleetReport{Action: doing, Request: r.ID, Machines: machines})
	a.leftBehind(machines, r.ID)
	return err
}

// findMachines connects to bootd and finds the Machines that are meant; all of them are confirmed first.
func (a *app) findMachines(ctx context.Context, doing string, names []string, set machineSet) (*api.Client, []string, error) {
	client, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	if err := reach(ctx, client); err != nil {
		return nil, nil, err
	}
	names, err = set.find(ctx, client, names)
	if err != nil {
		return nil, nil, err
	}
	if set.all && !set.yes {
		return client, names, a.confirm(fmt.Sprintf("%s all %s?", doing, count(len(names), "Machine")))
	}
	return client, names, nil
}

// leftBehind says what continues without this command.
func (a *app) leftBehind(machines []fleetMachine, id string) {
	n := 0
	for _, m := range machines {
		if m.Result == resultUnfinished {
			n++
		}
	}
	if n > 0 {
		a.note("Stopped waiting; bootd continues with %s. To wait for them again, repeat the command with --request-id %s: nothing is done twice.",
			count(n, "Machine"), id)
	}
}

const (
	// askAtOnce is how many Machines bootd is asked for at the same time.
	askAtOnce = 16
	// askTries and askPause bound how often a question is repeated whose answer was lost.
	askTries = 8
	askPause = 250 * time.Millisecond
	askLimit = 8 * time.Second
)

// asker sends one request to each of several Machines, under one ID, and follows them in one watch.
type asker struct {
	client  *api.Client
	request api.Request
	noWait  bool
	slots   chan struct{}
	watch   machineWatch
}

func newAsker(client *api.Client, r api.Request, noWait bool) *asker {
	return &asker{client: client, request: r, noWait: noWait, slots: make(chan struct{}, askAtOnce), watch: machineWatch{
		machines: map[string]*api.Machine{}, signals: map[string]wait.Signal{},
	}}
}

// begin follows the Machines until the returned function is called.
func (a *asker) begin(ctx context.Context) (stop func()) {
	if a.noWait {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { a.watch.end(a.client.Watch(ctx, api.KindOf(new(api.Machine)), a.watch.event)) })
	return func() { cancel(); watching.Wait() }
}

// ask is the fleetTask.
func (a *asker) ask(ctx context.Context, machine string, say func(string)) outcome {
	answer, sent, err := a.send(ctx, machine, say)
	switch {
	case !sent:
		return outcome{resultNotAsked, "the command ended before its turn"}
	case err != nil && ctx.Err() != nil:
		return outcome{resultUnfinished, "the command ended before bootd answered; it may have been asked"}
	case err != nil:
		return failed(err)
	case answer.Verb != a.request.Verb || answer.Argument != a.request.Argument:
		return outcome{resultFailed, fmt.Sprintf("it was asked for %s %s with request ID %s: use another ID", answer.Verb, answer.Argument, answer.ID)}
	case finished(answer):
		return ended(nil, answer)
	case a.noWait:
		return outcome{result: resultAsked}
	}
	return a.await(ctx, machine, say)
}

// send asks until there is an answer: the ID keeps what was asked for from being done twice.
func (a *asker) send(ctx context.Context, machine string, say func(string)) (r *api.Request, sent bool, err error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	pause := askPause
	for try := 1; ; try++ {
		r, err := a.client.Verb(ctx, machine, a.request)
		if err == nil || try == askTries || !lost(err) || ctx.Err() != nil {
			return r, true, err
		}
		say("asked again: " + err.Error())
		if wait.For(ctx, pause) != nil {
			return nil, true, err
		}
		pause = min(2*pause, askLimit)
	}
}

// lost reports whether asking again may help: there was no answer, or one that says so.
func lost(err error) bool {
	var p *api.Problem
	if !errors.As(err, &p) {
		return true
	}
	return slices.Contains([]int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, p.Status)
}

// await waits until the request is done or has failed.
func (a *asker) await(ctx context.Context, machine string, say func(string)) outcome {
	signal := a.watch.signal(machine)
	seen := false
	for {
		m, gone, err := a.watch.look(machine)
		switch r := requestOf(m, a.request.ID); {
		case gone:
			return outcome{resultFailed, "it was deleted"}
		case r != nil && finished(r):
			return ended(m, r)
		case r != nil:
			seen = true
			say(standing(m, r))
		case seen:
			return outcome{resultUnfinished, "more was asked of it since, and what came of this is not kept: see weftctl events machine " + machine}
		}
		if ctx.Err() != nil {
			return outcome{resultUnfinished, stoppedAt(m, a.request.ID)}
		}
		if err != nil {
			return outcome{resultUnfinished, "it cannot be followed: " + err.Error()}
		}
		select {
		case <-signal:
		case <-ctx.Done():
		}
	}
}

func finished(r *api.Request) bool {
	return r.State == api.RequestDone || r.State == api.RequestFailed
}

func ended(m *api.Machine, r *api.Request) outcome {
	if r.State == api.RequestFailed {
		return outcome{resultFailed, r.Message}
	}
	if m != nil && m.Status.Attempt != nil && m.Status.Attempt.Request == r.ID {
		return outcome{resultDone, fmt.Sprintf("BootAttempt %d is open", m.Status.Attempt.Number)}
	}
	return outcome{resultDone, r.Message}
}

func requestOf(m *api.Machine, id string) *api.Request {
	if m == nil {
		return nil
	}
	for i := range m.Status.Requests {
		if m.Status.Requests[i].ID == id {
			return &m.Status.Requests[i]
		}
	}
	return nil
}

// standing says what an unfinished request waits for.
func standing(m *api.Machine, r *api.Request) string {
	if r.State == api.RequestRunning && r.Verb != api.VerbReprovision {
		return "under way"
	}
	if c := m.Status.Conditions.Get(api.CondHeld); c != nil && c.Status == api.True {
		return "held: " + c.Message
	}
	if c := m.Status.Conditions.Get(api.CondDrained); c != nil && c.Status == api.False {
		return "draining: " + c.Message
	}
	if r.State == api.RequestRunning {
		return "under way"
	}
	return "waiting for its turn"
}

func stoppedAt(m *api.Machine, id string) string {
	r := requestOf(m, id)
	if r == nil {
		return "asked"
	}
	return standing(m, r)
}

// machineWatch is what a watch has shown of Machines so far.
type machineWatch struct {
	mu       sync.Mutex
	machines map[string]*api.Machine // nil: it was deleted
	signals  map[string]wait.Signal
	err      error // why it ended
}

// event is for api.Client.Watch.
func (w *machineWatch) event(e api.WatchEvent) error {
	m, ok := e.Object.(*api.Machine)
	if !ok {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines[m.Metadata.Name] = m
	if e.Type == api.Deleted {
		w.machines[m.Metadata.Name] = nil
	}
	if s, ok := w.signals[m.Metadata.Name]; ok {
		s.Set()
	}
	return nil
}

// end wakes everyone: nothing more will come.
func (w *machineWatch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	for _, s := range w.signals {
		s.Set()
	}
}

// signal is set when a Machine has changed.
func (w *machineWatch) signal(machine string) wait.Signal {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signals[machine] = wait.NewSignal()
	return w.signals[machine]
}

// look returns a Machine as last seen: nil before it was seen.
func (w *machineWatch) look(machine string) (m *api.Machine, gone bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, known := w.machines[machine]
	return m, known && m == nil, w.err
}
