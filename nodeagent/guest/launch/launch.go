// Package launch starts a QEMU outside the agent: as a transient systemd unit
// where systemd runs, else as a detached process. The process receives its open
// files from the agent over a unix socket, drops every privilege, and writes
// its identity to disk before it execs QEMU.
//
// Launcher is the agent's side; Exec runs in the new process.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a launched process may take to request its task.
const patience = 30 * time.Second

// maxFiles is the limit of one message (SCM_MAX_FD).
const maxFiles = 253

// Task describes the program that the new process execs.
type Task struct {
	Path      string   `json:"path"` // of the program
	Args      []string `json:"args"` // without the program's name
	FirstFile int      `json:"firstFile"`
	Dir       string   `json:"dir"` // private; gets the process file
	UID       int      `json:"uid"`
	GID       int      `json:"gid"`
	Groups    []int    `json:"groups,omitempty"`
	CPUs      []int    `json:"cpus,omitempty"` // processors that it may run on, nil for all
	// Files become descriptors FirstFile and up. Kept files stay open until the
	// process ends, for the locks on them. Log is its standard output and
	// error.
	Files []*os.File `json:"-"`
	Kept  []*os.File `json:"-"`
	Log   *os.File   `json:"-"`
}

// Launcher starts processes.
type Launcher struct {
	// Command runs Exec; the path of a socket is appended as the last argument.
	Command []string
	// Run starts the command, as a unit or by Detached, and returns when it has
	// begun.
	Run func(ctx context.Context, argv []string) error
}

// Detached starts a process that outlives its parent and is reaped by pid 1:
// setsid(1) starts it and exits at once.
func Detached(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, "setsid", append([]string{"--fork"}, argv...)...)
	cmd.Dir = "/"
	// The output is not read: reading would last until the process ends.
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	return nil
}

// Start launches a task, and returns when it runs or with the error of the
// launched process.
func (l Launcher) Start(ctx context.Context, task Task) (Identity, error) {
	if len(task.Files)+len(task.Kept)+1 > maxFiles {
		return Identity{}, fmt.Errorf("%d open files are too many to pass", len(task.Files))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	path := filepath.Join(task.Dir, "launch.sock")
	listener, err := Listen(path)
	if err != nil {
		return Identity{}, err
	}
	defer func() { _ = listener.Close(); _ = os.Remove(path) }()
	if err := os.Remove(filepath.Join(task.Dir, processFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Identity{}, err
	}
	if err := l.Run(ctx, append(l.Command[:len(l.Command):len(l.Command)], path)); err != nil {
		return Identity{}, err
	}
	conn, err := accept(ctx, listener)
	if err != nil {
		return Identity{}, fmt.Errorf("the launched process did not request its task: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := send(conn, task); err != nil {
		return Identity{}, fmt.Errorf("send the task: %w", err)
	}
	// It reports its error; a connection that closes without one means that
	// exec succeeded.
	said, err := io.ReadAll(io.LimitReader(conn, 4096))
	if err != nil {
		return Identity{}, fmt.Errorf("wait for the launched process: %w", err)
	}
	if len(said) > 0 {
		return Identity{}, errors.New(string(said))
	}
	id, err := ReadIdentity(task.Dir)
	if err != nil {
		return Identity{}, fmt.Errorf("the launched process ended before it wrote its process file: %w", err)
	}
	return id, nil
}

// maxSocketPath is the longest path of a unix socket (unix(7)).
const maxSocketPath = 107

// Listen creates a unix socket and replaces a stale one. Only its owner may
// connect.
func Listen(path string) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path %s is longer than a unix socket's limit of %d bytes: give nodeagent a shorter --run-dir", path, maxSocketPath)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, err
	}
	return listener, nil
}

func accept(ctx context.Context, listener *net.UnixListener) (*net.UnixConn, error) {
	deadline, _ := ctx.Deadline()
	if err := listener.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(deadline)
}

// send writes the task with its length in front, and passes the files with the
// first byte.
func send(conn *net.UnixConn, task Task) error {
	raw, err := json.Marshal(task)
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range task.all() {
		fds = append(fds, int(f.Fd()))
	}
	header := fmt.Appendf(nil, "%d %d %d\n", len(raw), len(task.Files), len(task.Kept))
	if _, _, err := conn.WriteMsgUnix(header, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	_, err = conn.Write(raw)
	return err
}

// all returns the files in the order in which they are sent.
func (t Task) all() []*os.File {
	return append(append(append([]*os.File{}, t.Files...), t.Kept...), t.Log)
}
