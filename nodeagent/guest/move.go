package guest

import (
	"context"
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
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
		g.reached("source: to take it back")
		if err := g.callOff(ctx); err != nil { // what is left of it does the Guest no harm
			g.log.Warn("a move is not quite taken back", "error", err)
		}
		err := g.record.give("")
		if err == nil {
			g.reached("source: taken back, not said")
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
func (l *ledger) give(move string) error {
	if l.Given == move {
		return nil
	}
	return l.change(func(r *record) { r.Given = move })
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

// soonest is the earlier of two times to look again, where 0 is none.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// failed reports whether a move has failed here.
func (g *guest) failed(t *api.GuestTransfer) bool {
	s := g.transferred
	return s != nil && s.ID == t.ID && s.State == api.TransferFailed
}

func (g *guest) fail(t *api.GuestTransfer, message string) {
	g.log.Warn("a move has failed", "move", t.ID, "error", message)
	g.tellShare(t, api.TransferFailed, message)
}

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

// reachFor asks the target for something.
func (g *guest) reachFor(ctx context.Context, t *api.GuestTransfer, r transfer.Request) (*transfer.Conn, transfer.Answer, error) {
	r.ID = t.ID
	return transfer.Dial(ctx, g.h.o.Credentials, t.Address, t.Peer, r)
}
