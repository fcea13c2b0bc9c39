package cli

import (
	"testing"

	"github.com/rackweft/rackweft/api"
)

func TestGuestVerbs(t *testing.T) {
	b := newBootd(t)
	memory := api.Bytes(1 << 30)
	g := &api.Guest{Spec: api.GuestSpec{Network: "blue", Image: "debian", CPUs: 1, Memory: memory}, Status: api.GuestStatus{Host: "r1u07"}}
	g.Metadata.Name = "web"
	b.store(g)
	asked := func() string { return b.objects["guests/web"].Meta().Annotations["asked"] }
	state := func() string { return b.objects["guests/web"].(*api.Guest).Spec.State }

	b.run(t, "", "guest", "stop", "web").want(t, 0, "guest/web is to be Stopped\n")
	if s := state(); s != "Stopped" {
		t.Errorf("it is to be %s", s)
	}
	b.run(t, "", "guest", "stop", "web").want(t, 0, "guest/web is to be Stopped already\n")
	b.run(t, "", "guest", "start", "web").want(t, 0, "guest/web is to be Running\n")
	if s := state(); s != "Running" {
		t.Errorf("it is to be %s", s)
	}
	for _, verb := range []string{"restart", "reset"} {
		b.run(t, "", "guest", verb, "web").want(t, 0, "guest/web "+verb+" asked for\n")
		if got := asked(); got != verb+"  false true" {
			t.Errorf("%s: asked for %q", verb, got)
		}
	}
	b.run(t, "", "guest", "move", "web", "--to", "r1u08", "--lose-disks").want(t, 0, "guest/web leaves r1u07: weftctl describe guest web says how far it is\n")
	if got := asked(); got != "move r1u08 true true" {
		t.Errorf("asked for %q", got)
	}
	b.run(t, "", "guest", "reset", "db").want(t, 1, "", "reset guest/db: ")
	b.run(t, "", "guest", "start").want(t, 2, "", "say NAME…")
}
