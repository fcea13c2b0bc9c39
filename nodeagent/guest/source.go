package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// moveSource gives a Guest up: it sends the Guest's files, or makes QEMU send
// everything while the Guest runs (live.go).
type moveSource struct {
	*identity
	record      *ledger
	vm          *instance
	snapshots   *snapshots
	exporter    *exporter
	tpm         *tpm
	disks       *disk.Store
	life        life
	share       *moveShare
	credentials transfer.Credentials
	sent        string // ID of the move that the target has received completely
}

// step stops the Guest and sends its files, once the target is ready.
func (src *moveSource) step(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if t.Live {
		return src.live(ctx, part)
	}
	if src.record.Given != t.ID {
		next, err := src.life.beAsWritten(ctx, part)
		why := src.askTarget(ctx, t)
		if why != nil {
			src.share.working(t, why.Error())
			return soonest(next, src.timing.retry), err
		}
		src.reached("source: not given up yet")
		if err := src.record.give(t.ID); err != nil {
			return 0, err
		}
		src.reached("source: given up, still running")
	}
	if src.sent != t.ID {
		src.share.working(t, "stopping")
	}
	if next, err := src.life.beStopped(ctx, part); err != nil || src.vm.running != nil {
		return next, err
	}
	if src.sent == t.ID {
		return 0, nil
	}
	src.reached("source: stopped")
	if err := src.send(ctx, t); err != nil {
		src.share.working(t, err.Error())
		return 0, err
	}
	src.reached("source: sent, not said")
	src.sent = t.ID
	src.share.set(t, api.TransferSent, "")
	return 0, nil
}

// askTarget asks whether the target is ready and has room, before anything is
// stopped.
func (src *moveSource) askTarget(ctx context.Context, t *api.GuestTransfer) error {
	c, _, err := src.reach(ctx, t, transfer.Ready)
	if err != nil {
		return err
	}
	_ = c.Close() // it has answered
	return nil
}

func (src *moveSource) reach(ctx context.Context, t *api.GuestTransfer, kind string) (*transfer.Conn, transfer.Answer, error) {
	files, err := src.files()
	if err != nil {
		return nil, transfer.Answer{}, err
	}
	room, err := transfer.Room(src.dir, files)
	if err != nil {
		return nil, transfer.Answer{}, err
	}
	return src.reachFor(ctx, t, transfer.Request{Kind: kind, Bytes: room})
}

// send sends the Guest's files and waits until the target has stored them.
func (src *moveSource) send(ctx context.Context, t *api.GuestTransfer) error {
	lock, err := src.lock()
	if err != nil {
		return err
	}
	if lock == nil {
		return errors.New("a QEMU of it is running")
	}
	defer func() { _ = lock.Close() }()
	tpm, err := src.tpm.lockState(ctx) // so that its swtpm has ended and written its state
	if err != nil {
		return err
	}
	defer func() { _ = tpm.Close() }()
	c, a, err := src.reach(ctx, t, transfer.Files)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if a.Received {
		return nil
	}
	stop := c.CloseWith(ctx)
	defer stop()
	files, err := src.files()
	if err != nil {
		return err
	}
	room, err := transfer.Room(src.dir, files)
	if err != nil {
		return err
	}
	shown := time.Now()
	err = transfer.Send(ctx, c, src.dir, files, func(sent int64) {
		src.reached("source: sending")
		if time.Since(shown) >= src.timing.progress {
			shown = time.Now()
			src.share.working(t, fmt.Sprintf("copying its disks: %d of %d MiB", sent>>20, room>>20))
		}
	})
	if err != nil {
		// An answer of the target says more than the broken connection.
		if _, refused := c.Answer(); refused != nil {
			err = errors.Join(err, refused)
		}
		return err
	}
	_, err = c.Answer()
	return err
}

// files returns the files of the Guest's directory that move with it: all
// except this host's own and unfinished ones.
func (src *moveSource) files() ([]string, error) {
	var list []string
	err := filepath.WalkDir(src.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(src.dir, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && name == incomingDir:
			return fs.SkipDir
		case d.Type().IsRegular() && goesAlong(name):
			list = append(list, name)
		}
		return nil
	})
	slices.Sort(list)
	return list, err
}

func goesAlong(name string) bool {
	if slices.Contains(ownFiles(), name) {
		return false
	}
	if strings.HasPrefix(filepath.Base(name), file.Preparing) {
		return false
	}
	for _, end := range []string{".log", ".log.1", ".lock", ".tmp", ".part"} {
		if strings.HasSuffix(name, end) {
			return false
		}
	}
	return true
}

// ownFiles are the files of a Guest's directory that stay on this host.
func ownFiles() []string { return []string{recordFile, "lock", incomingDir} }

// reachFor connects to the target for one purpose.
func (src *moveSource) reachFor(ctx context.Context, t *api.GuestTransfer, r transfer.Request) (*transfer.Conn, transfer.Answer, error) {
	r.ID = t.ID
	return transfer.Dial(ctx, src.credentials, t.Address, t.Peer, r)
}
