package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

func (a *machineCommands) machineDrainCommand() *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := a.markCommand(&cobra.Command{
		Use: "drain HOST…", Short: "Move all Guests off hosts, and place no others there",
		Long: `drain moves the Guests of hosts to other hosts, with their disks, and lets no others start there until undrain. A
Guest that no other host can run stays where it is. With --wait it fails when Guests are left after --timeout.`,
	}, api.DrainAnnotation, true, "draining: `weftctl get guests -o wide` shows the Guests that are left")
	mark := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := mark(c, args); err != nil || !wait {
			return err
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		late := time.After(timeout)
		for _, name := range args {
			if err := a.waitEmpty(c.Context(), client, name, late); err != nil {
				return fmt.Errorf("drain machine/%s: %w", name, err)
			}
		}
		return nil
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until no Guest is left")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Minute, "give up after this time")
	return c
}

// waitEmpty waits until no Guest is on a host. After the timeout the error lists the Guests that are left, with
// the reasons.
func (a *machineCommands) waitEmpty(ctx context.Context, client *api.Client, host string, late <-chan time.Time) error {
	for {
		guests, _, err := client.List(ctx, api.KindOf(new(api.Guest)))
		if err != nil {
			return err
		}
		left := guestsOn(guests, host)
		if len(left) == 0 {
			return a.printf("machine/%s has no Guest\n", host)
		}
		select {
		case <-time.After(time.Second):
		case <-late:
			return fmt.Errorf("gave up waiting; it is still draining, and has %s", strings.Join(left, "; "))
		case <-ctx.Done():
			return ctx.Err()
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
