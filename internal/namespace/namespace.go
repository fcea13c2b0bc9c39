// Package namespace pins network namespaces to names.
package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Pin creates a network namespace and pins it at path by a bind mount, as
// ip-netns(8) does. The mount belongs to the caller's mount namespace, so a
// sandboxed process must do this outside its sandbox.
func Pin(path string) error {
	dir := filepath.Dir(path)
	if _, err := ShareMounts(dir); err != nil {
		return fmt.Errorf("prepare %s for network namespaces: %w", dir, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("pin a network namespace: %w", err)
	}
	_ = f.Close()
	if err := mountNewNamespace(path); err != nil {
		return errors.Join(fmt.Errorf("pin a network namespace at %s: %w", path, err), os.Remove(path))
	}
	return nil
}

func mountNewNamespace(path string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in the new namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	}()
	return <-done
}

// ShareMounts makes dir a mount point that shares the mounts in it with other
// mount namespaces, as ip-netns(8) does. made reports whether dir was not a
// mount point before. If dir were not a mount point, the mount of the next `ip
// netns add` would cover all pinned namespaces, whose names could then no
// longer be removed.
func ShareMounts(dir string) (made bool, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return false, err
	}
	// It is not a mount point yet.
	if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return false, err
	}
	return true, unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
}

// UnshareMounts removes a mount made by ShareMounts, unless something is
// mounted in the directory.
func UnshareMounts(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || len(names) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	err = unix.Unmount(dir, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) { // not mounted, or in use
		return nil
	}
	return err
}

// Unpin removes what Pin created. The namespace goes with its last process or
// open file.
func Unpin(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin the network namespace %s: %w", path, err)
	}
	err := os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		dir := filepath.Dir(path)
		return fmt.Errorf("unpin the network namespace %s: it is also mounted beneath another mount over %s: `umount %s` uncovers it: %w", path, dir, dir, err)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin the network namespace %s: %w", path, err)
	}
	return nil
}

// Pins reports whether a namespace is pinned at an existing path.
func Pins(path string) (bool, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return s.Type == unix.NSFS_MAGIC, nil
}

// Within runs f on a thread in the network namespace pinned at path. The thread
// ends with f.
func Within(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open a network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: no other goroutine may get the thread
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}
