package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/exit"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/wireguard"
	"github.com/rackweft/rackweft/systemd"
)

// acceleratorVariable is the environment variable that sets --accelerator from a
// unit's drop-in.
const acceleratorVariable = "NODEAGENT_ACCELERATOR"

// settings holds the flags.
type settings struct{ config, stateDir, runDir, version, accelerator string }

func command(version string, stdout, stderr io.Writer) *cobra.Command {
	s := settings{version: buildVersion(version)}
	run := func(cmd *cobra.Command, _ []string) error { return runAgent(cmd.Context(), s, stderr) }
	root := &cobra.Command{
		Use:   "nodeagent",
		Short: "rackweft's host daemon",
		Long: "nodeagent joins this machine to its site, keeps a stream to bootd and applies the\n" +
			"machine's HostSpec. systemd runs it (nodeagent.service).",
		Args: noArguments, RunE: run, SilenceErrors: true, SilenceUsage: true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.PersistentFlags().StringVar(&s.stateDir, "state-dir", "/var/lib/rackweft/nodeagent", "identity and cached HostSpec")
	root.PersistentFlags().StringVar(&s.runDir, "run-dir", defaultRunDir, "status of the running agent")
	root.PersistentFlags().StringVar(&s.config, "config", "/etc/rackweft/nodeagent.yaml", "configuration file")
	root.PersistentFlags().StringVar(&s.accelerator, "accelerator", os.Getenv(acceleratorVariable),
		"accelerator for Guests: kvm or tcg. Default: "+acceleratorVariable+", else KVM where a kernel boots under it")
	root.AddCommand(
		&cobra.Command{Use: "run", Short: "Run the agent (the default)", Args: noArguments, RunE: run},
		&cobra.Command{Use: "status", Short: "Show this host's status: bootd, HostSpec and parts", Args: noArguments,
			RunE: func(*cobra.Command, []string) error { return printStatus(s, stdout) }},
		&cobra.Command{Use: "version", Short: "Print the version", Args: noArguments,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprintln(stdout, s.version)
				return err
			}},
		speakerCommand(&s, stderr),
		namespaceCommand(),
	)
	root.AddCommand(guestCommands(&s, stderr)...)
	exit.Faults(root)
	return root
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("unknown argument %q: see `nodeagent --help`", args[0])
}

func runAgent(ctx context.Context, s settings, stderr io.Writer) error {
	// Most of the host's memory is for its guests.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(32 << 20)

	if !slices.Contains([]string{"", string(qemu.KVM), string(qemu.TCG)}, s.accelerator) {
		return exit.Fault(fmt.Errorf("invalid accelerator %q: want kvm or tcg (--accelerator, or %s)", s.accelerator, acceleratorVariable))
	}
	config, err := nodeagent.LoadConfig(s.config)
	if err != nil {
		return exit.Fault(err)
	}
	agent, err := newAgent(s, config, systemd.NewLogger(stderr, slog.LevelInfo))
	if err != nil {
		return err
	}
	return agent.Run(ctx)
}

// newAgent creates the agent with its handlers, one for each kind of part.
func newAgent(s settings, config api.AgentConfig, log *slog.Logger) (*nodeagent.Agent, error) {
	inside, err := newInside(s, log)
	if err != nil {
		return nil, err
	}
	network := newOverlay(s, inside, log)
	agent, err := nodeagent.New(nodeagent.Options{
		Config: config, StateDir: s.stateDir, RunDir: s.runDir, Version: s.version,
		Log: log, Notify: systemd.NewNotifier(log),
		Encrypter: network.Guard(wireguard.New(wireguard.Kernel(), log)),
	})
	if err != nil {
		return nil, exit.Fault(err)
	}
	guests, err := newGuests(s, config, network, agent, log)
	if err != nil {
		return nil, err
	}
	network.ServeConfigs(guests.ServeConfig)
	return agent, exit.Fault(agent.Use(
		network, guests, newSpeaker(s, inside, log),
	))
}

// printStatus shows the last status even when the agent does not run.
func printStatus(s settings, stdout io.Writer) error {
	status, err := nodeagent.ReadStatus(s.stateDir, s.runDir)
	if status.Machine != "" {
		err = errors.Join(err, status.Print(stdout))
	}
	return err
}

// buildVersion falls back to the version that the Go tool stamped into the binary.
func buildVersion(linked string) string {
	if linked != "" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
