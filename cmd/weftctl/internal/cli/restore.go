package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/show"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

// restoreCommands complete the restore of a Site.
type restoreCommands struct{ *app }

func (a *restoreCommands) restoreCommand() *cobra.Command {
	c := group("restore", "Return a restored bootd to service",
		a.restoreStatusCommand(), a.restoreAcceptCommand(), a.restoreWriteOffCommand(), a.restoreFinishCommand())
	c.Long = `After bootd restore, bootd changes nothing until every Machine is accounted for: its host has reported what it
runs, its BMC reports that it is powered off, or a person has written it off.`
	return c
}

func (a *restoreCommands) restoreStatusCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show which Machines are accounted for, and what only the hosts know",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			status, err := client.Recovery(c.Context())
			if err != nil {
				return fmt.Errorf("state of the restore: %w", err)
			}
			switch output {
			case "json":
				return a.indented(status)
			case "table":
				return a.recovery(status)
			}
			return usagef("invalid -o %s: want table or json", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	complete(c, "output", "table", "json")
	return c
}

func (a *restoreCommands) recovery(s *api.RecoveryStatus) error {
	r := s.Recovery
	if r == nil {
		return a.printf("No restore is in progress.\n")
	}
	rows := [][]string{}
	done := 0
	for _, m := range s.Machines {
		if m.Done {
			done++
		}
		rows = append(rows, []string{m.Name, a.accounted(m), m.Message})
	}
	for _, h := range r.Hosts {
		rows = append(rows, []string{h.Name, a.out.Paint(terminal.Yellow, "Unknown"), hostText(h)})
	}
	if err := a.printf("Restored %s from a backup of %s, at epoch %d.\n", r.Restored.Format(time.RFC3339), r.Backup.Format(time.RFC3339), s.Epoch); err != nil {
		return err
	}
	state := fmt.Sprintf("%s: %d of %d Machines are accounted for.", a.out.Paint(terminal.Yellow, "Held"), done, len(s.Machines))
	if !r.Held {
		state = "Every Machine is accounted for: bootd works normally."
	}
	if err := a.printf("%s\n\n", state); err != nil {
		return err
	}
	t := show.Table{Header: []string{"MACHINE", "ACCOUNTED", "MESSAGE"}, Rows: rows}
	if err := t.Print(a.out, a.bold); err != nil {
		return err
	}
	return a.onlyOnHosts(r)
}

func (a *restoreCommands) accounted(m api.RecoveryMachine) string {
	if m.Done {
		return a.out.Paint(terminal.Green, m.Reason)
	}
	return a.out.Paint(terminal.Yellow, m.Reason)
}

func hostText(h api.RecoveryHost) string {
	if h.Key == "" {
		return "other hosts name it as their peer, and it has not connected: weftctl restore write-off " + h.Name + ", if it is gone"
	}
	return fmt.Sprintf("at %s, its certificate was issued on %s, after the backup: apply its Machine if that is missing, then weftctl restore accept %s", h.Address, h.Issued.Format(time.RFC3339), h.Name)
}

// onlyOnHosts lists what the backup does not contain, and where hosts contradict it.
func (a *restoreCommands) onlyOnHosts(r *api.Recovery) error {
	if len(r.Unknown) > 0 {
		t := show.Table{Header: []string{"ONLY HOSTS KNOW", "HOST", "RESERVED"}}
		for _, p := range r.Unknown {
			var kept []string
			if p.VNI != 0 {
				kept = append(kept, fmt.Sprintf("VNI %d", p.VNI))
			}
			for _, addr := range p.Addresses {
				kept = append(kept, addr.String())
			}
			t.Rows = append(t.Rows, []string{strings.ToLower(p.Kind) + "/" + p.Name, p.Host, strings.Join(kept, ", ")})
		}
		if err := errors.Join(a.printf("\n"), t.Print(a.out, a.bold), a.printf("Apply their manifests again: they are taken over as they run.\n")); err != nil {
			return err
		}
	}
	for _, c := range r.Conflicts {
		if err := a.printf("\n%s %s\n", a.out.Paint(terminal.Yellow, "conflict:"), c); err != nil {
			return err
		}
	}
	return nil
}

func (a *restoreCommands) restoreAcceptCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "accept HOST...",
		Short: "Accept hosts whose keys were made after the backup",
		Long: `The backup does not contain the key of a host that was provisioned after it was taken. accept binds the key that the
host has presented to its Machine, whose manifest must have been applied. Verify the host first: a key that was
stolen from a host that has since been deleted looks the same. No host is provisioned again.`,
		Args: atLeast(1, "HOST names"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.eachHost(c.Context(), args, "accepted", (*api.Client).AcceptHost)
		},
	}
}

func (a *restoreCommands) restoreWriteOffCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "write-off HOST...",
		Short: "Stop waiting for hosts that no longer exist",
		Long: `Writing off a host frees what it had: its leases may be given to others, its Guests start on other hosts, and it
may be provisioned again. Its key is revoked. Never write off a host that may still be running.`,
		Example: "  weftctl restore write-off r1u07\n  weftctl restore write-off --all",
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("%s: name the hosts, or give --all for every one that has not reported", c.CommandPath())
			}
			if all {
				var err error
				if args, err = a.silentHosts(c.Context()); err != nil {
					return err
				}
			}
			return a.eachHost(c.Context(), args, "written off", (*api.Client).WriteOffHost)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every host that has not reported")
	return c
}

// silentHosts are the hosts that have not reported at all: a host with another key is running.
func (a *restoreCommands) silentHosts(ctx context.Context) ([]string, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	s, err := client.Recovery(ctx)
	if err != nil {
		return nil, fmt.Errorf("state of the restore: %w", err)
	}
	var names []string
	for _, m := range s.Machines {
		if !m.Done && m.Reason == api.AccountedWaiting {
			names = append(names, m.Name)
		}
	}
	if s.Recovery != nil {
		for _, h := range s.Recovery.Hosts {
			if h.Key == "" {
				names = append(names, h.Name)
			}
		}
	}
	return names, nil
}

func (a *restoreCommands) eachHost(ctx context.Context, names []string, done string, do func(*api.Client, context.Context, string) error) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	var faults []error
	for _, name := range names {
		if err := do(client, ctx, name); err != nil {
			faults = append(faults, fmt.Errorf("host %s: %w", name, err))
			continue
		}
		faults = append(faults, a.printf("host/%s %s\n", name, done))
	}
	return errors.Join(faults...)
}

func (a *restoreCommands) restoreFinishCommand() *cobra.Command {
	var forget bool
	c := &cobra.Command{
		Use:   "finish",
		Short: "End the restore",
		Long: `After this, bootd again leases addresses that were not renewed since the restore, and, with --forget, drops the
reservations for Networks and Guests that only hosts know.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := client.FinishRecovery(c.Context(), forget); err != nil {
				return fmt.Errorf("finish the restore: %w", err)
			}
			return a.printf("finished\n")
		},
	}
	c.Flags().BoolVar(&forget, "forget", false, "also drop reservations for Networks, Guests and hosts that were not applied or accepted")
	return c
}
