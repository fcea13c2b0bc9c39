package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/nodeagent/speaker"
	"github.com/rackweft/rackweft/systemd"
)

const speakerUnit = "nodeagent-speaker.service"

func (s settings) speakerPart() string   { return filepath.Join(s.stateDir, "speaker.json") }
func (s settings) speakerSocket() string { return filepath.Join(s.runDir, "speaker.sock") }

// newSpeaker is the agent's side of the speaker.
func newSpeaker(s settings, log *slog.Logger) *speaker.Speaker {
	return speaker.New(speaker.Options{Part: s.speakerPart(), Socket: s.speakerSocket(), Log: log,
		Start: func(ctx context.Context) error { return systemd.Start(ctx, speakerUnit) },
		Stop:  func(ctx context.Context) error { return systemd.Stop(ctx, speakerUnit) }})
}

func speakerCommand(s *settings, stderr io.Writer) *cobra.Command {
	return &cobra.Command{Use: "speaker", Short: "Run the host's BGP speaker", Args: noArguments,
		Long: "speaker is what the host's bgp part says, from the file that the agent writes it to.\n" +
			"It is run by systemd (" + speakerUnit + ").",
		RunE: func(cmd *cobra.Command, _ []string) error { return runSpeaker(cmd.Context(), *s, stderr) },
	}
}

// runSpeaker ends with the process: see bgp.Run.
func runSpeaker(ctx context.Context, s settings, stderr io.Writer) error {
	if err := os.MkdirAll(s.runDir, 0o711); err != nil {
		return fmt.Errorf("prepare the speaker's directory: %w", err)
	}
	log := logger(stderr)
	notify := systemd.NewNotifier(log)
	return bgp.Run(ctx, bgp.Options{Part: s.speakerPart(), Socket: s.speakerSocket(), Version: s.version, Log: log, Notify: notify})
}
