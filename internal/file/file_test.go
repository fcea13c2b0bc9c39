package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rackweft/rackweft/internal/file/filetest"
)

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestLossOfPower cuts the power after each call has returned. Without a
// synchronized directory the old state is found.
func TestLossOfPower(t *testing.T) {
	d := filetest.NewDisk(t)
	path := filepath.Join(d.Dir, "record")
	if err := Replace(path, []byte("old"), Options{}); err != nil {
		t.Fatal(err)
	}
	// What the test relies on: a rename alone is lost with the power.
	if err := os.WriteFile(path+".x", []byte("renamed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".x", path+".y"); err != nil {
		t.Fatal(err)
	}
	cut := d.Cut()
	if got := read(t, filepath.Join(cut, "record.y")); got != "none" {
		t.Fatalf("the disk lost nothing: %q", got)
	}
	if got := read(t, filepath.Join(cut, "record")); got != "old" {
		t.Errorf("after Replace: %q", got)
	}
	for _, c := range []struct {
		name string
		do   func() error
		file string
		want string
	}{
		{"replace", func() error { return Replace(path, []byte("new"), Options{}) }, "record", "new"},
		{"create", func() error { return Create(path+".c", []byte("made"), Options{}) }, "record.c", "made"},
		{"rename", func() error { return Rename(path, path+".r") }, "record.r", "new"},
		{"remove", func() error { return Remove(path + ".r") }, "record.r", "none"},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := read(t, filepath.Join(d.Cut(), c.file)); got != c.want {
			t.Errorf("after %s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestReplaceWhatItIs(t *testing.T) {
	dir := t.TempDir()
	path, temp := filepath.Join(dir, "f"), filepath.Join(dir, "temp")
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("a"), Options{}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	o := Options{Mode: 0o440, Temp: temp}
	if os.Getuid() == 0 {
		o.Owner = &Owner{UID: 12, GID: 34}
	}
	if err := Replace(path, []byte("b"), o); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o440 {
		t.Errorf("%v, %v", st, err)
	}
	if o.Owner != nil {
		if s := st.Sys().(*syscall.Stat_t); s.Uid != 12 || s.Gid != 34 {
			t.Errorf("owner %d:%d", s.Uid, s.Gid)
		}
	}
	if err := Create(path, []byte("c"), Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file: %v", err)
	}
	if got := read(t, path); got != "b" {
		t.Errorf("it holds %q", got)
	}
	if err := Remove(filepath.Join(dir, "nothing")); err != nil {
		t.Error(err)
	}
	onlyFiles(t, dir, "f", "temp")
	onlyFiles(t, temp)
}

func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %q, want %q", dir, names, want)
	}
}

// TestFailedReplace leaves the old file and nothing else, on a full disk too.
func TestFailedReplace(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "f")
	if err := Replace(path, []byte("old"), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, make([]byte, 1<<20), Options{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	broken := errors.New("broken")
	if err := ReplaceWith(path, Options{}, func(*os.File) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("with a fill that fails: %v", err)
	}
	if got := read(t, path); got != "old" {
		t.Errorf("it holds %q", got)
	}
	if err := Replace(filepath.Join(dir, "nothing", "f"), nil, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	onlyFiles(t, dir, "f")
}

func TestCreateOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var made, exists int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			err := Create(path, []byte("whole"), Options{})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errors.Is(err, fs.ErrExist):
				exists++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 || exists != 19 || read(t, path) != "whole" {
		t.Errorf("%d made it, %d met it", made, exists)
	}
}

// TestReplaceAtOnce replaces one file from many sides, beside what a killed
// process left.
func TestReplaceAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(filepath.Join(dir, ".new-f"), []byte("half"), 0o444); err != nil {
		t.Fatal(err)
	}
	whole := func(i int) string { return strings.Repeat(string(rune('a'+i)), 100_000) }
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := Replace(path, []byte(whole(i)), Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := read(t, path)
	if got != whole(int(got[0]-'a')) {
		t.Errorf("it is a mixture of %d bytes", len(got))
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	onlyFiles(t, dir, "f")
}
