// Package launch owns how a QEMU comes to be outside of the agent: its own
// transient systemd unit where systemd runs, else a detached process. It gets
// its open files over a unix socket from the agent, gives up every privilege,
// and leaves on disk who it is before it begins.
//
// The agent's side is Launcher; the other side is Exec, which runs in the new
// process.
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

// patience is how long a launched process may take to ask for its task.
const patience = 30 * time.Second

// maxFiles is what one message can carry (SCM_MAX_FD).
const maxFiles = 253

// Task is what the new process becomes.
type Task struct {
	Path      string   `json:"path"` // of the program
	Args      []string `json:"args"` // after its name
	FirstFile int      `json:"firstFile"`
	Dir       string   `json:"dir"` // private, where it leaves who it is
	UID       int      `json:"uid"`
	GID       int      `json:"gid"`
	Groups    []int    `json:"groups,omitempty"`
	CPUs      []int    `json:"cpus,omitempty"` // that it may run on, nil for all
	// Files come to be FirstFile and on. Kept ones are held open to the end,
	// for the locks on them. Log is its standard output and error.
	Files []*os.File `json:"-"`
	Kept  []*os.File `json:"-"`
	Log   *os.File   `json:"-"`
}

// Launcher starts processes.
type Launcher struct {
	// Command runs Exec, to which the path of a socket is given as last argument.
	Command []string
	// Run starts the command, as a unit of its own or by Detached, and returns
	// when it has begun.
	Run func(ctx context.Context, argv []string) error
}

// Detached starts a process that lives on when its parent ends, and that
// somebody else's pid 1 reaps: setsid(1) starts it and is gone at once.
func Detached(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, "setsid", append([]string{"--fork"}, argv...)...)
	cmd.Dir = "/"
	// No output is read: that would last until the process has ended, too.
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	return nil
}

// Start launches a task and returns when it runs, or with what it failed of.
func (l Launcher) Start(ctx context.Context, task Task) (Identity, error) {
	if len(task.Files)+len(task.Kept)+1 > maxFiles {
		return Identity{}, fmt.Errorf("%d open files are too many to hand over", len(task.Files))
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
		return Identity{}, fmt.Errorf("the launched process does not ask for its task: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := send(conn, task); err != nil {
		return Identity{}, fmt.Errorf("hand over the task: %w", err)
	}
	// It says what it fails of; the end without a word is that of exec.
	said, err := io.ReadAll(io.LimitReader(conn, 4096))
	if err != nil {
		return Identity{}, fmt.Errorf("wait for the launched process: %w", err)
	}
	if len(said) > 0 {
		return Identity{}, errors.New(string(said))
	}
	id, err := ReadIdentity(task.Dir)
	if err != nil {
		return Identity{}, fmt.Errorf("the launched process ended before it was anything: %w", err)
	}
	return id, nil
}

// maxSocketPath is the room in a unix socket's address (unix(7)).
const maxSocketPath = 107

// Listen makes a unix socket in place of one that was left behind. Only its
// owner connects.
func Listen(path string) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path %s is longer than the %d bytes of a unix socket's: give nodeagent a shorter --run-dir", path, maxSocketPath)
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

// send writes the task, with its length before it, and the files with its
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

// all are the files in the order in which they go over.
func (t Task) all() []*os.File {
	return append(append(append([]*os.File{}, t.Files...), t.Kept...), t.Log)
}
