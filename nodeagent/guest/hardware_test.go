package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/lab/guestos"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
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

	g.Restart = api.RestartNever
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
	g := packed(h) // unpacked, it often comes up without /dev/tpm0
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

// UEFI measures into the TPM what it boots.
func TestTPMWithUEFI(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	if _, err := os.Stat(ovmfCode); err != nil {
		t.Skipf("needs OVMF, Debian's package ovmf: %v", err)
	}
	t.Parallel()
	h := newHost(t)
	g := linux(h)
	kernel, initrd, err := guestos.Build(t.Context(), "../..", guestos.Cloud) // it takes a while by UEFI as it is
	h.try(err)
	g.Kernel.Kernel, g.Kernel.Initrd = h.blob(kernel), h.blob(initrd)
	g.Memory, g.Firmware, g.TPM, g.StopTimeout = quantity("256Mi"), "uefi", true, 1
	h.run()
	h.want(part("web", uid1, g))
	h.wait("it boots", func() bool { return strings.Contains(h.console(uid1), "@up ") })
	got := h.tell(uid1, "cat /sys/class/tpm/tpm0/pcr-sha256/0")
	if len(got) != 64 || strings.Trim(got, "0") == "" {
		t.Errorf("the register of the firmware holds %s", got)
	}
	h.want(removed("web", uid1))
	h.wait("it is removed", func() bool { _, err := os.Stat(h.guestDir(uid1)); return os.IsNotExist(err) })
}

// shelf stands for bootd: it has what a share holds, or is away.
type shelf struct {
	mu      sync.Mutex
	content *api.GuestShareContent
}

func (s *shelf) share(_ context.Context, guest, share string) (api.GuestShareContent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.content == nil || guest != "web" || share != "tls" {
		return api.GuestShareContent{}, errors.New("nobody is at home")
	}
	return *s.content, nil
}

func (s *shelf) put(content *api.GuestShareContent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content = content
}

// A Guest reads what is handed in, as it is now, and nothing else; it writes
// nothing. Its balloon and its source of entropy are there.
func TestShares(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	shelf := new(shelf)
	h.with = func(o *Options) { o.Share = shelf.share }
	h.run()
	g := linux(h)
	g.StopTimeout = 1
	g.Shares = []api.GuestShare{{Name: "tls", Version: "1"}}
	h.want(part("web", uid1, g))
	h.wait("it waits for what it is to read", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartPending && strings.Contains(s.Message, "share tls: nobody is at home")
	})
	shelf.put(&api.GuestShareContent{Version: "1", Files: map[string]string{"tls.crt": "first", "old": "gone soon"}})
	h.wait("it boots", func() bool { return strings.Contains(h.console(uid1), "@up ") })
	h.must(uid1, "load netfs fscache 9pnet 9pnet_virtio 9p virtio_balloon virtio-rng", "ok")
	const mount = "mount 9p tls /share trans=virtio,version=9p2000.L"
	h.must(uid1, mount, "ok")
	h.must(uid1, "list /share", "old tls.crt")
	h.must(uid1, "cat /share/tls.crt", "first")

	// Another version of it, once bootd has it.
	g.Shares = []api.GuestShare{{Name: "tls", Version: "2"}}
	h.want(part("web", uid1, g))
	h.wait("bootd is behind", func() bool { return strings.Contains(h.status("guest/web").Message, "another version") })
	shelf.put(&api.GuestShareContent{Version: "2", Files: map[string]string{"tls.crt": "second", "tls.key": "new"}})
	h.wait("it has it", h.is("guest/web", api.PartApplied, "Running"))
	h.must(uid1, "list /share", "tls.crt tls.key")
	h.must(uid1, "cat /share/tls.crt", "second")
	if c := h.status("guest/web").Guest.Conditions; !c.Is(conditionCurrent) {
		t.Errorf("a restart is due: %+v", c)
	}

	// It is read-only for the Guest's root, and no link leads out of it.
	for _, command := range []string{"touch /share/mine", "touch /share/tls.crt"} {
		if got := h.tell(uid1, command); !strings.Contains(got, "read-only file system") {
			t.Errorf("%s: %s", command, got)
		}
	}
	outside := filepath.Join(h.dir, "outside")
	h.try(os.WriteFile(outside, []byte("the host's"), 0o644))
	dir := filepath.Join(h.runDir(uid1), "shares", "tls")
	h.try(os.Symlink(outside, filepath.Join(dir, "link")))
	h.try(os.Symlink(h.dir, filepath.Join(dir, "dir")))
	for _, command := range []string{"cat /share/link", "list /share/dir", "cat /share/../" + outside} {
		if got := h.tell(uid1, command); !strings.Contains(got, "no such file") {
			t.Errorf("%s: %s", command, got)
		}
	}
	for _, at := range []struct {
		path string
		mode os.FileMode
	}{{h.runDir(uid1), 0o700}, {dir, 0o750}, {filepath.Join(dir, "tls.key"), 0o440}} {
		info, err := os.Stat(at.path)
		h.try(err)
		if info.Mode().Perm() != at.mode || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s is %v", at.path, info.Mode())
		}
	}

	h.must(uid1, "random", "16 bytes")
	monitor, err := qmp.Dial(t.Context(), filepath.Join(h.runDir(uid1), "monitor.sock"), nil)
	h.try(err)
	defer monitor.Close()
	smaller := quantity("160Mi")
	h.try(monitor.Execute(t.Context(), "balloon", map[string]any{"value": smaller.Value()}, nil))
	h.wait("its balloon is blown up", func() bool {
		var info struct{ Actual int64 }
		return monitor.Execute(t.Context(), "query-balloon", nil, &info) == nil && info.Actual == smaller.Value()
	})

	// It starts again without bootd, with what the host has.
	shelf.put(nil)
	h.stop()
	h.run()
	g.Request = &api.GuestRequest{ID: "1", Verb: api.GuestRestart}
	h.want(part("web", uid1, g))
	h.wait("it boots again", func() bool { return strings.Count(h.console(uid1), "@up ") == 2 })
	h.must(uid1, "load netfs fscache 9pnet 9pnet_virtio 9p", "ok")
	h.must(uid1, mount, "ok")
	h.must(uid1, "cat /share/tls.crt", "second")

	h.want(removed("web", uid1))
	h.wait("nothing is left", func() bool {
		_, err := os.Stat(h.runDir(uid1))
		return os.IsNotExist(err)
	})
}
