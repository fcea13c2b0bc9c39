package guest

import (
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// A Guest that hangs in its boot runs, and QEMU answers; that nothing was heard
// of it is said. One that boots is heard.
func TestSilentGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	h.timing.words, h.timing.silence = 30*time.Second, 35*time.Second
	h.run()
	h.want(part("hangs", uid1, bare(h)), part("boots", uid2, linux(h))) // there is nothing to boot on its disk
	heard := func(guest string) *api.Condition {
		s := h.status("guest/" + guest)
		if s.Guest == nil {
			return nil
		}
		return s.Guest.Conditions.Get(conditionHeard)
	}
	h.wait("its silence is noticed", func() bool {
		c := heard("hangs")
		return c != nil && c.Status == api.False && c.Reason == "Silent" && strings.Contains(c.Message, "written to no disk")
	})
	h.wait("the other is heard", func() bool { c := heard("boots"); return c != nil && c.Status == api.True })
	if c := heard("hangs"); c == nil || c.Status != api.False {
		t.Errorf("the silent one is %+v", c)
	}
	if s := h.status("guest/hangs").Guest; !s.Conditions.Is(conditionResponsive) {
		t.Errorf("it is not a Guest whose QEMU answers: %+v", s.Conditions)
	}
}
