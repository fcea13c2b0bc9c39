package cli

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

// guestCommands control Guests and connect to them.
type guestCommands struct{ *app }

func (a *guestCommands) guestCommand() *cobra.Command {
	return group("guest", "Control Guests",
		a.guestStateCommand("start", "Start Guests", api.GuestRunning),
		a.guestStateCommand("stop", "Stop Guests gracefully", api.GuestStopped),
		a.guestVerbCommand(api.GuestVerbRestart, "Stop Guests gracefully and start them again, so that changes take effect"),
		a.guestVerbCommand(api.GuestVerbReset, "Reset Guests immediately, as with a reset button"),
		a.guestMoveCommand(),
		a.guestConsoleCommand(), a.guestVNCCommand(), a.guestExecCommand(),
		a.guestSnapshotCommand(), a.guestExportCommand(),
	)
}

// eachGuest runs fn for each of the named Guests, up to the first error.
func (a *guestCommands) eachGuest(use, short string, fn func(ctx context.Context, client *api.Client, name string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short,
		Args: atLeast(1, "NAME…"),
		ValidArgsFunction: func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.names(c.Context(), "guests"), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := fn(c.Context(), client, name); err != nil {
					return fmt.Errorf("%s guest/%s: %w", c.Name(), name, err)
				}
			}
			return nil
		},
	}
}

func (a *guestCommands) guestStateCommand(verb, short string, state api.GuestState) *cobra.Command {
	return a.eachGuest(verb+" NAME…", short, func(ctx context.Context, client *api.Client, name string) error {
		g, err := api.Get[api.Guest](ctx, client, name)
		if err != nil {
			return err
		}
		if g.Spec.State == state {
			return a.printf("guest/%s is already requested to be %s\n", name, state)
		}
		g.Spec.State = state
		if _, err := client.Put(ctx, g, false); err != nil {
			return err
		}
		return a.printf("guest/%s is requested to be %s\n", name, state)
	})
}

func (a *guestCommands) guestVerbCommand(verb, short string) *cobra.Command {
	return a.eachGuest(verb+" NAME…", short, func(ctx context.Context, client *api.Client, name string) error {
		if _, err := client.GuestVerb(ctx, name, verb, api.GuestAction{ID: uuid.NewString()}); err != nil {
			return err
		}
		return a.printf("guest/%s %s requested\n", name, verb)
	})
}

func (a *guestCommands) guestMoveCommand() *cobra.Command {
	var action api.GuestAction
	var live, stop bool
	c := a.eachGuest("move NAME…", "Move Guests to other hosts, with their addresses and disks", func(ctx context.Context, client *api.Client, name string) error {
		one := action
		one.ID = uuid.NewString()
		switch {
		case live && (stop || action.LoseDisks):
			return usagef("--live cannot be combined with --stop or --lose-disks")
		case live:
			one.Mode = api.MigrateLive
		case stop:
			one.Mode = api.MigrateStop
		}
		g, err := client.GuestVerb(ctx, name, api.GuestVerbMove, one)
		if err != nil {
			return err
		}
		return a.printf("guest/%s leaves %s: weftctl describe guest %s shows its progress\n", name, g.Status.Host, name)
	})
	c.Long = "move moves Guests to another host, with their disks: while they run, where that is possible and their migration is\n" +
		"Live, otherwise with a stop. One that has not arrived within Site.spec.guests.moveDeadline continues where it was."
	c.Flags().StringVar(&action.To, "to", "", "the host to move to. Default: any that can run the Guest")
	c.Flags().BoolVar(&action.LoseDisks, "lose-disks", false, "leave the disks behind, and give the Guest empty ones")
	c.Flags().BoolVar(&live, "live", false, "only move while running: a Guest that cannot stays")
	c.Flags().BoolVar(&stop, "stop", false, "stop the Guests for the move")
	_ = c.RegisterFlagCompletionFunc("to", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.names(c.Context(), "machines"), cobra.ShellCompDirectiveNoFileComp
	}) // the flag exists
	return c
}
