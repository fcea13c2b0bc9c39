package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// beIncoming has a QEMU wait for the state of the source's, with empty disks.
func (g *guest) beIncoming(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	g.ladder.stop = nil
	if g.vm.running == nil {
		return g.startIncoming(ctx, part)
	}
	g.began = t.ID
	if g.record.Received == t.ID {
		_ = g.h.arrivals.expect(g, t) // it may be asked again
		g.tellShare(t, api.TransferReceived, "")
		return 0, nil
	}
	switch g.vm.running.state {
	case inmigrate:
		if err := g.export(ctx, part); err != nil {
			return 0, fmt.Errorf("offer its disks to %s: %w", t.Peer.Host, err)
		}
		g.tellShare(t, api.TransferWorking, "waiting for "+t.Peer.Host)
		if err := g.h.arrivals.expect(g, t); err != nil {
			g.tellShare(t, api.TransferWorking, err.Error())
			return g.timing.retry, err
		}
	case "paused", "prelaunch":
		_, err := g.loaded(ctx, t)
		return 0, err
	case "":
		return 0, g.storage.check(ctx)
	default:
		g.fail(t, "its QEMU is "+g.vm.running.state)
	}
	return 0, nil
}

// startIncoming starts it once for a move.
func (g *guest) startIncoming(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if g.began == t.ID || g.record.Received == t.ID {
		g.fail(t, "its QEMU has ended: "+g.complaint(nil))
		return 0, nil
	}
	g.tellShare(t, api.TransferWorking, "starting its QEMU")
	if err := os.RemoveAll(filepath.Join(g.dir, "disks")); err != nil { // what an earlier attempt has left
		return 0, err
	}
	if err := g.start(ctx, part); err != nil {
		g.tellShare(t, api.TransferWorking, err.Error())
		return 0, fmt.Errorf("start: %w", err)
	}
	g.began = t.ID
	g.reached("live target: started")
	return time.Millisecond, pending("being taken in")
}

func (g *guest) nbdSocket() string { return filepath.Join(g.run, "nbd.sock") }

// export has QEMU serve its disks at a socket, to be written by the source's.
func (g *guest) export(ctx context.Context, part *api.GuestPart) error {
	var exports []struct{ ID string }
	if err := g.vm.command(ctx, "query-block-exports", nil, &exports); err != nil || len(exports) > 0 || len(part.Disks) == 0 {
		return err
	}
	l, err := launch.Listen(g.nbdSocket())
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // QEMU has its own
	f, err := l.File()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := g.vm.running.monitor.GiveFile(ctx, "move-nbd", f); err != nil {
		return err
	}
	address := map[string]any{"type": "fd", "data": map[string]any{"str": "move-nbd"}}
	if err := g.vm.command(ctx, "nbd-server-start", map[string]any{"addr": address}, nil); err != nil {
		return err
	}
	for _, d := range part.Disks {
		err := g.vm.command(ctx, "block-export-add", map[string]any{"type": "nbd", "id": moveNode(d.Name), "node-name": qemu.DiskNode(d.Name), "name": d.Name, "writable": true}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// loaded reports whether QEMU has all of the Guest, and writes it down.
func (g *guest) loaded(ctx context.Context, t *api.GuestTransfer) (bool, error) {
	if g.record.Received == t.ID {
		return true, nil
	}
	if g.vm.running == nil {
		return false, errors.New("its QEMU has ended: " + g.complaint(nil))
	}
	var s migrated
	if err := g.vm.command(ctx, "query-migrate", nil, &s); err != nil {
		return false, err
	}
	switch s.Status {
	case "completed":
	case "failed":
		return false, errors.New("QEMU cannot take its state: " + g.complaint(nil))
	default:
		return false, nil
	}
	g.reached("live target: loaded, not written down")
	var refused *qmp.Error // without disks there is none
	if err := g.vm.command(ctx, "nbd-server-stop", nil, nil); err != nil && !errors.As(err, &refused) {
		return false, err
	}
	if err := g.record.change(func(r *record) { r.Received = t.ID }); err != nil {
		return false, err
	}
	g.reached("live target: received, not said")
	g.wake.Set()
	return true, nil
}

// takeDisk carries a connection of the source's QEMU to this one's NBD.
func (g *guest) takeDisk(ctx context.Context, c *transfer.Conn) error {
	end, err := new(net.Dialer).DialContext(ctx, "unix", g.nbdSocket())
	if err := errors.Join(err, c.Reply(transfer.Answer{}, err)); err != nil {
		return err
	}
	c.Join(ctx, end)
	return nil
}

// takeMemory carries what the source's QEMU sends to this one, and answers when
// it has all.
func (g *guest) takeMemory(ctx context.Context, e arrival, c *transfer.Conn) error {
	var end net.Conn
	_, err := g.order(ctx, e, func() (bool, error) {
		var err error
		if end, err = g.vm.newSocket(ctx, "move-memory"); err != nil {
			return false, err
		}
		if err = g.vm.command(ctx, "migrate-incoming", map[string]any{"uri": "fd:move-memory"}, nil); err != nil {
			_ = end.Close()
		}
		return false, err
	})
	if err := errors.Join(err, c.Reply(transfer.Answer{}, err)); err != nil {
		return err
	}
	defer func() { _ = end.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = end.Close() })
	defer stop()
	g.reached("live target: loading")
	if _, err := io.Copy(end, c); err != nil {
		return fmt.Errorf("its memory: %w", err)
	}
	_ = end.Close() // that is all
	for {
		received, err := g.order(ctx, e, func() (bool, error) { return g.loaded(ctx, &e.transfer) })
		if received || err != nil {
			return errors.Join(err, c.Reply(transfer.Answer{Received: received}, err))
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
