package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rackweft/rackweft/internal/kvm"
	"github.com/rackweft/rackweft/lab/guestos"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
)

const program = "qemu-system-x86_64"

func TestVerdictIsKept(t *testing.T) {
	dir := t.TempDir()
	v, err := describe(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	v.Accelerator, v.Tried, v.Reason = KVM, "a kernel", "it is said to"
	for _, c := range []struct {
		edit func(*Verdict)
		used bool
	}{
		{func(*Verdict) {}, true},
		{func(v *Verdict) { v.QEMU = "QEMU 1.0" }, false},
		{func(v *Verdict) { v.BootID = "x" }, false},
		{func(v *Verdict) { v.Accelerator = "" }, false},
		{func(v *Verdict) { v.Tried = "" }, false}, // an earlier nodeagent's
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

func TestProbe(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	kernel, _, err := guestos.Build(t.Context(), "../../..", guestos.Cloud)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, asked, done := t.TempDir(), 0, 0
	find := func(context.Context) (TrialKernel, error) {
		asked++
		return TrialKernel{Name: "a kernel", Path: path, Done: func() { done++ }}, nil
	}
	v, err := Probe(t.Context(), program, dir, find)
	if err != nil || v.Reason == "" || v.Provisional || asked != done {
		t.Fatalf("%+v: %v; asked %d, done %d", v, err, asked, done)
	}
	t.Log(v.Reason)
	before := asked
	if again, err := Probe(t.Context(), program, dir, find); err != nil || again != v || asked != before {
		t.Errorf("asked again: %+v: %v", again, err)
	}
	if _, err := os.Stat("/dev/kvm"); err == nil && v.Tried != "a kernel" {
		t.Errorf("there is a kernel, and %s was tried", v.Tried)
	}
	// What Guests do is what the verdict says.
	if v.Accelerator == KVM {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := kvm.Kernel(ctx, program, "kvm", path); err != nil {
			t.Error(err)
		}
	}
}

// Without a kernel a boot sector is tried, and the verdict says so; it is not
// kept when there may be a kernel the next time.
func TestProbeWithoutKernel(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("KVM is not tried where there is none: %v", err)
	}
	for _, missing := range []error{ErrNoKernel, errors.New("bootd is away")} {
		dir := t.TempDir()
		v, err := Probe(t.Context(), program, dir, func(context.Context) (TrialKernel, error) { return TrialKernel{}, missing })
		if err != nil || v.Tried != "a boot sector" || v.Provisional == errors.Is(missing, ErrNoKernel) {
			t.Errorf("%+v: %v", v, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "accelerator.json")); (err == nil) == v.Provisional {
			t.Errorf("%v: provisional %t, kept: %v", missing, v.Provisional, err)
		}
	}
}

// What follows from the trials, for every machine there may be.
func TestConclude(t *testing.T) {
	hangs := errors.New("it hangs")
	for _, c := range []struct {
		name                              string
		missing, kernel, emulated, sector error
		want                              Accelerator
		tried, says                       string
	}{
		{name: "KVM works", want: KVM, tried: "vmlinuz", says: "vmlinuz starts its init under KVM"},
		{name: "the sector passes where no Linux boots", kernel: hangs, want: TCG, tried: "vmlinuz", says: "vmlinuz does not boot under KVM: it hangs"},
		{name: "nothing runs", kernel: hangs, sector: hangs, emulated: errors.New("it is not asked"), want: TCG, tried: "vmlinuz", says: "does not boot under KVM"},
		{name: "a kernel that boots nowhere", kernel: hangs, emulated: hangs, want: KVM, tried: "a boot sector", says: "no kernel could be tried: vmlinuz does not boot with emulation either: it hangs"},
		{name: "no kernel", missing: ErrNoKernel, kernel: hangs, want: KVM, tried: "a boot sector", says: "no kernel could be tried: no kernel to try"},
		{name: "no kernel and no KVM", missing: ErrNoKernel, sector: hangs, want: TCG, tried: "a boot sector", says: "/dev/kvm opens, but it hangs"},
	} {
		var v Verdict
		of := func(err error) func() error { return func() error { return err } }
		v.conclude("vmlinuz", c.missing, trials{kernel: of(c.kernel), emulated: of(c.emulated), sector: of(c.sector)})
		if v.Accelerator != c.want || v.Tried != c.tried || !strings.Contains(v.Reason, c.says) {
			t.Errorf("%s: %+v", c.name, v)
		}
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
