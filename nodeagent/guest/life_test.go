package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

const uid1 = "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"

// uid2 is another Guest's.
const uid2 = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"

func TestLife(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel several times under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h)
	base := h.blob([]byte("from the image\x00" + strings.Repeat("\x00", 1<<20-15)))
	g.Disks = []api.GuestDisk{{Name: "root", Size: quantity("2Mi"), Image: base}, {Name: "etcd", Size: quantity("1Mi"), Retain: true}}
	g.Config = api.GuestConfig{URL: "http://169.254.169.254/ignition", IgnitionVersion: "3.4.0"}
	g.CPUs = 2
	h.run()
	h.want(part("web", uid1, g))
	ticks := func() bool { return strings.Contains(h.console(uid1), "@tick 3") }
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.wait("it counts", ticks)
	if got := h.tell(uid1, "read root"); got != "from the image" {
		t.Errorf("its root disk holds %q", got)
	}
	if got := h.tell(uid1, "disk root"); got != "4096" {
		t.Errorf("its root disk has %s sectors", got)
	}
	pointer := `true {"ignition":{"version":"3.4.0","config":{"replace":{"source":"http://169.254.169.254/ignition","httpHeaders":[{"name":"Authorization","value":"Bearer ` + h.record(uid1).Access.Token + `"}]}}}}`
	if got := h.tell(uid1, "config"); !strings.HasPrefix(got, pointer) {
		t.Errorf("its Ignition pointer is %s", got)
	}
	if got := h.tell(uid1, "write etcd members"); got != "ok" {
		t.Errorf("writing gives %s", got)
	}
	s := h.status("guest/web").Guest
	if !s.Conditions.Is(conditionResponsive) || !s.Conditions.Is(conditionCurrent) || s.Conditions.Is(conditionAccelerated) || s.Accelerator != "tcg" {
		t.Errorf("it is seen as %+v", s)
	}

	// A disk grows while it runs; more memory needs a restart, and says so.
	g.Disks[0].Size, g.Memory = quantity("3Mi"), quantity("200Mi")
	h.want(part("web", uid1, g))
	h.wait("its disk grows", h.saw("DiskGrown"))
	h.wait("a restart is due", func() bool {
		c := h.status("guest/web").Guest.Conditions.Get(conditionCurrent)
		return c != nil && c.Reason == "RestartNeeded"
	})
	if got := h.tell(uid1, "disk root"); got != "6144" {
		t.Errorf("the grown disk has %s sectors", got)
	}

	g.State = "Paused"
	h.want(part("web", uid1, g))
	h.wait("it is paused", h.is("guest/web", api.PartApplied, "Paused"))
	g.State = "Running"
	h.want(part("web", uid1, g))
	h.wait("it goes on", h.is("guest/web", api.PartApplied, "Running"))

	boots := func() int { return strings.Count(h.console(uid1), "@up ") }
	before := boots()
	g.Request = &api.GuestRequest{ID: "r1", Verb: api.GuestReset}
	h.want(part("web", uid1, g))
	h.wait("it boots after a reset", func() bool { return boots() == before+1 })
	g.Request = &api.GuestRequest{ID: "r2", Verb: api.GuestRestart}
	h.want(part("web", uid1, g))
	h.wait("it boots after a restart", func() bool { return boots() == before+2 })
	h.wait("the request is done", func() bool {
		s := h.status("guest/web").Guest
		return s.Request == "r2" && s.Conditions.Is(conditionCurrent)
	})
	if n := strings.Count(h.console(uid1), "@power button"); n < 1 { // asked again if it was slow
		t.Errorf("the power button was pressed %d times", n)
	}

	// With another policy it may stay off; the word of a person starts it.
	g.Restart = api.RestartOnFailure
	h.want(part("web", uid1, g))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.tellOnly(uid1, "off")
	h.wait("it stays off", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartPending && s.Guest.State == "Stopped" && strings.Contains(s.Message, "OnFailure")
	})
	g.State = "Stopped"
	h.want(part("web", uid1, g))
	h.wait("it is stopped", h.is("guest/web", api.PartApplied, "Stopped"))
	if _, err := os.Stat(filepath.Join(h.guestDir(uid1), "disks", "root.qcow2")); err != nil {
		t.Errorf("a stopped Guest's disk: %v", err)
	}

	h.want(removed("web", uid1))
	h.wait("it is removed", func() bool { return h.status("guest/web@"+uid1).State == api.PartApplied })
	for _, dir := range []string{h.guestDir(uid1), h.runDir(uid1)} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is there after the end: %v", dir, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.dir, "state", "retained", "-", "web", "etcd.qcow2")); err != nil {
		t.Errorf("the disk to retain: %v", err)
	}
}

// tellOnly tells a Guest what it cannot answer to.
func (h *host) tellOnly(uid, command string) {
	h.t.Helper()
	h.wait("it listens", func() bool {
		said := h.console(uid)
		_, after, found := strings.Cut(said[max(0, strings.LastIndex(said, "@up ")):], "@tick 2\r")
		return found && after != ""
	})
	before := len(h.console(uid))
	conn := h.dial(uid, "console.sock")
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(command + "\r")); err != nil {
		h.t.Fatal(err)
	}
	h.wait("it has got "+command, func() bool {
		said := h.console(uid)
		return strings.Contains(said[min(before, len(said)):], "@got "+command+"\r")
	})
}

// The real qemu-ga is asked to shut its Guest down, not the power button.
func TestAgentShutdown(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := withAgent(h)
	h.run()
	h.want(part("small", "u2", g))
	h.waitAgent("small", "u2")
	g.State = "Stopped"
	h.want(part("small", "u2", g))
	h.wait("it is stopped", h.is("guest/small", api.PartApplied, "Stopped"))
	if said := h.console("u2"); !strings.Contains(said, "@shutdown -h -P +0") || strings.Contains(said, "@power button") {
		t.Error("it was not shut down by its guest agent")
	}
	// Orphaned, it is not started, and not touched.
	g.State = "Running"
	p := part("small", "u2", g)
	p.Want = nodeagent.Orphaned
	h.want(p)
	h.wait("it is looked at", h.is("guest/small", api.PartApplied, "Stopped"))
	if _, err := os.Stat(h.guestDir("u2")); err != nil {
		t.Error(err)
	}
}

// Under emulation a microvm has no ACPI, and Debian's kernel finds no devices
// then: it boots, and is deaf to being asked to stop.
func TestMicroVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := packed(h) // by PVH, the kernel panics without ACPI
	g.Machine, g.StopTimeout = "microvm", api.Duration(time.Second)
	g.Limits.DiskOperations = 1000
	h.run()
	h.want(part("small", "u2", g))
	h.wait("it counts", func() bool { return strings.Contains(h.console("u2"), "@tick 3") })
	h.wait("its disk is limited", func() bool { return h.throttles("u2")["disk-root"].Operations == 1000 })
	g.State = "Stopped"
	h.want(part("small", "u2", g))
	h.wait("it is forced off", h.is("guest/small", api.PartApplied, "Stopped"))
}
