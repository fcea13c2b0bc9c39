package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Where blocks can be taken out of a file, a log that is written all the time
// loses nothing when it is set aside again and again.
func TestSetAsideWhileItIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600) // as QEMU has it
	if err != nil {
		t.Fatal(err)
	}
	if !collapses(t, path) {
		t.Skip("the file system cannot take blocks out of a file")
	}
	const lines = 60_000
	var group sync.WaitGroup
	done := make(chan struct{})
	group.Go(func() {
		defer close(done)
		for i := range lines {
			if _, err := fmt.Fprintf(log, "line %d\n", i); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var all []byte
	times := 0
	take := func() {
		if err := setAside(path, path+".1", 1<<30); err != nil {
			t.Fatal(err)
		}
		piece, err := os.ReadFile(path + ".1")
		if errors.Is(err, os.ErrNotExist) {
			return // there was not a block yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path + ".1"); err != nil {
			t.Fatal(err)
		}
		all = append(all, piece...)
		times++
	}
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
			take()
		}
	}
	group.Wait()
	take()
	rest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(append(all, rest...)), "\n"), "\n")
	for i, line := range got {
		if line != fmt.Sprintf("line %d", i) {
			t.Fatalf("after %d times line %d is %q", times, i, line)
		}
	}
	if len(got) != lines || times < 2 {
		t.Errorf("%d of %d lines are left after %d times", len(got), lines, times)
	}
}

func collapses(t *testing.T, path string) bool {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 1<<16)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	return err == nil
}

// What is kept of a log is its end, on every file system.
func TestSetAside(t *testing.T) {
	dirs := map[string]string{"here": t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "console"); err == nil { // a tmpfs
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		dirs["tmpfs"] = dir
	}
	for where, dir := range dirs {
		for _, size := range []int{0, 1, 4096, 4097, 100_000, 1 << 20} {
			path := filepath.Join(dir, "console.log")
			content := make([]byte, size)
			for i := range content {
				content[i] = byte(i * 7 >> 3)
			}
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			const limit = 50_000
			if err := setAside(path, path+".1", limit); err != nil {
				t.Fatalf("%s, %d bytes: %v", where, size, err)
			}
			old, err := os.ReadFile(path + ".1")
			if err != nil && (size > 4096 || !errors.Is(err, os.ErrNotExist)) {
				t.Fatal(err)
			}
			rest, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			kept := append(old, rest...)
			if !bytes.HasSuffix(content, kept) || len(kept) < min(size, limit) || len(old) > limit+1<<16 {
				t.Errorf("%s: of %d bytes %d and %d are kept", where, size, len(old), len(rest))
			}
		}
	}
}
