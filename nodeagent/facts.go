package nodeagent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dataLabel is the label of the filesystem that is kept over re-provisioning.
const dataLabel = "rackweft-data"

// facts are properties of the host that do not change until it reboots.
type facts struct {
	OS, Kernel, BootID string
	Stateless          bool
	CPUs               int
	Memory             int64 // bytes
}

// readFacts leaves fields empty that it cannot read, and names them in the error.
func readFacts(stateDir string) (facts, error) {
	var f facts
	release, err1 := os.ReadFile("/etc/os-release")
	f.OS = prettyName(release)
	var uts unix.Utsname
	err2 := unix.Uname(&uts)
	f.Kernel = unix.ByteSliceToString(uts.Release[:])
	boot, err3 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	f.BootID = strings.TrimSpace(string(boot))
	label, err4 := filesystemLabel(stateDir)
	f.Stateless = label != dataLabel
	f.CPUs = runtime.NumCPU()
	var info unix.Sysinfo_t
	err5 := unix.Sysinfo(&info)
	f.Memory = int64(info.Totalram) * int64(info.Unit)
	return f, errors.Join(err1, err2, err3, err4, err5)
}

// prettyName reads PRETTY_NAME from os-release(5).
func prettyName(release []byte) string {
	for line := range bytes.Lines(release) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// filesystemLabel returns the label of the filesystem that holds path, or "". It
// asks the filesystem itself (ioctl_fslabel(2): ext4, XFS, btrfs), so it needs no
// device node and no udev.
func filesystemLabel(path string) (string, error) {
	const fsIocGetFSLabel, fslabelMax = 0x81009431, 256
	dir, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the label of the state directory's filesystem: %w", err)
	}
	defer func() { _ = dir.Close() }()
	var label [fslabelMax]byte
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fsIocGetFSLabel, uintptr(unsafe.Pointer(&label)))
	if errno != 0 {
		return "", nil // tmpfs and overlayfs have no labels
	}
	return unix.ByteSliceToString(label[:]), nil
}
