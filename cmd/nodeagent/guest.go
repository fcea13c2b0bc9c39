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

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
	"github.com/rackweft/rackweft/systemd"
)

// maxShare is more than a Secret's values are in JSON, bytes.
const maxShare = 4 << 20

// launchWord is the command that becomes a QEMU.
const launchWord = "guest-exec"

// newGuests makes the handler of a Machine's guest parts. get reads from bootd;
// own is what the host shows other hosts.
func newGuests(s settings, machine string, network guest.Plugger, get func(ctx context.Context, path string) (*nodeagent.Content, error), own transfer.Credentials, log *slog.Logger) (*guest.Handler, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find nodeagent's own file: %w", err)
	}
	o := guest.Options{
		StateDir: filepath.Join(s.stateDir, "guests"), RunDir: filepath.Join(s.runDir, "guests"),
		Log: log, Network: network, Credentials: own, Launch: []string{self, launchWord},
		Fetch: func(ctx context.Context, digest api.SHA256) (io.ReadCloser, error) {
			return opened(get(ctx, "/v1/blobs/sha256:"+string(digest)))
		},
		Config: func(ctx context.Context, name string) (guest.Config, error) {
			c, err := get(ctx, "/v1/hosts/"+url.PathEscape(machine)+"/guests/"+url.PathEscape(name)+"/config")
			if err != nil {
				return guest.Config{}, err
			}
			return guest.Config{ReadCloser: c.ReadCloser, Type: c.Type}, nil
		},
		Share: func(ctx context.Context, name, share string) (s api.GuestShareContent, err error) {
			c, err := get(ctx, "/v1/hosts/"+url.PathEscape(machine)+"/guests/"+url.PathEscape(name)+"/shares/"+url.PathEscape(share))
			if err != nil {
				return s, err
			}
			defer func() { _ = c.Close() }()
			return s, json.NewDecoder(io.LimitReader(c, maxShare)).Decode(&s)
		},
	}
	if systemd.Booted() {
		o.Start = startUnit
	}
	return guest.New(o), nil
}

// opened leaves out what is not asked for.
func opened(c *nodeagent.Content, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// startUnit gives a Guest its own unit, and with it its own cgroup.
func startUnit(ctx context.Context, g guest.Service, argv []string) error {
	unit := systemd.Service{Name: "rackweft-guest-" + g.UID + ".service", Description: "Guest " + g.Guest, Slice: "rackweft-guests.slice",
		Properties: []string{"KillMode=mixed", "TimeoutStopSec=30s", "LimitMEMLOCK=infinity", "LimitCORE=0"}}
	if g.TPM { // it ends with QEMU, which has the only connection to it
		unit.Name, unit.Description = "rackweft-guest-"+g.UID+"-tpm.service", "TPM of Guest "+g.Guest
	}
	if g.CPUWeight > 0 {
		unit.Properties = append(unit.Properties, fmt.Sprintf("CPUWeight=%d", g.CPUWeight))
	}
	if g.IOWeight > 0 {
		unit.Properties = append(unit.Properties, fmt.Sprintf("IOWeight=%d", g.IOWeight))
	}
	return systemd.StartOutside(ctx, unit, argv...)
}

// guestCommand is what a Guest's unit runs: nobody types it.
func guestCommand() *cobra.Command {
	return &cobra.Command{Use: launchWord + " SOCKET", Short: "Become what the agent at a socket says", Hidden: true, Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error { return launch.Exec(args) }}
}
