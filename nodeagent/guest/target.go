package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/file"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// incomingDir is where a Guest's files are while they are being received.
const incomingDir = "incoming"

// moveTarget receives a Guest: its files, or what its QEMU sends while it runs
// (incoming.go). arrivals passes connections to it on goroutines of their own.
type moveTarget struct {
	*identity
	record    *ledger
	vm        *instance
	ladder    *ladder
	storage   *storage
	tpm       *tpm
	disks     *disk.Store
	life      life
	share     *moveShare
	arrivals  *arrivals
	wake      wait.Signal
	began     string        // ID of the live move for which QEMU was started
	receiving chan struct{} // holds a token while files are received
	orders    chan order    // from the connections of a move to the Guest's goroutine
}

// step receives a Guest, and runs nothing of it.
func (dst *moveTarget) step(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if dst.share.failed(t) {
		return 0, nil // the move is being undone
	}
	if t.Live {
		return dst.beIncoming(ctx, part)
	}
	if dst.vm.running != nil {
		return dst.ladder.climb(ctx, stopForced)
	}
	dst.ladder.stop = nil
	if dst.record.Received == t.ID {
		dst.reached("target: received, not said")
		_ = dst.arrivals.expect(dst, t) // a source that missed the answer may ask again; bootd learns it from this host
		dst.share.set(t, api.TransferReceived, "")
		return 0, nil
	}
	dst.share.set(t, api.TransferWorking, "fetching its image")
	if err := dst.fetchImages(ctx); err != nil {
		dst.share.set(t, api.TransferWorking, err.Error())
		return 0, err
	}
	dst.share.set(t, api.TransferWorking, "waiting for "+t.Peer.Host)
	if err := dst.arrivals.expect(dst, t); err != nil {
		dst.share.set(t, api.TransferWorking, err.Error())
		return dst.timing.retry, err
	}
	return 0, nil
}

// fetchImages fetches all images before the source stops the Guest.
func (dst *moveTarget) fetchImages(ctx context.Context) error {
	return dst.fetch(ctx, dst.record.images())
}

func (dst *moveTarget) fetch(ctx context.Context, images []api.SHA256) error {
	for _, digest := range images {
		if digest == "" {
			continue
		}
		f, err := dst.disks.Image(ctx, digest)
		if err != nil {
			return err
		}
		_ = f.Close() // it only had to be fetched
	}
	return nil
}

// fetchBases fetches the images that received disks are based on: they may
// differ from the current version of the Guest's Image.
func (dst *moveTarget) fetchBases(ctx context.Context, dir string) error {
	bases, err := disk.Bases(dir)
	if err != nil {
		return err
	}
	return dst.fetch(ctx, bases)
}

// spare is the space that a file system keeps free when a Guest is received.
const spare = 64 << 20

// room returns an error when there is not enough space.
func room(dir string, bytes int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; bytes+spare > free {
		return fmt.Errorf("not enough room: the Guest has %d MiB, %d are free", bytes>>20, free>>20)
	}
	return nil
}

// receive receives a Guest's files and returns when they are in place.
func (dst *moveTarget) receive(ctx context.Context, e arrival, c *transfer.Conn) error {
	select {
	case dst.receiving <- struct{}{}: // an earlier connection has failed or is about to
		defer func() { <-dst.receiving }()
	case <-e.ended.Done():
		return errNotExpected
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	dir := filepath.Join(dst.dir, incomingDir)
	err := os.RemoveAll(dir)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	err = transfer.Receive(c, root, func(int64) { dst.reached("target: receiving") })
	err = errors.Join(err, root.Close())
	if err == nil {
		err = dst.fetchBases(ctx, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	dst.reached("target: received, not in place")
	_, err = dst.order(ctx, e, func() (bool, error) { return true, dst.commit(e.transfer.ID, dir) })
	dst.reached("target: in place, not answered")
	return err
}

var errNotExpected = errors.New("the move was given up")

// order is a function that a connection makes the Guest's goroutine run at
// once.
type order struct {
	do   func() (bool, error)
	done chan result
}

type result struct {
	yes bool
	err error
}

// order submits an order and waits for its result.
func (dst *moveTarget) order(ctx context.Context, e arrival, do func() (bool, error)) (bool, error) {
	o := order{do: do, done: make(chan result, 1)}
	select {
	case dst.orders <- o:
	case <-e.ended.Done():
		return false, errNotExpected
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	r := <-o.done
	return r.yes, r.err
}

// obey runs an order. A Guest that is expected has a record.
func (dst *moveTarget) obey(o order) {
	var r result
	r.yes, r.err = o.do()
	o.done <- r
}

// commit puts the received files in place. From then on the Guest may run here
// if bootd says so.
func (dst *moveTarget) commit(id, dir string) error {
	if dst.record.Received == id {
		return nil
	}
	if t := dst.record.Part.Transfer; t == nil || t.ID != id {
		return errNotExpected
	}
	if err := dst.replaceWith(dir); err != nil {
		return err
	}
	if err := dst.tpm.own(); err != nil {
		return err
	}
	dst.reached("target: in place, not written down")
	err := dst.record.change(func(r *record) { r.Received = id })
	dst.wake.Set()
	return err
}

// replaceWith replaces the Guest's files by the received ones.
func (dst *moveTarget) replaceWith(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(ownFiles(), e.Name()) {
			return fmt.Errorf("received %s, which belongs to this host", e.Name())
		}
	}
	for _, e := range entries {
		to := filepath.Join(dst.dir, e.Name())
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
	return file.SyncDir(dst.dir)
}
