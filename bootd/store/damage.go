package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DamagedError says that etcd's data is damaged.
type DamagedError struct {
	Dir string // the state directory
	Err error  // names the file
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the store is damaged: %v. What was written since the last backup is lost unless the file can be saved: "+
		"look after the disk, then restore with \"bootd restore FILE --state-dir %s\"; without a backup \"bootd recreate store --state-dir %s\" "+
		"begins with an empty store and moves this one aside", e.Err, e.Dir, e.Dir)
}

func (e *DamagedError) Unwrap() error { return e.Err }

func damagedStore(dir string, err error) error {
	var done *DamagedError
	if errors.As(err, &done) {
		return err
	}
	return &DamagedError{Dir: dir, Err: err}
}

// notStarted distinguishes damage from faults that are temporary, or that free space resolves.
func notStarted(dir string, err error) error {
	for _, known := range []error{ErrNoSpace, ErrReadOnly, unix.EROFS, unix.EADDRINUSE, unix.EMFILE, unix.ENOMEM} {
		if errors.Is(err, known) {
			return fmt.Errorf("start etcd in %s: %w", filepath.Join(dir, "etcd"), err)
		}
	}
	return damagedStore(dir, fmt.Errorf("etcd cannot use %s: %w", filepath.Join(dir, "etcd", "member"), err))
}

// checkFirst distinguishes a first start, even an interrupted one, from a store whose log is missing: etcd
// creates its database first.
func checkFirst(member string, isDB bool) error {
	if !isDB {
		return nil
	}
	path := filepath.Join(member, "snap", "db")
	applied, err := checkDatabase(path)
	if st, statErr := os.Stat(path); statErr == nil && st.Size() == 0 {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "check", Path: path, Err: err}
	}
	if applied > 0 {
		return &fs.PathError{Op: "check", Path: filepath.Join(member, "wal"), Err: errors.New("the log is missing")}
	}
	return nil
}

// checkUnborn removes the remains of a first start that was interrupted before its first entry: nothing was ever
// stored, and etcd would wait for unknown members for ever.
func checkUnborn(member string, log *raftLog, isDB bool) error {
	wal := filepath.Join(member, "wal")
	if log.metadata == nil {
		return &fs.PathError{Op: "check", Path: wal, Err: errors.New("the log is empty")}
	}
	if isDB {
		path := filepath.Join(member, "snap", "db")
		applied, err := checkDatabase(path)
		if err != nil {
			return &fs.PathError{Op: "check", Path: path, Err: err}
		}
		if applied > 0 {
			return &fs.PathError{Op: "check", Path: wal, Err: errors.New("the log holds no entry, and the database does")}
		}
	}
	return os.RemoveAll(member)
}

// startingFile exists from before etcd opens its data until it has opened it.
func startingFile(dir string) string { return filepath.Join(dir, "starting") }

// checkData looks for damage for which etcd would end the process, or which it would not detect. It is quick
// compared to what etcd itself reads at its start.
func checkData(dir string) error {
	member := filepath.Join(dir, "member")
	path := filepath.Join(member, "snap", "db")
	_, err := os.Lstat(path)
	isDB := err == nil
	if !Exists(filepath.Dir(dir)) {
		return checkFirst(member, isDB)
	}
	_, starting := os.Lstat(startingFile(dir))
	log, err := checkLog(filepath.Join(member, "wal"), starting == nil)
	if err != nil {
		return err
	}
	if log.last == 0 {
		return checkUnborn(member, log, isDB)
	}
	if !isDB {
		if log.first > 1 || log.snapshot > 0 {
			return &fs.PathError{Op: "check", Path: path, Err: errors.New("the database is missing")}
		}
		return nil // the log contains everything
	}
	applied, err := checkDatabase(path)
	if err != nil {
		return &fs.PathError{Op: "check", Path: path, Err: err}
	}
	if applied > log.last {
		return &fs.PathError{Op: "check", Path: filepath.Join(member, "wal"), Err: fmt.Errorf("the log ends with entry %d, and the database has entry %d: the log's end is missing", log.last, applied)}
	}
	if applied+1 < log.first || applied < log.snapshot {
		return &fs.PathError{Op: "check", Path: path, Err: fmt.Errorf("the database ends with entry %d, and the log begins with entry %d: the database is an old one", applied, log.first)}
	}
	return nil
}
