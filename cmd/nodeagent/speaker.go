package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/overlay"
	"github.com/rackweft/rackweft/nodeagent/speaker"
	"github.com/rackweft/rackweft/systemd"
)

const speakerUnit = "nodeagent-speaker.service"

func (s settings) speakerPart() string   { return filepath.Join(s.stateDir, "speaker.json") }
func (s settings) speakerSocket() string { return filepath.Join(s.runDir, "speaker.sock") }
func (s settings) insideDir() string     { return filepath.Join(s.runDir, "speakers") }

// newSpeaker is the agent's side of the speaker.
func newSpeaker(s settings, inside *speaker.Inside, log *slog.Logger) *speaker.Speaker {
	return speaker.New(speaker.Options{Part: s.speakerPart(), Socket: s.speakerSocket(), Inside: inside, Log: log,
		Start: func(ctx context.Context) error { return systemd.Start(ctx, speakerUnit) },
		Stop:  func(ctx context.Context) error { return systemd.Stop(ctx, speakerUnit) }})
}

// newInside is the agent's side of the speakers inside Networks.
func newInside(s settings, log *slog.Logger) (*speaker.Inside, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find nodeagent's own file: %w", err)
	}
	o := speaker.InsideOptions{Dir: s.insideDir(), Log: log,
		Start: func(ctx context.Context, i speaker.InsideService) error {
			return launch.Detached(ctx, insideCommand(self, i))
		},
		Stop: func(ctx context.Context, uid string) error {
			return speaker.Kill(ctx, filepath.Join(s.insideDir(), uid, "socket"))
		},
	}
	if systemd.Booted() {
		o.Start = func(ctx context.Context, i speaker.InsideService) error {
			unit, err := insideUnit(s.insideDir(), i)
			if err != nil {
				return err
			}
			return systemd.StartOutside(ctx, unit, insideCommand(self, i)...)
		}
		o.Stop = func(ctx context.Context, uid string) error { return systemd.Stop(ctx, insideUnitName(uid)) }
	}
	return speaker.NewInside(o), nil
}

func insideCommand(self string, i speaker.InsideService) []string {
	return []string{self, "speaker", "--namespace", i.Namespace, "--part", i.Part, "--socket", i.Socket}
}

func insideUnitName(uid string) string { return "nodeagent-speaker-" + uid + ".service" }

// insideUnit is nodeagent-speaker.service in a Network's namespace. It has the
// same sandbox, because tenants' guests talk to this speaker. Only its command,
// directories and namespace differ.
func insideUnit(dir string, i speaker.InsideService) (systemd.Service, error) {
	shared, err := systemd.Properties(speakerUnit, insideDiffers()...)
	if err != nil {
		return systemd.Service{}, err
	}
	return systemd.Service{Name: insideUnitName(i.UID), Description: "BGP speaker of Network " + i.Network, Slice: "system.slice", Notify: true,
		Properties: append(shared, "NetworkNamespacePath="+i.Namespace, "ReadWritePaths="+dir, "StartLimitIntervalSec=0")}, nil
}

// insideDiffers lists the settings of nodeagent-speaker.service that a speaker
// inside a Network lacks or gets from systemd.Service.
func insideDiffers() []string {
	return []string{"Type", "ExecStart", "StateDirectory", "StateDirectoryMode", "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"}
}

// speakerFlags locate a speaker; the host's own needs none of them.
type speakerFlags struct{ namespace, part, socket string }

func speakerCommand(s *settings, stderr io.Writer) *cobra.Command {
	var f speakerFlags
	c := &cobra.Command{Use: "speaker", Short: "Run the host's BGP speaker",
		Long: "speaker applies the host's bgp part, which the agent writes to a file.\n" +
			"systemd runs it (" + speakerUnit + "). With --namespace it is the speaker\n" +
			"inside a Network, which the agent starts where guests peer.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return runSpeaker(cmd.Context(), *s, f, stderr) },
	}
	c.Flags().StringVar(&f.namespace, "namespace", "", "path of the network namespace to run in. Default: this process's")
	c.Flags().StringVar(&f.part, "part", "", "file with the part. Default: speaker.json in --state-dir")
	c.Flags().StringVar(&f.socket, "socket", "", "unix socket to serve the state on. Default: speaker.sock in --run-dir")
	return c
}

// runSpeaker must be followed by the end of the process: see bgp.Run.
func runSpeaker(ctx context.Context, s settings, f speakerFlags, stderr io.Writer) error {
	if f.namespace != "" {
		if err := overlay.EnterNamespace(f.namespace); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.runDir, 0o711); err != nil {
		return fmt.Errorf("prepare the speaker's directory: %w", err)
	}
	log := systemd.NewLogger(stderr, slog.LevelInfo)
	notify := systemd.NewNotifier(log)
	return bgp.Run(ctx, bgp.Options{Part: cmp.Or(f.part, s.speakerPart()), Socket: cmp.Or(f.socket, s.speakerSocket()), Inside: s.insideDir(), Version: s.version, Log: log, Notify: notify})
}
