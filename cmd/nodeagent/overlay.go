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

// defaultRunDir is the one host's of this machine; its tenants' namespaces are
// where ip-netns(8) looks. Agents with another have them to themselves.
const defaultRunDir = "/run/rackweft/nodeagent"

// newOverlay makes the handler of network parts.
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

// outside does one of namespaceCommand's jobs where it outlives the agent.
func outside(verb string) func(ctx context.Context, path string) error {
	return func(ctx context.Context, path string) error {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find nodeagent's own file: %w", err)
		}
		return systemd.RunOutside(ctx, verb+" network namespace "+path, self, "netns", verb, path)
	}
}

// namespaceCommand is what the agent runs outside of its sandbox: nobody types it.
func namespaceCommand() *cobra.Command {
	netns := &cobra.Command{Use: "netns", Short: "Pin or unpin a network namespace", Hidden: true}
	netns.AddCommand(
		&cobra.Command{Use: "pin PATH", Short: "Make a network namespace and pin it", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return namespace.Pin(args[0]) }},
		&cobra.Command{Use: "unpin PATH", Short: "Take a pinned network namespace away", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return namespace.Unpin(args[0]) }},
	)
	return netns
}
