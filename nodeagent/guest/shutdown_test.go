package guest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// TestShutdown is of a host that goes down: its agent has stopped, and Guests'
// units ask them to shut down.
func TestShutdown(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h)
	deaf := bare(h) // a firmware that hears no button
	h.run()
	h.want(part("web", uid1, g), part("deaf", uid2, deaf))
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 3") })
	h.wait("the other runs", h.is("guest/deaf", api.PartApplied, "Running"))
	handler := h.handler
	h.stop()

	if err := handler.Shutdown(t.Context(), uid1); err != nil {
		t.Errorf("shut down: %v", err)
	}
	if !strings.Contains(h.console(uid1), "@power button") {
		t.Error("its power was cut")
	}
	began := time.Now()
	if err := handler.Shutdown(t.Context(), uid2); err != nil {
		t.Errorf("shut down what does not hear: %v", err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("it was given only %s of the second that it has", took)
	}
	for _, uid := range []string{uid1, uid2} {
		id, err := launch.ReadIdentity(h.runDir(uid))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := launch.Open(id); !errors.Is(err, launch.ErrGone) {
			t.Errorf("its QEMU %d lives: %v", id.PID, err)
		}
		if err := handler.Shutdown(t.Context(), uid); err != nil {
			t.Errorf("once more: %v", err)
		}
	}

	h.run() // the host did not go down after all
	h.wait("it boots anew", h.is("guest/web", api.PartApplied, "Running"))
	if h.saw("Crashed")() {
		t.Error("a shutdown counts as a crash")
	}
	g.State = "Stopped" // while it boots, and does not hear
	h.want(part("web", uid1, g))
	h.wait("it is stopped", h.is("guest/web", api.PartApplied, "Stopped"))
	if strings.Count(h.console(uid1), "@up ") != 2 || strings.Count(h.console(uid1), "@power button") < 2 {
		t.Error("it was not asked until it heard")
	}
	if err := handler.Shutdown(t.Context(), "11111111-0000-4000-8000-000000000000"); err != nil {
		t.Errorf("a Guest that was removed: %v", err)
	}
}
