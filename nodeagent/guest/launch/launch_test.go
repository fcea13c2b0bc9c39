package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/nstest"
)

// unprivilegedID is a user that no package has.
const unprivilegedID = 1_900_000_001

// TestMain lets the test's own binary be the launched process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "launched" {
		if err := Exec(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func launcher(t *testing.T) Launcher {
	t.Helper()
	nstest.Root(t, "it gives up privileges")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Launcher{Command: []string{self, "launched"}, Run: Detached}
}

// place is a private directory with a short name, and a log.
func place(t *testing.T) (dir string, log *os.File) {
	t.Helper()
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	log, err = os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return dir, log
}

func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// end kills what a test has launched.
func end(t *testing.T, id Identity) {
	t.Helper()
	p, err := Open(id)
	if errors.Is(err, ErrGone) {
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer p.Close()
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := p.Wait(short(t)); err != nil {
		t.Error(err)
	}
}

func TestLaunch(t *testing.T) {
	l := launcher(t)
	dir, log := place(t)
	secret, err := os.CreateTemp(dir, "secret")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = secret.Close() }()
	if _, err := secret.WriteString("handed over\n"); err != nil {
		t.Fatal(err)
	}
	if err := secret.Chmod(0o444); err != nil { // what is opened anew must be readable
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	script := `cat /proc/self/fd/128; id -u; id -g; id -G; pwd; grep -E 'NoNewPrivs|CapEff|CapBnd' /proc/self/status; ls /proc/self/net/dev >/dev/null; grep -c : /proc/net/dev; cat ` + dir + `/log; echo ready; exec sleep 1000`
	id, err := l.Start(short(t), Task{Path: "/bin/sh", Args: []string{"-c", script}, FirstFile: 128, Dir: dir,
		UID: unprivilegedID, GID: unprivilegedID, Groups: []int{1_900_000_002}, CPUs: []int{0},
		Files: []*os.File{secret}, Kept: []*os.File{lock}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, id)
	_ = lock.Close()
	var said string
	for ctx := short(t); !strings.Contains(said, "ready"); {
		raw, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		said = string(raw)
		select {
		case <-ctx.Done():
			t.Fatalf("it says %q", said)
		case <-time.After(10 * time.Millisecond):
		}
	}
	for _, want := range []string{"handed over\n1900000001\n1900000001\n1900000001 1900000002\n/\n",
		"NoNewPrivs:\t1", "CapEff:\t0000000000000000", "\n1\n", "Permission denied"} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q but:\n%s", want, said)
		}
	}
	if again, err := os.Open(filepath.Join(dir, "lock")); err != nil {
		t.Error(err)
	} else {
		if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("the lock is not kept: %v", err)
		}
		_ = again.Close()
	}
	if read, err := ReadIdentity(dir); err != nil || read != id {
		t.Errorf("it leaves %+v behind, it is %+v: %v", read, id, err)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(id.PID, &set); err != nil || set.Count() != 1 || !set.IsSet(0) {
		t.Errorf("it runs on %d processors: %v", set.Count(), err)
	}
	if sid, err := unix.Getsid(id.PID); err != nil || sid == 0 || sid == must(unix.Getsid(0)) {
		t.Errorf("its session is %d, which is ours: %v", sid, err)
	}
	p, err := Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.Wait(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it lives, and Wait says %v", err)
	}
	end(t, id)
	if err := p.Wait(short(t)); err != nil {
		t.Errorf("it has ended, and Wait says %v", err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Errorf("a signal to what has ended: %v", err)
	}
}

func must(n int, err error) int {
	if err != nil {
		panic(err)
	}
	return n
}

func TestFailures(t *testing.T) {
	l := launcher(t)
	dir, log := place(t)
	task := Task{Path: "/nonexistent/qemu", FirstFile: 128, Dir: dir, UID: unprivilegedID, GID: unprivilegedID, Log: log}
	if _, err := l.Start(short(t), task); err == nil || !strings.Contains(err.Error(), "/nonexistent/qemu") {
		t.Errorf("a program that is not there: %v", err)
	}
	task.Path, task.CPUs = "/bin/true", []int{8191}
	if _, err := l.Start(short(t), task); err == nil || !strings.Contains(err.Error(), "bind to processors") {
		t.Errorf("a processor that is not there: %v", err)
	}
	task.Dir = filepath.Join(dir, strings.Repeat("x", 100))
	if _, err := l.Start(short(t), task); err == nil || !strings.Contains(err.Error(), "shorter --run-dir") {
		t.Errorf("a long path: %v", err)
	}
	silent := Launcher{Command: []string{"/bin/true"}, Run: Detached}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	task.Dir = dir
	if _, err := silent.Start(ctx, task); err == nil || !strings.Contains(err.Error(), "did not request its task") {
		t.Errorf("a process that says nothing: %v", err)
	}
}

// Another process that has come to have the number is not taken for ours.
func TestStrangers(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(self)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	for what, id := range map[string]Identity{
		"started later": {PID: self.PID, Start: self.Start - 1, BootID: self.BootID},
		"other boot":    {PID: self.PID, Start: self.Start, BootID: "x"},
		"no process":    {PID: 1<<22 - 3, Start: 1, BootID: self.BootID},
	} {
		if _, err := Open(id); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	dir := t.TempDir()
	if _, err := ReadIdentity(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing was launched: %v", err)
	}
	for _, text := range []string{"", "{}", `{"pid": 1}`, `{"pid": -4}`, "garbage"} {
		if err := os.WriteFile(filepath.Join(dir, processFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := ReadIdentity(dir); err == nil {
			t.Errorf("%q names %+v", text, id)
		}
	}
}

func FuzzStartTime(f *testing.F) {
	f.Add("1 (a) (b)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20")
	f.Add(")")
	f.Add("")
	f.Fuzz(func(_ *testing.T, stat string) { _, _ = parseStartTime(stat) })
}
