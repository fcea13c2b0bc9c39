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

// ErrDamaged is what a *DamagedError is.
var ErrDamaged = errors.New("damaged blob")

// DamagedError says that a blob on the disk is not what its name says. It is fs.ErrNotExist too: the blob
// is not served, and putting it again mends it.
type DamagedError struct {
	Digest Digest
	What   string // is wrong with it
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("blob %s is damaged on bootd's disk (%s) and is not served: import it again", e.Digest, e.What)
}

// Is makes every DamagedError an ErrDamaged and an fs.ErrNotExist.
func (e *DamagedError) Is(target error) bool { return target == ErrDamaged || target == fs.ErrNotExist }

// stamp is a file as it was when its digest was right.
type stamp struct {
	inode          uint64
	size           int64
	written, moved unix.Timespec
}

// verification is one under way, for whoever needs the blob.
type verification struct {
	done chan struct{}
	err  error
}

// open opens a blob's file, and finds what cannot be one.
func (s *Store) open(d Digest) (*os.File, stamp, error) {
	// A link is not followed, and a FIFO not waited for.
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

// verified opens a blob whose digest is right: found so since the Store was opened, of a file that has not
// changed since. Of several that ask at once, one reads it.
func (s *Store) verified(d Digest) (*os.File, stamp, error) {
	if err := s.known(d); err != nil {
		return nil, stamp{}, err
	}
	for {
		f, is, err := s.open(d)
		if err != nil {
			if known := s.known(d); known != nil {
				return nil, stamp{}, known // it was put away just now
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
		// What is there now is taken, which may be another file.
	}
}

// known is the fault of a blob that was found damaged.
func (s *Store) known(d Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.damaged[d]; e != nil {
		return e
	}
	return nil
}

// found puts a damaged blob away, unless another file has taken its place
// meanwhile; errors of other kinds are passed on.
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
	// Where it cannot be moved it stays, and is not served all the same.
	aside := s.damagedPath(d)
	moved := errors.Join(os.MkdirAll(filepath.Dir(aside), 0o750), os.RemoveAll(aside))
	if moved == nil {
		moved = file.Rename(s.path(d), aside)
	}
	s.opts.Log.Error("a blob is damaged and no longer served: import the Image again", "blob", d, "fault", damaged.What, "aside", aside, "moveError", moved)
	s.changed(d)
	return damaged
}

// verify reads a blob to its end, at most so many bytes a second (0: as fast as the disk gives them).
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

// stat looks at a blob's file without reading it.
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

// remember finds the blobs that were put away before the Store was opened.
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
			continue // mended by a Put that did not come to remove it
		}
		s.damaged[d] = &DamagedError{d, "found before bootd was started"}
	}
	return nil
}

// mended takes a blob that was put as sound.
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
		s.opts.Log.Warn("what was damaged of a blob is not removed", "blob", d, "error", err)
	}
	s.opts.Log.Info("a damaged blob is mended", "blob", d)
	s.changed(d)
}

// Damaged is how many blobs are damaged and not served.
func (s *Store) Damaged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.damaged)
}

// changed tells who follows.
func (s *Store) changed(d Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.followers {
		f.pending[d] = true
		f.wake.Set()
	}
}

// follower is told of blobs that are found damaged, and of those that are mended.
type follower struct {
	pending map[Digest]bool
	wake    wait.Signal
}

// Follow calls fn with every blob that is found damaged or is mended, until ctx ends.
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

// Scrub reads every blob over and over, slowly, so that damage is found before the blob is needed. It
// begins with those that nobody has asked for since the Store was opened.
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
		return nil // said by found
	}
	return err
}
