package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
)

// agent starts a handler in a process of its own; kill ends it as kill -9 does.
func (h *host) agent() (kill func()) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(self, "agent", h.dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// lastTick is how far a Guest has counted.
func (h *host) lastTick(uid string) int {
	all := regexp.MustCompile(`@tick (\d+)\r`).FindAllStringSubmatch(h.console(uid), -1)
	if len(all) == 0 {
		return 0
	}
	n, err := strconv.Atoi(all[len(all)-1][1])
	if err != nil {
		return 0
	}
	return n
}

// A Guest counts on however often its agent is killed, and is adopted each time.
func TestSurvivesKills(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	h.write(part("web", uid1, linux(h)))
	kill := h.agent()
	h.wait("it counts", func() bool { return h.lastTick(uid1) > 2 })
	id, err := launch.ReadIdentity(h.runDir(uid1))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		time.Sleep(time.Duration(i) * 40 * time.Millisecond) // in the midst of whatever it does
		kill()
		before := h.lastTick(uid1)
		h.wait("it counts on without an agent", func() bool { return h.lastTick(uid1) > before })
		kill = h.agent()
	}
	kill()
	h.run()
	h.want(part("web", uid1, linux(h)))
	h.wait("it is adopted", h.is("guest/web", api.PartApplied, "Running"))
	if now, err := launch.ReadIdentity(h.runDir(uid1)); err != nil || now != id {
		t.Errorf("it was %+v, and is %+v: %v", id, now, err)
	}
	if n := strings.Count(h.console(uid1), "@up "); n != 1 {
		t.Errorf("it has booted %d times", n)
	}
	h.stop() // a graceful end leaves it, too
	before := h.lastTick(uid1)
	h.wait("it counts on after a graceful end", func() bool { return h.lastTick(uid1) > before })
}

// qemus counts the QEMUs of a Guest.
func (h *host) qemus(uid string) int {
	n := 0
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		raw, _ := os.ReadFile(path) // one that has ended meanwhile counts for nothing
		if strings.Contains(string(raw), "\x00-uuid\x00"+machineID(uid)+"\x00") {
			n++
		}
	}
	return n
}

// Wherever an agent is killed while it makes or removes a Guest, its successor
// ends up with one QEMU, or with nothing.
func TestCrashPoints(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many QEMUs")
	}
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	g.Disks[0].Retain = true
	for i := range 10 {
		uid := "crash-" + strconv.Itoa(i)
		delay := time.Duration(i) * 15 * time.Millisecond
		present, gone := part(uid, uid, g), removed(uid, uid)
		h.write(present)
		kill := h.agent()
		time.Sleep(delay)
		kill()
		h.run()
		h.want(present)
		h.wait("it runs", h.is("guest/"+uid, api.PartApplied, "Running"))
		if n := h.qemus(uid); n != 1 {
			t.Errorf("killed %s after its begin: %d QEMUs", delay, n)
		}
		h.stop()

		h.write(gone)
		kill = h.agent()
		time.Sleep(delay)
		kill()
		h.run()
		h.want(gone)
		h.wait("it is gone", func() bool { return h.status("guest/"+uid+"@"+uid).State == api.PartApplied })
		h.stop()
		if n := h.qemus(uid); n != 0 {
			t.Errorf("killed %s after its removal began: %d QEMUs are left", delay, n)
		}
		for _, dir := range []string{h.guestDir(uid), h.runDir(uid)} {
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", dir, err)
			}
		}
		if _, err := os.Stat(filepath.Join(h.dir, "state", "retained", "-", uid, "root.qcow2")); err != nil {
			t.Errorf("the disk to retain: %v", err)
		}
	}
}

// A host that has rebooted has no processes and no run directory: its Guests
// are started again, whatever their restart policy.
func TestReboot(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	g.Restart = api.RestartNever
	p := part("web", uid1, g)
	h.run()
	h.want(p)
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	first, err := launch.ReadIdentity(h.runDir(uid1))
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	h.sweep()
	if err := os.RemoveAll(filepath.Join(h.dir, "run")); err != nil {
		t.Fatal(err)
	}
	r, err := readRecord(h.guestDir(uid1))
	if err != nil {
		t.Fatal(err)
	}
	r.Launched.BootID = "an earlier one"
	if err := r.write(h.guestDir(uid1)); err != nil {
		t.Fatal(err)
	}
	h.run()
	h.wait("it runs again", h.is("guest/web", api.PartApplied, "Running"))
	second, err := launch.ReadIdentity(h.runDir(uid1))
	if err != nil || second == first {
		t.Errorf("it is %+v after the reboot, it was %+v: %v", second, first, err)
	}
	// A QEMU that dies in the same boot has crashed: by this policy it stays so.
	h.sweep()
	h.wait("its crash is told", h.saw("Crashed"))
	h.wait("it stays so", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartPending && strings.Contains(s.Message, "Never")
	})
}

// A QEMU that hangs is told of, and ended by force when it has to.
func TestHung(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	h.run()
	h.want(part("web", uid1, g))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	id, err := launch.ReadIdentity(h.runDir(uid1))
	if err != nil {
		t.Fatal(err)
	}
	p, err := launch.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	responsive := func(want bool) func() bool {
		return func() bool {
			s := h.status("guest/web")
			return s.Guest != nil && s.Guest.Conditions.Is(conditionResponsive) == want
		}
	}
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.wait("its silence is told", responsive(false))
	if s := h.status("guest/web"); s.Guest.State != "Unknown" || s.State != api.PartPending {
		t.Errorf("it is %+v", s)
	}
	if err := p.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.wait("it answers again", responsive(true))
	if err := p.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	g.State = "Stopped"
	h.want(part("web", uid1, g))
	h.wait("it is killed", h.is("guest/web", api.PartApplied, "Stopped"))
}

// A process that is not the Guest's QEMU is neither adopted nor harmed.
func TestStrangers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := bare(h)
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	lives := func() bool { return stranger.Process.Signal(unix.Signal(0)) == nil }
	h.run()
	h.want(part("web", uid1, g))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.stop()
	path := filepath.Join(h.runDir(uid1), "process.json")
	truth, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var id launch.Identity
	if err := json.Unmarshal(truth, &id); err != nil {
		t.Fatal(err)
	}
	// The number of another process, as after a restart of the numbers.
	id.PID = stranger.Process.Pid
	raw, err := json.Marshal(id)
	if err == nil {
		err = os.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	g.State = "Stopped"
	h.want(part("web", uid1, g))
	h.run()
	h.wait("it is refused", func() bool {
		return strings.Contains(h.status("guest/web").Message, "not by a QEMU that nodeagent knows")
	})
	if !lives() {
		t.Fatal("the stranger was ended")
	}
	h.stop()

	// Another Guest's monitor in this one's place.
	if err := os.WriteFile(path, truth, 0o600); err != nil {
		t.Fatal(err)
	}
	h.want(part("web", uid1, g, func(p *api.GuestPart) { p.State = "Running" }), part("other", "stranger", bare(h)))
	h.run()
	h.wait("both run", func() bool {
		return h.is("guest/web", api.PartApplied, "Running")() && h.is("guest/other", api.PartApplied, "Running")()
	})
	h.stop()
	others, err := launch.ReadIdentity(h.runDir("stranger"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"qmp.sock", "process.json"} {
		if err := os.Rename(filepath.Join(h.runDir("stranger"), name), filepath.Join(h.runDir(uid1), name)); err != nil {
			t.Fatal(err)
		}
	}
	h.want(part("web", uid1, g))
	h.run()
	h.wait("the other's QEMU is refused", func() bool { return strings.Contains(h.status("guest/web").Message, errStranger.Error()) })
	if p, err := launch.Open(others); err != nil {
		t.Errorf("the other Guest was ended: %v", err)
	} else {
		p.Close()
	}
	h.stop()
	end(others)
	if err := os.WriteFile(path, truth, 0o600); err != nil { // for the test's end
		t.Fatal(err)
	}
}

// A full file system pauses a Guest, and room lets it go on.
func TestDiskFull(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	t.Parallel()
	h := newHost(t)
	state := filepath.Join(h.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=48m"); err != nil {
		t.Skipf("needs mount(2): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(state, unix.MNT_DETACH) })
	g := packed(h)
	g.Disks[0].Size = quantity("64Mi")
	h.run()
	h.want(part("web", uid1, g))
	h.wait("it counts", func() bool { return strings.Contains(h.console(uid1), "@tick 3") })
	var room unix.Statfs_t
	if err := unix.Statfs(state, &room); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(state, "filler")
	if err := os.WriteFile(filler, make([]byte, int64(room.Bavail)*room.Bsize-1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	h.tellOnly(uid1, "fill root")
	h.wait("it is paused for want of room", func() bool {
		s := h.status("guest/web")
		c := api.Conditions{}
		if s.Guest != nil {
			c = s.Guest.Conditions
		}
		storage := c.Get(conditionStorage)
		return storage != nil && storage.Status == api.False && storage.Reason == "NoSpace" && s.State == api.PartPending
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.wait("it goes on", h.saw("StorageRecovered"))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	h.wait("it has written all", func() bool { return strings.Contains(h.console(uid1), "@did fill root: ok\r") })
}

// What is missing or wrong is said, and is no reason to give up.
func TestFaults(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.run()
	bad := part("bad", "u1", bare(h), func(p *api.GuestPart) { p.Machine = "vax" })
	missing := part("missing", "u2", bare(h), func(p *api.GuestPart) { p.Disks[0].Image = api.SHA256(strings.Repeat("0", 64)) })
	offline := part("offline", "u3", bare(h), func(p *api.GuestPart) { p.Network = "red" })
	uid := part("uid", "../../etc", bare(h))
	h.want(bad, missing, offline, uid)
	for key, c := range map[string]struct {
		state   api.PartState
		message string
	}{
		"guest/bad": {api.PartFailed, "vax"}, "guest/missing": {api.PartPending, "no such file"},
		"guest/offline": {api.PartPending, "does not serve Networks"}, "guest/uid": {api.PartFailed, "invalid uid"},
	} {
		h.wait(key, func() bool {
			s := h.status(key)
			return s.State == c.state && strings.Contains(s.Message, c.message)
		})
	}
	h.want(nodeagent.Part{Name: "guest/never", UID: "u9", Want: nodeagent.Removed})
	h.wait("what never was is gone", func() bool { return h.status("guest/never@u9").State == api.PartApplied })
}

// Without a word on the accelerator the host is probed, with the kernel that it
// has booted, and the verdict shown.
func TestProbed(t *testing.T) {
	if testing.Short() {
		t.Skip("boots kernels, and waits 30 s where KVM hangs")
	}
	t.Parallel()
	h := newHost(t)
	h.accelerator = ""
	kernel := packed(h).Kernel.Kernel
	h.with = func(o *Options) { o.Kernel = kernel }
	h.run()
	h.want(part("web", uid1, bare(h)))
	h.wait("it runs", h.is("guest/web", api.PartApplied, "Running"))
	c := h.status("guest/web").Guest.Conditions.Get(conditionAccelerated)
	if c == nil || c.Message == "" {
		t.Fatalf("the condition is %+v", c)
	}
	t.Log(c.Reason, c.Message)
	if _, err := os.Stat("/dev/kvm"); err == nil && !strings.Contains(c.Message, "vmlinuz") && !strings.Contains(c.Message, string(kernel[:12])) {
		t.Errorf("it was tried without a kernel: %s", c.Message)
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir, "run", "*.tmp")); len(left) > 0 {
		t.Errorf("the probe leaves %q", left)
	}
}

// The kernel that is tried is the host's own.
func TestTrialKernel(t *testing.T) {
	root := t.TempDir()
	if got := kernelFile(root, "6.1.0"); got != "" {
		t.Errorf("found %s", got)
	}
	for _, path := range []string{"usr/lib/modules/6.1.0/vmlinuz", "boot/vmlinuz-6.1.0"} { // the later one goes first
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("kernel"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := kernelFile(root, "6.1.0"); got != path {
			t.Errorf("found %q, want %s", got, path)
		}
		if got := kernelFile(root, "6.1.1"); got != "" {
			t.Errorf("another's kernel: %s", got)
		}
	}
	content := []byte("a kernel")
	sum := sha256.Sum256(content)
	fetch := func(context.Context, api.SHA256) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}
	path := filepath.Join(root, "fetched")
	if err := New(Options{Fetch: fetch, Kernel: api.SHA256(hex.EncodeToString(sum[:]))}).fetchKernel(t.Context(), path); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != string(content) {
		t.Errorf("fetched %q: %v", got, err)
	}
	if err := New(Options{Fetch: fetch, Kernel: api.SHA256(strings.Repeat("0", 64))}).fetchKernel(t.Context(), path); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("another content: %v", err)
	}
}

func TestNoQEMU(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.with = func(o *Options) { o.Program = "qemu-system-vax" }
	h.run()
	h.want(part("web", uid1, bare(h)))
	h.wait("it says what is missing", func() bool {
		s := h.status("guest/web")
		return s.State == api.PartPending && strings.Contains(s.Message, "QEMU is not installed") && strings.Contains(s.Message, "qemu-system-vax")
	})
}
