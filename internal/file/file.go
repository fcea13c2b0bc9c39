// Package file owns how a file is replaced or removed when something depends on
// it being there after a loss of power: whole, and in its new state once the
// call has returned.
package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Preparing begins the name of a file that is being prepared; a killed process
// leaves it.
const Preparing = ".new-"

// Options says what a file is like that Replace makes. The zero Options make
// one that its owner, this process's user, alone can read.
type Options struct {
	Mode fs.FileMode // Default: 0600.
	// Owner gives the file away before anyone can open it under its name.
	Owner *Owner
	// Temp is the directory in which the file is prepared: one of the same file
	// system. Default: the file's own directory.
	Temp string
}

// Owner is the user and group of a file.
type Owner struct{ UID, GID int }

// Replace puts content in the place of a file, or makes the file. A reader, and
// the machine after a loss of power, finds the old file or the new one and
// nothing between; when Replace returns, it is the new one. After an error the
// old file is there as it was, or, when only the directory could not be
// synchronized, one of the two.
func Replace(path string, content []byte, o Options) error {
	return ReplaceWith(path, o, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// ReplaceWith is Replace for content that fill writes. An error of fill is
// returned as it is.
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

// Create makes a file with its whole content. It fails with fs.ErrExist, and
// changes nothing, when there is one: of two that create it at once, one does.
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

// prepare writes the file next to its place, down to the disk. The caller
// closes it once it has its own name.
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
		return nil, errors.Join(err, os.Remove(f.Name()), f.Close()) // on a full disk it would only take room
	}
	return f, nil
}

// temporary makes an empty file and holds its lock. Its name is the same each
// time, so that what a killed process left is found and does not pile up; the
// lock makes two that replace the same file wait for each other.
func temporary(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		made := err == nil
		if errors.Is(err, fs.ErrExist) {
			f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it got its own name just now
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
			err = os.Remove(path) // its maker is dead
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
}

// named reports whether the file is still found under its name.
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

// Rename moves a file or directory within its file system. When it returns, a
// loss of power does not undo it.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncParents(to, from)
}

// Remove removes a file, which may be gone already. When it returns, a loss of
// power does not bring the file back.
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

// SyncDir brings what was made, renamed or removed in a directory to the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("synchronize %s: %w", dir, err)
	}
	return nil
}
