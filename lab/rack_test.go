package lab

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/lab/bmc"
)

// newRack brings a rack up for a test, and takes it down after.
func newRack(t *testing.T, machines ...MachineConfig) *Rack {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, bridges and taps")
	}
	if testing.Short() {
		t.Skip("builds a rack of real QEMUs")
	}
	dir, err := os.MkdirTemp("", "lab") // t.TempDir is too long for unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r, err := New(t.Context(), Config{Name: randomName(), Dir: dir, Machines: machines}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

func randomName() string { return "t" + strings.ToLower(rand.Text()[:6]) }

func testLog(t *testing.T) *slog.Logger {
	w := io.Writer(io.Discard)
	if testing.Verbose() {
		w = t.Output()
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// waitConsole waits for text on a machine's console.
func waitConsole(t *testing.T, m *Machine, text string, patience time.Duration) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		body, _ := os.ReadFile(m.ConsoleLog())
		if strings.Contains(string(plainText(body)), text) {
			return
		}
		if time.Now().After(deadline) {
			last := tail(body, tailLines)
			t.Fatalf("%s has not printed %q within %s; its console:\n%s", m.Name(), text, patience, last)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestFirmwareStartsPXE(t *testing.T) {
	r := newRack(t, DefaultMachines()[:2]...)
	for _, m := range r.Machines() {
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.Power() != bmc.On {
			t.Errorf("%s is %s after power on", m.Name(), m.Power())
		}
	}
	waitConsole(t, r.Machine("r1u01"), "iPXE", time.Minute)
	waitConsole(t, r.Machine("r1u02"), "Start PXE over IPv4", 2*time.Minute)
}
