package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/internal/namespace"
	"github.com/rackweft/rackweft/nodeagent/overlay"
	"github.com/rackweft/rackweft/systemd"
)

// defaultRunDir is used where the machine is one host: its tenants' namespaces
// are then where ip-netns(8) looks. Agents with another directory keep their
// namespaces within it.
const defaultRunDir = "/run/rackweft/nodeagent"

// newOverlay creates the handler of network parts.
func newOverlay(s settings, speakers overlay.Speakers, log *slog.Logger) *overlay.Overlay {
	o := overlay.Options{Log: log, Speakers: speakers, EnvDir: filepath.Join(s.runDir, "networks"), ProbeFile: filepath.Join(s.runDir, "vxlan-checksums.json")}
	if s.runDir != defaultRunDir {
		o.NamespaceDir = filepath.Join(s.runDir, "netns")
	}
	if systemd.PrivateMounts() {
		o.Pin, o.Unpin = outside("pin"), outside("unpin")
	}
	return overlay.New(o)
}

// outside runs one of namespaceCommand's subcommands outside of the agent's mount
// namespace, so that its effect outlives the agent.
func outside(verb string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find nodeagent's own file: %w", err)
		}
		return systemd.RunOutside(ctx, verb+" network namespace "+path, self, "netns", verb, path)
	}
}

// namespaceCommand is run by the agent outside of its sandbox, not by people.
func namespaceCommand() *cobra.Command {
	netns := &cobra.Command{Use: "netns", Short: "Pin or unpin a network namespace", Hidden: true}
	netns.AddCommand(
		&cobra.Command{Use: "pin PATH", Short: "Create a network namespace and pin it", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return namespace.Pin(args[0]) }},
		&cobra.Command{Use: "unpin PATH", Short: "Remove a pinned network namespace", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return namespace.Unpin(args[0]) }},
	)
	return netns
}
