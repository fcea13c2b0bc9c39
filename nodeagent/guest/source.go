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
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// beSource stops the Guest and sends what it has, once the target is there.
func (g *guest) beSource(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if t.Live {
		return g.live(ctx, part)
	}
	if g.record.Given != t.ID {
		next, err := g.beAsWritten(ctx, part)
		why := g.askTarget(ctx, t)
		if why != nil {
			g.transferring(t, why.Error())
			return soonest(next, g.timing.retry), err
		}
		g.reached("source: not given up yet")
		if err := g.record.give(t.ID); err != nil {
			return 0, err
		}
		g.reached("source: given up, still running")
	}
	if g.sent != t.ID {
		g.transferring(t, "stopping")
	}
	if next, err := g.beStopped(ctx, part); err != nil || g.vm.running != nil {
		return next, err
	}
	if g.sent == t.ID {
		return 0, nil
	}
	g.reached("source: stopped")
	if err := g.send(ctx, t); err != nil {
		g.transferring(t, err.Error())
		return 0, err
	}
	g.reached("source: sent, not said")
	g.sent = t.ID
	g.tellShare(t, api.TransferSent, "")
	return 0, nil
}

// askTarget asks whether the target is there and has room, before anything is
// stopped for it.
func (g *guest) askTarget(ctx context.Context, t *api.GuestTransfer) error {
	c, _, err := g.reach(ctx, t, transfer.Ready)
	if err != nil {
		return err
	}
	_ = c.Close() // it has answered
	return nil
}

func (g *guest) reach(ctx context.Context, t *api.GuestTransfer, kind string) (*transfer.Conn, transfer.Answer, error) {
	files, err := g.files()
	if err != nil {
		return nil, transfer.Answer{}, err
	}
	room, err := transfer.Room(g.dir, files)
	if err != nil {
		return nil, transfer.Answer{}, err
	}
	return g.reachFor(ctx, t, transfer.Request{Kind: kind, Bytes: room})
}

// send sends all that the Guest has on disk, and waits until the target has it
// on its own.
func (g *guest) send(ctx context.Context, t *api.GuestTransfer) error {
	lock, err := g.lock()
	if err != nil {
		return err
	}
	if lock == nil {
		return errors.New("a QEMU of it lives")
	}
	defer func() { _ = lock.Close() }()
	tpm, err := g.tpm.lockState(ctx) // its swtpm has written all
	if err != nil {
		return err
	}
	defer func() { _ = tpm.Close() }()
	c, a, err := g.reach(ctx, t, transfer.Files)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if a.Received {
		return nil
	}
	stop := c.CloseWith(ctx)
	defer stop()
	files, err := g.files()
	if err != nil {
		return err
	}
	room, err := transfer.Room(g.dir, files)
	if err != nil {
		return err
	}
	told := time.Now()
	err = transfer.Send(ctx, c, g.dir, files, func(sent int64) {
		g.reached("source: sending")
		if time.Since(told) >= g.timing.tell {
			told = time.Now()
			g.transferring(t, fmt.Sprintf("copying its disks: %d of %d MiB", sent>>20, room>>20))
		}
	})
	if err != nil {
		// What the target has said of it tells more than that it hung up.
		if _, refused := c.Answer(); refused != nil {
			err = errors.Join(err, refused)
		}
		return err
	}
	_, err = c.Answer()
	return err
}

// files are what of the Guest's directory goes with it: all but what is this
// host's own, or unfinished.
func (g *guest) files() ([]string, error) {
	var list []string
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(g.dir, path)
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

// ownFiles of a Guest's directory are this host's.
func ownFiles() []string { return []string{recordFile, "lock", incomingDir} }
