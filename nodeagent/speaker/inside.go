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

// Inside runs the speakers inside of Networks. Each has a directory of its own
// for its part and its socket. The directories go with a reboot, as namespaces do.
type Inside struct {
	dir   string
	start func(ctx context.Context, s InsideService) error
	stop  func(ctx context.Context, uid string) error
	log   *slog.Logger
}

// InsideService is a speaker that is to be started, outside of the agent.
type InsideService struct {
	UID, Network string
	Namespace    string // path of the Network's network namespace
	Part, Socket string
}

// InsideOptions make an Inside.
type InsideOptions struct {
	Dir string // made when it is needed
	// Start has a speaker started, and Stop has the one of a Network's uid
	// stopped; both take it as it is when there is nothing to do.
	Start func(ctx context.Context, s InsideService) error
	Stop  func(ctx context.Context, uid string) error
	Log   *slog.Logger
}

// NewInside prepares an Inside; nothing is touched before it is asked to.
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
		return false, fmt.Errorf("hand the speaker of Network %s its part: %w", part.Network, err)
	}
	return answers(i.path(uid, insideSocket)), nil
}

// answers reports whether somebody listens on a socket.
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
			return fmt.Errorf("stop the speaker of Network %s, whose namespace was made anew: %w", network, err)
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

// isIn reports whether a process is in the namespace at a path. In doubt it is.
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

// statuses are those of the speakers that answer, by Network.
func (i *Inside) statuses(ctx context.Context) []bgp.Status {
	dirs, err := os.ReadDir(i.dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			i.log.Warn("bgp: the speakers of Networks are not known", "error", err)
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
	// Of two Networks of one name one is about to go.
	return slices.CompactFunc(list, func(a, b bgp.Status) bool { return a.Network == b.Network })
}

// writePart leaves a file alone that holds just that.
func writePart(path string, raw []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(raw) {
		return nil
	}
	return file.Replace(path, raw, file.Options{})
}

// Kill ends the process that listens on a socket, without a word to its
// neighbours, and waits for its end. That nobody listens is no error.
func Kill(ctx context.Context, socket string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }() // while it is open, the pid is nobody else's
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
