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
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/guest/launch"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
	"github.com/rackweft/rackweft/nodeagent/guest/qmp"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// beIncoming makes a QEMU with empty disks wait for the state of the source's
// QEMU.
func (dst *moveTarget) beIncoming(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	dst.ladder.stop = nil
	if dst.vm.running == nil {
		return dst.startIncoming(ctx, part)
	}
	dst.began = t.ID
	if dst.record.Received == t.ID {
		_ = dst.arrivals.expect(dst, t) // it may connect again
		dst.share.set(t, api.TransferReceived, "")
		return 0, nil
	}
	switch dst.vm.running.state {
	case qemuReceiving:
		if err := dst.serveDisks(ctx, part); err != nil {
			return 0, fmt.Errorf("offer its disks to %s: %w", t.Peer.Host, err)
		}
		dst.share.set(t, api.TransferWorking, "waiting for "+t.Peer.Host)
		if err := dst.arrivals.expect(dst, t); err != nil {
			dst.share.set(t, api.TransferWorking, err.Error())
			return dst.timing.retry, err
		}
	case qemuPaused, qemuPrelaunch:
		_, err := dst.loaded(ctx, t)
		return 0, err
	case qemuSilent:
		return 0, dst.storage.check(ctx)
	default:
		dst.share.fail(t, "its QEMU is "+dst.vm.running.state)
	}
	return 0, nil
}

// startIncoming starts QEMU once per move.
func (dst *moveTarget) startIncoming(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if dst.began == t.ID || dst.record.Received == t.ID {
		dst.share.fail(t, "its QEMU has ended: "+dst.complaint(nil))
		return 0, nil
	}
	dst.share.set(t, api.TransferWorking, "starting its QEMU")
	if err := os.RemoveAll(filepath.Join(dst.dir, "disks")); err != nil { // left by an earlier attempt
		return 0, err
	}
	if err := dst.life.start(ctx, part); err != nil {
		dst.share.set(t, api.TransferWorking, err.Error())
		return 0, fmt.Errorf("start: %w", err)
	}
	dst.began = t.ID
	dst.reached("live target: started")
	return time.Millisecond, pending("receiving it")
}

func (dst *moveTarget) nbdSocket() string { return filepath.Join(dst.run, "nbd.sock") }

// serveDisks makes QEMU serve its disks at a socket, to which the source's QEMU
// writes.
func (dst *moveTarget) serveDisks(ctx context.Context, part *api.GuestPart) error {
	var exports []struct{ ID string }
	if err := dst.vm.command(ctx, "query-block-exports", nil, &exports); err != nil || len(exports) > 0 || len(part.Disks) == 0 {
		return err
	}
	l, err := launch.Listen(dst.nbdSocket())
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }() // QEMU has a duplicate
	f, err := l.File()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := dst.vm.running.monitor.GiveFile(ctx, "move-nbd", f); err != nil {
		return err
	}
	address := map[string]any{"type": "fd", "data": map[string]any{"str": "move-nbd"}}
	if err := dst.vm.command(ctx, "nbd-server-start", map[string]any{"addr": address}, nil); err != nil {
		return err
	}
	for _, d := range part.Disks {
		err := dst.vm.command(ctx, "block-export-add", map[string]any{"type": "nbd", "id": moveNode(d.Name), "node-name": qemu.DiskNode(d.Name), "name": d.Name, "writable": true}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// loaded reports whether QEMU has the complete Guest, and records it.
func (dst *moveTarget) loaded(ctx context.Context, t *api.GuestTransfer) (bool, error) {
	if dst.record.Received == t.ID {
		return true, nil
	}
	if dst.vm.running == nil {
		return false, errors.New("its QEMU has ended: " + dst.complaint(nil))
	}
	var s migrated
	if err := dst.vm.command(ctx, "query-migrate", nil, &s); err != nil {
		return false, err
	}
	switch s.Status {
	case "completed":
	case "failed":
		return false, errors.New("QEMU cannot take its state: " + dst.complaint(nil))
	default:
		return false, nil
	}
	dst.reached("live target: loaded, not written down")
	var refused *qmp.Error // there is no NBD server when the Guest has no disks
	if err := dst.vm.command(ctx, "nbd-server-stop", nil, nil); err != nil && !errors.As(err, &refused) {
		return false, err
	}
	if err := dst.record.change(func(r *record) { r.Received = t.ID }); err != nil {
		return false, err
	}
	dst.reached("live target: received, not said")
	dst.wake.Set()
	return true, nil
}

// takeDisk forwards a connection of the source's QEMU to the NBD server of this
// one.
func (dst *moveTarget) takeDisk(ctx context.Context, c *transfer.Conn) error {
	end, err := new(net.Dialer).DialContext(ctx, "unix", dst.nbdSocket())
	if err := errors.Join(err, c.Reply(transfer.Answer{}, err)); err != nil {
		return err
	}
	c.Join(ctx, end)
	return nil
}

// takeMemory forwards the memory that the source's QEMU sends to this one, and
// answers when it is complete.
func (dst *moveTarget) takeMemory(ctx context.Context, e arrival, c *transfer.Conn) error {
	var end net.Conn
	_, err := dst.order(ctx, e, func() (bool, error) {
		var err error
		if end, err = dst.vm.newSocket(ctx, "move-memory"); err != nil {
			return false, err
		}
		if err = dst.vm.command(ctx, "migrate-incoming", map[string]any{"uri": "fd:move-memory"}, nil); err != nil {
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
	dst.reached("live target: loading")
	if _, err := io.Copy(end, c); err != nil {
		return fmt.Errorf("its memory: %w", err)
	}
	_ = end.Close() // end of the stream
	for {
		received, err := dst.order(ctx, e, func() (bool, error) { return dst.loaded(ctx, &e.transfer) })
		if received || err != nil {
			return errors.Join(err, c.Reply(transfer.Answer{Received: received}, err))
		}
		if wait.For(ctx, poll) != nil {
			return context.Cause(ctx)
		}
	}
}
