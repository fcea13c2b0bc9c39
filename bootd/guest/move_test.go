package guest

import (
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// drain has a host be left, or not.
func (b *bench) drain(host string, on bool) {
	b.machine(host, func(m *api.Machine) {
		m.Metadata.Annotations = map[string]string{}
		if on {
			m.Metadata.Annotations[api.DrainAnnotation] = "true"
		}
	})
}

// says is a host that reports of a Guest's move, and of nothing else.
func (b *bench) says(host, name, id, state string) {
	b.t.Helper()
	b.machine(host, func(m *api.Machine) {
		if m.Status.Host.Parts == nil {
			m.Status.Host.Parts = map[string]api.PartStatus{}
		}
		m.Status.Host.Parts[api.GuestPartName(name)] = api.PartStatus{State: api.PartPending,
			Guest: &api.GuestObserved{State: api.GuestStopped, Transfer: &api.GuestTransferred{ID: id, State: state, Message: "at work"}}}
	})
}

// obeys is a host that has made its part of a Guest so.
func (b *bench) obeys(host, name string) {
	b.t.Helper()
	g := b.guest(name)
	m := b.get(host)
	p, err := PartOn(b.Cache, g, m.Metadata.UID)
	if err != nil || p == nil {
		b.t.Fatalf("%s has no part of %s: %v", host, name, err)
	}
	raw, err := api.EncodePart(p)
	if err != nil {
		b.t.Fatal(err)
	}
	b.machine(host, func(m *api.Machine) {
		m.Status.Host.Parts = map[string]api.PartStatus{api.GuestPartName(name): {Digest: api.PartDigest(raw), State: api.PartApplied, Guest: &api.GuestObserved{State: p.State}}}
	})
}

// transfer waits until a Guest is being copied, and returns it.
func (b *bench) transfer(name string) *api.Guest {
	b.t.Helper()
	var g *api.Guest
	b.eventually(name+" is being copied", func() bool {
		g = b.guest(name)
		return g.Status.Move != nil && g.Status.Move.Step == api.MoveTransfer
	})
	return g
}

// steady makes sure that a Guest's host is what it was when all that follows is done.
func (b *bench) steady(name, host string) {
	b.t.Helper()
	b.Idle(b.control)
	if now := b.guest(name).Status.Host; now != host {
		b.t.Fatalf("%s is on %q, and should be on %s still", name, now, host)
	}
}

func data(g *api.Guest) {
	g.Spec.Disks = []api.Disk{{Name: "root", Size: api.Bytes(1 << 30)}, {Name: "data", Size: api.Bytes(1 << 30), Retain: true}}
}

// A drained host's Guest goes with its disks: it changes its host when both hosts
// have said that all is there, and its old one keeps its copy until it runs.
func TestDrain(t *testing.T) {
	b := newBench(t, "h1")
	b.create("web", data)
	was := b.placed("web")
	b.obey("web")
	b.because("web", api.CondReady, "Running")
	b.addHost("h2")
	b.drain("h1", true)
	g := b.transfer("web")
	id := g.Status.Move.ID
	source, err := PartOn(b.Cache, g, b.get("h1").Metadata.UID)
	if err != nil || source.State != api.GuestRunning || source.Transfer == nil || source.Transfer.Role != api.TransferSource || source.Transfer.Peer.Host != "h2" || !source.Disks[1].Retain {
		t.Fatalf("its host is told %+v, %v", source, err)
	}
	target, err := PartOn(b.Cache, g, b.get("h2").Metadata.UID)
	if err != nil || target.Transfer == nil || target.Transfer.Role != api.TransferTarget || target.Transfer.Peer.Host != "h1" || target.Transfer.ID != id || target.Disks[1].Retain {
		t.Fatalf("the other is told %+v, %v", target, err)
	}
	b.says("h1", "web", id, api.TransferSent)
	b.steady("web", "h1")
	b.stop() // bootd is killed, and another goes on
	b.start()
	b.says("h1", "web", "another", api.TransferSent) // what was said of another move counts for nothing
	b.says("h2", "web", id, api.TransferReceived)
	b.steady("web", "h1")
	b.says("h1", "web", id, api.TransferSent)
	b.eventually("it is on the other host", func() bool { return b.guest("web").Status.Host == "h2" })
	now := b.guest("web")
	if now.Status.Addresses[0] != was.Status.Addresses[0] || now.Status.MAC != was.Status.MAC || now.Status.Move != nil || !now.Status.LastMove.Done || !strings.Contains(now.Status.LastMove.Message, "at work") {
		t.Errorf("it is now %+v, and was %+v", now.Status, was.Status)
	}
	if p, err := PartOn(b.Cache, now, now.Status.HostUID); err != nil || p.State != api.GuestRunning || p.Transfer != nil || !p.Disks[1].Retain {
		t.Errorf("there it is to be %+v, %v", p, err)
	}
	held := func() bool {
		left := b.guest("web").Status.Left
		return len(left) == 1 && left[0].Host == "h1" && left[0].Held == id && left[0].Since == 0
	}
	b.eventually("its old host keeps its copy", held)
	old, err := PartOn(b.Cache, now, was.Status.HostUID)
	if err != nil || old == nil || old.Transfer.Role != api.TransferLeft || old.State != api.GuestStopped || old.Disks[1].Retain {
		t.Fatalf("that is told %+v, %v", old, err)
	}
	b.obeys("h1", "web")
	b.Idle(b.control)
	if !held() {
		t.Fatal("it is told to forget it before it runs elsewhere")
	}
	b.obeys("h2", "web")
	b.eventually("its old host is told to forget it", func() bool {
		left := b.guest("web").Status.Left
		return len(left) == 1 && left[0].Held == "" && left[0].Since > 0
	})
	b.gone("h1")
	b.eventually("it has", func() bool { return len(b.guest("web").Status.Left) == 0 })
}

// A move that is given up has the Guest go on where it was, the target forget it,
// and no other begin at once.
func TestMoveIsGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		why   func(b *bench)
		words string
	}{
		"no one asks for it any longer": {func(b *bench) { b.drain("h1", false) }, "no longer has to leave"},
		"its deadline": {func(b *bench) {
			b.change("web", func(g *api.Guest) { g.Status.Move.Deadline = time.Now().Add(-time.Second) })
		}, "at work"},
		"the target is drained": {func(b *bench) { b.drain("h2", true) }, "can no longer run it"},
		"the target fails":      {func(b *bench) { b.machine("h2", func(m *api.Machine) { m.Status.Phase = api.PhaseFailed }) }, "can no longer run it"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "h1")
			b.create("web", data, func(g *api.Guest) { g.Spec.Placement.Migration = api.MigrateStop })
			b.placed("web")
			b.addHost("h2")
			b.drain("h1", true)
			id := b.transfer("web").Status.Move.ID
			b.says("h1", "web", id, api.TransferWorking)
			b.says("h2", "web", id, api.TransferReceived)
			c.why(b)
			b.eventually("it is called back", func() bool { return b.guest("web").Status.Move.Step == api.MoveBack })
			g := b.guest("web")
			if p, err := PartOn(b.Cache, g, g.Status.HostUID); err != nil || p.State != api.GuestRunning || p.Transfer.Role != api.TransferBack || p.Transfer.ID != id {
				t.Errorf("its host is told %+v, %v", p, err)
			}
			if p, err := PartOn(b.Cache, g, b.get("h2").Metadata.UID); p != nil || len(g.Status.Left) != 1 || g.Status.Left[0].Host != "h2" || g.Status.Left[0].Held != "" {
				t.Errorf("the other is told %+v, %v; %+v", p, err, g.Status.Left)
			}
			// It is too late to say that all was sent.
			b.says("h1", "web", id, api.TransferSent)
			b.steady("web", "h1")
			b.says("h1", "web", id, api.TransferredBack)
			b.eventually("the move is over", func() bool { return b.guest("web").Status.Move == nil })
			if last := b.guest("web").Status.LastMove; last.Done || !strings.Contains(last.Message, c.words) {
				t.Errorf("of it is said %+v", last)
			}
			b.drain("h1", true)
			b.because("web", api.CondPlaced, "MoveFailed")
		})
	}
}

// When a host is known to have no power, what its Guest's target has is all there is.
func TestSourceDiesInItsMove(t *testing.T) {
	for name, c := range map[string]struct {
		there string // what the target has said
		host  string // that the Guest is on then
	}{"all has come": {api.TransferReceived, "h2"}, "not all has come": {api.TransferWorking, "h1"}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "h1")
			b.create("web", data)
			b.placed("web")
			b.addHost("h2")
			b.drain("h1", true)
			id := b.transfer("web").Status.Move.ID
			b.says("h2", "web", id, c.there)
			b.machine("h1", func(m *api.Machine) { m.Status.Conditions.Set(time.Now(), api.CondFenced, api.True, "PoweredOff", "") })
			b.eventually("the transfer is over", func() bool {
				move := b.guest("web").Status.Move
				return move == nil || move.Step != api.MoveTransfer
			})
			b.steady("web", c.host)
			if c.host == "h1" {
				b.because("web", api.CondReady, "HostDown")
			}
		})
	}
}

// Deleting a Guest on its move takes it from both hosts, and its disk is retained
// on one of them.
func TestDeletedInItsMove(t *testing.T) {
	b := newBench(t, "h1")
	b.create("web", data)
	b.placed("web")
	b.addHost("h2")
	b.drain("h1", true)
	b.transfer("web")
	if err := b.Store.Delete(t.Context(), guestKind(t), "web", ""); err != nil {
		t.Fatal(err)
	}
	b.eventually("both hosts are told", func() bool {
		g := b.guest("web")
		return len(g.Status.Left) == 2 && g.Status.Left[0].Since > 0 && g.Status.Left[1].Since > 0
	})
}

// On a person's word a Guest begins anew elsewhere, whatever its move is at.
func TestLosingDisksInAMove(t *testing.T) {
	b := newBench(t, "h1")
	b.create("web", data)
	b.placed("web")
	b.addHost("h2")
	b.drain("h1", true)
	id := b.transfer("web").Status.Move.ID
	b.change("web", func(g *api.Guest) {
		if err := Ask(g, api.GuestVerbMove, api.GuestAction{}); err == nil {
			t.Error("two moves at once")
		}
		if err := Ask(g, api.GuestVerbMove, api.GuestAction{LoseDisks: true}); err != nil {
			t.Error(err)
		}
	})
	b.says("h1", "web", id, api.TransferredBack)
	b.gone("h2")
	b.eventually("it is being stopped", func() bool { return b.guest("web").Status.Move.Step == api.MoveStopping })
	b.obey("web")
	b.eventually("it begins anew", func() bool { g := b.guest("web"); return g.Status.Host == "h2" && g.Status.Move == nil })
	if left := b.guest("web").Status.Left; len(left) != 1 || left[0].Host != "h1" || left[0].Held != "" {
		t.Errorf("its old host is told %+v", left)
	}
}

// The next step of a transfer, for all that it depends on.
func TestNextStep(t *testing.T) {
	now := time.Now()
	for bits := range 128 {
		on := func(bit int) bool { return bits>>bit&1 == 1 }
		s := standing{sent: on(0), received: on(1), stay: on(2), lost: on(3), now: now, deadline: now.Add(time.Minute)}
		if on(4) {
			s.deadline = now.Add(-time.Minute)
		}
		s.halted = on(5)
		if on(6) {
			s.failed = "QEMU has ended"
		}
		want := api.MoveTransfer
		switch {
		case s.sent && s.received:
			want = arrived
		case s.stay, s.lost, s.halted, on(4), on(6):
			want = api.MoveBack
		}
		if got, why := s.next(); got != want || (got == api.MoveBack) != (why != "") {
			t.Errorf("%+v: %s, %q", s, got, why)
		}
	}
}

// A live move that fails is gone through with a stop, unless a person wanted it
// live or not at all.
func TestLiveFallsBack(t *testing.T) {
	b := newBench(t, "h1")
	b.create("web", data)
	b.placed("web")
	b.obey("web")
	b.because("web", api.CondReady, "Running")
	b.addHost("h2")
	b.change("web", func(g *api.Guest) {
		if err := Ask(g, api.GuestVerbMove, api.GuestAction{}); err != nil {
			t.Error(err)
		}
	})
	g := b.transfer("web")
	first := g.Status.Move
	if p, err := PartOn(b.Cache, g, g.Status.HostUID); err != nil || first.Mode != api.MigrateLive || !p.Transfer.Live {
		t.Fatalf("it is moved %s, %v", first.Mode, err)
	}
	b.says("h2", "web", first.ID, api.TransferFailed)
	b.eventually("it is called back", func() bool { return b.guest("web").Status.Move.Step == api.MoveBack })
	b.says("h1", "web", first.ID, api.TransferredBack)
	b.because("web", api.CondPlaced, "NowhereToGo") // the target has not forgotten it yet
	b.gone("h2")
	next := b.transfer("web").Status.Move
	if next.ID == first.ID || next.Mode != api.MigrateStop || !next.Started.Equal(first.Started) {
		t.Errorf("it is moved with %+v after %+v", next, first)
	}
	b.says("h1", "web", next.ID, api.TransferSent)
	b.says("h2", "web", next.ID, api.TransferReceived)
	b.eventually("it is there", func() bool { return b.guest("web").Status.Host == "h2" })
	b.change("web", func(g *api.Guest) { g.Status.Left, g.Status.State = nil, api.GuestRunning })

	b.change("web", func(g *api.Guest) {
		if err := Ask(g, api.GuestVerbMove, api.GuestAction{Mode: api.MigrateLive}); err != nil {
			t.Error(err)
		}
	})
	only := b.transfer("web").Status.Move
	b.says("h2", "web", only.ID, api.TransferFailed)
	b.eventually("it is called back", func() bool { return b.guest("web").Status.Move.Step == api.MoveBack })
	b.says("h2", "web", only.ID, api.TransferredBack)
	b.eventually("it stays", func() bool { return b.guest("web").Status.Move == nil })
}

// How a Guest moves, by what it says itself and by what the Site does.
func TestMigration(t *testing.T) {
	b := newBench(t, "h1")
	for name, migration := range map[string]string{"site": "", "stop": api.MigrateStop, "none": api.MigrateNone} {
		b.create(name, func(g *api.Guest) { g.Spec.Placement.Migration = migration })
		b.placed(name)
		b.obey(name)
	}
	b.addHost("h2")
	b.drain("h1", true)
	for name, mode := range map[string]string{"site": api.MigrateLive, "stop": api.MigrateStop} {
		if move := b.transfer(name).Status.Move; move.Mode != mode {
			t.Errorf("%s is moved %s", name, move.Mode)
		}
	}
	b.because("none", api.CondPlaced, "Pinned")
	b.change("none", func(g *api.Guest) {
		if err := Ask(g, api.GuestVerbMove, api.GuestAction{}); err != nil {
			t.Error(err)
		}
	})
	b.transfer("none")
}
