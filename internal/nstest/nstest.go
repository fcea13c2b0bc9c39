// Package nstest gives tests network namespaces of their own.
package nstest

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/namespace"
)

// dir is where ip-netns(8) pins namespaces.
const dir = "/run/netns"

// Namespaces is the reason to pass to Root for tests that create network
// namespaces.
const Namespaces = "it makes network namespaces"

// Root skips a test when it does not run as root, and prints the reason.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: %s", why)
	}
}

// Enter moves the test's goroutine into a new network namespace, with lo up.
// The namespace goes with the goroutine's thread.
func Enter(t testing.TB) {
	t.Helper()
	Root(t, Namespaces)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	Run(t, "ip", "link", "set", "lo", "up")
}

// New creates a named network namespace, with lo up, that is removed after the
// test.
func New(t testing.TB) string {
	t.Helper()
	Root(t, Namespaces)
	name := "rwtest-" + strings.ToLower(rand.Text()[:8])
	Add(t, name)
	return name
}

// Add is New with a name that the test chooses.
func Add(t testing.TB, name string) {
	t.Helper()
	Root(t, Namespaces)
	Run(t, "ip", "netns", "add", name)
	t.Cleanup(func() {
		if out, err := command.Output(exec.Command("ip", "netns", "del", name)); err != nil {
			t.Errorf("remove the network namespace %s: %v\n%s", name, err, out)
		}
	})
	IP(t, name, "link", "set", "lo", "up")
}

// IP runs ip(8) in a named network namespace and returns its output.
func IP(t testing.TB, ns string, args ...string) string {
	t.Helper()
	return Run(t, "ip", append([]string{"-n", ns}, args...)...)
}

// Within runs f on a thread in a named network namespace.
func Within(ns string, f func() error) error {
	return namespace.Within(filepath.Join(dir, ns), f)
}

// Run runs a command and returns its output. It fails the test when the command
// fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := command.Output(exec.Command(name, args...))
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
