package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone means that a process has ended.
var ErrGone = errors.New("the process is gone")

// processFile is where a launched process writes its identity.
const processFile = "process.json"

// Identity tells a process from every other process that ever had its pid.
type Identity struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"` // clock ticks since the boot
	BootID string `json:"bootID"`
}

// ReadIdentity reads the identity of the process launched in a directory,
// fs.ErrNotExist when there was none.
func ReadIdentity(dir string) (Identity, error) {
	raw, err := os.ReadFile(filepath.Join(dir, processFile))
	if err != nil {
		return Identity{}, err
	}
	var id Identity
	if err := json.Unmarshal(raw, &id); err != nil || id.PID < 2 {
		return Identity{}, fmt.Errorf("invalid process file %s: %w", filepath.Join(dir, processFile), err)
	}
	return id, nil
}

// identify returns the identity of a process.
func identify(pid int) (Identity, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, err
	}
	start, err := startTime(pid)
	return Identity{PID: pid, Start: start, BootID: strings.TrimSpace(string(boot))}, err
}

// startTime reads field 22 of /proc/PID/stat (proc(5)); field 2 is a name that
// may hold spaces and parentheses.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return 0, ErrGone
		}
		return 0, err
	}
	return parseStartTime(string(raw))
}

func parseStartTime(stat string) (uint64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/PID/stat has only %d fields", len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, ErrGone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Process is a running process held by a pidfd, so that its pid cannot come to
// mean another process.
type Process struct {
	Identity
	pidfd *os.File
}

// Open opens the process with this identity, ErrGone when it has ended.
func Open(id Identity) (*Process, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: the pid is now a thread's
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", id.PID, err)
	}
	p := &Process{Identity: id, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	// Checked while the pidfd is held, so that the pid cannot be reused in
	// between.
	now, err := identify(id.PID)
	if err == nil && now != id {
		err = ErrGone
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Signal sends a signal; for a process that has ended it does nothing.
func (p *Process) Signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return errors.Join(err, sent)
}

// Wait returns nil when the process has ended, or ctx's error.
func (p *Process) Wait(ctx context.Context) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if err := p.pidfd.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n == 1
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Close releases the process.
func (p *Process) Close() { _ = p.pidfd.Close() }
