package speaker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/internal/file"
)

// Inside runs the speakers inside Networks. Each has a directory of its own for its
// part and its socket. Like namespaces, the directories do not survive a reboot.
type Inside struct {
	dir   string
	start func(ctx context.Context, s InsideService) error
	stop  func(ctx context.Context, uid string) error
	log   *slog.Logger
}

// InsideService is a speaker to start, outside of the agent.
type InsideService struct {
	UID, Network string
	Namespace    string // path of the Network's network namespace
	Part, Socket string
}

// InsideOptions configure an Inside.
type InsideOptions struct {
	Dir string // created when needed
	// Start starts a speaker, and Stop stops that of the Network with that uid; both
	// succeed if there is nothing to do.
	Start func(ctx context.Context, s InsideService) error
	Stop  func(ctx context.Context, uid string) error
	Log   *slog.Logger
}

// NewInside creates an Inside; it touches nothing yet.
func NewInside(o InsideOptions) *Inside {
	return &Inside{dir: o.Dir, start: o.Start, stop: o.Stop, log: o.Log}
}

const (
	insidePart   = "part.json"
	insideSocket = "socket"
)

func (i *Inside) path(uid, file string) string { return filepath.Join(i.dir, uid, file) }

// Give implements overlay.Speakers.
func (i *Inside) Give(uid string, part api.BGPPart) (runs bool, err error) {
	if err := os.MkdirAll(filepath.Join(i.dir, uid), 0o700); err != nil {
		return false, fmt.Errorf("prepare the directory of a speaker: %w", err)
	}
	raw, err := api.EncodePart(part)
	if err != nil {
		return false, err
	}
	if err := writePart(i.path(uid, insidePart), raw); err != nil {
		return false, fmt.Errorf("pass the part to the speaker of Network %s: %w", part.Network, err)
	}
	return answers(i.path(uid, insideSocket)), nil
}

// answers reports whether a process listens on a socket.
func answers(socket string) bool {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// Run implements overlay.Speakers.
func (i *Inside) Run(ctx context.Context, uid, network, namespace string) error {
	raw, err := os.ReadFile(i.path(uid, insidePart))
	if err != nil {
		return fmt.Errorf("read the part of the speaker of Network %s: %w", network, err)
	}
	client := bgp.NewClient(i.path(uid, insideSocket))
	status, err := client.Status(ctx)
	if err == nil && !isIn(status.PID, namespace) {
		if err := i.stop(ctx, uid); err != nil {
			return fmt.Errorf("stop the speaker of Network %s, whose namespace was recreated: %w", network, err)
		}
		status, err = client.Status(ctx)
	}
	if err != nil || status.Part != digest(raw) {
		if err != nil {
			s := InsideService{UID: uid, Network: network, Namespace: namespace, Part: i.path(uid, insidePart), Socket: i.path(uid, insideSocket)}
			if err := i.start(ctx, s); err != nil {
				return fmt.Errorf("start the speaker of Network %s: %w", network, err)
			}
		}
		if status, err = await(ctx, client, raw); err != nil {
			return fmt.Errorf("speaker of Network %s: %w", network, err)
		}
	}
	if got := toPartStatus(status, digest(raw)); got.State != api.PartApplied {
		return fmt.Errorf("speaker of Network %s: %s", network, got.Message)
	}
	return nil
}

// isIn reports whether a process is in the namespace at a path; true if unknown.
func isIn(pid int, namespace string) bool {
	own, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return true
	}
	want, err := os.Stat(namespace)
	return err != nil || os.SameFile(own, want)
}

// Stop implements overlay.Speakers.
func (i *Inside) Stop(ctx context.Context, uid string) (stopped bool, err error) {
	if uid == "" {
		return false, nil
	}
	dir := filepath.Join(i.dir, uid)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := i.stop(ctx, uid); err != nil {
		return false, fmt.Errorf("stop the speaker of Network %s: %w", uid, err)
	}
	if answers(i.path(uid, insideSocket)) {
		return false, fmt.Errorf("the speaker on %s still answers: stop it", i.path(uid, insideSocket))
	}
	if err := os.RemoveAll(dir); err != nil {
		return false, fmt.Errorf("remove the directory of a speaker: %w", err)
	}
	return true, nil
}

// statuses returns the status of each speaker that answers, by Network.
func (i *Inside) statuses(ctx context.Context) []bgp.Status {
	dirs, err := os.ReadDir(i.dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			i.log.Warn("bgp: cannot list the speakers of Networks", "error", err)
		}
		return nil
	}
	var list []bgp.Status
	for _, d := range dirs {
		s, err := bgp.NewClient(i.path(d.Name(), insideSocket)).Status(ctx)
		if err == nil && s.Network != "" {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b bgp.Status) int { return strings.Compare(a.Network, b.Network) })
	// If two Networks have the same name, one is about to be removed.
	return slices.CompactFunc(list, func(a, b bgp.Status) bool { return a.Network == b.Network })
}

// writePart does not write a file that already has that content.
func writePart(path string, raw []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(raw) {
		return nil
	}
	return file.Replace(path, raw, file.Options{})
}

// Kill kills the process that listens on a socket, so that it sends no notification
// to its neighbours, and waits for its end. If no process listens that is no error.
func Kill(ctx context.Context, socket string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }() // while it is open, the pid is not reused
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var fault error
	if err := raw.Control(func(fd uintptr) { peer, fault = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || fault != nil {
		return fmt.Errorf("find who listens on %s: %w", socket, errors.Join(err, fault))
	}
	pidfd, err := unix.PidfdOpen(int(peer.Pid), 0)
	if err != nil {
		return fmt.Errorf("find the process %d: %w", peer.Pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the process %d: %w", peer.Pid, err)
	}
	return gone(ctx, pidfd)
}

// gone waits for the end of a process.
func gone(ctx context.Context, pidfd int) error {
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the end of a process: %w", err)
		}
	}
	return ctx.Err()
}
