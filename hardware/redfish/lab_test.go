package redfish_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/redfish"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
)

func startLab(t *testing.T) (*bmctest.Server, hardware.Endpoint) {
	t.Helper()
	s := bmctest.Start(t)
	return s, hardware.Endpoint{Address: s.URL, Username: bmctest.Username, Password: bmctest.Password, Fingerprint: s.BMC.Fingerprint()}
}

func TestLab(t *testing.T) {
	machine, endpoint := startLab(t)
	ctx := t.Context()
	b, err := redfish.Dial(ctx, endpoint, slog.New(slog.DiscardHandler))
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
		{"wait", func() error { time.Sleep(1100 * time.Millisecond); return nil }}, // its LastResetTime has whole seconds
		{"restart", func() error { return b.ForceRestart(ctx) }},
		{"identify", func() error { return b.Identify(ctx, true) }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
	}
	if booted := machine.Booted(); len(booted) != 2 || booted[0] != bmc.Pxe || booted[1] != bmc.None {
		t.Errorf("booted from %v, want Pxe once", booted)
	}
	inv, err := b.Inventory(ctx)
	if err != nil || inv.Serial != "LAB7" || inv.MemoryMiB != 2048 || len(inv.NICs) != 1 || len(inv.Disks) != 1 || len(inv.Incomplete) != 0 {
		t.Errorf("inventory %+v, %v", inv, err)
	}
	machine.BMC.Notify(bmc.Event{Kind: bmc.Reset, Cause: "the test"})
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

func echo(t *testing.T, b *redfish.BMC) {
	t.Helper()
	ways, err := b.Consoles(t.Context())
	if err != nil || len(ways) != 1 || !ways[0].Login {
		t.Fatalf("ways %+v, %v", ways, err)
	}
	console, err := ways[0].Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = console.Close() }()
	if _, err := console.Write([]byte("login: ")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 7)
	if _, err := io.ReadFull(console, got); err != nil || string(got) != "login: " || console.Kind != hardware.ConsoleWebSocket {
		t.Errorf("console by %s echoes %q, %v", console.Kind, got, err)
	}
}

func TestLabFaults(t *testing.T) {
	machine, endpoint := startLab(t)
	dial := func(e hardware.Endpoint) error {
		b, err := redfish.Dial(t.Context(), e, slog.New(slog.DiscardHandler))
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
	machine.BMC.SetPassword("changed")
	if err := dial(endpoint); !errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("changed password: %v", err)
	}
	machine.BMC.SetPassword("s3cret")
	machine.BMC.FailNext(1, http.StatusInternalServerError, "<html>")
	if err := dial(endpoint); err == nil {
		t.Error("an internal error of the BMC went unnoticed")
	}
	if err := machine.BMC.NewCertificate(); err != nil {
		t.Fatal(err)
	}
	var mismatch *hardware.CertificateMismatchError
	if err := dial(endpoint); !errors.As(err, &mismatch) || mismatch.Got != machine.BMC.Fingerprint() {
		t.Errorf("new certificate: %v", err)
	}
}
