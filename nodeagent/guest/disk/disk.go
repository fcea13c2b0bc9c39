// Package disk owns Guests' disks on their host: base images that are fetched
// once, verified and shared, the disks over them, and those that outlive their
// Guest.
//
// Under the store's directory, all of it root's and nobody else's:
//
//	images/DIGEST                    base images, read-only
//	retained/NETWORK/GUEST/DISK      disks that wait for their Guest's successor
//	guests/UID/disks/NAME.FORMAT     disks of the Guests that are
//	….base                           beside a qcow2 disk over an image: its digest
//
// A disk comes to be under another name and is renamed when it is whole.
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

// Formats of disks.
const (
	QCOW2 = "qcow2"
	Raw   = "raw"
)

// Fetch reads a blob by its digest. The caller closes it and verifies it.
type Fetch func(ctx context.Context, digest api.SHA256) (io.ReadCloser, error)

// ErrFull means that there is no room for a disk or an image.
var ErrFull = errors.New("the file system of the guests' disks is full: make room there, or give the host a larger rackweft-data")

// Store keeps the disks of one host.
type Store struct {
	dir   string
	fetch Fetch
	one   chan struct{} // holds a token while an image is fetched: the next guest finds it
}

// NewStore keeps disks under dir.
func NewStore(dir string, fetch Fetch) *Store {
	return &Store{dir: dir, fetch: fetch, one: make(chan struct{}, 1)}
}

// GuestDir is where all is that a Guest has on disk.
func (s *Store) GuestDir(uid string) string { return filepath.Join(s.dir, "guests", uid) }

func (s *Store) imagePath(digest api.SHA256) string {
	return filepath.Join(s.dir, "images", string(digest))
}

// Image opens a base image for reading, after it has been fetched if the host
// has not got it yet. QEMU, as another user, may open it anew by its number.
func (s *Store) Image(ctx context.Context, digest api.SHA256) (*os.File, error) {
	if len(digest) != 64 || strings.Trim(string(digest), "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%q is no digest of an image", digest) // it becomes a file's name
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

// sharedMode is of files that every Guest may read.
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
	stop := context.AfterFunc(ctx, func() { _ = in.Close() }) // frees a read that nothing answers
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
			return fmt.Errorf("what came has the digest %s: bootd or something on the way changed it", got)
		}
		return nil
	})
}

// place makes a file that is whole or not there.
func place(path string, mode fs.FileMode, fill func(*os.File) error) error {
	return full(file.ReplaceWith(path, file.Options{Mode: mode}, fill))
}

// full says it in a person's words when there is no room.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrFull, err)
	}
	return err
}

// FormatOf reads what an image is out of its header.
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

// Wanted is a disk of a Guest.
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
		network = "-" // no Network's name
	}
	return filepath.Join(s.dir, "retained", network, w.Guest, w.Name+"."+w.format())
}

// Opened is a disk as QEMU gets it. Close it when QEMU has it.
type Opened struct {
	File       *os.File
	Format     string
	Base       *os.File // nil for none
	BaseFormat string
}

// Close closes the files.
func (o Opened) Close() {
	for _, f := range []*os.File{o.File, o.Base} {
		if f != nil {
			_ = f.Close() // QEMU has its own
		}
	}
}

// Open opens a Guest's disk, which is made if it is not there: taken over from
// the Guest's predecessor if it was retained, else new.
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
		return err // it becomes a file's name
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

// baseSuffix is of the file that names a disk's base. The disk's own header is
// its Guest's, and w.Image what a new disk begins as: the Image may have changed
// since, and a disk over another base is lost.
const baseSuffix = ".base"

// openBase opens the image that a disk lies over, if there is one.
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

// readBase reads the digest of a disk's base, "" for none.
func readBase(path string) (api.SHA256, error) {
	raw, err := os.ReadFile(path + baseSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return api.SHA256(raw), err
}

// Bases are the images that the disks under a Guest's directory lie over.
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

// Base is the image that a Guest's disk lies over, "" for none, or when there is
// no such disk yet.
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
			return fmt.Errorf("take over the disk that was retained: %w", err)
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
			return fmt.Errorf("its image has %d bytes, it is to have %d: give it at least the image's size", h.size, size)
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

// writeBase writes down what a disk that is about to be made lies over.
func writeBase(path string, digest api.SHA256) error {
	if digest == "" {
		return removeIfThere(path + baseSuffix) // of one that was not made in the end
	}
	return place(path+baseSuffix, 0o600, func(out *os.File) error { _, err := out.WriteString(string(digest)); return err })
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// move gives a disk another place, where none may be yet, and its base is named
// beside it at every instant.
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
			return fmt.Errorf("its image is %s, which a raw disk cannot begin as: write format: qcow2", o.BaseFormat)
		}
		// Shared extents where the file system has them (XFS, btrfs).
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

// fillQCOW2 has qemu-img write an empty disk. It reads no file: what is below
// the disk is told to QEMU at each start and stands in no header.
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

// Remove removes all that a Guest has on disk, but for the disks to retain: all
// that it has of those names, whatever their format. It may be repeated after
// a crash at any point.
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
		return fmt.Errorf("remove what Guest %s has on disk: %w", guest, err)
	}
	return nil
}

// validUID keeps paths inside the store: uids come from the network.
func validUID(uid string) error {
	if uid == "" || uid == "." || uid == ".." || strings.ContainsAny(uid, "/\x00") {
		return fmt.Errorf("%q is no uid", uid)
	}
	return nil
}

// retain moves a disk to where a successor finds it. One that is there already
// is not overwritten: it is somebody's only copy.
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
		return fmt.Errorf("%s is there already, retained from an earlier Guest of this name: move one of the two away", to)
	}
	if err != nil {
		return err
	}
	return file.SyncDir(filepath.Dir(to))
}

// Collect removes images that are not in keep and that no disk lies over, and
// what downloads left behind, unless one is running.
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
