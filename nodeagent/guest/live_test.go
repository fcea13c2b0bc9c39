package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// moverUID is no other test's: its QEMUs are counted.
const moverUID = "5e0a3f0e-6d0c-4c35-9b53-0d2c1f6ad7b1"

// A Guest that moves live has not noticed: it counts on, with the disks that it
// had and what it wrote into them meanwhile.
func TestLiveMove(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	p := newPair(t, moverUID)
	defer p.end()
	p.live = true
	p.value = linux(p.from)
	linux(p.to) // the blobs
	p.value.Disks = []api.GuestDisk{{Name: "root", Size: quantity("16Mi")}, {Name: "data", Size: quantity("8Mi"), Retain: true, Format: "raw"}}
	p.from.write(p.part(""))
	p.to.write()
	p.keep(p.from, "")
	p.keep(p.to, "")
	p.wait("it counts", func() bool { return p.from.lastTick(moverUID) > 2 })
	p.from.tell(moverUID, "write root hello")
	p.from.tell(moverUID, "write data world")
	p.from.tell(moverUID, "fill root")
	p.from.write(p.part(api.TransferSource))
	p.to.write(p.part(api.TransferTarget))
	p.wait("all is there", func() bool { return p.said(p.from) == api.TransferSent && p.said(p.to) == api.TransferReceived })
	if s := p.status(p.from).Guest.Transfer.Message; !strings.Contains(s, "MiB of memory sent") {
		t.Errorf("of it is said %q", s)
	} else {
		t.Log(s)
	}
	last := p.from.lastTick(moverUID)
	p.from.write(p.part(api.TransferLeft))
	p.to.write(p.part(""))
	p.wait("it runs on the target", p.runs(p.to))
	p.wait("it counts on", func() bool { return p.to.lastTick(moverUID) > last+3 })
	if strings.Contains(p.to.console(moverUID), "@up ") {
		t.Error("it has booted there")
	}
	if first := p.to.tell(moverUID, "read data"); first != "world" {
		t.Errorf("its disk has %q", first)
	}
	if first := p.to.tell(moverUID, "read root"); !strings.HasPrefix(first, "rackweft") {
		t.Errorf("its disk has %q", first)
	}
	p.to.tell(moverUID, "write data again")
	if first := p.to.tell(moverUID, "read data"); first != "again" {
		t.Errorf("its disk has %q", first)
	}
	p.forget(p.from, moverUID)
}

// Snapshots are inside of the disks, and only a copy of those has them.
func TestLiveMoveLeavesNoSnapshotBehind(t *testing.T) {
	t.Parallel()
	p := newPair(t, "snap-"+hexOf(t.Name()))
	defer p.end()
	p.live = true
	if err := os.MkdirAll(p.from.guestDir(p.uid), 0o700); err != nil {
		t.Fatal(err)
	}
	list := []byte(`[{"name": "before", "tag": "before"}]`)
	if err := os.WriteFile(filepath.Join(p.from.guestDir(p.uid), snapshotsFile), list, 0o600); err != nil {
		t.Fatal(err)
	}
	p.begin("", "")
	if p.decided() {
		t.Fatal("it is moved without them")
	}
	if s := p.status(p.from).Guest.Transfer; !strings.Contains(s.Message, "snapshots") {
		t.Errorf("it is told %q", s.Message)
	}
	p.back()
}

func liveSourcePoints() []string {
	return []string{"live source: mirrored", "live source: stopped, not given up", "live source: given up", "live source: completed"}
}

func liveTargetPoints() []string {
	return []string{"live target: started", "live target: loading", "live target: loaded, not written down", "live target: received, not said"}
}

// Wherever an agent is killed in a live move, the Guest comes to run on one host
// and never runs on both; a move that fails leaves it where it was.
func TestCrashesInALiveMove(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many QEMUs")
	}
	for _, point := range append(append([]string{""}, liveSourcePoints()...), liveTargetPoints()...) {
		t.Run(strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			t.Parallel()
			p := newPair(t, "live-"+hexOf(t.Name()))
			defer p.end()
			p.live = true
			from, to := point, ""
			if strings.HasPrefix(point, "live target") {
				from, to = "", point
			}
			p.begin(from, to)
			done := p.decided()
			if point == "" && !done {
				t.Error("it fails although nothing has crashed")
			}
			if done {
				p.arrive()
			} else {
				p.back()
			}
			if point != "" && !p.crashed(point) {
				t.Errorf("nothing has crashed at %q", point)
			}
			t.Logf("done: %t", done)
		})
	}
}

// decided waits until bootd has something to decide about, and reports whether
// that is the switch-over.
func (p *pair) decided() (done bool) {
	p.t.Helper()
	p.wait("it is decided", func() bool {
		done = p.said(p.from) == api.TransferSent && p.said(p.to) == api.TransferReceived
		return done || p.said(p.from) == api.TransferFailed || p.said(p.to) == api.TransferFailed
	})
	return done
}

// A QEMU that dies in the midst of a live move, on either side, costs the Guest
// no more than where it was.
func TestQEMUsDieInALiveMove(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many QEMUs")
	}
	for name, victim := range map[string]func(p *pair) *host{
		"source": func(p *pair) *host { return p.from },
		"target": func(p *pair) *host { return p.to },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, "dies-"+hexOf(t.Name()))
			defer p.end()
			p.live = true
			p.begin("", "")
			if !p.decided() {
				t.Fatal("it fails although nothing has died")
			}
			id, err := launch.ReadIdentity(victim(p).runDir(p.uid))
			if err != nil {
				t.Fatal(err)
			}
			process, err := launch.Open(id)
			if err != nil {
				t.Fatal(err)
			}
			defer process.Close()
			if err := process.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if name == "target" {
				p.wait("the target says so", func() bool { return p.said(p.to) == api.TransferFailed })
			}
			p.back()
		})
	}
}
