package qemu

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

const program = "qemu-system-x86_64"

func TestProbe(t *testing.T) {
	if err := boot(t.Context(), program, "tcg", "max", 30*time.Second); err != nil {
		t.Errorf("the payload under emulation: %v", err)
	}
	if err := boot(t.Context(), program, "nonesuch", "max", 30*time.Second); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("an accelerator that is not there: %v", err)
	}
	if err := boot(t.Context(), program, "tcg", "max", time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not get through") {
		t.Errorf("without time: %v", err)
	}
	dir := t.TempDir()
	v, err := describe(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	v.Accelerator, v.Reason = KVM, "it is said to"
	for _, c := range []struct {
		edit func(*Verdict)
		used bool
	}{
		{func(*Verdict) {}, true},
		{func(v *Verdict) { v.QEMU = "QEMU 1.0" }, false},
		{func(v *Verdict) { v.BootID = "x" }, false},
		{func(v *Verdict) { v.Accelerator = "" }, false},
	} {
		kept := v
		c.edit(&kept)
		raw, err := json.Marshal(kept)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "accelerator.json")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, used := cached(path, v); used != c.used {
			t.Errorf("%+v is used: %t", kept, used)
		}
	}
}

func TestProbeAnswers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s where KVM hangs")
	}
	dir := t.TempDir()
	v, err := Probe(t.Context(), program, dir)
	if err != nil || v.Reason == "" {
		t.Fatalf("%+v: %v", v, err)
	}
	t.Log(v.Reason)
	if again, err := Probe(t.Context(), program, dir); err != nil || again != v {
		t.Errorf("asked again: %+v: %v", again, err)
	}
}

// The bytes are what the source says.
func TestBootSector(t *testing.T) {
	dir := t.TempDir()
	object, binary := filepath.Join(dir, "o"), filepath.Join(dir, "b")
	for _, argv := range [][]string{
		{"as", "--64", "testdata/probe.S", "-o", object},
		{"ld", "-Ttext", "0x7c00", "-e", "_start", "--oformat", "binary", object, "-o", binary},
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
	got, err := hex.DecodeString(bootSector)
	if err != nil || len(want) != 512 || !bytes.Equal(got, bytes.TrimRight(want[:510], "\x00")) {
		t.Errorf("bootSector is not testdata/probe.S: %v", err)
	}
}

// QEMU takes the command line of every kind of machine, and makes what it says.
func TestCommand(t *testing.T) {
	node := 0
	for name, edit := range map[string]func(*VM){
		"q35":         func(*VM) {},
		"uefi":        func(vm *VM) { vm.UEFI = firmware(t, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", false) },
		"secure boot": func(vm *VM) { vm.UEFI = firmware(t, "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd", true) },
		"microvm": func(vm *VM) {
			vm.Machine, vm.Kernel = MicroVM, &Kernel{Kernel: temporary(t, "kernel", 1<<16), Arguments: "a=b,c d"}
		},
		"numa": func(vm *VM) { vm.NUMANode = &node },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vm := machine(t)
			edit(&vm)
			client := start(t, vm)
			var disks []struct {
				Device   string
				Inserted struct {
					NodeName string `json:"node-name"`
					Image    struct {
						VirtualSize int64 `json:"virtual-size"`
					}
				}
			}
			if err := client.Execute(t.Context(), "query-block", nil, &disks); err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, d := range disks {
				if d.Inserted.NodeName == DiskNode("root") && d.Inserted.Image.VirtualSize == 1<<20 {
					found++
				}
			}
			if found != 1 {
				t.Errorf("the disks are %+v", disks)
			}
			var id struct{ UUID string }
			if err := client.Execute(t.Context(), "query-uuid", nil, &id); err != nil || id.UUID != vm.UUID {
				t.Errorf("the uuid is %q: %v", id.UUID, err)
			}
		})
	}
}

func TestMicroVMWithoutKVM(t *testing.T) {
	vm := machine(t)
	vm.Machine = MicroVM
	if _, _, err := vm.Command(); err == nil || !strings.Contains(err.Error(), "write machine: q35") {
		t.Errorf("a microvm that boots from its disk under emulation: %v", err)
	}
}

func machine(t *testing.T) VM {
	return VM{Name: "web", UUID: "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d", Machine: Q35, Accelerator: TCG, CPUs: 2, Memory: 128 << 20,
		Disks:    []Disk{{Name: "root", File: temporary(t, "root", 1<<20), Format: "raw"}},
		Ignition: temporary(t, "ignition", 10), Control: listening(t), Monitor: listening(t), Console: listening(t), Agent: listening(t),
		ConsoleLog: reopen(t, temporary(t, "console", 0), os.O_WRONLY)}
}

func temporary(t *testing.T, name string, size int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func reopen(t *testing.T, f *os.File, flags int) *os.File {
	t.Helper()
	again, err := os.OpenFile(f.Name(), flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Close() })
	return again
}

func firmware(t *testing.T, code, variables string, secure bool) *UEFI {
	t.Helper()
	read := func(name string) *os.File {
		content, err := os.ReadFile("/usr/share/OVMF/" + name)
		if err != nil {
			t.Skipf("needs OVMF, Debian's package ovmf: %v", err)
		}
		f := temporary(t, name, 0)
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		return f
	}
	return &UEFI{Code: reopen(t, read(code), os.O_RDONLY), Variables: read(variables), SecureBoot: secure}
}

func listening(t *testing.T) *os.File {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { l.SetUnlinkOnClose(false); _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// start runs QEMU with its files at their numbers and returns its control monitor.
func start(t *testing.T, vm VM) *qmp.Client {
	t.Helper()
	path := address(t, vm.Control)
	args, files, err := vm.Command()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = append(make([]*os.File, FirstFile-3), files...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	_ = vm.Control.Close() // a QEMU that ends at once hangs up
	client, err := qmp.Dial(ctx, path, nil)
	if err != nil {
		cancel()
		<-ended
		t.Fatalf("%v; QEMU says: %s", err, said.String())
	}
	t.Cleanup(client.Close)
	return client
}

func address(t *testing.T, socket *os.File) string {
	t.Helper()
	l, err := net.FileListener(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { l.(*net.UnixListener).SetUnlinkOnClose(false); _ = l.Close() }()
	return l.Addr().String()
}
