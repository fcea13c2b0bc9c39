package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/nodeagent/guest/transfer"
)

// arrivals holds the Guests that this host is about to receive. The host
// listens only while there are any.
type arrivals struct {
	mu       sync.Mutex
	expected map[string]arrival // by the move's ID
	faults   map[netip.Addr]error
	changed  wait.Signal
}

type arrival struct {
	target   *moveTarget
	transfer api.GuestTransfer
	ended    context.Context // done when it is no longer expected
	end      context.CancelFunc
}

func newArrivals() arrivals {
	return arrivals{expected: map[string]arrival{}, faults: map[netip.Addr]error{}, changed: wait.NewSignal()}
}

// expect registers a Guest to be received. The error says why no source can
// connect at the moment.
func (a *arrivals) expect(target *moveTarget, t *api.GuestTransfer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if was, there := a.expected[t.ID]; there && was.target == target && was.transfer == *t {
		return a.faults[t.Address]
	}
	a.drop(target)
	next := arrival{target: target, transfer: *t}
	next.ended, next.end = context.WithCancel(context.Background())
	a.expected[t.ID] = next
	a.changed.Set()
	return nil
}

// forget stops expecting a Guest.
func (a *arrivals) forget(target *moveTarget) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(target)
}

func (a *arrivals) drop(target *moveTarget) {
	for id, e := range a.expected {
		if e.target == target {
			e.end()
			delete(a.expected, id)
			a.changed.Set()
		}
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

// failed records whether listening on an address failed, and wakes the Guests
// that wait for it.
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
			e.target.wake.Set()
		}
	}
}

// takeIn listens for the Guests that are expected, until ctx ends.
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
				h.o.Log.Warn("cannot listen for Guests that move here", "error", err)
				continue
			}
			serving, end := context.WithCancel(ctx)
			open[at] = end
			group.Go(func() {
				transfer.Serve(serving, budget.Listen(l, budget.Limits{Total: 64, PerPeer: 16, Reserve: 48}), h.o.Credentials, h.refused, h.arrives)
			})
		}
		retry := time.After(h.timing.retry) // for addresses where listening failed
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
	h.o.Log.Warn("refused a connection to the port for moves", "from", from.String(), "error", err)
}

// arrives answers the source of a move.
func (h *Handler) arrives(ctx context.Context, c *transfer.Conn, r transfer.Request) {
	e, ok := h.arrivals.find(r.ID)
	if !ok {
		_ = c.Reply(transfer.Answer{}, errors.New("it is not ready for this move")) // the source hangs up or times out
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
		h.o.Log.Warn("receiving a Guest failed", "guest", e.target.name, "error", err)
	}
}

func (e arrival) answer(ctx context.Context, c *transfer.Conn, r transfer.Request) error {
	dst := e.target
	if e.transfer.Live {
		return e.answerLive(ctx, c, r)
	}
	received, err := dst.order(ctx, e, func() (bool, error) { return dst.record.Received == r.ID, nil })
	if err == nil && !received {
		err = room(dst.dir, r.Bytes)
	}
	if r.Kind != transfer.Ready && r.Kind != transfer.Files {
		err = fmt.Errorf("%q was not requested for this move", r.Kind)
	}
	if err := errors.Join(err, c.Reply(transfer.Answer{Received: received}, err)); err != nil || received || r.Kind == transfer.Ready {
		return err
	}
	err = dst.receive(ctx, e, c)
	return errors.Join(err, c.Reply(transfer.Answer{}, err))
}

func (e arrival) answerLive(ctx context.Context, c *transfer.Conn, r transfer.Request) error {
	dst := e.target
	switch r.Kind {
	case transfer.Ready:
		var err error
		_, gone := dst.order(ctx, e, func() (bool, error) {
			var own string
			if own, err = dst.vm.facts(ctx); err == nil && own != r.Machine {
				err = fmt.Errorf("%w: the machines differ: %s here, %s there", transfer.ErrFinal, own, r.Machine)
			}
			return false, nil
		})
		err = errors.Join(gone, err)
		return errors.Join(err, c.Reply(transfer.Answer{}, err))
	case transfer.Disk:
		return dst.takeDisk(ctx, c)
	case transfer.Memory:
		return dst.takeMemory(ctx, e, c)
	}
	err := fmt.Errorf("%q was not requested for this move", r.Kind)
	return errors.Join(err, c.Reply(transfer.Answer{}, err))
}
