// Package file replaces and removes files durably: after a loss of power a file
// is complete, and in its new state once the call has returned.
package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Preparing is the prefix of temporary files. A killed process may leave one
// behind.
const Preparing = ".new-"

// Options describe the file that Replace creates. With the zero Options only
// its owner, this process's user, can read it.
type Options struct {
	Mode fs.FileMode // Default: 0600.
	// Owner, if set, is applied before the file can be opened under its name.
	Owner *Owner
	// Temp is the directory of the temporary file, on the same file system.
	// Default: the file's own directory.
	Temp string
}

// Owner is the user and group of a file.
type Owner struct{ UID, GID int }

// Replace replaces a file with content, or creates it. Readers, and the machine
// after a loss of power, see either the old file or the new one; once Replace
// has returned, the new one. After an error the old file is unchanged, except
// that it may be either of the two when only the directory could not be synced.
func Replace(path string, content []byte, o Options) error {
	return ReplaceWith(path, o, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// ReplaceWith is Replace for content that fill writes. An error of fill is
// returned unchanged.
func ReplaceWith(path string, o Options, fill func(*os.File) error) error {
	temp, err := prepare(path, o, fill)
	if err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return errors.Join(err, os.Remove(temp.Name()), temp.Close())
	}
	return errors.Join(syncParents(path, temp.Name()), temp.Close())
}

// Create creates a file with its complete content. If the file exists, it
// returns fs.ErrExist and changes nothing: of two concurrent calls one
// succeeds.
func Create(path string, content []byte, o Options) error {
	temp, err := prepare(path, o, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = temp.Close() }()
	err = os.Link(temp.Name(), path)
	if err := errors.Join(err, os.Remove(temp.Name())); err != nil {
		return err
	}
	return syncParents(path, temp.Name())
}

// prepare writes and syncs a temporary file in the same directory. The caller
// closes it after it was renamed.
func prepare(path string, o Options, fill func(*os.File) error) (*os.File, error) {
	dir := o.Temp
	if dir == "" {
		dir = filepath.Dir(path)
	}
	f, err := temporary(filepath.Join(dir, Preparing+filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	err = fill(f)
	if err == nil && o.Owner != nil {
		err = f.Chown(o.Owner.UID, o.Owner.GID)
	}
	if err == nil && o.Mode != 0 {
		err = f.Chmod(o.Mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()), f.Close()) // on a full disk it would only take space
	}
	return f, nil
}

// temporary creates an empty file and locks it. It always has the same name, so
// that a file left by a killed process is found and such files do not
// accumulate; the lock serializes processes that replace the same file.
func temporary(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		made := err == nil
		if errors.Is(err, fs.ErrExist) {
			f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it was renamed just now
			}
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		there, err := named(f)
		if err == nil && there && made {
			return f, nil
		}
		if err == nil && there {
			err = os.Remove(path) // its creator has died
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// named reports whether the file still has its name.
func named(f *os.File) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	found, err := os.Lstat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, found), err
}

// Rename renames a file or directory within its file system. Once it has
// returned, a loss of power does not undo it.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncParents(to, from)
}

// Remove removes a file, if it exists. Once it has returned, a loss of power
// does not bring the file back.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

func syncParents(to, from string) error {
	if err := SyncDir(filepath.Dir(to)); err != nil || filepath.Dir(to) == filepath.Dir(from) {
		return err
	}
	return SyncDir(filepath.Dir(from))
}

// SyncDir syncs a directory: files created, renamed or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
