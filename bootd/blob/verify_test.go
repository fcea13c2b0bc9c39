package blob

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// damages are ways in which a blob is not what its name says.
func damages() map[string]func(t *testing.T, path string) {
	return map[string]func(t *testing.T, path string){
		"truncated": func(t *testing.T, path string) { must(t, os.Truncate(path, 100)) },
		"emptied":   func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) },
		"longer": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.WriteString("x")
			must(t, errors.Join(err, f.Close()))
		},
		"one bit": func(t *testing.T, path string) { flip(t, path, 70_000) },
		"replaced": func(t *testing.T, path string) {
			must(t, os.WriteFile(path+".new", []byte("another"), 0o600))
			must(t, os.Rename(path+".new", path))
		},
		"a directory": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.MkdirAll(filepath.Join(path, "in"), 0o700))
		},
		"a link to the same": func(t *testing.T, path string) {
			must(t, os.Rename(path, path+".there"))
			must(t, os.Symlink(path+".there", path))
		},
		"a dangling link": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Symlink("/nothing", path))
		},
		"a FIFO": func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, unix.Mkfifo(path, 0o600))
		},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flip turns one bit, and leaves size and times as they were, as a disk does.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b, at)
	must(t, errors.Join(err, f.Close()))
	must(t, os.Chtimes(path, st.ModTime(), st.ModTime()))
}

func content() string { return strings.Repeat("kernel", 30_000) }

// opened is a store as after a restart with one blob that was damaged while it
// was closed.
func opened(t *testing.T, damage func(*testing.T, string)) (*Store, Digest) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	must(t, err)
	d, _, err := s.Put(t.Context(), strings.NewReader(content()), "")
	must(t, err)
	must(t, s.Close())
	if damage != nil {
		damage(t, filepath.Join(dir, "sha256", d.Hex()))
	}
	s, err = Open(dir, Options{ScrubRate: 1 << 40, ScrubEvery: time.Millisecond})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s, d
}

func wantDamaged(t *testing.T, s *Store, d Digest) {
	t.Helper()
	for name, err := range map[string]error{
		"Get":  func() error { _, _, err := s.Get(d); return err }(),
		"Stat": func() error { _, err := s.Stat(d); return err }(),
	} {
		if !errors.Is(err, ErrDamaged) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "import it again") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("it is listed: %v, %v", list, err)
	}
	if s.Damaged() != 1 {
		t.Errorf("%d are damaged", s.Damaged())
	}
}

func wantWhole(t *testing.T, s *Store, d Digest) {
	t.Helper()
	f, info, err := s.Get(d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(f)
	if err != nil || string(raw) != content() || info.Size != int64(len(raw)) {
		t.Errorf("%d bytes, %+v, %v", len(raw), info, err)
	}
	if s.Damaged() != 0 {
		t.Errorf("%d are damaged", s.Damaged())
	}
}

// TestDamagedBlob finds each damage at the first use, by a Get and by a Put, and
// in the background; it does not serve the blob, over a restart too, and is
// mended by a Put.
func TestDamagedBlob(t *testing.T) {
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			s, d := opened(t, damage)
			if f, _, err := s.Get(d); err == nil {
				raw, _ := io.ReadAll(f)
				t.Fatalf("%d bytes are served", len(raw))
			}
			wantDamaged(t, s, d)
			must(t, s.Close())
			s, err := Open(s.dir, Options{})
			must(t, err)
			defer func() { _ = s.Close() }()
			wantDamaged(t, s, d)
			_, _, err = s.Put(t.Context(), strings.NewReader(content()), d)
			must(t, err)
			wantWhole(t, s, d)
			if left, err := os.ReadDir(filepath.Join(s.dir, "damaged")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
		t.Run(name+", put at once", func(t *testing.T) {
			s, d := opened(t, damage)
			_, _, err := s.Put(t.Context(), strings.NewReader(content()), d)
			must(t, err)
			wantWhole(t, s, d)
		})
		t.Run(name+", in the background", func(t *testing.T) {
			s, d := opened(t, damage)
			told := make(chan Digest, 1)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _ = s.Follow(ctx, func(d Digest) { told <- d }) })
			for len(s.followersOf()) == 0 {
				time.Sleep(time.Millisecond)
			}
			wg.Go(func() { _ = s.Scrub(ctx) })
			select {
			case got := <-told:
				if got != d {
					t.Errorf("told of %s", got)
				}
			case <-time.After(time.Minute):
				t.Error("it is not found")
			}
			cancel()
			wg.Wait()
			wantDamaged(t, s, d)
			must(t, s.Delete(d))
			if s.Damaged() != 0 {
				t.Error("a deleted blob is damaged")
			}
		})
		t.Run(name+", after it was used", func(t *testing.T) {
			s, d := opened(t, nil)
			wantWhole(t, s, d)
			damage(t, s.path(d))
			if f, _, err := s.Get(d); err == nil {
				_ = f.Close()
				t.Fatal("it is served")
			}
			wantDamaged(t, s, d)
		})
	}
}

func (s *Store) followersOf() map[*follower]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[*follower]bool{}
	for f := range s.followers {
		out[f] = true
	}
	return out
}

// TestSilentRot changes a byte under a file that was found right, and takes the
// times back: only the background finds that.
func TestSilentRot(t *testing.T) {
	s, d := opened(t, nil)
	wantWhole(t, s, d)
	f, is, err := s.open(d)
	must(t, err)
	must(t, f.Close())
	flip(t, s.path(d), 5)
	_, rotten, err := s.stat(d)
	must(t, err)
	s.mu.Lock()
	if s.sound[d] != is {
		t.Error("it was not found right before")
	}
	s.sound[d] = rotten // a disk changes no ctime
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Scrub(ctx) }()
	waittest.Soon(time.Minute, func() bool { return s.Damaged() > 0 })
	cancel()
	<-done
	wantDamaged(t, s, d)
}

// TestDamagedOnReadOnlyDisk cannot put the blob away, and serves it no more all
// the same.
func TestDamagedOnReadOnlyDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(dir, Options{})
	must(t, err)
	d, _, err := s.Put(t.Context(), strings.NewReader(content()), "")
	must(t, err)
	must(t, s.Close())
	flip(t, s.path(d), 3)
	must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, "size=4m"))
	s, err = Open(dir, Options{})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	if _, _, err := s.Get(d); err == nil {
		t.Fatal("it is served")
	}
	wantDamaged(t, s, d)
}

// TestManyFirstUsers read a blob once between them.
func TestManyFirstUsers(t *testing.T) {
	s, d := opened(t, nil)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { wantWhole(t, s, d) })
	}
	wg.Wait()
	bad, d := opened(t, damages()["one bit"])
	for range 50 {
		wg.Go(func() {
			if _, _, err := bad.Get(d); !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestMendWhileRead puts a blob again and again while it is damaged and read:
// what is read is whole.
func TestMendWhileRead(t *testing.T) {
	s, d := opened(t, damages()["one bit"])
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				f, _, err := s.Get(d)
				if err != nil {
					if !errors.Is(err, fs.ErrNotExist) {
						t.Error(err)
					}
					continue
				}
				raw, err := io.ReadAll(f)
				if err != nil || string(raw) != content() {
					t.Errorf("%d bytes are read, %v", len(raw), err)
				}
				_ = f.Close()
			}
		})
	}
	for range 20 {
		if _, _, err := s.Put(t.Context(), strings.NewReader(content()), d); err != nil {
			t.Error(err)
		}
		must(t, os.WriteFile(s.path(d)+".bad", []byte("bad"), 0o600))
		must(t, os.Rename(s.path(d)+".bad", s.path(d)))
	}
	if _, _, err := s.Put(t.Context(), strings.NewReader(content()), d); err != nil {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	wantWhole(t, s, d)
}
