package guest

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/rackweft/rackweft/api"
)

// move is a Guest's move from a host to another, as either of them sees it.
//
// A Guest that moves is given up here before anything of it runs elsewhere: the
// record's Given, on disk before bootd hears that all is sent, keeps it from
// running whatever restarts, until bootd says Back. A host that has taken one in
// runs it when its part has no Transfer any more.
type move struct {
	*identity
	record   *ledger
	life     life
	share    *moveShare
	source   *moveSource
	target   *moveTarget
	arrivals *arrivals
}

// life is what a move has a Guest do: a *guest.
type life interface {
	start(context.Context, *api.GuestPart) error
	beAsWritten(context.Context, *api.GuestPart) (time.Duration, error)
	beStopped(context.Context, *api.GuestPart) (time.Duration, error)
	publish(message string) // as its status, while a step takes its time
}

// moveShare is what this host tells bootd of its share in a move.
type moveShare struct {
	log  *slog.Logger
	life life
	told *api.GuestTransferred // nil without a move
}

// step takes the next step of a host's share in a move. done says that there is
// nothing else to do with the part.
func (mv *move) step(ctx context.Context, part *api.GuestPart) (next time.Duration, done bool, err error) {
	t := part.Transfer
	if t == nil {
		t = new(api.GuestTransfer)
	}
	if t.Role != api.TransferTarget {
		mv.arrivals.forget(mv.target)
	}
	switch {
	case t.Role == api.TransferTarget:
		next, err = mv.target.step(ctx, part)
		return next, true, err
	case t.Role == api.TransferLeft:
		mv.share.told = nil
		next, err = mv.life.beStopped(ctx, part)
		return next, true, err
	case t.Role == api.TransferBack && (mv.record.Given == "" || mv.record.Given == t.ID):
		mv.reached("source: to take it back")
		if err := mv.source.callOff(ctx); err != nil { // what is left of it does the Guest no harm
			mv.log.Warn("a move is not quite taken back", "error", err)
		}
		err := mv.record.give("")
		if err == nil {
			mv.reached("source: taken back, not said")
			mv.share.tell(t, api.TransferredBack, "")
		}
		return 0, err != nil, err
	case t.Role == api.TransferSource && (mv.record.Given == "" || mv.record.Given == t.ID):
		next, err = mv.source.step(ctx, part)
		return next, true, err
	case mv.record.Given != "":
		mv.share.told = nil
		if next, err = mv.life.beStopped(ctx, part); err == nil {
			err = pending("it was given up for a move to another host: it runs here only when bootd says that this has failed")
		}
		return next, true, err
	}
	mv.share.told = nil
	return 0, false, nil
}

// whole reports whether all of a Guest is here that was taken in.
func (mv *move) whole(part *api.GuestPart) error {
	was := mv.record.Part.Transfer
	incoming := was != nil && was.Role == api.TransferTarget && mv.record.Received != was.ID
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
func (sh *moveShare) failed(t *api.GuestTransfer) bool {
	s := sh.told
	return s != nil && s.ID == t.ID && s.State == api.TransferFailed
}

func (sh *moveShare) fail(t *api.GuestTransfer, message string) {
	sh.log.Warn("a move has failed", "move", t.ID, "error", message)
	sh.tell(t, api.TransferFailed, message)
}

// tell notes how far this host is with its share. What was told before may
// be being read.
func (sh *moveShare) tell(t *api.GuestTransfer, state, message string) {
	sh.told = &api.GuestTransferred{ID: t.ID, State: state, Message: message}
}

// working publishes how far a transfer is: one step of it may take minutes.
func (sh *moveShare) working(t *api.GuestTransfer, message string) {
	sh.tell(t, api.TransferWorking, message)
	sh.life.publish(message)
}
