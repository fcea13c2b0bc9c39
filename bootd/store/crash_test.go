package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// TestMain lets the test binary be the bootd that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_HELPER_DIR"); dir != "" {
		os.Exit(helper(dir, os.Getenv("STORE_HELPER_MODE")))
	}
	os.Exit(m.Run())
}

// helper opens a store and creates objects on and on; it prints each name
// once it was acknowledged.
func helper(dir, mode string) int {
	ctx := context.Background()
	conf := Config{Dir: dir}
	if mode == "fill" {
		conf.Reserve = 1 // let etcd itself find the disk full
	}
	s, err := Open(ctx, conf, nil, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	switch mode {
	case "rack":
		return rack(ctx, s)
	case "change":
		return changing(ctx, s)
	}
	for i := 0; ; i++ {
		m := new(api.Machine)
		m.Metadata.Name = fmt.Sprintf("m%d-%d", os.Getpid(), i)
		if mode == "fill" {
			m.Metadata.Annotations = map[string]string{"x": strings.Repeat("x", 1<<20)}
		}
		if err := s.Create(ctx, m); err != nil {
			fmt.Fprintln(os.Stderr, err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		fmt.Println(m.Metadata.Name)
	}
}

// rack lives through the boot of 500 machines and prints its resident set.
func rack(ctx context.Context, s *Store) int {
	c := NewCache(s, slog.Default())
	go func() { _ = c.Run(ctx) }()
	<-c.Synced()
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := range 10 {
				m := machine(fmt.Sprintf("m%d-%d", w, i), api.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", w, i)))
				m.Metadata.Annotations = map[string]string{"inventory": strings.Repeat("x", 3000)}
				if err := s.Create(ctx, m); err != nil {
					panic(err)
				}
				for _, stage := range api.Stages() {
					_, err := Mutate(ctx, s, m.Metadata.Name, func(m *api.Machine) error {
						m.Status.Attempt = &api.BootAttempt{Stage: stage}
						return nil
					})
					if err != nil {
						panic(err)
					}
				}
			}
		})
	}
	wg.Wait()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "Rss") {
			fmt.Print(line)
		}
	}
	return 0
}

// TestResidentSet bounds what the store has for itself. The pages of its file are page cache, and how many of those of the
// program are resident is the kernel's choice.
func TestResidentSet(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("writes for ten seconds; the race detector needs memory of its own")
	}
	_, lines := startHelper(t, t.TempDir(), "rack", os.Stderr)
	kib := 0
	for lines.Scan() {
		t.Log(lines.Text())
		_, _ = fmt.Sscanf(lines.Text(), "RssAnon: %d kB", &kib)
	}
	if kib == 0 || kib > 60<<10 {
		t.Errorf("the resident set, but for files, is %d KiB: want 60 MiB at most", kib)
	}
}

func startHelper(t *testing.T, dir, mode string, stderr io.Writer) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_HELPER_DIR="+dir, "STORE_HELPER_MODE="+mode)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewScanner(out)
}

// TestKillLosesNothingAcknowledged kills the store over and over while it
// writes.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for round := range 4 {
		cmd, acknowledged := startHelper(t, dir, "", os.Stderr)
		for n := 0; acknowledged.Scan(); n++ {
			names = append(names, acknowledged.Text())
			if n == 20+round*37 {
				// What is still in the pipe was acknowledged too: go on reading.
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
	}
	s := open(t, Config{Dir: dir})
	if len(names) < 200 {
		t.Fatalf("only %d objects were made", len(names))
	}
	for _, name := range names {
		if _, err := Get[api.Machine](t.Context(), s, name); err != nil {
			t.Error(err)
		}
	}
	// A leader of before the kill is not waited for.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Elect(ctx, "machine", "a", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullDiskStopsReadably lets etcd itself run into a full disk.
func TestFullDiskStopsReadably(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a file system")
	}
	dir := smallDisk(t, "200m")
	var stderr strings.Builder
	cmd, acknowledged := startHelper(t, dir, "fill", &stderr)
	var names []string
	for acknowledged.Scan() {
		names = append(names, acknowledged.Text())
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
	last := stderr.String()
	for _, bad := range []string{"goroutine ", "panic:"} {
		if strings.Contains(last, bad) {
			t.Errorf("a dump was printed:\n%s", last)
		}
	}
	if !strings.Contains(last, "is full") || !strings.Contains(last, "start bootd again") || !strings.Contains(last, dir) {
		t.Errorf("the last words do not help:\n%s", last)
	}
	if len(names) < 10 {
		t.Fatalf("only %d objects fitted", len(names))
	}
	t.Logf("%d objects, then: %s", len(names), last)

	// With room again, everything acknowledged is there.
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=600m"); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Dir: dir})
	for _, name := range names {
		if _, err := Get[api.Machine](t.Context(), s, name); err != nil {
			t.Error(err)
		}
	}
	create(t, s, machine("after"))
}

// TestReserveKeepsBootdAlive fills the file system beside the store.
func TestReserveKeepsBootdAlive(t *testing.T) {
	dir := smallDisk(t, "400m")
	s := open(t, Config{Dir: dir})
	create(t, s, machine("before"))
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 200<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	err := s.Create(t.Context(), machine("during"))
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a write: %v", err)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Ready: %v", err)
	}
	if _, err := Get[api.Machine](t.Context(), s, "before"); err != nil {
		t.Errorf("a read: %v", err)
	}
	if err := s.Delete(t.Context(), kindOf(t, "machine"), "before", ""); err != nil {
		t.Errorf("a delete: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	create(t, s, machine("during"))
}

// TestQuotaRecovers uses the quota up, deletes, and waits for room.
func TestQuotaRecovers(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a database")
	}
	s := open(t, Config{Quota: 32 << 20})
	big := func(i int) *api.Machine {
		m := machine(fmt.Sprintf("m%d", i))
		m.Metadata.Annotations = map[string]string{"x": strings.Repeat("x", 1<<20)}
		return m
	}
	n := 0
	var err error
	for ; n < 64 && err == nil; n++ {
		err = s.Create(t.Context(), big(n))
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "quota of 32 MiB") {
		t.Fatalf("after %d objects: %v", n, err)
	}
	for i := range n - 1 {
		if err := s.Delete(t.Context(), kindOf(t, "machine"), fmt.Sprintf("m%d", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		err := s.Create(t.Context(), machine("after"))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not recover: %v", err)
		}
	}
}

// TestStartsWithLittleRoom starts where there is room for some pages and not for
// the next segment of etcd's log. On its own data etcd gives the end of its log
// back and takes it again while it prepares that segment, and one of both fails.
func TestStartsWithLittleRoom(t *testing.T) {
	dir := smallDisk(t, "300m")
	s := open(t, Config{Dir: dir})
	create(t, s, machine("before"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	ballast := make([]byte, int64(st.Bavail)*st.Bsize-70<<20)
	if err := os.WriteFile(filepath.Join(dir, "ballast"), ballast, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		s, err := Open(t.Context(), Config{Dir: dir, Scratch: t.TempDir()}, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		if _, err := Get[api.Machine](t.Context(), s, "before"); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
