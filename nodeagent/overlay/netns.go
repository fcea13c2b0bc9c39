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

// namespaceName differs between a Network and an earlier one of the same name.
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
		// A thread that cannot return stays locked, and ends with the goroutine.
		if netns.Set(own) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// EnterNamespace moves the whole process into the network namespace that is pinned at
// path: unless it is there already, it executes itself again with its arguments. Then
// EnterNamespace returns only with an error.
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
	runtime.LockOSThread() // exec keeps the calling thread's namespace
	defer runtime.UnlockOSThread()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter the network namespace %s: %w", path, err)
	}
	return fmt.Errorf("execute %s again: %w", self, unix.Exec(self, os.Args, os.Environ()))
}

// openNamespace opens the namespace pinned at path. It returns fs.ErrNotExist for a
// path without one, whose mount was lost or never made.
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

// namespaces lists rackweft's network namespaces in dir.
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
