package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

func (a *objectCommands) deleteCommand() *cobra.Command {
	var files []string
	var missing bool
	c := &cobra.Command{
		Use:   "delete KIND NAME… | KIND/NAME… | -f FILE",
		Short: "Delete objects",
		Long: `delete asks bootd to remove objects. bootd refuses to delete an object that others refer to; with -f the order is
the reverse of apply's.`,
		ValidArgsFunction: a.completeObjects,
		RunE: func(c *cobra.Command, args []string) error {
			targets, err := a.doomed(c.Context(), args, files)
			if err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			return a.delete(c.Context(), client, targets, missing)
		},
	}
	a.filesFlag(c, &files)
	c.Flags().BoolVar(&missing, "ignore-missing", false, "succeed when an object does not exist")
	return c
}

// doomed lists the objects to delete, one per target, in order.
func (a *objectCommands) doomed(ctx context.Context, args, files []string) ([]target, error) {
	if (len(args) > 0) == (len(files) > 0) {
		return nil, usagef("name the objects, as KIND NAME… or KIND/NAME…, or files with -f")
	}
	if len(files) > 0 {
		inputs, err := a.readInputs(ctx, files)
		if err != nil {
			return nil, err
		}
		slices.Reverse(inputs)
		targets := make([]target, len(inputs))
		for i, in := range inputs {
			targets[i] = target{kind: in.kind, names: []string{in.object.Meta().Name}}
		}
		return targets, nil
	}
	targets, err := parseTargets(args, false)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		if len(t.names) == 0 {
			return nil, usagef("name the %s to delete: not all are deleted at once", t.kind.Plural)
		}
	}
	return targets, nil
}

func (a *objectCommands) delete(ctx context.Context, client *api.Client, targets []target, missing bool) error {
	failed := false
	for _, t := range targets {
		for _, name := range t.names {
			err := client.Delete(ctx, t.kind, name)
			var problem *api.Problem
			switch {
			case err == nil:
				_ = a.printf("%s deleted\n", title(t.kind, name))
			case api.IsStatus(err, http.StatusNotFound) && missing:
			case errors.As(err, &problem):
				failed = true
				a.complain(fmt.Errorf("delete %s: %w", title(t.kind, name), a.advise(err)))
			default:
				return fmt.Errorf("delete %s: %w", title(t.kind, name), err)
			}
		}
	}
	if failed {
		return errQuiet
	}
	return nil
}
