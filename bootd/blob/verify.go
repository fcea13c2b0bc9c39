package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/internal/wait"
)

// ErrDamaged matches every *DamagedError.
var ErrDamaged = errors.New("damaged blob")

// DamagedError means that a blob's content on the disk does not match its name.
// It is fs.ErrNotExist too: the blob is not served, and a new Put repairs it.
type DamagedError struct {
	Digest Digest
	What   string // what is wrong
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("blob %s is damaged on bootd's disk (%s) and is not served: import it again", e.Digest, e.What)
}

// Is makes every DamagedError an ErrDamaged and an fs.ErrNotExist.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged || target == fs.ErrNotExist }

// stamp identifies the version of a file whose digest was verified.
type stamp struct {
	inode          uint64
	size           int64
	written, moved unix.Timespec
}

// verification is a verification in progress, which others can wait for.
type verification struct {
	done chan struct{}
	err  error
}

// open opens a blob's file, and detects files that cannot be a blob.
func (s *Store) open(d Digest) (*os.File, stamp, error) {
	// Symbolic links are not followed, and opening a FIFO does not block.
	f, err := os.OpenFile(s.path(d), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, stamp{}, err
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EIO), errors.Is(err, unix.ENXIO):
		return nil, stamp{}, &DamagedError{d, "it cannot be opened: " + err.Error()}
	case err != nil:
		return nil, stamp{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, stamp{}, errors.Join(fmt.Errorf("fstat: %w", err), f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, stamp{}, errors.Join(&DamagedError{d, "it is not a regular file"}, f.Close())
	}
	return f, stamp{st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// verified opens a blob whose digest was verified since the Store was opened,
// and whose file has not changed since. Of several concurrent callers one reads
// it.
func (s *Store) verified(d Digest) (*os.File, stamp, error) {
	if err := s.known(d); err != nil {
		return nil, stamp{}, err
	}
	for {
		f, is, err := s.open(d)
		if err != nil {
			if known := s.known(d); known != nil {
				return nil, stamp{}, known // it was moved away just now
			}
			return nil, stamp{}, s.found(d, is, err)
		}
		s.mu.Lock()
		if s.sound[d] == is {
			s.mu.Unlock()
			return f, is, nil
		}
		v, running := s.checking[d]
		if !running {
			v = &verification{done: make(chan struct{})}
			s.checking[d] = v
		}
		s.mu.Unlock()
		if !running {
			v.err = s.verify(context.Background(), f, d, is, 0)
			s.mu.Lock()
			delete(s.checking, d)
			s.mu.Unlock()
			close(v.done)
		}
		<-v.done
		if err := errors.Join(v.err, f.Close()); err != nil {
			return nil, stamp{}, err
		}
		// The file that is there now is used, which may be another one.
	}
}

// known returns the fault of a blob that was found damaged.
func (s *Store) known(d Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.damaged[d]; e != nil {
		return e
	}
	return nil
}

// found moves a damaged blob away, unless another file has replaced it
// meanwhile. It returns other errors unchanged.
func (s *Store) found(d Digest, was stamp, err error) error {
	var damaged *DamagedError
	if !errors.As(err, &damaged) {
		return err
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	if s.known(d) != nil {
		return damaged
	}
	if _, now, err := s.stat(d); err == nil && was != (stamp{}) && now != was {
		return nil
	}
	s.mu.Lock()
	s.damaged[d] = damaged
	delete(s.sound, d)
	s.mu.Unlock()
	// If it cannot be moved it stays, and is not served all the same.
	aside := s.damagedPath(d)
	moved := errors.Join(os.MkdirAll(filepath.Dir(aside), 0o750), os.RemoveAll(aside))
	if moved == nil {
		moved = file.Rename(s.path(d), aside)
	}
	s.opts.Log.Error("a blob is damaged and no longer served: import the Image again", "blob", d, "fault", damaged.What, "aside", aside, "moveError", moved)
	s.changed(d)
	return damaged
}

// verify reads a blob to its end, at most so many bytes per second (0:
// unlimited).
func (s *Store) verify(ctx context.Context, f *os.File, d Digest, is stamp, rate int64) error {
	sum, buf := sha256.New(), s.bufs.Get().(*[]byte)
	defer s.bufs.Put(buf)
	var at int64
	for {
		n, err := f.ReadAt(*buf, at)
		sum.Write((*buf)[:n])
		at += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return s.found(d, is, &DamagedError{d, fmt.Sprintf("it cannot be read at byte %d: %v", at, err)})
		}
		if rate > 0 {
			if err := wait.For(ctx, time.Duration(n)*time.Second/time.Duration(rate)); err != nil {
				return err
			}
		}
	}
	got := Digest(algorithm + hex.EncodeToString(sum.Sum(nil)))
	if got != d {
		return s.found(d, is, &DamagedError{d, fmt.Sprintf("its %d bytes have digest %s", at, got)})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sound[d] = is
	return nil
}

// stat describes a blob's file without reading it.
func (s *Store) stat(d Digest) (Info, stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(s.path(d), &st); err != nil {
		return Info{}, stamp{}, &fs.PathError{Op: "stat", Path: s.path(d), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return Info{}, stamp{}, &DamagedError{d, "it is not a regular file"}
	}
	return Info{Digest: d, Size: st.Size, ModTime: time.Unix(st.Mtim.Unix())}, stamp{st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

func (s *Store) damagedPath(d Digest) string { return filepath.Join(s.dir, "damaged", d.Hex()) }

// remember finds the blobs that were moved away before the Store was opened.
func (s *Store) remember() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "damaged"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		d, err := ParseDigest(algorithm + e.Name())
		if err != nil {
			continue
		}
		if _, _, err := s.stat(d); err == nil {
			continue // repaired by a Put that was interrupted before it removed this file
		}
		s.damaged[d] = &DamagedError{d, "found before bootd was started"}
	}
	return nil
}

// mended records that a sound copy of a blob was put.
func (s *Store) mended(d Digest) {
	_, is, err := s.stat(d)
	s.mu.Lock()
	was := s.damaged[d]
	delete(s.damaged, d)
	if err == nil {
		s.sound[d] = is
	}
	s.mu.Unlock()
	if was == nil {
		return
	}
	if err := os.RemoveAll(s.damagedPath(d)); err != nil {
		s.opts.Log.Warn("cannot remove a damaged blob", "blob", d, "error", err)
	}
	s.opts.Log.Info("a damaged blob is repaired", "blob", d)
	s.changed(d)
}

// Damaged counts the blobs that are damaged and not served.
func (s *Store) Damaged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.damaged)
}

// changed notifies the followers.
func (s *Store) changed(d Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.followers {
		f.pending[d] = true
		f.wake.Set()
	}
}

// follower is called for blobs that are found damaged or repaired.
type follower struct {
	pending map[Digest]bool
	wake    wait.Signal
}

// Follow calls fn with every blob that is found damaged or repaired, until ctx
// ends.
func (s *Store) Follow(ctx context.Context, fn func(Digest)) error {
	f := &follower{pending: map[Digest]bool{}, wake: wait.NewSignal()}
	s.mu.Lock()
	s.followers[f] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.followers, f)
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.wake:
		}
		s.mu.Lock()
		due := f.pending
		f.pending = map[Digest]bool{}
		s.mu.Unlock()
		for d := range due {
			fn(d)
		}
	}
}

// Scrub reads all blobs repeatedly and slowly, so that damage is found before a
// blob is needed. It starts with blobs that were not used since the Store was
// opened.
func (s *Store) Scrub(ctx context.Context) error {
	for all := false; ; all = true {
		if err := s.scrub(ctx, all); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.opts.Log.Warn("the blobs are not all verified", "error", err)
		}
		if err := wait.For(ctx, s.opts.ScrubEvery); err != nil {
			return err
		}
	}
}

func (s *Store) scrub(ctx context.Context, all bool) error {
	infos, err := s.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, s.scrubOne(ctx, info.Digest, all))
	}
	return errors.Join(errs...)
}

func (s *Store) scrubOne(ctx context.Context, d Digest, again bool) error {
	f, is, err := s.open(d)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return nil // deleted meanwhile
	}
	if err != nil {
		err = s.found(d, is, err)
	} else {
		s.mu.Lock()
		known := s.sound[d] == is
		s.mu.Unlock()
		if !known || again {
			err = s.verify(ctx, f, d, is, s.opts.ScrubRate)
		}
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, ErrDamaged) {
		return nil // logged by found
	}
	return err
}
