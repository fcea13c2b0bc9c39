package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

func TestGuestVerbs(t *testing.T) {
	b := newBootd(t)
	memory := api.Bytes(1 << 30)
	g := &api.Guest{Spec: api.GuestSpec{Network: "blue", Image: "debian", CPUs: 1, Memory: memory}, Status: api.GuestStatus{Host: "r1u07"}}
	g.Metadata.Name = "web"
	b.store(g)
	asked := func() string { return b.objects["guests/web"].Meta().Annotations["asked"] }
	state := func() api.GuestState { return b.objects["guests/web"].(*api.Guest).Spec.State }

	b.run(t, "", "guest", "stop", "web").want(t, 0, "guest/web is requested to be Stopped\n")
	if s := state(); s != "Stopped" {
		t.Errorf("it is to be %s", s)
	}
	b.run(t, "", "guest", "stop", "web").want(t, 0, "guest/web is already requested to be Stopped\n")
	b.run(t, "", "guest", "start", "web").want(t, 0, "guest/web is requested to be Running\n")
	if s := state(); s != "Running" {
		t.Errorf("it is to be %s", s)
	}
	for _, verb := range []string{"restart", "reset"} {
		b.run(t, "", "guest", verb, "web").want(t, 0, "guest/web "+verb+" requested\n")
		if got := asked(); got != verb+"  false true" {
			t.Errorf("%s: asked for %q", verb, got)
		}
	}
	b.run(t, "", "guest", "move", "web", "--to", "r1u08", "--lose-disks").want(t, 0, "guest/web leaves r1u07: weftctl describe guest web shows its progress\n")
	if got := asked(); got != "move r1u08 true true" {
		t.Errorf("asked for %q", got)
	}
	for flag, mode := range map[string]string{"--live": "Live", "--stop": "Stop"} {
		b.run(t, "", "guest", "move", "web", flag).want(t, 0, "guest/web leaves r1u07: weftctl describe guest web shows its progress\n")
		if got := asked(); got != "move "+mode+" false true" {
			t.Errorf("asked for %q", got)
		}
	}
	b.run(t, "", "guest", "move", "web", "--live", "--stop").want(t, 2, "", "--live cannot be combined with")
	b.run(t, "", "guest", "reset", "db").want(t, 1, "", "reset guest/db: ")
	b.run(t, "", "guest", "start").want(t, 2, "", "want NAME…")
}

func TestGuestSnapshots(t *testing.T) {
	b := newBootd(t)
	g := &api.Guest{Spec: api.GuestSpec{Network: "blue", Image: "debian", CPUs: 1, Memory: api.Bytes(1 << 30)}, Status: api.GuestStatus{Host: "r1u07",
		Snapshots: []api.GuestSnapshot{
			{Name: "before", Time: time.Date(2026, 11, 21, 14, 0, 0, 0, time.UTC), Disks: []string{"root", "etcd"}, Consistency: api.ConsistentFrozen},
			{Name: "after", Disks: []string{"root"}, Consistency: api.ConsistentCrash, Broken: true}}}}
	g.Metadata.Name = "web"
	b.store(g)
	clock := g.Status.Snapshots[0].Time.Local().Format("2006-01-02 15:04:05")
	b.run(t, "", "guest", "snapshot", "list", "web").want(t, 0, "NAME     TIME                  CONSISTENCY   DISKS\nbefore   "+clock+"   Frozen        root, etcd\nafter    -                     Broken        root\n")
	b.run(t, "", "guest", "snapshot", "list", "web", "-o", "xml").want(t, 2, "", "table or json")
	b.run(t, "", "guest", "snapshot", "create", "web", "new").want(t, 0, "guest/web: snapshot-create of new\n")
	b.run(t, "", "guest", "snapshot", "revert", "web", "before").want(t, 0, "guest/web: snapshot-revert of before\n")
	b.run(t, "", "guest", "snapshot", "delete", "web", "bad").want(t, 1, "", "guest/web: snapshot-delete of bad")
	b.run(t, "", "guest", "snapshot", "delete", "web").want(t, 2, "", "want NAME and SNAPSHOT")
	b.run(t, "", "guest", "snapshot", "create", "db", "new").want(t, 1, "", "snapshot new of guest/db: ")
	if r := b.run(t, "", "__complete", "guest", "snapshot", "revert", "web", ""); !strings.Contains(r.out, "before\nafter\n") {
		t.Errorf("completion says %q", r.out)
	}
}
