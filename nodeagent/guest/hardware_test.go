package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
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

// swtpm is the Guest's TPM, as it stands now.
func (h *host) swtpm(uid string) launch.Identity {
	h.t.Helper()
	id, err := launch.ReadIdentity(filepath.Join(h.runDir(uid), "tpm"))
	h.try(err)
	return id
}

// A TPM keeps what it holds for as long as the Guest's disks are kept, whatever
// becomes of the Guest, of QEMU, of the agent, and of the TPM's own process.
func TestTPM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel several times under emulation")
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h)
	g.TPM, g.StopTimeout = true, 1
	h.run()
	h.want(part("web", uid1, g))
	up := func(n int) func() bool {
		return func() bool { return strings.Count(h.console(uid1), "@up ") == n }
	}
	h.wait("it boots", up(1))
	h.must(uid1, "cat /sys/class/tpm/tpm0/tpm_version_major", "2")
	h.must(uid1, "tpm kept", "ok")
	h.must(uid1, "tpm", "kept")

	first := h.swtpm(uid1)
	user := h.record(uid1).User
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", first.PID))
	h.try(err)
	want := fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", user+65536)
	if !strings.Contains(string(status), want) || !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Errorf("swtpm's status is %s", status)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	h.try(err)
	if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", first.PID)); err != nil || ns == own {
		t.Errorf("swtpm is in the network namespace %s: %v", ns, err)
	}
	info, err := os.Stat(filepath.Join(h.guestDir(uid1), "tpm"))
	h.try(err)
	if info.Mode().Perm() != 0o700 || info.Sys().(*syscall.Stat_t).Uid != uint32(user+65536) {
		t.Errorf("the state's directory is %v", info)
	}

	// The agent's end and QEMU's crash.
	h.stop()
	if h.swtpm(uid1) != first {
		t.Error("another TPM is there")
	}
	h.run()
	h.wait("it is adopted", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartApplied && s.Guest.Conditions.Is(conditionTPM)
	})
	id, err := launch.ReadIdentity(h.runDir(uid1))
	h.try(err)
	end(id)
	h.wait("it boots after a crash", up(2))
	if h.swtpm(uid1) == first {
		t.Error("the TPM of the run that crashed is still there")
	}
	h.must(uid1, "tpm", "kept")

	// One that hangs when its QEMU ends.
	second, err := launch.Open(h.swtpm(uid1))
	h.try(err)
	defer second.Close()
	h.try(second.Signal(unix.SIGSTOP))
	g.Request = &api.GuestRequest{ID: "1", Verb: api.GuestRestart}
	h.want(part("web", uid1, g))
	h.wait("it boots after a restart", up(3))
	h.must(uid1, "tpm", "kept")

	// One that dies before its Guest.
	end(h.swtpm(uid1))
	h.wait("its end is told", h.saw("TPMEnded"))
	h.wait("the condition says so", func() bool {
		c := h.status("guest/web").Guest.Conditions.Get(conditionTPM)
		return c != nil && c.Status == api.False
	})

	h.want(removed("web", uid1))
	h.wait("it is removed", func() bool {
		_, err := os.Stat(h.guestDir(uid1))
		return os.IsNotExist(err)
	})
}
