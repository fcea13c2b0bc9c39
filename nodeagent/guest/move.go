package guest

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/rackweft/rackweft/api"
)

// move is a Guest's move between two hosts, seen from either of them.
//
// The source gives the Guest up before anything of it runs at the target: the
// record's Given, on disk before the report to bootd that everything is sent,
// prevents it from running here across restarts until bootd sends Back. The
// target runs a received Guest when its part no longer has a Transfer.
type move struct {
	*identity
	record   *ledger
	life     life
	share    *moveShare
	source   *moveSource
	target   *moveTarget
	arrivals *arrivals
}

// life is how a move controls the Guest, implemented by *guest.
type life interface {
	start(context.Context, *api.GuestPart) error
	beAsWritten(context.Context, *api.GuestPart) (time.Duration, error)
	beStopped(context.Context, *api.GuestPart) (time.Duration, error)
	publish(message string) // as its status, during a long step
}

// moveShare is what this host reports to bootd about its side of a move.
type moveShare struct {
	log      *slog.Logger
	life     life
	reported *api.GuestTransferred // nil without a move
}

// step takes the next step of this host's side of a move. done means that
// there is nothing else to do with the part.
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
		mv.share.reported = nil
		next, err = mv.life.beStopped(ctx, part)
		return next, true, err
	case t.Role == api.TransferBack && (mv.record.Given == "" || mv.record.Given == t.ID):
		mv.reached("source: to take it back")
		if err := mv.source.callOff(ctx); err != nil { // what may be left does no harm to the Guest
			mv.log.Warn("a move is not completely undone", "error", err)
		}
		err := mv.record.give("")
		if err == nil {
			mv.reached("source: taken back, not said")
			mv.share.set(t, api.TransferredBack, "")
		}
		return 0, err != nil, err
	case t.Role == api.TransferSource && (mv.record.Given == "" || mv.record.Given == t.ID):
		next, err = mv.source.step(ctx, part)
		return next, true, err
	case mv.record.Given != "":
		mv.share.reported = nil
		if next, err = mv.life.beStopped(ctx, part); err == nil {
			err = pending("it was given up for a move to another host: it runs here only after bootd reports that the move failed")
		}
		return next, true, err
	}
	mv.share.reported = nil
	return 0, false, nil
}

// whole returns an error when a Guest was received only in part.
func (mv *move) whole(part *api.GuestPart) error {
	was := mv.record.Part.Transfer
	incoming := was != nil && was.Role == api.TransferTarget && mv.record.Received != was.ID
	if incoming && (part.Transfer == nil || part.Transfer.Role != api.TransferTarget) {
		return fatal{fmt.Errorf("only a part of it was received from %s: it does not start with that", was.Peer.Host)}
	}
	return nil
}

// soonest returns the earlier of two times to look again, where 0 means no
// time.
func soonest(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// failed reports whether a move has failed here.
func (sh *moveShare) failed(t *api.GuestTransfer) bool {
	s := sh.reported
	return s != nil && s.ID == t.ID && s.State == api.TransferFailed
}

func (sh *moveShare) fail(t *api.GuestTransfer, message string) {
	sh.log.Warn("a move failed", "move", t.ID, "error", message)
	sh.set(t, api.TransferFailed, message)
}

// set sets the reported state. It replaces the old value, which may be read at
// the moment.
func (sh *moveShare) set(t *api.GuestTransfer, state, message string) {
	sh.reported = &api.GuestTransferred{ID: t.ID, State: state, Message: message}
}

// working reports the progress of a transfer, because one step may take
// minutes.
func (sh *moveShare) working(t *api.GuestTransfer, message string) {
	sh.set(t, api.TransferWorking, message)
	sh.life.publish(message)
}
