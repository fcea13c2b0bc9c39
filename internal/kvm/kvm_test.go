package kvm

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/internal/command"
)

const program = "qemu-system-x86_64"

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestSector(t *testing.T) {
	if err := Sector(within(t, 30*time.Second), program, "tcg"); err != nil {
		t.Errorf("emulated: %v", err)
	}
	if err := Sector(within(t, 30*time.Second), program, "nonesuch"); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("an accelerator that is not there: %v", err)
	}
	for _, d := range []time.Duration{0, 50 * time.Millisecond} { // before QEMU is started, and after
		if err := Sector(within(t, d), program, "tcg"); err == nil || !strings.Contains(err.Error(), "does not complete within") {
			t.Errorf("without time: %v", err)
		}
	}
}

// A kernel of Debian's gets to its init where it runs at all; one that hangs or
// cannot start it does not.
func TestKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel under emulation")
	}
	out, err := command.Output(exec.Command("../../lab/unpack", "linux-image-cloud-amd64", "./boot/vmlinuz*"))
	if err != nil {
		t.Fatalf("unpack Debian's kernel: %v", err)
	}
	kernels, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "boot", "vmlinuz*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q: %v", kernels, err)
	}
	if err := Kernel(within(t, 3*time.Minute), program, "tcg", kernels[0]); err != nil {
		t.Errorf("emulated: %v", err)
	}
	if err := Kernel(within(t, time.Second/2), program, "tcg", kernels[0]); err == nil || !strings.Contains(err.Error(), "does not start its init within") {
		t.Errorf("without time: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(empty, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Kernel(within(t, 10*time.Second), program, "tcg", empty); err == nil {
		t.Error("a kernel of zeros starts its init")
	} else {
		t.Log(err)
	}
}

func TestLast(t *testing.T) {
	for seen, want := range map[string]string{
		"": "; it printed nothing",
		"SeaBIOS\r\n\x1b[2JProbing EDD (edd=off to disable)... ok\r\n\r\n": `; the last that it printed is "[2JProbing EDD (edd=off to disable)... ok"`,
	} {
		if got := last([]byte(seen)); got != want {
			t.Errorf("%q: %s", seen, got)
		}
	}
}

// The bytes are what the sources say.
func TestBytes(t *testing.T) {
	for source, c := range map[string]struct {
		base, text string
		size       int
	}{
		"sector.S": {"0x7c00", bootSector, 510},
		"init.S":   {"0x400000", initProgram, len(initProgram) / 2},
	} {
		dir := t.TempDir()
		object, binary := filepath.Join(dir, "o"), filepath.Join(dir, "b")
		for _, argv := range [][]string{
			{"as", "--64", filepath.Join("testdata", source), "-o", object},
			{"ld", "-Ttext", c.base, "-e", "_start", "--oformat", "binary", object, "-o", binary},
		} {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Skip("needs the assembler of Debian's package binutils")
			}
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		want, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		got, err := hex.DecodeString(c.text)
		if err != nil || len(want) < c.size || !bytes.Equal(bytes.TrimRight(got, "\x00"), bytes.TrimRight(want[:c.size], "\x00")) {
			t.Errorf("the bytes are not testdata/%s: %v", source, err)
		}
	}
}
