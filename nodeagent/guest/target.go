package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/nodeagent/guest/disk"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// incomingDir is where a Guest's files are while they come.
const incomingDir = "incoming"

// beTarget takes a Guest in, and runs nothing of it.
func (g *guest) beTarget(ctx context.Context, part *api.GuestPart) (time.Duration, error) {
	t := part.Transfer
	if g.failed(t) {
		return 0, nil // it is called back
	}
	if t.Live {
		return g.beIncoming(ctx, part)
	}
	if g.running != nil {
		return g.climb(ctx, stopForced)
	}
	g.stop = nil
	if g.record.Received == t.ID {
		g.h.reached("target: received, not said")
		_ = g.h.arrivals.expect(g, t) // to answer a source that has not heard it; bootd hears it from here
		g.tellShare(t, api.TransferReceived, "")
		return 0, nil
	}
	g.tellShare(t, api.TransferWorking, "fetching its image")
	if err := g.fetchImages(ctx); err != nil {
		g.tellShare(t, api.TransferWorking, err.Error())
		return 0, err
	}
	g.tellShare(t, api.TransferWorking, "waiting for "+t.Peer.Host)
	if err := g.h.arrivals.expect(g, t); err != nil {
		g.tellShare(t, api.TransferWorking, err.Error())
		return g.h.timing.retry, err
	}
	return 0, nil
}

// fetchImages has all images here before the source stops the Guest.
func (g *guest) fetchImages(ctx context.Context) error {
	return g.fetch(ctx, g.record.images())
}

func (g *guest) fetch(ctx context.Context, images []api.SHA256) error {
	for _, digest := range images {
		if digest == "" {
			continue
		}
		f, err := g.h.disks.Image(ctx, digest)
		if err != nil {
			return err
		}
		_ = f.Close() // it was only to be there
	}
	return nil
}

// fetchBases has the images here that disks which have come lie over: they may be
// others than the Guest's Image of today.
func (g *guest) fetchBases(ctx context.Context, dir string) error {
	bases, err := disk.Bases(dir)
	if err != nil {
		return err
	}
	return g.fetch(ctx, bases)
}

// arrivals are the Guests that this host is to take in. It listens only while
// there are some.
type arrivals struct {
	mu       sync.Mutex
	expected map[string]arrival // by the move's ID
	faults   map[netip.Addr]error
	changed  chan struct{}
}

type arrival struct {
	guest    *guest
	transfer api.GuestTransfer
	ended    context.Context // done when it is expected no more
	end      context.CancelFunc
}

func newArrivals() arrivals {
	return arrivals{expected: map[string]arrival{}, faults: map[netip.Addr]error{}, changed: make(chan struct{}, 1)}
}

// expect has a Guest be taken in; the error says that nobody can come for now.
func (a *arrivals) expect(g *guest, t *api.GuestTransfer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was, there := a.expected[t.ID]; there && was.guest == g && was.transfer == *t {
		return a.faults[t.Address]
	}
	a.drop(g)
	next := arrival{guest: g, transfer: *t}
	next.ended, next.end = context.WithCancel(context.Background())
	a.expected[t.ID] = next
	a.signal()
	return nil
}

// forget ends what is coming of a Guest.
func (a *arrivals) forget(g *guest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(g)
}

func (a *arrivals) drop(g *guest) {
	for id, e := range a.expected {
		if e.guest == g {
			e.end()
			delete(a.expected, id)
			a.signal()
		}
	}
}

func (a *arrivals) signal() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

func (a *arrivals) find(move string) (arrival, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.expected[move]
	return e, ok
}

func (a *arrivals) addresses() map[netip.Addr]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := map[netip.Addr]bool{}
	for _, e := range a.expected {
		all[e.transfer.Address] = true
	}
	return all
}

// failed notes whether an address can be listened at, and tells who waits there.
func (a *arrivals) failed(at netip.Addr, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.faults, at)
	} else {
		a.faults[at] = err
	}
	for _, e := range a.expected {
		if e.transfer.Address == at {
			e.guest.kick()
		}
	}
}

// takeIn listens where Guests are expected, until ctx ends.
func (h *Handler) takeIn(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	open := map[netip.Addr]context.CancelFunc{}
	for ctx.Err() == nil {
		wanted := h.arrivals.addresses()
		for at, end := range open {
			if !wanted[at] {
				end()
				delete(open, at)
			}
		}
		for at := range wanted {
			if open[at] != nil {
				continue
			}
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(at, api.MovePort).String())
			h.arrivals.failed(at, err)
			if err != nil {
				h.o.Log.Warn("Guests cannot be taken in", "error", err)
				continue
			}
			serving, end := context.WithCancel(ctx)
			open[at] = end
			group.Go(func() {
				transfer.Serve(serving, budget.Listen(l, budget.Limits{Total: 64, PerPeer: 16, Reserve: 48}), h.o.Credentials, h.refused, h.arrives)
			})
		}
		retry := time.After(h.timing.retry) // for those that could not be listened at
		if len(open) == len(wanted) {
			retry = nil
		}
		select {
		case <-h.arrivals.changed:
		case <-retry:
		case <-ctx.Done():
		}
	}
	for _, end := range open {
		end()
	}
}

func (h *Handler) refused(from net.Addr, err error) {
	h.o.Log.Warn("a connection to the port of moves is refused", "from", from.String(), "error", err)
}

// arrives answers the source of a move.
func (h *Handler) arrives(ctx context.Context, c *transfer.Conn, r transfer.Request) {
	e, ok := h.arrivals.find(r.ID)
	if !ok {
		_ = c.Reply(transfer.Answer{}, errors.New("it is not ready for this move")) // whoever asks hangs up, or does not
		return
	}
	if err := transfer.Expect(e.transfer.Peer, c.Peer); err != nil {
		h.refused(c.RemoteAddr(), err)
		_ = c.Reply(transfer.Answer{}, errors.New("it is not ready for this move"))
		return
	}
	stop := c.CloseWith(e.ended)
	defer stop()
	if err := e.answer(ctx, c, r); err != nil {
		h.o.Log.Warn("what was to come of a Guest has not", "guest", e.guest.name, "error", err)
	}
}

func (e arrival) answer(ctx context.Context, c *transfer.Conn, r transfer.Request) error {
	g := e.guest
	if e.transfer.Live {
		return e.answerLive(ctx, c, r)
	}
	received, err := g.order(ctx, e, func() (bool, error) { return g.record.Received == r.ID, nil })
	if err == nil && !received {
		err = room(g.dir, r.Bytes)
	}
	if r.Kind != transfer.Ready && r.Kind != transfer.Files {
		err = fmt.Errorf("%q is not asked for in this move", r.Kind)
	}
	if err := errors.Join(err, c.Reply(transfer.Answer{Received: received}, err)); err != nil || received || r.Kind == transfer.Ready {
		return err
	}
	err = g.receive(ctx, e, c)
	return errors.Join(err, c.Reply(transfer.Answer{}, err))
}

func (e arrival) answerLive(ctx context.Context, c *transfer.Conn, r transfer.Request) error {
	g := e.guest
	switch r.Kind {
	case transfer.Ready:
		var err error
		_, gone := g.order(ctx, e, func() (bool, error) {
			var own string
			if own, err = g.machineFacts(ctx); err == nil && own != r.Machine {
				err = fmt.Errorf("%w: its machine would be another: %s here, %s there", transfer.ErrFinal, own, r.Machine)
			}
			return false, nil
		})
		err = errors.Join(gone, err)
		return errors.Join(err, c.Reply(transfer.Answer{}, err))
	case transfer.Disk:
		return g.takeDisk(ctx, c)
	case transfer.Memory:
		return g.takeMemory(ctx, e, c)
	}
	err := fmt.Errorf("%q is not asked for in this move", r.Kind)
	return errors.Join(err, c.Reply(transfer.Answer{}, err))
}

// spare is what a file system keeps free of Guests that come.
const spare = 64 << 20

// room says when there is none for so many bytes.
func room(dir string, bytes int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; bytes+spare > free {
		return fmt.Errorf("it lacks room: the Guest has %d MiB, and %d are free", bytes>>20, free>>20)
	}
	return nil
}

// receive takes a Guest's files, and is done when they are in their place.
func (g *guest) receive(ctx context.Context, e arrival, c *transfer.Conn) error {
	select {
	case g.receiving <- struct{}{}: // the one before has failed, or is about to
		defer func() { <-g.receiving }()
	case <-e.ended.Done():
		return errNotExpected
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	dir := filepath.Join(g.dir, incomingDir)
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
	err = transfer.Receive(c, root, func(int64) { g.h.reached("target: receiving") })
	err = errors.Join(err, root.Close())
	if err == nil {
		err = g.fetchBases(ctx, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	g.h.reached("target: received, not in place")
	_, err = g.order(ctx, e, func() (bool, error) { return true, g.commit(e.transfer.ID, dir) })
	g.h.reached("target: in place, not answered")
	return err
}

var errNotExpected = errors.New("the move was given up")

// order is what a connection has the Guest's own goroutine do, at once.
type order struct {
	do   func() (bool, error)
	done chan result
}

type result struct {
	yes bool
	err error
}

// order gives an order and waits for its result.
func (g *guest) order(ctx context.Context, e arrival, do func() (bool, error)) (bool, error) {
	o := order{do: do, done: make(chan result, 1)}
	select {
	case g.orders <- o:
	case <-e.ended.Done():
		return false, errNotExpected
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	r := <-o.done
	return r.yes, r.err
}

// obey does an order. Those that are expected have a record.
func (g *guest) obey(o order) {
	var r result
	r.yes, r.err = o.do()
	o.done <- r
}

// commit puts in place what has come. From then on it may be run here, if bootd
// says so.
func (g *guest) commit(id, dir string) error {
	if g.record.Received == id {
		return nil
	}
	if t := g.record.Part.Transfer; t == nil || t.ID != id {
		return errNotExpected
	}
	if err := g.replaceWith(dir); err != nil {
		return err
	}
	if err := g.ownTPM(); err != nil {
		return err
	}
	g.h.reached("target: in place, not written down")
	err := g.change(func(r *record) { r.Received = id })
	g.kick()
	return err
}
