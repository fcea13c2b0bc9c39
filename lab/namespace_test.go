package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/command"
	"github.com/rackweft/rackweft/internal/nstest"
)

// Somebody calls ip-netns(8) for the first time while a rack is up: it mounts
// /run/netns over itself, and what the rack has there must go all the same.
func TestForeignNamespace(t *testing.T) {
	nstest.Root(t, nstest.Namespaces)
	if os.Getenv("LAB_TEST_PRIVATE") == "" { // /run is to be as after the machine's boot
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "--mount", "--propagation=private", self, "-test.run=^TestForeignNamespace$", "-test.v")
		cmd.Env = append(os.Environ(), "LAB_TEST_PRIVATE=1")
		out, err := command.Output(cmd)
		if err != nil || !strings.Contains(string(out), "--- PASS: TestForeignNamespace") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mounts := func(below string) (found []string) {
		raw, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if at := strings.Fields(line)[4]; strings.HasPrefix(at, below) {
				found = append(found, at)
			}
		}
		return found
	}
	before := mounts("/run/netns") // of this machine's own /run
	r, err := newRecord(t.TempDir(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lab-a", "lab-b"} {
		if err := createNamespace(r, name); err != nil {
			t.Fatal(err)
		}
	}
	ip := func(args ...string) string {
		out, err := command.Output(exec.Command("ip", args...))
		if err != nil {
			t.Fatalf("ip %q: %v", args, err)
		}
		return string(out)
	}
	ip("netns", "add", "foreign")
	for range 2 { // also what is removed already
		if err := r.removeNamespaces(); err != nil {
			t.Error(err)
		}
	}
	if got := ip("netns", "list"); got != "foreign\n" {
		t.Errorf("ip netns lists %q", got)
	}
	if found := mounts("/run/netns/lab-"); len(found) > 0 {
		t.Errorf("mounts are left: %q", found)
	}
	// The directory's own mount goes when nobody needs it.
	ip("netns", "del", "foreign")
	if err := r.removeNamespaces(); err != nil {
		t.Error(err)
	}
	if after := mounts("/run/netns"); !slices.Equal(before, after) {
		t.Errorf("mounts are left: %q, before %q", after, before)
	}
}

// A name whose namespace is covered by another mount is not said to be gone.
func TestCoveredNamespace(t *testing.T) {
	nstest.Root(t, nstest.Namespaces)
	r, err := newRecord(t.TempDir(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	name := randomName() + "-x"
	if err := createNamespace(r, name); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(namespaceDir, name)
	n := r.Namespaces[0]
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil { // twice on one name
		t.Fatal(err)
	}
	if err := n.remove(r.BootID); err == nil || !strings.Contains(err.Error(), "umount") {
		t.Errorf("removed while it is mounted once more: %v", err)
	}
	if err := n.remove(r.BootID); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Errorf("%s is left", path)
	}
}
