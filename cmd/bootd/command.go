package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/bootd"
)

const defaultConfig = "/etc/rackweft/bootd.yaml"

// usageError is a mistake on the command line or in the configuration.
type usageError struct{ error }

func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

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
				return usageError{err}
			}
			conf.Interfaces = append(conf.Interfaces, interfaces...)
			conf.StateDir, conf.RunDir, conf.Version = state, run, version
			log, err := logger(conf.LogLevel)
			if err != nil {
				return usageError{err}
			}
			return bootd.Run(cmd.Context(), conf, log)
		},
	}
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := c.Flags()
	f.StringVar(&config, "config", defaultConfig, "configuration file; need not exist")
	f.StringVar(&state, "state-dir", "/var/lib/rackweft", "where everything that lasts is kept")
	f.StringVar(&run, "run-dir", "/run/rackweft", "where the socket of the API is")
	f.StringSliceVar(&interfaces, "interface", nil, "interface on a provisioning network (repeatable)")
	return c
}

// logger writes to standard error: under systemd that is the journal, which
// adds the time itself.
func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("logLevel %q: it may be debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	if os.Getenv("JOURNAL_STREAM") != "" {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
}
