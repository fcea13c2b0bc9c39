package hardware_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/lab/bmc"
)

// server is what stands behind the lab's BMC here: a variable for power, an echo for a console.
type server struct {
	mu       sync.Mutex
	power    bmc.Power
	override bmc.Override
	booted   []bmc.Target
}

func (s *server) Power() bmc.Power {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.power
}

func (s *server) Override() bmc.Override {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.override
}

func (s *server) SetOverride(_ context.Context, o bmc.Override) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.override = o
	return nil
}

func (s *server) boot(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.power = bmc.On
	s.booted = append(s.booted, s.override.Target)
	if s.override.Once {
		s.override = bmc.Override{Target: bmc.None}
	}
	return nil
}

func (s *server) off(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.power = bmc.Off
	return nil
}

func (s *server) PowerOn(ctx context.Context) error     { return s.boot(ctx) }
func (s *server) Reset(ctx context.Context) error       { return s.boot(ctx) }
func (s *server) PowerOff(ctx context.Context) error    { return s.off(ctx) }
func (s *server) PressButton(ctx context.Context) error { return s.off(ctx) }
func (s *server) NMI(context.Context) error             { return nil }

func (s *server) DialConsole(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer func() { _ = far.Close() }()
		_, _ = io.Copy(far, far)
	}()
	return near, nil
}

func startLab(t *testing.T) (*bmc.Server, *server, hardware.Endpoint) {
	t.Helper()
	machine := &server{power: bmc.Off, override: bmc.Override{Target: bmc.None}}
	controller, err := bmc.New(bmc.Config{
		Dir: t.TempDir(), Address: net.IPv4(127, 0, 0, 1), Username: "admin", Password: "s3cret", MaxSessions: 2,
		Inventory: bmc.Inventory{UUID: "77777777-0000-4000-8000-000000000007", Serial: "LAB7", Manufacturer: "rackweft", Model: "lab",
			BIOSVersion: "1", Firmware: bmc.UEFI, CPUs: 2, CPUModel: "QEMU", MemoryMiB: 2048,
			NICs: []bmc.NIC{{Name: "NIC 1", MAC: "52:54:00:01:07:00"}}, DiskSerial: "LABDISK", DiskBytes: 8 << 30},
	}, machine, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- controller.Serve(listener) }()
	t.Cleanup(func() {
		if err := errors.Join(controller.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return controller, machine, hardware.Endpoint{Address: "https://" + listener.Addr().String(), Username: "admin", Password: "s3cret",
		Fingerprint: controller.Fingerprint()}
}

func TestLab(t *testing.T) {
	controller, machine, endpoint := startLab(t)
	ctx := t.Context()
	b, err := hardware.Dial(ctx, endpoint, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"boot", func() error {
			return b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI})
		}},
		{"on", func() error { return b.PowerOn(ctx) }},
		{"on again", func() error { return b.PowerOn(ctx) }},
		{"restart", func() error { return b.ForceRestart(ctx) }},
		{"identify", func() error { return b.Identify(ctx, true) }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
	}
	if len(machine.booted) != 2 || machine.booted[0] != bmc.Pxe || machine.booted[1] != bmc.None {
		t.Errorf("booted from %v, want Pxe once", machine.booted)
	}
	inv, err := b.Inventory(ctx)
	if err != nil || inv.Serial != "LAB7" || inv.MemoryMiB != 2048 || len(inv.NICs) != 1 || len(inv.Disks) != 1 || len(inv.Incomplete) != 0 {
		t.Errorf("inventory %+v, %v", inv, err)
	}
	controller.Notify(bmc.Event{Kind: bmc.Reset, Cause: "the test"})
	reset, err := b.LastReset(ctx)
	if age, ok := reset.Age(); err != nil || !ok || age.Abs() > time.Minute {
		t.Errorf("last reset %+v, %v", reset, err)
	}
	echo(t, b)
	if err := b.PowerOff(ctx); err != nil {
		t.Error(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Error(err)
	}
}

func echo(t *testing.T, b *hardware.BMC) {
	t.Helper()
	console, err := b.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = console.Close() }()
	if _, err := console.Write([]byte("login: ")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 7)
	if _, err := io.ReadFull(console, got); err != nil || string(got) != "login: " {
		t.Errorf("console echoes %q, %v", got, err)
	}
}

func TestLabFaults(t *testing.T) {
	controller, _, endpoint := startLab(t)
	dial := func(e hardware.Endpoint) error {
		b, err := hardware.Dial(t.Context(), e, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return b.Close(t.Context())
	}
	for range 5 { // more than it has sessions
		if err := dial(endpoint); err != nil {
			t.Fatal(err)
		}
	}
	controller.SetPassword("changed")
	if err := dial(endpoint); !errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("changed password: %v", err)
	}
	controller.SetPassword("s3cret")
	controller.FailNext(1, http.StatusInternalServerError, "<html>")
	if err := dial(endpoint); err == nil {
		t.Error("an internal error of the BMC went unnoticed")
	}
	if err := controller.NewCertificate(); err != nil {
		t.Fatal(err)
	}
	var mismatch *hardware.CertificateMismatchError
	if err := dial(endpoint); !errors.As(err, &mismatch) || mismatch.Got != controller.Fingerprint() {
		t.Errorf("new certificate: %v", err)
	}
}
