package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// crash has an agent do what parts say until it kills itself at a point.
func (h *host) crash(point string, parts ...nodeagent.Part) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(parts...)
	cmd := exec.Command(self, "agent", h.dir)
	cmd.Env = append(os.Environ(), crashAt+"="+point)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	end := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer end.Stop()
	if err := cmd.Wait(); err == nil {
		h.t.Fatalf("no agent came to %q", point)
	}
}

// At each step of making and of removing a Guest an agent is killed; its
// successor ends where it would have.
func TestCrashTable(t *testing.T) {
	if testing.Short() {
		t.Skip("kills many agents")
	}
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	g.Disks = append(g.Disks, api.GuestDisk{Name: "data", Size: quantity("1Mi"), Retain: true})
	for i, point := range []string{"create: recorded", "create: disks made", "create: launched", "create: adopted, not expected",
		"delete: QEMU is gone", "delete: disks are gone"} {
		uid := "table-" + string(rune('a'+i))
		p := part(uid, uid, g)
		if strings.HasPrefix(point, "create") {
			h.crash(point, p)
		}
		h.run()
		h.want(p)
		h.wait("it runs after "+point, h.is("guest/"+uid, api.PartApplied, "Running"))
		if n := h.qemus(uid); n != 1 {
			t.Errorf("%s: %d QEMUs", point, n)
		}
		if strings.HasPrefix(point, "delete") {
			h.stop()
			h.crash(point, removed(uid, uid))
			h.run()
		}
		h.want(removed(uid, uid))
		h.wait("it is gone", func() bool { return h.status("guest/"+uid+"@"+uid).State == api.PartApplied })
		h.stop()
		if n := h.qemus(uid); n != 0 {
			t.Errorf("%s: %d QEMUs are left", point, n)
		}
		for _, dir := range []string{h.guestDir(uid), h.runDir(uid)} {
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s: %s is left: %v", point, dir, err)
			}
		}
		if _, err := os.Stat(filepath.Join(h.dir, "state", "retained", "-", uid, "data.qcow2")); err != nil {
			t.Errorf("%s: the disk to retain: %v", point, err)
		}
	}
}
