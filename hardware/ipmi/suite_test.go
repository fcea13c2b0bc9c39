package ipmi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/lab/bmc"
	"github.com/rackweft/rackweft/lab/bmc/bmctest"
	"github.com/rackweft/rackweft/lab/bmc/ipmibmc"
)

// serveSuites starts a BMC that takes these cipher suites only, with the machine behind it.
func serveSuites(t *testing.T, suites ...int) (*bmctest.Server, hardware.Endpoint) {
	t.Helper()
	machine := bmctest.Start(t)
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- ipmibmc.Serve(ctx, conn, ipmibmc.Config{Machine: machine, Firmware: bmc.UEFI, Username: simUser, Password: simPassword, Suites: suites})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return machine, hardware.Endpoint{Address: fmt.Sprintf("ipmi://%s", conn.LocalAddr()), Protocol: "ipmi", Username: simUser, Password: simPassword}
}

// TestSuite17 does over the cipher suite that is the default what TestSimulator does over suite 3: all that ipmi_sim knows.
func TestSuite17(t *testing.T) {
	machine, e := serveSuites(t, 17)
	b := dial(t, e)
	ctx := t.Context()
	if err := b.SetBootOnce(ctx, hardware.Boot{Target: hardware.BootPXE, Mode: hardware.ModeUEFI}); err != nil {
		t.Fatal(err)
	}
	if o := machine.Override(); o.Target != bmc.Pxe || !o.Once {
		t.Errorf("the boot device is %+v", o)
	}
	if err := b.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if state, err := b.PowerState(ctx); err != nil || state != hardware.PowerOn || machine.Power() != bmc.On {
		t.Errorf("power is %s (%v), of the machine %s", state, err, machine.Power())
	}
	console, err := b.openConsole(ctx)
	if err != nil {
		t.Fatal(err)
	}
	heard := listen(console)
	if _, err := io.WriteString(console, "echoed over suite 17\r"); err != nil {
		t.Fatal(err)
	}
	heard.await(t, "echoed over suite 17")
	if _, err := b.openConsole(ctx); !errors.Is(err, hardware.ErrInUse) {
		t.Errorf("a second console: %v", err)
	}
	if err := console.Close(); err != nil {
		t.Error(err)
	}
	heard.wait(t)
	if err := errors.Join(b.ForceRestart(ctx), b.GracefulShutdown(ctx)); err != nil {
		t.Error(err)
	}
	if booted := machine.Booted(); !slices.Equal(booted, []bmc.Target{bmc.Pxe, bmc.None}) || machine.Power() != bmc.Off {
		t.Errorf("it booted by %v and is %s", booted, machine.Power())
	}
}

// TestSuites: what is not in common is refused with advice, and a wrong password as such, over 17 as over 3.
func TestSuites(t *testing.T) {
	_, only17 := serveSuites(t, 17)
	_, only3 := serveSuites(t, 3)
	for name, c := range map[string]struct {
		e      hardware.Endpoint
		suite  int
		secret string
		is     error
		words  string
	}{
		"17 of 17":                  {only17, 17, simPassword, nil, ""},
		"3 of 3":                    {only3, 3, simPassword, nil, ""},
		"3 of 17":                   {only17, 3, simPassword, nil, "leave spec.bmc.ipmi.cipherSuite out"},
		"17 of 3":                   {only3, 17, simPassword, nil, "cipherSuite: 3"},
		"17 and a wrong password":   {only17, 17, "wrong", hardware.ErrUnauthorized, `user "admin"`},
		"17 and an empty character": {only17, 17, "not\x00empty", nil, "contains NUL"},
	} {
		c.e.IPMI.CipherSuite, c.e.Password = c.suite, c.secret
		_, err := Connect(t.Context(), c.e, slog.New(slog.DiscardHandler))
		if c.words == "" && err != nil || c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%s: %v, want …%s…", name, err, c.words)
		}
		if errors.Is(err, hardware.ErrUnauthorized) != (c.is != nil) {
			t.Errorf("%s: %v is a refused password: %t", name, err, c.is == nil)
		}
	}
}
