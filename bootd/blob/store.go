// Package blob owns content-addressed bytes in a directory: kernels, initrds, disk images. A blob is
// named by the SHA-256 of its content, is written once and never changes.
//
//	DIR/lock              held while a Store is open
//	DIR/sha256/<64 hex>   the blobs
//	DIR/damaged/<64 hex>  what was found not to be what its name says
//	DIR/tmp/              what is being written; emptied by Open
//
// A blob appears under its name by a rename, after its bytes have reached the disk and their digest has
// been found right, so that whatever can be opened is whole, also after a power failure. Disks change
// what they hold, and so do people: a blob's digest is looked at again when it is first used after Open,
// when its file was touched, and by Scrub.
//
// Blobs share a file system with etcd, which stops for good when it is full. Therefore a Store leaves
// Options.Reserve bytes of it to others.
package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/file"
)

// Options configure a Store.
type Options struct {
	// Reserve is how many bytes of the file system Put leaves free. Default:
	// none.
	Reserve int64
	// ScrubRate is how many bytes per second Scrub reads. Default: 32 MiB.
	// ScrubEvery is the pause between two passes. Default: a day.
	ScrubRate  int64
	ScrubEvery time.Duration
	Log        *slog.Logger
}

// Store is a directory of blobs. Its methods are safe for concurrent use.
type Store struct {
	dir  string
	opts Options
	lock *os.File
	free func(dir string) (int64, error) // bytes that an unprivileged user may still write
	bufs sync.Pool                       // of *[]byte

	naming    sync.Mutex // held while a name is added, removed or replaced; before mu
	mu        sync.Mutex
	sound     map[Digest]stamp
	damaged   map[Digest]*DamagedError
	checking  map[Digest]*verification
	followers map[*follower]bool
}

// Info describes a blob.
type Info struct {
	Digest  Digest
	Size    int64
	ModTime time.Time // when it was put
}

// checkEvery is how many bytes are written between two checks of the free
// space. Each concurrent Put can use that much of the reserve.
const checkEvery = 4 << 20

// Open creates dir if necessary, locks it for this process, and removes
// incomplete files that a crash has left. A full or read-only file system is
// not an error.
func Open(dir string, opts Options) (*Store, error) {
	for _, sub := range []string{"sha256", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o750); err != nil && !unwritable(err) {
			return nil, fmt.Errorf("open blob store: %w", err)
		}
	}
	lock, err := takeLock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", dir, err)
	}
	if opts.ScrubRate <= 0 {
		opts.ScrubRate = 32 << 20
	}
	if opts.ScrubEvery <= 0 {
		opts.ScrubEvery = 24 * time.Hour
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		sound: map[Digest]stamp{}, damaged: map[Digest]*DamagedError{},
		checking: map[Digest]*verification{}, followers: map[*follower]bool{},
		dir:  dir,
		opts: opts,
		lock: lock,
		free: freeBytes,
		bufs: sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }},
	}
	err = s.sweep()
	if err == nil || unwritable(err) {
		err = s.remember()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blob store %s: %w", dir, err), lock.Close())
	}
	return s, nil
}

// Close unlocks the directory. Blobs that are being read stay readable.
func (s *Store) Close() error { return s.lock.Close() }

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if unwritable(err) {
		f, err = os.Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(filepath.Dir(path)) // the lock file cannot be created
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("%s is locked by another process (%w): stop the other bootd, or use another --state-dir", path, err)
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unwritable reports whether a file system is full or read-only.
func unwritable(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func (s *Store) sweep() error {
	left, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it could not be created
	}
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(s.dir, "tmp", e.Name())); err != nil {
			return fmt.Errorf("remove incomplete files of a crash: %w", err)
		}
	}
	return nil
}

// Put stores all of r and returns its digest and size. With want it checks that this is the digest, and
// otherwise stores nothing and returns a *MismatchError; without want ("") any content is right. A blob
// that is there already, and whole, is not written again; if want tells so beforehand, r is not even read.
//
// When less than the reserve would stay free it stores nothing and returns an error that is ErrNoSpace.
// It ends between two reads when ctx does. Memory use does not depend on the size.
func (s *Store) Put(ctx context.Context, r io.Reader, want Digest) (Digest, int64, error) {
	if want != "" {
		if _, err := ParseDigest(string(want)); err != nil {
			return "", 0, fmt.Errorf("put blob: %w", err)
		}
		if f, is, err := s.verified(want); err == nil {
			return want, is.size, f.Close()
		}
		// The damaged blob takes space that the new content may need.
		if err := os.RemoveAll(s.damagedPath(want)); err != nil && !unwritable(err) {
			return "", 0, fmt.Errorf("put blob: %w", err)
		}
	}
	d, n, err := s.put(ctx, r, want)
	if err != nil {
		return "", 0, fmt.Errorf("put blob: %w", s.explain(err))
	}
	return d, n, nil
}

func (s *Store) put(ctx context.Context, r io.Reader, want Digest) (_ Digest, _ int64, err error) {
	if err := s.checkSpace(); err != nil { // first, because even an inode may be too much
		return "", 0, err
	}
	tmp, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "put-")
	if err != nil {
		return "", 0, err
	}
	renamed := false
	defer func() {
		if renamed {
			return
		}
		err = errors.Join(err, ignoreClosed(tmp.Close()), os.Remove(tmp.Name()))
	}()

	sum := sha256.New()
	n, err := s.copy(ctx, tmp, sum, r)
	if err != nil {
		return "", 0, err
	}
	d := Digest(algorithm + hex.EncodeToString(sum.Sum(nil)))
	if want != "" && d != want {
		return "", 0, &MismatchError{Want: want, Got: d, Size: n}
	}
	if err := tmp.Sync(); err != nil {
		return "", 0, err
	}
	if err := tmp.Close(); err != nil {
		return "", 0, err
	}
	if renamed, err = s.name(tmp.Name(), d); err != nil {
		return "", 0, err
	}
	s.mended(d)
	return d, n, nil
}

// name renames a temporary file to its blob name, and replaces what has that
// name.
func (s *Store) name(tmp string, d Digest) (renamed bool, err error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	if st, err := os.Lstat(s.path(d)); err == nil && !st.Mode().IsRegular() {
		if err := os.RemoveAll(s.path(d)); err != nil { // a rename does not replace a directory
			return false, err
		}
	}
	if err := os.Rename(tmp, s.path(d)); err != nil {
		return false, err
	}
	return true, s.syncNames()
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// copy copies r to f and sum, and checks the free space on the way.
func (s *Store) copy(ctx context.Context, f *os.File, sum hash.Hash, r io.Reader) (int64, error) {
	buf := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(buf)
	var total, unchecked int64
	for {
		if err := ctx.Err(); err != nil {
			return total, context.Cause(ctx)
		}
		n, readErr := r.Read(*buf)
		chunk := (*buf)[:n]
		if unchecked += int64(n); unchecked >= checkEvery {
			unchecked = 0
			if err := s.checkSpace(); err != nil {
				return total, err
			}
		}
		if _, err := f.Write(chunk); err != nil {
			return total, err
		}
		sum.Write(chunk)
		total += int64(n)
		if readErr == io.EOF {
			return total, nil
		}
		if readErr != nil {
			return total, fmt.Errorf("read the content after %d bytes: %w", total, readErr)
		}
	}
}

// Get opens a blob for reading; the caller closes it. It is a plain file, so
// that net/http can send it with sendfile(2). For a missing blob it returns
// fs.ErrNotExist, for a damaged one also ErrDamaged.
func (s *Store) Get(d Digest) (*os.File, Info, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return nil, Info{}, fmt.Errorf("get blob: %w", err)
	}
	f, is, err := s.verified(d)
	if err != nil {
		return nil, Info{}, fmt.Errorf("get blob: %w", err)
	}
	return f, Info{Digest: d, Size: is.size, ModTime: time.Unix(is.written.Unix())}, nil
}

// Stat describes a blob without reading it. For a missing one it returns
// fs.ErrNotExist, for one known to be damaged also ErrDamaged.
func (s *Store) Stat(d Digest) (Info, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return Info{}, fmt.Errorf("stat blob: %w", err)
	}
	if err := s.known(d); err != nil {
		return Info{}, fmt.Errorf("stat blob: %w", err)
	}
	info, _, err := s.stat(d)
	if err = s.found(d, stamp{}, err); err != nil {
		return Info{}, fmt.Errorf("stat blob: %w", err)
	}
	return info, nil
}

// Has reports whether a blob exists.
func (s *Store) Has(d Digest) (bool, error) {
	_, err := s.Stat(d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Delete removes a blob. Open readers can continue. A missing blob is not an
// error.
func (s *Store) Delete(d Digest) error {
	if _, err := ParseDigest(string(d)); err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	if err := errors.Join(os.RemoveAll(s.path(d)), os.RemoveAll(s.damagedPath(d))); err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	s.mu.Lock()
	delete(s.damaged, d)
	delete(s.sound, d)
	s.mu.Unlock()
	if err := s.syncNames(); err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// List describes all blobs, ordered by digest. It skips other files.
func (s *Store) List() ([]Info, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "sha256"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it could not be created
	}
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	infos := make([]Info, 0, len(entries))
	for _, e := range entries {
		d, err := ParseDigest(algorithm + e.Name())
		if err != nil {
			continue
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		if s.known(d) != nil {
			continue
		}
		infos = append(infos, Info{Digest: d, Size: st.Size(), ModTime: st.ModTime()})
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return infos, nil
}

func (s *Store) path(d Digest) string { return filepath.Join(s.dir, "sha256", d.Hex()) }

// syncNames makes renames and removals durable.
func (s *Store) syncNames() error {
	return file.SyncDir(filepath.Join(s.dir, "sha256"))
}
