package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/wait"
)

const (
	// etcdFloor is how many bytes must stay free while etcd runs: with less, the next page of its database can
	// end it.
	etcdFloor = 16 << 20
	// startFloor is how many bytes must be free to start etcd on its own data. It
	// truncates the last segment of its log and allocates it again (ZeroToEnd)
	// while it prepares the next one, of 64 MB: without room for both it ends.
	startFloor = etcdFloor + 64<<20
	// roomEvery is how often a file system that was full or read-only is checked.
	roomEvery = 2 * time.Second
)

// unwritable says why a directory cannot be written, or that less than reserve
// bytes are free.
func unwritable(dir string, reserve int64) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		if !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("%w: %s cannot be written: %w", ErrReadOnly, dir, err)
		}
		return fmt.Errorf("%w: the file system of %s is read-only: see the kernel's log for why, and mount it writable; existing data is served in the meantime",
			ErrReadOnly, dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("measure the space in %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < reserve {
		return fmt.Errorf("%w: %s has %d MiB free and must keep %d MiB: free some of that file system; reads continue",
			ErrNoSpace, dir, free>>20, reserve>>20)
	}
	return nil
}

type urgentKey struct{}

// Urgent makes writes with the context use the reserve: a few bytes that say what is wrong. Writes to a copy of
// the store are lost with it.
func Urgent(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, true) }

func isUrgent(ctx context.Context) bool { return ctx.Value(urgentKey{}) != nil }

// Stale says why the store serves a read-only copy; nil when it does not. See AwaitRoom.
func (e *etcd) Stale() error { return e.stale }

// ErrRemounted says that the file system is writable again, but not for this process: it has its own mount
// namespace, and a new process gets a new one.
var ErrRemounted = errors.New("the file system was mounted writable: bootd must be restarted to use it")

// AwaitRoom returns when a store that serves a copy can be opened on its own data again, or when ctx ends.
func (e *etcd) AwaitRoom(ctx context.Context) error {
	wasReadOnly := superReadOnly(e.conf.Dir)
	for {
		if unwritable(e.conf.Dir, max(e.conf.Reserve, startFloor)) == nil {
			return nil
		}
		if wasReadOnly && !superReadOnly(e.conf.Dir) && errors.Is(unwritable(e.conf.Dir, 0), ErrReadOnly) {
			return ErrRemounted
		}
		if err := wait.For(ctx, roomEvery); err != nil {
			return err
		}
	}
}

// superReadOnly reports whether the file system of a directory is itself
// read-only, apart from how it is mounted for this process.
func superReadOnly(dir string) bool {
	var st unix.Stat_t
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || unix.Stat(dir, &st) != nil {
		return false
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for line := range strings.Lines(string(raw)) {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
		before, after, ok := strings.Cut(line, " - ")
		of, fs := strings.Fields(before), strings.Fields(after)
		if ok && len(of) > 2 && of[2] == device && len(fs) > 2 {
			return slices.Contains(strings.Split(fs[2], ","), "ro")
		}
	}
	return false
}

// Choking reports that etcd has so little space that it may end the process with its next write: the store should
// be closed, and opened on a copy.
func (e *etcd) Choking() bool {
	return e.server != nil && e.stale == nil && unwritable(e.conf.Dir, etcdFloor) != nil
}

func (e *etcd) copyDir() string { return filepath.Join(e.conf.Scratch, "store-copy") }

// copyAside copies etcd's data to a writable place, and returns the path that replaces the state directory.
func (e *etcd) copyAside() (string, error) {
	from := filepath.Join(e.conf.Dir, "etcd")
	if !Exists(e.conf.Dir) || e.conf.Scratch == "" {
		return "", fmt.Errorf("start etcd: %w", e.stale)
	}
	dir := e.copyDir()
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("remove an old copy of the store: %w", err)
	}
	if err := copyTree(from, filepath.Join(dir, "etcd")); err != nil {
		return "", errors.Join(fmt.Errorf("%w; and its data cannot be copied to %s to be read there: %w", e.stale, dir, err), os.RemoveAll(dir))
	}
	e.log.Warn("etcd works on a copy of its data until the state directory can be written", "directory", e.conf.Dir, "copy", dir)
	return dir, nil
}

// copyTree copies regular files, except those that etcd only prepares.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular() || filepath.Ext(path) == ".tmp":
			return nil
		}
		return copySparse(path, target)
	})
}

// copySparse leaves holes where the file holds zeros, as most of etcd's log does.
func copySparse(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	var size int64
	for {
		n, err := io.ReadFull(in, block)
		if n > 0 && string(block[:n]) != string(zeros[:n]) {
			if _, err := out.WriteAt(block[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out.Truncate(size)
		}
		if err != nil {
			return err
		}
	}
}
