// Package kvm finds out whether KVM works on this machine. On some, /dev/kvm
// opens, QEMU answers and small programs run, but no kernel completes its boot.
package kvm

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel boots a kernel under one of QEMU's accelerators until a program runs
// as its init, or ctx ends.
func Kernel(ctx context.Context, program, accelerator, path string) error {
	archive, err := initArchive()
	if err != nil {
		return err
	}
	initrd, err := memory("initrd", archive)
	if err != nil {
		return err
	}
	defer func() { _ = initrd.Close() }()
	// Two processors, because their start is part of the trial; the full log,
	// because its last line shows where it stopped. Memory is allocated on use:
	// Flatcar's kernel contains an initramfs.
	return run(ctx, trial{
		what: "the kernel does not start its init", until: "rackweft: init runs", files: []*os.File{initrd},
		args: []string{program, "-machine", "q35", "-accel", accelerator, "-cpu", processor(accelerator), "-smp", "2", "-m", "1024", "-no-reboot",
			"-kernel", path, "-initrd", "/proc/self/fd/3", "-append", "console=ttyS0 loglevel=7 panic=-1 rdinit=/rackweft-init"},
	})
}

// Sector boots a boot sector, which does what a kernel does before its first
// message. It proves less than Kernel; it serves machines without a kernel to
// try.
func Sector(ctx context.Context, program, accelerator string) error {
	content := make([]byte, 1<<20) // a size that SeaBIOS takes
	if _, err := hex.Decode(content, []byte(bootSector)); err != nil {
		return err
	}
	content[510], content[511] = 0x55, 0xaa
	disk, err := memory("disk", content)
	if err != nil {
		return err
	}
	defer func() { _ = disk.Close() }()
	return run(ctx, trial{
		what: "a boot sector does not complete", until: "rackweft: 64-bit", files: []*os.File{disk},
		args: []string{program, "-machine", "q35", "-accel", accelerator, "-cpu", processor(accelerator), "-m", "64", "-add-fd", "fd=3,set=3",
			"-blockdev", `{"driver":"raw","node-name":"disk","read-only":true,"file":{"driver":"file","filename":"/dev/fdset/3","read-only":true}}`,
			"-device", "virtio-blk-pci,drive=disk,bootindex=1"},
	})
}

// processor returns the best model of an accelerator. Emulated five-level
// paging makes each page walk longer, and TCG executes "rep stosb" byte by
// byte.
func processor(accelerator string) string {
	if accelerator == "kvm" {
		return "host"
	}
	return "max,la57=off,erms=off,fsrm=off"
}

// trial is one start of QEMU.
type trial struct {
	args  []string
	files []*os.File // its descriptors from 3 on
	until string     // what the serial port prints on success
	what  string     // the message for a failure
}

func run(ctx context.Context, t trial) error {
	runtime.LockOSThread() // the signal comes when the thread ends that forked (prctl(2))
	defer runtime.UnlockOSThread()
	began := time.Now()
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(limited, t.args[0], append(t.args[1:], "-no-user-config", "-nodefaults", "-display", "none", "-serial", "stdio")...)
	cmd.ExtraFiles = t.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); ctx.Err() != nil && err != nil {
		return fmt.Errorf("%s within %s", t.what, time.Since(began).Round(time.Second))
	} else if err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	seen, ok := read(out, t.until)
	late := ctx.Err() != nil
	cancel() // kills QEMU
	err = cmd.Wait()
	switch {
	case ok:
		return nil
	case late:
		return fmt.Errorf("%s within %s%s", t.what, time.Since(began).Round(time.Second), last(seen))
	case complaint.Len() > 0:
		return fmt.Errorf("%s: QEMU ends (%w): %s", t.what, err, strings.Join(strings.Fields(complaint.String()), " "))
	}
	return fmt.Errorf("%s: QEMU ends (%w)%s", t.what, err, last(seen))
}

// read reads until the text appears, and reports whether it did before the end.
func read(r io.Reader, text string) (seen []byte, ok bool) {
	for buffer := make([]byte, 4096); len(seen) < 1<<20; {
		n, err := r.Read(buffer)
		seen = append(seen, buffer[:n]...)
		if bytes.Contains(seen, []byte(text)) {
			return seen, true
		}
		if err != nil {
			return seen, false
		}
	}
	return seen, false
}

// last returns the last line that a kernel has printed, for a message.
func last(seen []byte) string {
	for lines := bytes.Split(seen, []byte("\n")); len(lines) > 0; lines = lines[:len(lines)-1] {
		line := strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return -1
			}
			return r
		}, string(lines[len(lines)-1]))
		if line = strings.TrimSpace(line); line != "" {
			return fmt.Sprintf("; the last that it printed is %.120q", line)
		}
	}
	return "; it printed nothing"
}

// memory returns a file in memory, opened for reading: QEMU picks a file of an
// fdset by its access mode.
func memory(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	if _, err := f.Write(content); err != nil {
		return nil, fmt.Errorf("fill a file in memory: %w", err)
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// initArchive returns an initramfs (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst). Its init has an
// unusual name, so that it does not replace the init of a kernel's own
// initramfs.
func initArchive() ([]byte, error) {
	program, err := hex.DecodeString(initProgram)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	entry := func(name string, mode, major, minor int, content []byte) {
		_, _ = fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(content)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry("dev", unix.S_IFDIR|0o755, 0, 0, nil)
	entry("dev/console", unix.S_IFCHR|0o600, 5, 1, nil)
	entry("rackweft-init", unix.S_IFREG|0o755, 0, 0, program)
	entry("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes(), nil
}

// bootSector is testdata/sector.S, without the signature at its end.
const bootSector = "" +
	"ea057c0000fa31c08ed88ec08ed0bc007cfcfbb280b441bbaa5552cd135afec280fa9075f0b80102bb0080b90100ba80" +
	"00cd137227813efe8155aa751f8b1e6c04f43b1e6c0474f9fa660f0116087d0f20c00c010f22c0ea5f7c0800f4ebfd66" +
	"b810008ed88ec08ed0bf001000000f22df31c0b9000c0000f3abc7050010000003200000c7050020000003300000c705" +
	"00300000830000000f20e00c200f22e0b9800000c00f3280cc010f300f20c00d000000800f22c0eabe7c00001800488d" +
	"351000000066baf803ac84c07403eeebf8faf4ebfc7261636b776566743a2036342d6269740a00900000000000000000" +
	"ffff0000009acf00ffff00000092cf0000000000009a20001f00e87c"

// initProgram is testdata/init.S.
const initProgram = "" +
	"7f454c4602010100000000000000000002003e0001000000780040000000000040000000000000000000000000000000" +
	"000000004000380001000000000000000100000005000000000000000000000000004000000000000000400000000000" +
	"c600000000000000c6000000000000000010000000000000b801000000bf01000000488d3519000000ba140000000f05" +
	"b823000000488d3d1a00000031f60f05ebd67261636b776566743a20696e69742072756e730a000000000000000000c2" +
	"eb0b00000000"
