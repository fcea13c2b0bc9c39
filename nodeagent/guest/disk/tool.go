package disk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Tool runs QEMU's tools on the disks of a stopped Guest. The disks are under
// the guest's control, so a tool is as confined as a QEMU: it runs as the
// Guest's user, without a network, and gets its files opened. It ends with the
// agent.
type Tool struct {
	User int
	Lock *os.File // the Guest's lock, which the tool holds, too; nil when something else prevents a QEMU
}

// firstFile is the descriptor of a tool's first file.
const firstFile = 3

// run runs a program. The Guest's user may reopen files as /proc/self/fd/3 and
// up; it becomes their owner unless they are world-readable.
func (t Tool) run(ctx context.Context, files []*os.File, program string, args ...string) ([]byte, error) {
	for _, f := range files {
		info, err := f.Stat()
		if err == nil && info.Mode().Perm() != sharedMode {
			err = f.Chown(t.User, t.User)
		}
		if err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.ExtraFiles = slices.Clone(files)
	if t.Lock != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, t.Lock)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(t.User), Gid: uint32(t.User)},
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // the signal comes when the forking thread ends (prctl(2))
	defer runtime.UnlockOSThread()
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, toolError(program, err)
}

// toolError turns a tool's error into a message for the user.
func toolError(program string, err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed: it is in Debian's package qemu-utils", program)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", program, err)
	}
	said := strings.Join(strings.Fields(string(exit.Stderr)), " ")
	if strings.Contains(said, "No space left") {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("%s: %w: %s", program, err, said)
}

// node is the option of QEMU's tools for a qcow2 file by its descriptor. A base
// that is named in its header is ignored.
func node(number int) string {
	return fmt.Sprintf(`json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/proc/self/fd/%d"}}`, number)
}

// existing opens a disk that exists already.
func (s *Store) existing(w Wanted) (*os.File, error) {
	f, err := os.OpenFile(s.path(w), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("disk %s does not exist yet: it is created when the Guest starts", w.Name)
	}
	return f, err
}

// Snapshots lists the snapshots inside a disk.
func (s *Store) Snapshots(ctx context.Context, t Tool, w Wanted) ([]string, error) {
	f, err := s.existing(w)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	out, err := t.run(ctx, []*os.File{f}, "qemu-img", "info", "--output=json", node(firstFile))
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", w.Name, err)
	}
	var info struct{ Snapshots []struct{ Name string } }
	if err := json.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("disk %s: output of qemu-img: %w", w.Name, err)
	}
	var names []string
	for _, s := range info.Snapshots {
		names = append(names, s.Name)
	}
	return names, nil
}

// SnapshotVerb is an operation on a snapshot inside a disk.
type SnapshotVerb string

// The operations, as qemu-img's options.
const (
	Create SnapshotVerb = "-c"
	Revert SnapshotVerb = "-a"
	Delete SnapshotVerb = "-d"
)

// Snapshot runs an operation on a snapshot inside a qcow2 disk.
func (s *Store) Snapshot(ctx context.Context, t Tool, w Wanted, verb SnapshotVerb, name string) error {
	f, err := s.existing(w)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := t.run(ctx, []*os.File{f}, "qemu-img", "snapshot", "-q", string(verb), name, node(firstFile)); err != nil {
		return fmt.Errorf("disk %s: %w", w.Name, err)
	}
	return f.Sync()
}

// Existing opens a disk that exists already, with its base.
func (s *Store) Existing(ctx context.Context, w Wanted) (Opened, error) {
	f, err := s.existing(w)
	if err != nil {
		return Opened{}, err
	}
	_ = f.Close() // it only had to exist
	return s.Open(ctx, w)
}

// Room is an upper bound for the size of a copy of the disk, in bytes.
func (o Opened) Room() int64 {
	var all int64
	for _, f := range []*os.File{o.File, o.Base} {
		if f == nil {
			continue
		}
		if info, err := f.Stat(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				all += st.Blocks * 512
			}
		}
	}
	return all
}

// Size is the virtual size of the disk, in bytes.
func (o Opened) Size() (int64, error) {
	if o.Format == Raw {
		return length(o.File)
	}
	return virtualSize(o.File)
}

// NewFile creates an empty disk and replaces whatever is at the path.
func NewFile(ctx context.Context, path, format string, size int64) (*os.File, error) {
	err := place(path, 0o600, func(out *os.File) error {
		if format == Raw {
			return out.Truncate(size)
		}
		return fillQCOW2(ctx, out.Name(), new(Opened), size)
	})
	if err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// CopyTo copies a disk that no QEMU has open to one that NewFile created, at
// rate bytes per second at most.
func (o Opened) CopyTo(ctx context.Context, t Tool, to *os.File, format string, rate int64) error {
	files := []*os.File{o.File, to}
	source := protocol(o.Format, firstFile)
	if o.Format == QCOW2 {
		source["backing"] = nil
	}
	if o.Base != nil {
		files = append(files, o.Base)
		base := protocol(o.BaseFormat, firstFile+2)
		if o.BaseFormat == QCOW2 {
			base["backing"] = nil
		}
		source["backing"] = base
	}
	raw, err := json.Marshal(source)
	if err != nil {
		return err
	}
	target := fmt.Sprintf("driver=%s,file.driver=file,file.filename=/proc/self/fd/%d", format, firstFile+1)
	_, err = t.run(ctx, files, "qemu-img", "convert", "-n", "--target-is-zero", "-r", fmt.Sprint(rate), "json:"+string(raw), "--target-image-opts", target)
	return err
}

func protocol(format string, number int) map[string]any {
	return map[string]any{"driver": format, "file": map[string]any{"driver": "file", "filename": fmt.Sprintf("/proc/self/fd/%d", number)}}
}
