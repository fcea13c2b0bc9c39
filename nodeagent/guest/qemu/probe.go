package qemu

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/command"
)

// probePatience is ample for KVM, which is there in a tenth of a second.
const probePatience = 10 * time.Second

// reached is what the payload prints to the serial port in the end.
const reached = "rackweft: 64-bit"

// Verdict is which accelerator a host has, and why.
type Verdict struct {
	BootID      string      `json:"bootID"`
	QEMU        string      `json:"qemu"`
	Accelerator Accelerator `json:"accelerator"`
	Reason      string      `json:"reason"`
}

// Version asks a QEMU for its version.
func Version(ctx context.Context, program string) (string, error) {
	out, err := command.Output(exec.CommandContext(ctx, program, "--version"))
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is not installed: it is in Debian's package qemu-system-x86", program)
	}
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// Probe finds out whether KVM works: a /dev/kvm may open, and QEMU answer, on a
// host where no kernel gets through its boot. So a small payload is booted that
// does what a kernel does first. The verdict is kept in dir for this boot of
// the host and this QEMU.
func Probe(ctx context.Context, program, dir string) (Verdict, error) {
	v, err := describe(ctx, program)
	if err != nil {
		return Verdict{}, err
	}
	cache := filepath.Join(dir, "accelerator.json")
	if known, ok := cached(cache, v); ok {
		return known, nil
	}
	v.Accelerator, v.Reason = KVM, "a payload boots under KVM"
	if err := tryKVM(ctx, program); err != nil {
		if ctx.Err() != nil {
			return Verdict{}, context.Cause(ctx)
		}
		v.Accelerator, v.Reason = TCG, err.Error()
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return Verdict{}, err
	}
	if err := os.WriteFile(cache+".tmp", raw, 0o600); err != nil {
		return v, fmt.Errorf("keep the verdict on KVM: %w", err)
	}
	return v, os.Rename(cache+".tmp", cache)
}

func describe(ctx context.Context, program string) (Verdict, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Verdict{}, err
	}
	version, err := Version(ctx, program)
	return Verdict{BootID: strings.TrimSpace(string(id)), QEMU: version}, err
}

func cached(path string, wanted Verdict) (Verdict, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Verdict{}, false
	}
	var known Verdict
	if json.Unmarshal(raw, &known) != nil {
		return Verdict{}, false
	}
	return known, known.BootID == wanted.BootID && known.QEMU == wanted.QEMU && (known.Accelerator == KVM || known.Accelerator == TCG)
}

// tryKVM returns nil where KVM works, or what it lacks.
func tryKVM(ctx context.Context, program string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("there is no KVM: %w (see the firmware's setting for virtualisation)", err)
	}
	_ = f.Close()
	if err := boot(ctx, program, "kvm", "host", probePatience); err != nil {
		return fmt.Errorf("/dev/kvm opens, but %w", err)
	}
	return nil
}

// boot runs the payload to its end.
func boot(ctx context.Context, program, accelerator, cpu string, patience time.Duration) error {
	disk, err := payload()
	if err != nil {
		return err
	}
	defer func() { _ = disk.Close() }()
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(limited, program, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35",
		"-accel", accelerator, "-cpu", cpu, "-m", "64", "-add-fd", "fd=3,set=3",
		"-blockdev", `{"driver":"raw","node-name":"disk","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/3","read-only":true}}`,
		"-device", "virtio-blk-pci,drive=disk,bootindex=1", "-serial", "stdio")
	cmd.ExtraFiles = []*os.File{disk}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ok := says(out, reached)
	late := limited.Err() != nil
	cancel() // kills QEMU, whatever it is at
	err = cmd.Wait()
	switch {
	case ok:
		return nil
	case late:
		return fmt.Errorf("a payload does not get through its boot within %s", patience)
	default:
		return fmt.Errorf("QEMU ends (%w): %s", err, strings.Join(strings.Fields(complaint.String()), " "))
	}
}

// payload is the boot sector on a disk, of a size that SeaBIOS takes.
func payload() (*os.File, error) {
	sector, err := hex.DecodeString(bootSector)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "probe")
	defer func() { _ = f.Close() }()
	content := append(sector, make([]byte, 1<<20-len(sector))...)
	content[510], content[511] = 0x55, 0xaa
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, err
	}
	// QEMU takes a file out of an fdset by its access mode.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// says reads until the text comes; it does not when reading ends before.
func says(r io.Reader, text string) bool {
	var seen strings.Builder
	for buffer := make([]byte, 4096); seen.Len() < 1<<20; {
		n, err := r.Read(buffer)
		seen.Write(buffer[:n])
		if strings.Contains(seen.String(), text) {
			return true
		}
		if err != nil {
			return false
		}
	}
	return false
}

// bootSector is testdata/probe.S, without the signature at its end.
const bootSector = "" +
	"ea057c0000fa31c08ed88ec08ed0bc007cfcfbb280b441bbaa5552cd135afec280fa9075f0b80102bb0080b90100ba80" +
	"00cd137227813efe8155aa751f8b1e6c04f43b1e6c0474f9fa660f0116087d0f20c00c010f22c0ea5f7c0800f4ebfd66" +
	"b810008ed88ec08ed0bf001000000f22df31c0b9000c0000f3abc7050010000003200000c7050020000003300000c705" +
	"00300000830000000f20e00c200f22e0b9800000c00f3280cc010f300f20c00d000000800f22c0eabe7c00001800488d" +
	"351000000066baf803ac84c07403eeebf8faf4ebfc7261636b776566743a2036342d6269740a00900000000000000000" +
	"ffff0000009acf00ffff00000092cf0000000000009a20001f00e87c"
