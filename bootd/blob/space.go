package blob

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoSpace matches every *NoSpaceError.
var ErrNoSpace = errors.New("no space left for blobs")

// NoSpaceError means that a blob was not stored for lack of space.
type NoSpaceError struct {
	Dir     string
	Free    int64 // free bytes; -1 if unknown
	Reserve int64 // bytes that must stay free
	Err     error // the kernel's error; nil if the Store did not try
}

func (e *NoSpaceError) Error() string {
	free := "an unknown amount"
	if e.Free >= 0 {
		free = bytesText(e.Free)
	}
	text := fmt.Sprintf("%v: %s of the file system of %s is free", ErrNoSpace, free, e.Dir)
	if e.Reserve > 0 {
		text += fmt.Sprintf(", and %s must stay free for the database", bytesText(e.Reserve))
	}
	if e.Err != nil {
		text += fmt.Sprintf(" (%v)", e.Err)
	}
	return text + ": delete Images that no Profile uses, or enlarge the file system"
}

func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }
func (e *NoSpaceError) Unwrap() error        { return e.Err }

// MismatchError means that a blob was not stored because its content has
// another digest than expected.
type MismatchError struct {
	Want, Got Digest
	Size      int64 // bytes received
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the content (%d bytes) has digest %s, not %s as expected: the file is damaged, cut short or another one; "+
		"get it again, or correct the digest", e.Size, e.Got, e.Want)
}

func (s *Store) checkSpace() error {
	free, err := s.free(s.dir)
	if err != nil {
		return fmt.Errorf("find out how much space is free: %w", err)
	}
	if free >= s.opts.Reserve {
		return nil
	}
	return &NoSpaceError{Dir: s.dir, Free: free, Reserve: s.opts.Reserve}
}

// explain turns the kernel's error for a full file system into a *NoSpaceError.
func (s *Store) explain(err error) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	free, statErr := s.free(s.dir)
	if statErr != nil {
		free = -1
	}
	return &NoSpaceError{Dir: s.dir, Free: free, Reserve: s.opts.Reserve, Err: err}
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
