package guest

import (
	"strings"
	"testing"

	"github.com/rackweft/rackweft/api"
)

// must has a Guest do something that it can.
func (h *host) must(uid, command, want string) {
	h.t.Helper()
	if got := h.tell(uid, command); got != want {
		h.t.Errorf("%s: %s, want %s", command, got, want)
	}
}

// A Guest that panics or hangs is told of, started again, and seen as unsteady;
// by another policy it stays as it is.
func TestEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel several times under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h, "i6300esb.heartbeat=1")
	h.run()
	h.want(part("web", uid1, g))
	boots := func(n int) func() bool {
		return func() bool { return strings.Count(h.console(uid1), "@up ") == n }
	}
	steady := func(reason string) func() bool {
		return func() bool {
			s := h.status("guest/web")
			if s.Guest == nil {
				return false
			}
			c := s.Guest.Conditions.Get(conditionSteady)
			return c != nil && c.Reason == reason && (c.Status == api.True) == (reason == "Runs")
		}
	}
	h.wait("it boots", boots(1))
	h.wait("it is steady", steady("Runs"))

	h.must(uid1, "load pvpanic pvpanic-mmio", "ok")
	h.tellOnly(uid1, "panic")
	h.wait("its panic is told", h.saw("Panicked"))
	h.wait("it boots after the panic", boots(2))
	h.wait("the condition says so", steady("Panicked"))

	h.must(uid1, "load watchdog i6300esb", "ok")
	h.tellOnly(uid1, "hang")
	h.wait("its watchdog is told of", h.saw("Hung"))
	h.wait("it boots after the watchdog", boots(3))
	h.wait("the condition says so", steady("Hung"))
	if n := h.status("guest/web").Guest.Restarts; n != 2 {
		t.Errorf("it was started again %d times", n)
	}

	g.Restart = "Never"
	h.want(part("web", uid1, g))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.must(uid1, "load watchdog i6300esb", "ok")
	h.tellOnly(uid1, "hang")
	h.wait("it stays as it is", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartPending && s.Guest.State == "Stopped" && strings.Contains(s.Message, "watchdog") && strings.Contains(s.Message, "Never")
	})
}
