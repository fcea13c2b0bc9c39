package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/systemd"
)

// maxShare, in bytes, is more than the values of a Secret take in JSON.
const maxShare = 4 << 20

// The commands that a Guest's unit runs: one becomes its QEMU, the other shuts
// the Guest down.
const launchWord, shutdownWord = "guest-exec", "guest-shutdown"

// newGuests creates the handler of guest parts. It uses the agent to read from
// bootd and to authenticate this host to others.
func newGuests(s settings, config api.AgentConfig, network guest.Plugger, agent *nodeagent.Agent, log *slog.Logger) (*guest.Handler, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find nodeagent's own file: %w", err)
	}
	o := guest.Options{
		StateDir: s.guestState(), RunDir: s.guestRun(),
		Log: log, Network: network, Credentials: agent.Credentials, Launch: []string{self, launchWord},
		Accelerator: qemu.Accelerator(s.accelerator), Kernel: config.Kernel,
		Fetch: func(ctx context.Context, digest api.SHA256) (io.ReadCloser, error) {
			return opened(agent.Get(ctx, "/v1/blobs/sha256:"+string(digest)))
		},
		Config: func(ctx context.Context, name string) (guest.Config, error) {
			c, err := agent.Get(ctx, "/v1/hosts/"+url.PathEscape(config.Machine)+"/guests/"+url.PathEscape(name)+"/config")
			if err != nil {
				return guest.Config{}, err
			}
			return guest.Config{ReadCloser: c.ReadCloser, Type: c.Type}, nil
		},
		Share: func(ctx context.Context, name, share string) (s api.GuestShareContent, err error) {
			c, err := agent.Get(ctx, "/v1/hosts/"+url.PathEscape(config.Machine)+"/guests/"+url.PathEscape(name)+"/shares/"+url.PathEscape(share))
			if err != nil {
				return s, err
			}
			defer func() { _ = c.Close() }()
			return s, json.NewDecoder(io.LimitReader(c, maxShare)).Decode(&s)
		},
	}
	if systemd.Booted() {
		o.Start = func(ctx context.Context, g guest.Service, argv []string) error {
			return systemd.StartOutside(ctx, guestUnit(s, self, g), argv...)
		}
	}
	return guest.New(o), nil
}

func (s settings) guestState() string { return filepath.Join(s.stateDir, "guests") }
func (s settings) guestRun() string   { return filepath.Join(s.runDir, "guests") }

// opened leaves out what is not asked for.
func opened(c *nodeagent.Content, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// guestUnit is a Guest's own unit, and with it its own cgroup. When the host goes
// down, things are stopped in the reverse order of their start: the agent, which
// would start the Guest again, then the Guest, then what it needs.
func guestUnit(s settings, self string, g guest.Service) systemd.Service {
	name := "rackweft-guest-" + g.UID
	tpm := name + "-tpm.service"
	unit := systemd.Service{Name: name + ".service", Description: "Guest " + g.Guest, Slice: "rackweft-guests.slice",
		Properties: []string{"KillMode=mixed", "LimitMEMLOCK=infinity", "LimitCORE=0", "Before=nodeagent.service", "RequiresMountsFor=" + s.stateDir}}
	if g.TPM { // it ends with QEMU, which holds the only connection to it
		unit.Name, unit.Description = tpm, "TPM of Guest "+g.Guest
		unit.Properties = append(unit.Properties, "TimeoutStopSec=30s")
	} else {
		const killing = 15 * time.Second // margin for systemd itself
		unit.Properties = append(unit.Properties, "After=network.target", "After="+speakerUnit, "After="+tpm,
			fmt.Sprintf("ExecStop=%q %s --state-dir %q --run-dir %q %s", self, shutdownWord, s.stateDir, s.runDir, g.UID),
			fmt.Sprintf("TimeoutStopSec=%d", int((g.StopTimeout+killing).Seconds())))
	}
	if g.CPUWeight > 0 {
		unit.Properties = append(unit.Properties, fmt.Sprintf("CPUWeight=%d", g.CPUWeight))
	}
	if g.IOWeight > 0 {
		unit.Properties = append(unit.Properties, fmt.Sprintf("IOWeight=%d", g.IOWeight))
	}
	return unit
}

// guestCommands are run by a Guest's unit, not by people.
func guestCommands(s *settings, stderr io.Writer) []*cobra.Command {
	return []*cobra.Command{
		{Use: launchWord + " SOCKET", Short: "Become the process that the agent at a socket describes", Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return launch.Exec(args) }},
		{Use: shutdownWord + " UID", Short: "Shut a Guest down", Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return guest.New(guest.Options{StateDir: s.guestState(), RunDir: s.guestRun(), Log: systemd.NewLogger(stderr, slog.LevelInfo)}).Shutdown(cmd.Context(), args[0])
			}},
	}
}
