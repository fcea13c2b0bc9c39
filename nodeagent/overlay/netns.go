package overlay

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespacePrefix begins the names of rackweft's network namespaces.
const namespacePrefix = "rackweft-"

// ownNamespace is the process's network namespace.
const ownNamespace = "/proc/self/ns/net"

// namespaceName tells a Network from another that had its name before.
func namespaceName(network, uid string) string {
	sum := sha256.Sum256([]byte(uid))
	return namespacePrefix + network + "-" + hex.EncodeToString(sum[:4])
}

// within runs f on a thread that is in the network namespace ns.
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("find the own network namespace: %w", err)
			return
		}
		defer func() { _ = own.Close() }()
		if err = netns.Set(ns); err != nil {
			err = fmt.Errorf("enter a network namespace: %w", err)
		} else {
			err = f()
		}
		// A thread that cannot go back stays locked, and ends with the goroutine.
		if netns.Set(own) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// EnterNamespace has the whole process in the network namespace that is pinned
// at path: one that is not there yet is run anew in it, with its own arguments,
// and EnterNamespace returns only in case of an error.
func EnterNamespace(path string) error {
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	own, err := openNamespace(ownNamespace)
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	if ns.Equal(own) {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the own file: %w", err)
	}
	runtime.LockOSThread() // the thread that is here becomes the process
	defer runtime.UnlockOSThread()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", path, err)
	}
	return fmt.Errorf("run %s anew: %w", self, unix.Exec(self, os.Args, os.Environ()))
}

// openNamespace opens what is pinned at path. A path that holds no namespace
// (its mount was lost, or never made) answers fs.ErrNotExist.
func openNamespace(path string) (netns.NsHandle, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return netns.None(), &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(fd, &stat); err != nil || stat.Type != unix.NSFS_MAGIC {
		_ = unix.Close(fd)
		return netns.None(), &fs.PathError{Op: "open namespace", Path: path, Err: fs.ErrNotExist}
	}
	return netns.NsHandle(fd), nil
}

// namespaces names rackweft's in dir.
func namespaces(dir string) ([]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the network namespaces: %w", err)
	}
	var names []string
	for _, f := range files {
		if strings.HasPrefix(f.Name(), namespacePrefix) {
			names = append(names, f.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// place is a network namespace that is open for work.
type place struct {
	ns netns.NsHandle
	*netlink.Handle
}

func (p place) close() {
	if p.Handle != nil {
		p.Handle.Close()
	}
	_ = p.ns.Close()
}

func openPlace(path string) (place, error) {
	ns, err := openNamespace(path)
	if err != nil {
		return place{ns: netns.None()}, err
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return place{ns: netns.None()}, fmt.Errorf("open netlink in %s: %w", path, err)
	}
	return place{ns, h}, nil
}
