package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockFile exists in every state directory that a bootd has used.
const LockFile = "bootd.lock"

// Lock locks a state directory for this process, as Open does, until it is closed.
func Lock(dir string) (io.Closer, error) { return lockDir(dir) }

// lockDir locks the state directory for this process; closing the file unlocks it, and so does any end of the
// process.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, LockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) {
		f, err = os.Open(path)
	}
	if unwritable(dir, 0) != nil && errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOSPC) {
		f, err = os.Open(dir) // no bootd can create the file
	}
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another bootd%s uses %s: stop it, or give this one its own --state-dir", holder(f), dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			// The pid only serves the message; a full disk must not stop bootd here.
			return f, nil
		}
	}
	return f, nil
}

// holder names the process that holds the lock, as far as it is known.
func holder(f *os.File) string {
	raw, err := io.ReadAll(io.LimitReader(f, 32))
	pid := strings.TrimSpace(string(raw))
	if err != nil || pid == "" {
		return ""
	}
	return " (pid " + pid + ")"
}
