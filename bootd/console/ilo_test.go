package console

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fleet"
	"github.com/rackweft/rackweft/hardware/sshconsole"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

// byShell is a BMC that has nothing but a console over SSH.
type byShell struct {
	hardware.BMC
	endpoint hardware.Endpoint
	way      sshconsole.Way
}

func (b byShell) System(context.Context, string) (hardware.BMC, error) { return b, nil }
func (b byShell) Spare() bool                                          { return true }
func (b byShell) Fingerprint() string                                  { return "" }
func (b byShell) Close(context.Context) error                          { return nil }

func (b byShell) Consoles(context.Context) ([]hardware.ConsoleWay, error) {
	return []hardware.ConsoleWay{{Kind: hardware.ConsoleSSH,
		Open: func(ctx context.Context) (*hardware.Console, error) { return sshconsole.Open(ctx, b.endpoint, b.way) },
		Free: func(ctx context.Context) error { return sshconsole.Free(ctx, b.endpoint, b.way) }}}, nil
}

// ilo starts a BMC that gives its one console over SSH as iLO does; the serial port echoes.
func ilo(t *testing.T) byShell {
	t.Helper()
	s := bmctest.Start(t, func(c *bmc.Config) { c.Systems[0].Console = bmc.Console{Access: bmc.BySSH, Style: bmc.ILO} })
	if err := s.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.BMC.ServeConsole("", l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.BMC.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	key, err := s.BMC.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	return byShell{
		endpoint: hardware.Endpoint{Address: s.URL, Username: bmctest.Username, Password: bmctest.Password, HostKey: ssh.FingerprintSHA256(key)},
		way:      sshconsole.Way{Port: l.Addr().(*net.TCPAddr).Port, Commands: []string{"vsp"}, Leave: []string{"\x1b("}, Free: []string{"stop /system1/oemhp_vsp1"}},
	}
}

// TestKilledBootdHasTheOnlyConsole: the login of a bootd that was killed still has the one console of an iLO. The next bootd
// ends it and listens; of a BootAttempt of its own it takes the console from nobody.
func TestKilledBootdHasTheOnlyConsole(t *testing.T) {
	for name, started := range map[string]time.Duration{"open before": -time.Minute, "its own": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := ilo(t)
			stale, err := sshconsole.Open(t.Context(), b.endpoint, b.way)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = stale.Close() })
			f := fleet.New(func(context.Context, hardware.Endpoint) (hardware.Service, error) { return b, nil }, slog.New(slog.DiscardHandler))
			t.Cleanup(f.Close)
			r := newRig(t)
			failed := make(chan error, 100)
			r.dial = func(ctx context.Context, _ *api.Machine, price fleet.Price) (*hardware.Console, error) {
				opened, err := f.Console(ctx, b.endpoint, price)
				if err != nil {
					failed <- err
				}
				return opened, err
			}
			m := r.machine("r1u01", false)
			r.Change("r1u01", func(m *api.Machine) {
				m.Status.BMC.Console = "ssh"
				m.Status.Attempt = testsite.Attempt("a1", api.StagePowerOn)
				m.Status.Attempt.Number, m.Status.Attempt.Started = 1, r.keeper.started.Add(started)
			})
			if started > 0 {
				if err := <-failed; !errors.Is(err, hardware.ErrInUse) {
					t.Errorf("the console that another has: %v", err)
				}
				return
			}
			if _, err := io.ReadAll(stale); err != nil && !strings.Contains(err.Error(), "command line is back") {
				t.Errorf("the login of the bootd before ended with %v", err)
			}
			one, err := r.keeper.Attach(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			write(t, one, "who has it now\r\n")
			r.eventually("the next bootd listens", func() bool { return strings.Contains(r.said(m), "who has it now") })
			r.mu.Lock()
			defer r.mu.Unlock()
			if !slices.Contains(r.events, "ConsoleFreed") {
				t.Errorf("events %v", r.events)
			}
		})
	}
}
