package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/text"
)

func (a *showCommands) eventsCommand() *cobra.Command {
	var follow bool
	var output string
	c := &cobra.Command{
		Use:   "events [KIND | KIND/NAME | KIND NAME]",
		Short: "Show events",
		Example: `  weftctl events machine/r1u07 --follow
  weftctl events -o json | jq 'select(.type == "Warning")'`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return usagef("invalid -o %s: want text or json", output)
			}
			kind, name, err := eventsOf(args)
			if err != nil {
				return err
			}
			return a.events(c.Context(), kind, name, follow, output)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing new events")
	c.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one event per line")
	complete(c, "output", "text", "json")
	return c
}

func eventsOf(args []string) (kind, name string, err error) {
	if len(args) == 0 {
		return "", "", nil
	}
	word, name, _ := strings.Cut(args[0], "/")
	if len(args) == 2 {
		name = args[1]
	}
	k, err := lookupKind(word)
	return k.Name, name, err
}

func (a *showCommands) events(ctx context.Context, kind, name string, follow bool, output string) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	p := a.printer()
	err = client.Events(ctx, kind, name, follow, func(e api.Event) error {
		if output == "json" {
			raw, err := api.Encode(e)
			if err != nil {
				return err
			}
			return a.out.WriteData(append(text.JSON(raw), '\n'))
		}
		return a.printf("%s\n", p.Event(e))
	})
	if errors.Is(err, context.Canceled) && follow {
		return nil // Ctrl-C ends it
	}
	return err
}
