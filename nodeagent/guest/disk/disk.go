// Package disk owns the disks of Guests on their host: base images that are
// fetched once, verified and shared, the disks based on them, and the disks
// that outlive their Guest.
//
// Under the store's directory, which only root may enter:
//
//	images/DIGEST                    base images, read-only
//	retained/NETWORK/GUEST/DISK      disks that wait for their Guest's successor
//	guests/UID/disks/NAME.FORMAT     disks of existing Guests
//	….base                           next to a qcow2 disk based on an image: its digest
//
// A disk is created under a temporary name and renamed when it is complete.
package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
)

// Disk formats.
const (
	QCOW2 = "qcow2"
	Raw   = "raw"
)

// Fetch reads a blob by its digest. The caller closes it and verifies it.
type Fetch func(ctx context.Context, digest api.SHA256) (io.ReadCloser, error)

// ErrFull means that there is not enough space for a disk or an image.
var ErrFull = errors.New("the file system of the guests' disks is full: make room there, or give the host a larger rackweft-data")

// Store keeps the disks of one host.
type Store struct {
	dir   string
	fetch Fetch
	one   chan struct{} // holds a token while an image is fetched: the next guest finds it
}

// NewStore returns a store of the disks under dir.
func NewStore(dir string, fetch Fetch) *Store {
	return &Store{dir: dir, fetch: fetch, one: make(chan struct{}, 1)}
}

// GuestDir is the directory of everything that a Guest has on disk.
func (s *Store) GuestDir(uid string) string { return filepath.Join(s.dir, "guests", uid) }

func (s *Store) imagePath(digest api.SHA256) string {
	return filepath.Join(s.dir, "images", string(digest))
}

// Image opens a base image for reading, and fetches it first if the host does
// not have it. QEMU, which runs as another user, may reopen it by its
// descriptor.
func (s *Store) Image(ctx context.Context, digest api.SHA256) (*os.File, error) {
	if len(digest) != 64 || strings.Trim(string(digest), "0123456789abcdef") != "" {
		return nil, fmt.Errorf("invalid digest %q of an image", digest) // it becomes a file name
	}
	f, err := os.Open(s.imagePath(digest))
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	select {
	case s.one <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-s.one }()
	if f, err := os.Open(s.imagePath(digest)); err == nil {
		return f, nil
	}
	if err := s.download(ctx, digest); err != nil {
		return nil, fmt.Errorf("fetch image %s: %w", digest, err)
	}
	return os.Open(s.imagePath(digest))
}

// sharedMode is the mode of files that every Guest may read.
const sharedMode = 0o444

func (s *Store) download(ctx context.Context, digest api.SHA256) error {
	if err := os.MkdirAll(filepath.Join(s.dir, "images"), 0o700); err != nil {
		return full(err)
	}
	in, err := s.fetch(ctx, digest)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = in.Close() }) // unblocks a read that gets no answer
	defer stop()
	return place(s.imagePath(digest), sharedMode, func(out *os.File) error {
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != string(digest) {
			return fmt.Errorf("invalid content: its digest is %s: bootd or something on the way changed it", got)
		}
		return nil
	})
}

// place creates a file, complete or not at all.
func place(path string, mode fs.FileMode, fill func(*os.File) error) error {
	return full(file.ReplaceWith(path, file.Options{Mode: mode}, fill))
}

// full turns a lack of space into ErrFull.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return err
}

// FormatOf reads an image's format from its header.
func FormatOf(image io.ReaderAt) (string, error) {
	h, err := readHeader(image)
	if err != nil {
		return "", err
	}
	if !h.qcow2 {
		return Raw, nil
	}
	return QCOW2, nil
}

// Wanted describes a disk of a Guest.
type Wanted struct {
	Network, Guest, UID string
	api.GuestDisk
}

func (w Wanted) format() string {
	if w.Format == "" {
		return QCOW2
	}
	return w.Format
}

func (s *Store) path(w Wanted) string {
	return filepath.Join(s.GuestDir(w.UID), "disks", w.Name+"."+w.format())
}

func (s *Store) retainedPath(w Wanted) string {
	network := w.Network
	if network == "" {
		network = "-" // not a valid Network name
	}
	return filepath.Join(s.dir, "retained", network, w.Guest, w.Name+"."+w.format())
}

// Opened is a disk opened for QEMU. Close it when QEMU has it.
type Opened struct {
	File       *os.File
	Format     string
	Base       *os.File // nil when there is none
	BaseFormat string
}

// Close closes the files.
func (o Opened) Close() {
	for _, f := range []*os.File{o.File, o.Base} {
		if f != nil {
			_ = f.Close() // QEMU has a duplicate
		}
	}
}

// Open opens a Guest's disk. If there is none yet, it takes over the disk that
// was retained from the Guest's predecessor, or else creates a new one.
func (s *Store) Open(ctx context.Context, w Wanted) (Opened, error) {
	o := Opened{Format: w.format()}
	err := s.open(ctx, w, &o)
	if err != nil {
		o.Close()
		return Opened{}, fmt.Errorf("disk %s: %w", w.Name, err)
	}
	return o, nil
}

func (s *Store) open(ctx context.Context, w Wanted, o *Opened) error {
	if err := api.ValidateName(w.Name); err != nil {
		return err // it becomes a file name
	}
	if _, err := os.Stat(s.path(w)); errors.Is(err, fs.ErrNotExist) {
		if err := s.make(ctx, w); err != nil {
			return err
		}
	}
	if err := s.openBase(ctx, s.path(w), o); err != nil {
		return err
	}
	var err error
	o.File, err = os.OpenFile(s.path(w), os.O_RDWR, 0)
	return err
}

// baseSuffix is the suffix of the file that names a disk's base. The disk's own
// header is under the Guest's control, and w.Image only says what a new disk
// starts as: the Image may have changed since, and a disk on another base is
// lost.
const baseSuffix = ".base"

// openBase opens the image that a disk is based on, if any.
func (s *Store) openBase(ctx context.Context, path string, o *Opened) error {
	digest, err := readBase(path)
	if err != nil || digest == "" {
		return err
	}
	if o.Base, err = s.Image(ctx, digest); err != nil {
		return err
	}
	if o.BaseFormat, err = FormatOf(o.Base); err != nil {
		return fmt.Errorf("image %s: %w", digest, err)
	}
	return nil
}

// readBase reads the digest of a disk's base, "" when it has none.
func readBase(path string) (api.SHA256, error) {
	raw, err := os.ReadFile(path + baseSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return api.SHA256(raw), err
}

// Bases returns the images that the disks under a Guest's directory are based
// on.
func Bases(dir string) ([]api.SHA256, error) {
	return basesIn(filepath.Join(dir, "disks", "*"+baseSuffix))
}

func basesIn(pattern string) ([]api.SHA256, error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	var list []api.SHA256
	for _, path := range paths {
		digest, err := readBase(strings.TrimSuffix(path, baseSuffix))
		if err != nil {
			return nil, err
		}
		list = append(list, digest)
	}
	return list, nil
}

// Base returns the image that a Guest's disk is based on, "" when there is no
// base or no such disk yet.
func (s *Store) Base(w Wanted) (api.SHA256, error) { return readBase(s.path(w)) }

func (s *Store) make(ctx context.Context, w Wanted) error {
	path := s.path(w)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return full(err)
	}
	if w.Retain {
		err := move(s.retainedPath(w), path)
		if err == nil {
			return errors.Join(file.SyncDir(dir), file.SyncDir(filepath.Dir(s.retainedPath(w))))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take over the retained disk: %w", err)
		}
	}
	var o Opened
	defer func() { o.Close() }()
	if w.Image != "" {
		var err error
		if o.Base, err = s.Image(ctx, w.Image); err != nil {
			return err
		}
		if o.BaseFormat, err = FormatOf(o.Base); err != nil {
			return fmt.Errorf("image %s: %w", w.Image, err)
		}
	}
	size := w.Size.Value()
	if o.Base != nil {
		h, err := readHeader(o.Base)
		if err != nil {
			return err
		}
		if h.size > size {
			return fmt.Errorf("invalid size of %d bytes: want at least the image's %d", size, h.size)
		}
	}
	if w.format() == Raw {
		return place(path, 0o600, func(out *os.File) error { return fillRaw(ctx, out, &o, size) })
	}
	if err := writeBase(path, w.Image); err != nil {
		return err
	}
	return place(path, 0o600, func(out *os.File) error { return fillQCOW2(ctx, out.Name(), &o, size) })
}

// writeBase records the base of a disk that is about to be created.
func writeBase(path string, digest api.SHA256) error {
	if digest == "" {
		return removeIfThere(path + baseSuffix) // left by a creation that failed
	}
	return place(path+baseSuffix, 0o600, func(out *os.File) error { _, err := out.WriteString(string(digest)); return err })
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// move moves a disk to a path where none may exist. Its base is named next to
// it at every instant.
func move(from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return err
	}
	if _, err := os.Stat(to); err == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: unix.EEXIST}
	}
	if err := removeIfThere(to + baseSuffix); err != nil {
		return err
	}
	if err := os.Link(from+baseSuffix, to+baseSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return full(err)
	}
	if err := file.SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return removeIfThere(from + baseSuffix)
}

func fillRaw(ctx context.Context, out *os.File, o *Opened, size int64) error {
	if o.Base != nil {
		if o.BaseFormat != Raw {
			return fmt.Errorf("a raw disk cannot be created from an image of format %s: write format: qcow2", o.BaseFormat)
		}
		// Share extents where the file system supports it (XFS, btrfs).
		if err := unix.IoctlFileClone(int(out.Fd()), int(o.Base.Fd())); err != nil {
			from := io.NewSectionReader(o.Base, 0, 1<<62)
			if _, err := io.Copy(out, reader{ctx, from}); err != nil {
				return err
			}
		}
	}
	return out.Truncate(size)
}

// reader fails when its context is done.
type reader struct {
	ctx  context.Context
	from io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.from.Read(p)
}

// fillQCOW2 makes qemu-img create an empty disk. It reads no file: QEMU gets
// the base at each start, and no header names it.
func fillQCOW2(ctx context.Context, path string, o *Opened, size int64) error {
	args := []string{"create", "-q", "-f", QCOW2, "-o", "lazy_refcounts=on,extended_l2=off"}
	if o.Base != nil {
		args = append(args, "-u", "-b", "base", "-F", o.BaseFormat)
	}
	cmd := exec.CommandContext(ctx, "qemu-img", append(args, path, strconv.FormatInt(size, 10))...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
	if _, err := cmd.Output(); err != nil {
		return toolError("qemu-img", err)
	}
	return nil
}

// Remove removes everything that a Guest has on disk, except the disks to
// retain, which are kept whatever their format. It may be repeated after a
// crash at any point.
func (s *Store) Remove(network, guest, uid string, retain []string) error {
	if err := validUID(uid); err != nil {
		return err
	}
	for _, name := range retain {
		if err := api.ValidateName(name); err != nil {
			return err
		}
		for _, format := range []string{QCOW2, Raw} {
			w := Wanted{Network: network, Guest: guest, UID: uid, GuestDisk: api.GuestDisk{Name: name, Format: format}}
			if err := s.retain(w); err != nil {
				return fmt.Errorf("retain disk %s of Guest %s: %w", name, guest, err)
			}
		}
	}
	if err := os.RemoveAll(s.GuestDir(uid)); err != nil {
		return fmt.Errorf("remove the files of Guest %s: %w", guest, err)
	}
	return nil
}

// validUID keeps paths inside the store, because uids come from the network.
func validUID(uid string) error {
	if uid == "" || uid == "." || uid == ".." || strings.ContainsAny(uid, "/\x00") {
		return fmt.Errorf("invalid uid %q", uid)
	}
	return nil
}

// retain moves a disk to where a successor finds it. It does not overwrite an
// existing one, which may be the user's only copy.
func (s *Store) retain(w Wanted) error {
	if _, err := os.Stat(s.path(w)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	to := s.retainedPath(w)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return full(err)
	}
	err := move(s.path(w), to)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s exists already, retained from an earlier Guest of this name: move one of the two away", to)
	}
	if err != nil {
		return err
	}
	return file.SyncDir(filepath.Dir(to))
}

// Collect removes images that are neither in keep nor the base of a disk, and
// leftovers of downloads unless one is running.
func (s *Store) Collect(keep []api.SHA256) (removed []string, err error) {
	select {
	case s.one <- struct{}{}:
		defer func() { <-s.one }()
	default:
		return nil, nil
	}
	for _, disks := range []string{"guests/*/disks/*", "guests/*/incoming/disks/*", "retained/*/*/*"} {
		list, err := basesIn(filepath.Join(s.dir, disks+baseSuffix))
		if err != nil {
			return nil, err
		}
		keep = append(keep, list...)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "images"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if slices.Contains(keep, api.SHA256(e.Name())) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, "images", e.Name())); err != nil {
			return removed, err
		}
		removed = append(removed, e.Name())
	}
	return removed, nil
}
