package rig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rackweft/rackweft/internal/command"
)

// Binaries is a directory with bootd, nodeagent and weftctl.
type Binaries struct{ Dir string }

// Path returns the path of one of them.
func (b Binaries) Path(program string) string { return filepath.Join(b.Dir, program) }

// Build builds the three programs as for a release, once per test process.
// RACKWEFT_BIN names a directory that has them already.
func Build(tb testing.TB) Binaries {
	tb.Helper()
	if dir := os.Getenv("RACKWEFT_BIN"); dir != "" {
		return Binaries{absolute(tb, dir)}
	}
	process.Lock()
	defer process.Unlock()
	if process.binaries != "" {
		return Binaries{process.binaries}
	}
	dir, err := os.MkdirTemp("", "rackweft-bin")
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "./cmd/...")
	cmd.Dir, cmd.Env = moduleRoot(tb), append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		tb.Fatalf("build the programs: %v\n%s", err, output)
	}
	process.binaries = dir
	return Binaries{dir}
}

// Image returns the directory of the netboot image, which is built if it is not
// in the cache; that takes minutes. RACKWEFT_IMAGE names a directory that has
// one already.
func Image(tb testing.TB) string { return buildImage(tb, "RACKWEFT_IMAGE") }

// GuestsImage is Image with QEMU, for hosts of Guests; RACKWEFT_GUESTS_IMAGE.
func GuestsImage(tb testing.TB) string { return buildImage(tb, "RACKWEFT_GUESTS_IMAGE", "--guests") }

func buildImage(tb testing.TB, variable string, args ...string) string {
	tb.Helper()
	if dir := os.Getenv(variable); dir != "" {
		return absolute(tb, dir)
	}
	cmd := exec.CommandContext(tb.Context(), filepath.Join(moduleRoot(tb), "lab", "image", "build"), args...)
	output, err := command.Output(cmd)
	if err != nil {
		tb.Fatalf("build the netboot image: %v", err)
	}
	return strings.TrimSpace(string(output))
}

func absolute(tb testing.TB, dir string) string {
	tb.Helper()
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(moduleRoot(tb), dir) // relative to the root of the tree
	}
	return dir
}

// moduleRoot finds go.mod above the test's directory, in which tests run.
func moduleRoot(tb testing.TB) string {
	tb.Helper()
	dir, err := findUp("go.mod")
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

func findUp(name string) (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		_, err := os.Stat(filepath.Join(dir, name))
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no %s in %s or above", name, start)
		}
	}
}
