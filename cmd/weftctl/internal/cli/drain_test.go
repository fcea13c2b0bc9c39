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
	b.run(t, "", "machine", "drain", "r1u07").want(t, 0, "machine/r1u07 draining: `weftctl get guests -o wide` shows the Guests that are left\n")
	if marked() != "true" {
		t.Error("the Machine is not marked")
	}
	b.run(t, "", "machine", "drain", "r1u07", "--wait", "--timeout", "1ms").want(t, 1, "machine/r1u07 unchanged\n", "guest/web (no other host can have it)")
	moved := *g
	moved.Status.Host = "r1u08"
	b.store(&moved)
	b.run(t, "", "machine", "drain", "r1u07", "--wait").want(t, 0, "machine/r1u07 unchanged\nmachine/r1u07 has no Guest\n")
	b.run(t, "", "machine", "undrain", "r1u07").want(t, 0, "machine/r1u07 not drained any more\n")
	if marked() != "" {
		t.Error("the Machine is still marked")
	}
	b.run(t, "", "machine", "drain", "r9u09").want(t, 1, "", "machine/r9u09: Not Found")
}
