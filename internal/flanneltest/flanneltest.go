// Package flanneltest builds the stock flanneld, the counterpart of tests and benchmarks.
package flanneltest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

const module = "github.com/flannel-io/flannel@v0.26.7"

// Binary is the path of a flanneld, built once and kept in the user's cache. It skips short tests: a build takes minutes.
func Binary(tb testing.TB) string {
	tb.Helper()
	if testing.Short() {
		tb.Skip("building flanneld takes minutes")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatal(err)
	}
	dir := filepath.Join(cache, "rackweft-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	defer lock(tb, filepath.Join(dir, "flannel.lock"))()
	binary := filepath.Join(dir, "flannel")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	cmd := exec.CommandContext(tb.Context(), "go", "install", module)
	// Its backend udp is written in C.
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-trimpath", "CGO_ENABLED=1")
	cmd.Dir = tb.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", module, err, out)
	}
	return binary
}

// lock waits for the other packages whose tests build the same, which run at the same time.
func lock(tb testing.TB, path string) (unlock func()) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		tb.Fatalf("lock %s: %v", path, err)
	}
	return func() { _ = f.Close() }
}
