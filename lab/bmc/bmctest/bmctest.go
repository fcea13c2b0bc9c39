// Package bmctest provides a lab's BMC without a machine, for tests of BMC
// clients.
package bmctest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/rackweft/rackweft/lab/bmc"
)

// Credentials of a BMC started by Start.
const (
	Username = "admin"
	Password = "s3cret"
)

// Server is the server behind the BMC: a variable for power, an echo for a
// console.
type Server struct {
	// BMC is the BMC, and URL its address.
	BMC *bmc.Server
	URL string

	mu       sync.Mutex
	power    bmc.Power
	override bmc.Override
	booted   []bmc.Target
	tag      string
	medium   string
}

func (s *Server) Power() bmc.Power {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.power
}

func (s *Server) Override() bmc.Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.override
}

func (s *Server) SetOverride(_ context.Context, o bmc.Override) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.override = o
	return nil
}

func (s *Server) AssetTag() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tag
}

func (s *Server) SetAssetTag(tag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tag = tag
}

func (s *Server) boot(context.Context) error {
	s.mu.Lock()
	s.power = bmc.On
	s.booted = append(s.booted, s.override.Target)
	if s.override.Once {
		s.override = bmc.Override{Target: bmc.None}
	}
	s.mu.Unlock()
	s.BMC.Notify(bmc.Event{Kind: bmc.Reset, Cause: "its BMC"})
	return nil
}

func (s *Server) off(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.power = bmc.Off
	return nil
}

func (s *Server) PowerOn(ctx context.Context) error     { return s.boot(ctx) }
func (s *Server) Reset(ctx context.Context) error       { return s.boot(ctx) }
func (s *Server) PowerOff(ctx context.Context) error    { return s.off(ctx) }
func (s *Server) PressButton(ctx context.Context) error { return s.off(ctx) }
func (s *Server) NMI(context.Context) error             { return nil }

func (s *Server) DialConsole(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer func() { _ = far.Close() }()
		_, _ = io.Copy(far, far)
	}()
	return near, nil
}

// Insert and Eject make it a bmc.Drive.
func (s *Server) Insert(_ context.Context, image string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.medium = image
	return nil
}

func (s *Server) Eject(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.medium = ""
	return nil
}

// Medium returns the file of the image that is inserted, or "".
func (s *Server) Medium() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.medium
}

// Booted returns the devices that it has booted from.
func (s *Server) Booted() []bmc.Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.booted)
}

// Start starts a BMC, of a server without power, on the loopback. It stops
// after the test. Each change is made to its configuration first.
func Start(tb testing.TB, changes ...func(*bmc.Config)) *Server {
	tb.Helper()
	s := &Server{power: bmc.Off, override: bmc.Override{Target: bmc.None}}
	config := bmc.Config{
		Dir: tb.TempDir(), Address: net.IPv4(127, 0, 0, 1), Username: Username, Password: Password, MaxSessions: 2,
		Systems: []bmc.SystemConfig{{Machine: s, Inventory: bmc.Inventory{UUID: "77777777-0000-4000-8000-000000000007", Serial: "LAB7", Manufacturer: "rackweft", Model: "lab",
			BIOSVersion: "1", Firmware: bmc.UEFI, CPUs: 2, CPUModel: "QEMU", MemoryMiB: 2048,
			NICs: []bmc.NIC{{Name: "NIC 1", MAC: "52:54:00:01:07:00"}}, DiskSerial: "LABDISK", DiskBytes: 8 << 30}}},
	}
	for _, change := range changes {
		change(&config)
	}
	for i := range config.Systems {
		config.Systems[i].Media.Drive = s
	}
	controller, err := bmc.New(config, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s.BMC, s.URL = controller, "https://"+listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- controller.Serve(listener) }()
	tb.Cleanup(func() {
		if err := errors.Join(controller.Close(), <-served); err != nil {
			tb.Error(err)
		}
	})
	return s
}
