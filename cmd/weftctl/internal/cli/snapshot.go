package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
)

func (a *guestCommands) guestSnapshotCommand() *cobra.Command {
	return group("snapshot", "Take snapshots of Guests' disks, and revert to them",
		a.snapshotVerbCommand("create", api.GuestSnapshotCreate, "Take a snapshot of all disks of a Guest at one point in time",
			`create takes a snapshot of all disks of a Guest at one point in time, whether it runs or not. When an agent (qemu-ga)
answers in a running Guest, its file systems are frozen for it; otherwise the snapshot is crash-consistent, as after
a power loss, and the command says so. Memory is not saved. A raw disk cannot have snapshots.`),
		a.snapshotListCommand(),
		a.snapshotVerbCommand("revert", api.GuestSnapshotRevert, "Revert all disks of a stopped Guest to a snapshot",
			`revert returns all disks of a Guest to their state at the snapshot. Data written since is lost, unless it is in
another snapshot. The Guest must be stopped; the snapshot is kept.`),
		a.snapshotVerbCommand("delete", api.GuestSnapshotDelete, "Delete a snapshot",
			"delete removes a snapshot from the disks, whether the Guest runs or not. The space is reused for later writes."),
	)
}

func (a *guestCommands) snapshotListCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "list NAME", Short: "List a Guest's snapshots",
		Args: exactly(1, "NAME"), ValidArgsFunction: a.completeOne("guests"),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			g, err := api.Get[api.Guest](c.Context(), client, args[0])
			if err != nil {
				return fmt.Errorf("snapshots of guest/%s: %w", args[0], err)
			}
			switch output {
			case "json":
				return a.indented(g.Status.Snapshots)
			case "table":
				return a.printer().Snapshots(a.out, g.Status.Snapshots)
			}
			return usagef("invalid -o %s: want table or json", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	complete(c, "output", "table", "json")
	return c
}

func (a *guestCommands) snapshotVerbCommand(use, verb, short, long string) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use: use + " NAME SNAPSHOT", Short: short, Long: long + " The command waits until it is done.",
		Args: exactly(2, "NAME and SNAPSHOT"),
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			switch {
			case len(args) == 0:
				return a.names(c.Context(), "guests"), cobra.ShellCompDirectiveNoFileComp
			case len(args) == 1 && verb != api.GuestSnapshotCreate:
				return a.snapshotNames(c.Context(), args[0]), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			action := api.GuestAction{ID: uuid.NewString(), Snapshot: args[1]}
			if _, err := client.GuestVerb(ctx, args[0], verb, action); err != nil {
				return fmt.Errorf("snapshot %s of guest/%s: %w", args[1], args[0], err)
			}
			result, err := guestResult(ctx, client, args[0], action.ID)
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("guest/%s: no answer from its host within %s; the request stays, see weftctl describe guest %[1]s", args[0], timeout)
			}
			if err != nil {
				return err
			}
			if result.Failed {
				return fmt.Errorf("guest/%s: %s", args[0], result.Message)
			}
			return a.printf("guest/%s: %s\n", args[0], result.Message)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for the host")
	return c
}

// guestResult waits for the result of a request.
func guestResult(ctx context.Context, client *api.Client, name, id string) (*api.GuestResult, error) {
	var result *api.GuestResult
	err := client.Watch(ctx, api.KindOf(new(api.Guest)), func(e api.WatchEvent) error {
		g, ok := e.Object.(*api.Guest)
		if !ok || g.Metadata.Name != name {
			return nil
		}
		switch r := g.Status.Result; {
		case r != nil && r.ID == id:
			result = r
			return errReached
		case e.Type == api.Deleted:
			return fmt.Errorf("guest/%s was deleted in the meantime", name)
		case e.Type == api.Modified && (g.Status.Request == nil || g.Status.Request.ID != id):
			return fmt.Errorf("guest/%s: the request was superseded", name)
		}
		return nil
	})
	if errors.Is(err, errReached) {
		return result, nil
	}
	return nil, err
}

func (a *guestCommands) snapshotNames(ctx context.Context, guest string) []string {
	client, err := a.client()
	if err != nil {
		return nil
	}
	g, err := api.Get[api.Guest](ctx, client, guest)
	if err != nil {
		return nil // a completion reports no error
	}
	var names []string
	for _, s := range g.Status.Snapshots {
		names = append(names, s.Name)
	}
	return names
}
