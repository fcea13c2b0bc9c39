package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// drainOptions are the flags of drain and undrain.
type drainOptions struct {
	set     machineSet
	wait    bool
	timeout time.Duration
	output  string
}

func (a *machineCommands) machineDrainCommand() *cobra.Command {
	var o drainOptions
	c := a.drainCommand("drain", &o, true)
	c.Short = "Move all Guests off hosts, and place no others there"
	c.Long = `drain moves the Guests of hosts to other hosts, with their disks, and lets no others start there until undrain. A
Guest that no other host can run stays where it is. With --wait it fails when Guests are left after --timeout.`
	c.Flags().BoolVar(&o.wait, "wait", false, "wait until no Guest is left")
	c.Flags().DurationVar(&o.timeout, "timeout", 30*time.Minute, "give up after this time")
	return c
}

func (a *machineCommands) machineUndrainCommand() *cobra.Command {
	c := a.drainCommand("undrain", new(drainOptions), false)
	c.Short = "Have drained hosts take Guests again"
	return c
}

func (a *machineCommands) drainCommand(verb string, o *drainOptions, drain bool) *cobra.Command {
	const words = "HOST…, -l SELECTOR or --all"
	c := &cobra.Command{
		Use:               verb + " HOST… | -l SELECTOR | --all",
		ValidArgsFunction: a.completeNames("machines"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := errors.Join(o.set.check(c, args, words), checkOutput(o.output)); err != nil {
				return err
			}
			return a.drain(c.Context(), args, *o, drain)
		},
	}
	o.set.flags(c)
	outputFlag(c, &o.output)
	return c
}

// drain marks hosts as draining, or takes the mark away.
func (a *machineCommands) drain(ctx context.Context, names []string, o drainOptions, drain bool) error {
	f := &fleet{app: a.app, doing: "drain", output: o.output}
	if !drain {
		f.doing = "undrain"
	}
	client, names, err := a.findMachines(ctx, f.doing, names, o.set)
	if err != nil {
		return err
	}
	slots := make(chan struct{}, askAtOnce)
	late := ctx
	if o.wait {
		var cancel context.CancelFunc
		late, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	machines := f.run(ctx, names, func(ctx context.Context, machine string, say func(string)) outcome {
		slots <- struct{}{}
		changed, err := mark(ctx, client, machine, api.DrainAnnotation, drain)
		<-slots
		switch {
		case err != nil:
			return failed(err)
		case o.wait:
			return waitEmpty(ctx, late, client, machine, say)
		case !changed:
			return outcome{resultDone, "unchanged"}
		case drain:
			return outcome{resultDone, "draining: `weftctl get guests -o wide` shows the Guests that are left"}
		}
		return outcome{resultDone, "no longer drained"}
	})
	return f.print(fleetReport{Action: f.doing, Machines: machines})
}

// waitEmpty waits until no Guest is on a host. After the timeout the message lists the Guests that are left, with
// the reasons.
func waitEmpty(ctx, late context.Context, client *api.Client, host string, say func(string)) outcome {
	for {
		guests, _, err := client.List(ctx, api.KindOf(new(api.Guest)))
		if err != nil {
			return failed(err)
		}
		left := guestsOn(guests, host)
		if len(left) == 0 {
			return outcome{resultDone, "it has no Guest"}
		}
		say("has " + strings.Join(left, "; "))
		if wait.For(late, time.Second) != nil {
			return outcome{resultUnfinished, "it is still draining, and has " + strings.Join(left, "; ")}
		}
	}
}

// guestsOn lists the Guests of a host, each with what it waits for.
func guestsOn(guests []api.Object, host string) []string {
	var left []string
	for _, o := range guests {
		g, ok := o.(*api.Guest)
		if !ok || g.Status.Host != host {
			continue
		}
		what := "guest/" + g.Metadata.Name
		kind := api.CondPlaced
		if g.Status.Move != nil {
			kind = api.CondReady
		}
		if c := g.Status.Conditions.Get(kind); c != nil && c.Message != "" {
			what += " (" + c.Message + ")"
		}
		left = append(left, what)
	}
	return left
}

// markCommand sets an annotation of Machines to "true", or removes it; word is printed for each that was changed.
func (a *app) markCommand(c *cobra.Command, annotation string, set bool, word string) *cobra.Command {
	c.Args = atLeast(1, "HOST…")
	c.ValidArgsFunction = a.completeNames("machines")
	c.RunE = func(c *cobra.Command, args []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		for _, name := range args {
			changed, err := mark(c.Context(), client, name, annotation, set)
			if err != nil {
				return fmt.Errorf("machine/%s: %w", name, err)
			}
			said := word
			if !changed {
				said = "unchanged"
			}
			if err := a.printf("machine/%s %s\n", name, said); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// mark changes one Machine for markCommand; a concurrent write to the Machine is not overwritten.
func mark(ctx context.Context, client *api.Client, machine, annotation string, set bool) (changed bool, err error) {
	m, err := api.Get[api.Machine](ctx, client, machine)
	if err != nil {
		return false, err
	}
	if (m.Metadata.Annotations[annotation] == "true") == set {
		return false, nil
	}
	if m.Metadata.Annotations == nil {
		m.Metadata.Annotations = map[string]string{}
	}
	if m.Metadata.Annotations[annotation] = "true"; !set {
		delete(m.Metadata.Annotations, annotation)
	}
	_, err = client.Put(ctx, m, false)
	return err == nil, err
}
