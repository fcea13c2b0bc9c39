package cli

import (
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func TestMachineDrain(t *testing.T) {
	b := newBootd(t)
	b.machine("r1u07", nil)
	g := &api.Guest{Spec: api.GuestSpec{Network: "blue", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}, Status: api.GuestStatus{Host: "r1u07"}}
	g.Metadata.Name = "web"
	g.Status.Conditions.Set(time.Now(), api.CondPlaced, api.True, "NowhereToGo", "no other host can have it")
	b.store(g)
	marked := func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.objects["machines/r1u07"].Meta().Annotations[api.DrainAnnotation]
	}
	says := func(code int, line string, args ...string) {
		t.Helper()
		if r := b.run(t, "", append([]string{"machine"}, args...)...); r.code != code || withoutTimes(r.out)[1] != line {
			t.Errorf("%v: %+v, want %q", args, r, line)
		}
	}
	says(0, "r1u07 Done draining: `weftctl get guests -o wide` shows the Guests that are left", "drain", "r1u07")
	if marked() != "true" {
		t.Error("the Machine is not marked")
	}
	says(1, "r1u07 Unfinished it is still draining, and has guest/web (no other host can have it)", "drain", "r1u07", "--wait", "--timeout", "1ms")
	moved := *g
	moved.Status.Host = "r1u08"
	b.store(&moved)
	says(0, "r1u07 Done it has no Guest", "drain", "r1u07", "--wait")
	says(0, "r1u07 Done unchanged", "drain", "r1u07")
	says(0, "r1u07 Done no longer drained", "undrain", "--all", "-y")
	if marked() != "" {
		t.Error("the Machine is still marked")
	}
	says(1, "r9u09 Failed Not Found: there is none", "drain", "r9u09")
}
