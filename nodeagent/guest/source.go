package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// A Guest that moves is given up here before anything of it runs elsewhere: the
// record's Given, on disk before bootd hears that all is sent, keeps it from
// running whatever restarts, until bootd says Back. A host that has taken one in
// runs it when its part has no Transfer any more.

// share takes the next step of a host's share in a move. done says that there is
// nothing else to do with the part.
func (g *guest) share(ctx context.Context, part *api.GuestPart) (next time.Duration, done bool, err error) {
	t := part.Transfer
	if t == nil {
		t = new(api.GuestTransfer)
	}
	if t.Role != api.TransferTarget {
		g.h.arrivals.forget(g)
	}
	switch {
	case t.Role == api.TransferTarget:
		next, err = g.beTarget(ctx, part)
		return next, true, err
	case t.Role == api.TransferLeft:
		g.transferred = nil
		next, err = g.beStopped(ctx, part)
		return next, true, err
	case t.Role == api.TransferBack && (g.record.Given == "" || g.record.Given == t.ID):
		g.h.reached("source: to take it back")
		if err := g.callOff(ctx); err != nil { // what is left of it does the Guest no harm
			g.log.Warn("a move is not quite taken back", "error", err)
		}
		err := g.give("")
		if err == nil {
			g.h.reached("source: taken back, not said")
			g.tellShare(t, api.TransferredBack, "")
		}
		return 0, err != nil, err
	case t.Role == api.TransferSource && (g.record.Given == "" || g.record.Given == t.ID):
		next, err = g.beSource(ctx, part)
		return next, true, err
	case g.record.Given != "":
		g.transferred = nil
		if next, err = g.beStopped(ctx, part); err == nil {
			err = pending("it was given up for a move to another host: it runs here only when bootd says that this has failed")
		}
		return next, true, err
	}
	g.transferred = nil
	return 0, false, nil
}

// give writes down by which move the Guest was given up, "" for none.
func (g *guest) give(move string) error {
	if g.record.Given == move {
		return nil
	}
	return g.change(func(r *record) { r.Given = move })
}

// whole reports whether all of a Guest is here that was taken in.
func (g *guest) whole(part *api.GuestPart) error {
	was := g.record.Part.Transfer
	incoming := was != nil && was.Role == api.TransferTarget && g.record.Received != was.ID
	if incoming && (part.Transfer == nil || part.Transfer.Role != api.TransferTarget) {
		return fatal{fmt.Errorf("only a part of it has come from %s: it does not begin with that", was.Peer.Host)}
	}
	return nil
}

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
			return soonest(next, g.h.timing.retry), err
		}
		g.h.reached("source: not given up yet")
		if err := g.give(t.ID); err != nil {
			return 0, err
		}
		g.h.reached("source: given up, still running")
	}
	if g.sent != t.ID {
		g.transferring(t, "stopping")
	}
	if next, err := g.beStopped(ctx, part); err != nil || g.running != nil {
		return next, err
	}
	if g.sent == t.ID {
		return 0, nil
	}
	g.h.reached("source: stopped")
	if err := g.send(ctx, t); err != nil {
		g.transferring(t, err.Error())
		return 0, err
	}
	g.h.reached("source: sent, not said")
	g.sent = t.ID
	g.tellShare(t, api.TransferSent, "")
	return 0, nil
}

// soonest is the earlier of two times to look again, where 0 is none.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// beAsWritten is what a Guest does that no move concerns.
func (g *guest) beAsWritten(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	if part.State == "Stopped" {
		return g.beStopped(ctx, part)
	}
	return g.beRunning(ctx, part)
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
	tpm, err := g.lockTPM(ctx) // its swtpm has written all
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
		g.h.reached("source: sending")
		if time.Since(told) >= g.h.timing.tell {
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

// tellShare notes how far this host is with its share. What was told before may
// be being read.
func (g *guest) tellShare(t *api.GuestTransfer, state, message string) {
	g.transferred = &api.GuestTransferred{ID: t.ID, State: state, Message: message}
}

// transferring publishes how far a transfer is: one step of it may take minutes.
func (g *guest) transferring(t *api.GuestTransfer, message string) {
	g.tellShare(t, api.TransferWorking, message)
	g.mu.Lock()
	g.status.State, g.status.Message, g.status.Guest = api.PartPending, message, g.observed()
	g.mu.Unlock()
	g.h.changed()
}

// replaceWith puts what has come in the place of what is there.
func (g *guest) replaceWith(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(ownFiles(), e.Name()) {
			return fmt.Errorf("%s came, which is this host's own", e.Name())
		}
	}
	for _, e := range entries {
		to := filepath.Join(g.dir, e.Name())
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, e.Name()), to); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return file.SyncDir(g.dir)
}
