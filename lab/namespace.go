package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/namespace"
)

const namespaceDir = "/run/netns"

// createNamespace creates a named network namespace with lo up and IPv6
// disabled on later interfaces: no router solicitations, no duplicate address
// detection, no multicast reports between the machines.
func createNamespace(r *record, name string) error {
	path := filepath.Join(namespaceDir, name)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("network namespace %s exists already: take that rack down, or give this one another name", name)
	}
	if err := r.setNamespace(name, 0); err != nil {
		return fmt.Errorf("record namespace %s: %w", name, err)
	}
	if err := r.shareMounts(); err != nil {
		return err
	}
	if err := namespace.Pin(path); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	err := inNamespace(name, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // no such file: a kernel without IPv6
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	inode, err := namespaceInode(name)
	if err != nil {
		return err
	}
	if err := r.setNamespace(name, inode); err != nil {
		return fmt.Errorf("record namespace %s: %w", name, err)
	}
	return nil
}

// shareMounts prepares the directory, and records whether its mount must be
// removed.
func (r *record) shareMounts() error {
	made, err := namespace.ShareMounts(namespaceDir)
	if err != nil {
		return fmt.Errorf("prepare %s for network namespaces: %w", namespaceDir, err)
	}
	if !made {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.MountsDir = true
	return r.write()
}

// removeNamespaces removes the recorded namespaces, and the mount of their
// directory if the rack made it and nothing else uses it.
func (f rackFile) removeNamespaces() error {
	var errs []error
	for _, n := range f.Namespaces {
		errs = append(errs, n.remove(f.BootID))
	}
	if f.MountsDir && errors.Join(errs...) == nil {
		errs = append(errs, namespace.UnshareMounts(namespaceDir))
	}
	return errors.Join(errs...)
}

func namespaceInode(name string) (uint64, error) {
	info, err := os.Stat(filepath.Join(namespaceDir, name))
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// remove deletes the namespace if it is the recorded one. It deletes its links
// first, which would otherwise stay while a process has the namespace open.
func (n namespaceRecord) remove(recordedBoot string) error {
	inode, err := namespaceInode(n.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if id, err := bootID(); err != nil || id != recordedBoot {
		return err // after a reboot the name belongs to another namespace
	}
	path := filepath.Join(namespaceDir, n.Name)
	pins, err := namespace.Pins(path)
	if err != nil {
		return err
	}
	if pins && n.Inode != 0 && n.Inode != inode {
		return nil // another namespace of the same name
	}
	if !pins { // only the name is left
		return namespace.Unpin(path)
	}
	err = inNamespace(n.Name, removeLinks)
	if err := namespace.Unpin(path); err != nil {
		return err
	}
	if err != nil && n.Inode != 0 {
		return fmt.Errorf("empty network namespace %s: %w", n.Name, err)
	}
	return nil
}

func removeLinks() error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	var script strings.Builder
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 && l.Name != "sit0" && l.Name != "tunl0" {
			fmt.Fprintf(&script, "link del %s\n", l.Name)
		}
	}
	// -force, because deleting one end of a veth deletes the other.
	return runIP(context.Background(), script.String(), "-force")
}

// ipScript runs ip(8) commands in a namespace, one per line, and stops at the
// first that fails.
func ipScript(ctx context.Context, namespace, script string) error {
	return runIP(ctx, script, "-n", namespace)
}

func runIP(ctx context.Context, script string, flags ...string) error {
	cmd := exec.CommandContext(ctx, "ip", append(flags, "-batch", "-")...)
	cmd.Stdin = strings.NewReader(script)
	output, err := cmd.CombinedOutput()
	if err != nil && flags[0] != "-force" {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(flags, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}

// inNamespace runs do on a thread in the namespace. Sockets created there stay
// there.
func inNamespace(name string, do func() error) error {
	return namespace.Within(filepath.Join(namespaceDir, name), do)
}

// dialIn connects from a namespace. Addresses must be literal.
func dialIn(ctx context.Context, namespace, network, address string) (conn net.Conn, err error) {
	entered := inNamespace(namespace, func() error {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		if net.ParseIP(host) == nil {
			return fmt.Errorf("dial %s from the rack: give an address, not a name", address)
		}
		// With one address there is no race of connections, so the dialer stays
		// on this thread.
		d := net.Dialer{FallbackDelay: -1}
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, entered
}

// inside returns the command line that enters the namespace, mounts its /sys,
// and executes argv.
func inside(namespace string, argv ...string) []string {
	return append([]string{"ip", "netns", "exec", namespace}, argv...)
}

// requireRoot reports what is missing before anything is created.
func requireRoot() error {
	if unix.Geteuid() != 0 {
		return errors.New("the lab needs root: it makes network namespaces, bridges and taps")
	}
	for _, tool := range []string{"ip", "qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("the lab needs %s: install the packages iproute2, qemu-system-x86, qemu-utils, ovmf and ipxe-qemu", tool)
		}
	}
	return nil
}
