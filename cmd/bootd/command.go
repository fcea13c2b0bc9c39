package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/bootd"
	"github.com/rackweft/rackweft/internal/exit"
	"github.com/rackweft/rackweft/systemd"
)

const defaultConfig = "/etc/rackweft/bootd.yaml"

func command() *cobra.Command {
	var config, state, run string
	var interfaces []string
	c := &cobra.Command{
		Use:   "bootd",
		Short: "Boot daemon: DHCP, TFTP, HTTP boot, Ignition, BMCs and the API of a rackweft Site",
		Example: `  bootd --interface eth1
  bootd --config /etc/rackweft/bootd.yaml`,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := bootd.LoadConfig(config, cmd.Flags().Changed("config"))
			if err != nil {
				return exit.Fault(err)
			}
			conf.Interfaces = append(conf.Interfaces, interfaces...)
			conf.StateDir, conf.RunDir, conf.Version = state, run, version
			log, err := logger(conf.LogLevel)
			if err != nil {
				return exit.Fault(err)
			}
			err = bootd.Run(cmd.Context(), conf, log)
			if errors.As(err, new(*bootd.SiteError)) {
				return exit.Fault(err) // only an operator can restore what is lost
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", defaultConfig, "configuration file; need not exist")
	f.StringVar(&state, "state-dir", "/var/lib/rackweft", "state directory")
	f.StringVar(&run, "run-dir", "/run/rackweft", "directory of the API socket")
	f.StringSliceVar(&interfaces, "interface", nil, "interface on a provisioning network (repeatable)")
	c.AddCommand(certificateCommand(), recreateCommand(), backupCommand(), restoreCommand())
	c.CompletionOptions.DisableDefaultCmd = true
	exit.Faults(c)
	return c
}

func recreateCommand() *cobra.Command {
	var config, state string
	c := &cobra.Command{
		Use:       "recreate ca|seal-key|store",
		Short:     "Give up a lost CA, seal key or store, so that bootd makes a new one",
		ValidArgs: bootd.RecreateParts(),
		Long: "Makes bootd start with a new CA, seal key or store when the old one is lost or belongs to\n" +
			"another Site. The old one, if any, is moved aside. Try a backup first: hosts trust bootd by its\n" +
			"CA, Secrets can be decrypted only with their seal key, and the store holds every object.",
		Example: "  bootd recreate ca",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(bootd.RecreateParts(), args[0]) {
				return errors.New("want one argument: bootd recreate ca, seal-key or store")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := bootd.LoadConfig(config, cmd.Flags().Changed("config"))
			if err != nil {
				return exit.Fault(err)
			}
			conf.StateDir = state
			log, err := logger(conf.LogLevel)
			if err != nil {
				return exit.Fault(err)
			}
			aside, err := bootd.Recreate(cmd.Context(), conf, args[0], log)
			if err != nil {
				return err
			}
			if aside != "" {
				aside = "; the old one is now " + aside
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the next start of bootd makes a new %s%s\n", args[0], aside)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&config, "config", defaultConfig, "configuration file; need not exist")
	f.StringVar(&state, "state-dir", "/var/lib/rackweft", "state directory")
	return c
}

func certificateCommand() *cobra.Command {
	var state, role, server, out string
	c := &cobra.Command{
		Use:   "certificate NAME",
		Short: "Issue a person's client certificate, with a configuration for weftctl",
		Long: "Issues a client certificate from the site's CA, valid for a year. Copy the directory that it\n" +
			"writes to ~/.config/rackweft on the person's machine.",
		Example: "  bootd certificate alice --role operator --server https://198.18.8.1:8443 --out /root/alice",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one person: bootd certificate NAME --role ROLE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = args[0]
			}
			if err := bootd.IssuePerson(state, args[0], role, server, out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s may act as %s with the credentials in %s\n", args[0], role, out)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&state, "state-dir", "/var/lib/rackweft", "state directory, which holds the site's CA")
	f.StringVar(&role, "role", "viewer", "viewer, operator or admin")
	f.StringVar(&server, "server", "", "URL of bootd to write to the configuration, such as https://198.18.8.1:8443")
	f.StringVar(&out, "out", "", "new directory to write to (default: NAME)")
	return c
}

// logger writes to standard error: under systemd that is the journal.
func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("invalid logLevel %q: want debug, info, warn or error", level)
	}
	return systemd.NewLogger(os.Stderr, l), nil
}
