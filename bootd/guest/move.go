package guest

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// A move, in Guest.status.move. Only the host in status.host may run the Guest; only arrive changes it, by one
// write.
//
//	Choosing ─▶ Transfer ─▶ status.host is the target, and the move over
//	                 └────▶ Back ─▶ over, with the Guest where it was
//	Stopping ─▶ placed again, without its disks
//
// In Transfer the source gives the Guest up: before it reports Sent, it records on disk that it must not run the
// Guest until it receives Back. The target runs nothing until status.host names it. So there are two facts to
// wait for, Sent and Received, each of which is permanent once reported, and a crash in between neither starts
// nor loses anything.

// movePause is how long a Guest is not moved again after a move that failed, unless a person requests it.
const movePause = 5 * time.Minute

// depart begins to move a Guest from a host that it should leave, if there is a target.
func (c *Controller) depart(ctx context.Context, g *api.Guest, m *api.Machine) error {
	if c.migration(g) == api.MigrateNone {
		return c.placement(ctx, g, api.True, "Pinned",
			fmt.Sprintf("on %s, which it should leave; its migration None keeps it there: weftctl guest move %s", m.Metadata.Name, g.Metadata.Name))
	}
	if last := g.Status.LastMove; last != nil && !last.Done && time.Since(last.Ended) < movePause {
		return c.placement(ctx, g, api.True, "MoveFailed",
			fmt.Sprintf("on %s, which it should leave; the next attempt is %s after: %s", m.Metadata.Name, movePause, last.Message))
	}
	n, ok := store.Cached[api.Network](c.Cache, g.Spec.Network)
	if !ok {
		return nil
	}
	if to, refused := choose(g, c.hosting(), c.candidates(g, n, "")); to == nil {
		return c.placement(ctx, g, api.True, nowhereToGo,
			fmt.Sprintf("on %s, which it should leave; no other host can run it: %s", m.Metadata.Name, refused))
	}
	c.Event(g, api.Normal, "Moving", fmt.Sprintf("from %s, which it should leave", m.Metadata.Name))
	return c.write(ctx, g, func(g *api.Guest) bool {
		if g.Status.Move != nil || g.Status.HostUID != m.Metadata.UID {
			return false
		}
		g.Status.Move = &api.GuestMove{Reason: "Drain", Step: api.MoveChoosing, Started: time.Now().UTC()}
		return true
	})
}

// move takes the next step of a move.
func (c *Controller) move(ctx context.Context, g *api.Guest, m *api.Machine, seen api.PartStatus) error {
	move := g.Status.Move
	switch move.Step {
	case api.MoveChoosing:
		return c.chooseTarget(ctx, g, m)
	case api.MoveTransfer:
		return c.transfer(ctx, g, m)
	case api.MoveBack:
		if said(seen, move.ID) != api.TransferredBack {
			return c.notReady(ctx, g, "Moving", fmt.Sprintf("its move was cancelled; %s takes it back: %s", m.Metadata.Name, saying(seen)))
		}
		return c.write(ctx, g, func(g *api.Guest) bool {
			switch move := g.Status.Move; {
			case move.LoseDisks:
				move.Step = api.MoveStopping
			case move.Fallback:
				move.Step, move.Mode, move.Fallback, move.ID, move.Target = api.MoveChoosing, api.MigrateStop, false, "", nil
			default:
				g.Status.Move = nil
			}
			return true
		})
	}
	if !c.stopped(g, seen) {
		return c.notReady(ctx, g, "Moving", fmt.Sprintf("it is being stopped on %s: %s", m.Metadata.Name, saying(seen)))
	}
	return c.relocate(ctx, g, move.To)
}

// chooseTarget finds a host and starts the transfer on both.
func (c *Controller) chooseTarget(ctx context.Context, g *api.Guest, m *api.Machine) error {
	move := g.Status.Move
	switch {
	case !move.Asked && !m.Draining():
		return c.write(ctx, g, func(g *api.Guest) bool { g.Status.Move = nil; return true })
	case time.Since(move.Started) > c.moveDeadline():
		return c.give(ctx, g, "no host could run it")
	}
	c.placing.Lock()
	defer c.placing.Unlock()
	n, ok := store.Cached[api.Network](c.Cache, g.Spec.Network)
	if !ok {
		return nil
	}
	var elsewhere []candidate
	for _, other := range c.candidates(g, n, move.To) {
		if other.machine.Metadata.UID != g.Status.HostUID {
			elsewhere = append(elsewhere, other)
		}
	}
	target, refused := choose(g, c.hosting(), elsewhere)
	if target == nil {
		return c.placement(ctx, g, api.True, nowhereToGo, fmt.Sprintf("on %s; it should move, and no other host can run it: %s", m.Metadata.Name, refused))
	}
	return c.write(ctx, g, func(g *api.Guest) bool {
		if g.Status.Move == nil || g.Status.Move.Step != api.MoveChoosing || g.Status.HostUID != m.Metadata.UID {
			return false
		}
		move := g.Status.Move
		move.ID, move.Step, move.Deadline = uuid.NewString(), api.MoveTransfer, move.Started.Add(c.moveDeadline())
		move.Mode = c.mode(g)
		if move.Mode == api.MigrateLive && !move.Only { // leaves time for a move with a stop, if needed
			move.Deadline = move.Started.Add(c.moveDeadline() / 2)
		}
		move.Target = &api.GuestPlace{Host: target.Metadata.Name, HostUID: target.Metadata.UID}
		return true
	})
}

// migration is how a Guest may leave its host.
func (c *Controller) migration(g *api.Guest) string {
	return cmp.Or(g.Spec.Placement.Migration, c.hosting().Migration)
}

// mode is how a Guest moves now: one that does not run has only disks to move.
func (c *Controller) mode(g *api.Guest) string {
	switch {
	case g.Spec.State == api.GuestStopped, g.Status.State == api.GuestStopped, g.Status.Move.Mode == "" && c.migration(g) == api.MigrateStop:
		return api.MigrateStop
	}
	return cmp.Or(g.Status.Move.Mode, api.MigrateLive)
}

func (c *Controller) moveDeadline() time.Duration { return time.Duration(c.hosting().MoveDeadline) }

// transfer waits for both hosts, and switches over or cancels.
func (c *Controller) transfer(ctx context.Context, g *api.Guest, m *api.Machine) error {
	move := g.Status.Move
	target, known := store.Cached[api.Machine](c.Cache, move.Target.Host)
	known = known && target.Metadata.UID == move.Target.HostUID
	s := standing{now: time.Now(), deadline: move.Deadline, stay: !move.Asked && !m.Draining(),
		halted: move.Mode == api.MigrateLive && g.Spec.State == api.GuestStopped}
	seen := observed(m, g)
	s.sent = said(seen, move.ID) == api.TransferSent
	s.failed = failure(seen, move.ID)
	there := api.PartStatus{}
	if known {
		there = observed(target, g)
		s.received = said(there, move.ID) == api.TransferReceived
		s.failed = cmp.Or(s.failed, failure(there, move.ID))
		s.lost = target.Status.Phase != api.PhaseActive || target.Draining()
	}
	s.lost = s.lost || !known
	switch next, why := s.next(); next {
	case api.MoveBack:
		// A person who still wants it elsewhere can have it stopped for the move.
		return c.callBack(ctx, g, why, !s.lost && !s.stay)
	case arrived:
		return c.arrive(ctx, g)
	}
	return c.notReady(ctx, g, "Moving", fmt.Sprintf("from %s: %s; to %s: %s", m.Metadata.Name, working(seen, move.ID), move.Target.Host, working(there, move.ID)))
}

// standing holds everything that a transfer's next step depends on.
type standing struct {
	sent, received bool   // what the hosts have reported of this move
	failed         string // why the move cannot succeed, according to a host
	halted         bool   // it moves live, and should no longer run
	stay           bool   // it no longer has to move
	lost           bool   // the target no longer exists, or cannot take it
	now, deadline  time.Time
}

// arrived is the step after Transfer: status.host changes, and the move is over.
const arrived = "Arrived"

// next is Transfer while there is something to wait for. A host that has sent everything waits for the target
// until the deadline: nothing runs in the meantime.
func (s standing) next() (step, why string) {
	switch {
	case s.sent && s.received:
		return arrived, ""
	case s.lost:
		return api.MoveBack, "the target host can no longer run it"
	case s.stay:
		return api.MoveBack, "it no longer has to leave its host"
	case s.failed != "":
		return api.MoveBack, s.failed
	case s.halted:
		return api.MoveBack, "its desired state is Stopped"
	case s.now.After(s.deadline):
		return api.MoveBack, "its deadline has passed"
	}
	return api.MoveTransfer, ""
}

// said is the state of a move that a host has reported.
func said(seen api.PartStatus, id string) string {
	if seen.Guest == nil || seen.Guest.Transfer == nil || seen.Guest.Transfer.ID != id || id == "" {
		return ""
	}
	return seen.Guest.Transfer.State
}

// failure is a host's reason why a move cannot succeed, or "".
func failure(seen api.PartStatus, id string) string {
	if said(seen, id) != api.TransferFailed {
		return ""
	}
	return cmp.Or(seen.Guest.Transfer.Message, "it has failed")
}

func working(seen api.PartStatus, id string) string {
	if said(seen, id) == "" {
		return "it has not begun"
	}
	if t := seen.Guest.Transfer; t.State == api.TransferWorking {
		return t.Message
	}
	return seen.Guest.Transfer.State
}

// received reports whether the target of a move has all of the Guest. That suffices when the source is known to
// run nothing.
func (c *Controller) received(g *api.Guest) bool {
	move := g.Status.Move
	if move == nil || move.Step != api.MoveTransfer {
		return false
	}
	target, ok := store.Cached[api.Machine](c.Cache, move.Target.Host)
	return ok && target.Metadata.UID == move.Target.HostUID && !down(target) && said(observed(target, g), move.ID) == api.TransferReceived
}

// arrive is the single write that makes the target the Guest's host.
func (c *Controller) arrive(ctx context.Context, g *api.Guest) error {
	id := g.Status.Move.ID
	how := map[string]string{api.MigrateLive: "while it ran", api.MigrateStop: "with a stop"}[g.Status.Move.Mode]
	if m, ok := store.Cached[api.Machine](c.Cache, g.Status.Host); ok && said(observed(m, g), id) == api.TransferSent {
		if detail := observed(m, g).Guest.Transfer.Message; detail != "" {
			how += ": " + detail
		}
	}
	err := c.write(ctx, g, func(g *api.Guest) bool {
		move := g.Status.Move
		if move == nil || move.ID != id || move.Step != api.MoveTransfer {
			return false
		}
		g.Status.Left = append(g.Status.Left, api.GuestPlace{Host: g.Status.Host, HostUID: g.Status.HostUID, Held: id})
		g.Status.LastMove = &api.GuestMoved{From: g.Status.Host, To: move.Target.Host, Mode: move.Mode, Done: true, Message: how, Started: move.Started, Ended: time.Now().UTC()}
		g.Status.Host, g.Status.HostUID, g.Status.Move, g.Status.State = move.Target.Host, move.Target.HostUID, nil, ""
		g.Status.Request, g.Status.Result = nil, nil // the old host's results must not be repeated
		g.Status.Conditions.Remove(api.CondPlaced)   // stay writes it again
		return true
	})
	if fresh, ok := store.Cached[api.Guest](c.Cache, g.Metadata.Name); err == nil && ok {
		c.Event(fresh, api.Normal, "Moved", fmt.Sprintf("from %s to %s, %s", g.Status.Host, fresh.Status.Host, how))
	}
	return err
}

// callBack cancels a transfer: the source gets the Guest back, and the target removes it. A move with a stop may
// follow a live one.
func (c *Controller) callBack(ctx context.Context, g *api.Guest, why string, again bool) error {
	id := g.Status.Move.ID
	if detail := c.lastWords(g); detail != "" {
		why += ": " + detail
	}
	again = again && g.Status.Move.Mode == api.MigrateLive && !g.Status.Move.Only
	if again {
		c.Event(g, api.Normal, "NotLive", fmt.Sprintf("it cannot move to %s while it runs, and is stopped for the move: %s", g.Status.Move.Target.Host, why))
	} else {
		c.Event(g, api.Warning, "MoveFailed", fmt.Sprintf("it stays on %s: %s", g.Status.Host, why))
	}
	return c.write(ctx, g, func(g *api.Guest) bool {
		move := g.Status.Move
		if move == nil || move.ID != id || move.Step != api.MoveTransfer {
			return false
		}
		g.Status.Left = append(g.Status.Left, api.GuestPlace{Host: move.Target.Host, HostUID: move.Target.HostUID})
		g.Status.LastMove = &api.GuestMoved{From: g.Status.Host, To: move.Target.Host, Mode: move.Mode, Message: why, Started: move.Started, Ended: time.Now().UTC()}
		move.Step, move.Fallback = api.MoveBack, again
		return true
	})
}

// lastWords is the source's last report before the deadline passed.
func (c *Controller) lastWords(g *api.Guest) string {
	m, ok := store.Cached[api.Machine](c.Cache, g.Status.Host)
	if !ok || said(observed(m, g), g.Status.Move.ID) != api.TransferWorking {
		return ""
	}
	return observed(m, g).Guest.Transfer.Message
}

// give ends a move that had not begun.
func (c *Controller) give(ctx context.Context, g *api.Guest, why string) error {
	c.Event(g, api.Warning, "MoveFailed", fmt.Sprintf("it stays on %s: %s", g.Status.Host, why))
	return c.write(ctx, g, func(g *api.Guest) bool {
		move := g.Status.Move
		if move == nil || move.Step != api.MoveChoosing {
			return false
		}
		g.Status.LastMove = &api.GuestMoved{From: g.Status.Host, To: move.To, Message: why, Started: move.Started, Ended: time.Now().UTC()}
		g.Status.Move = nil
		return true
	})
}

// giveUp ends a move whose Guest takes another path: its target removes it.
func giveUp(g *api.Guest) {
	move := g.Status.Move
	if move != nil && move.Step == api.MoveTransfer {
		g.Status.Left = append(g.Status.Left, api.GuestPlace{Host: move.Target.Host, HostUID: move.Target.HostUID})
	}
	g.Status.Move = nil
}

// losing reports whether a person has permitted to lose the Guest's disks.
func losing(g *api.Guest) bool { return g.Status.Move != nil && g.Status.Move.LoseDisks }

// mayGo reports whether a host that a Guest has left may remove its copy: the Guest is in its desired state on
// the new host, or is deleted; and the host knows that its copy must no longer be retained.
func (c *Controller) mayGo(g *api.Guest, left api.GuestPlace) bool {
	m, ok := store.Cached[api.Machine](c.Cache, left.Host)
	if !ok || m.Metadata.UID != left.HostUID {
		return true // nothingLeft verifies it
	}
	if !c.applied(g, m) {
		return false
	}
	if g.Metadata.DeletionTimestamp != nil {
		return true
	}
	now, ok := store.Cached[api.Machine](c.Cache, g.Status.Host)
	if !ok || now.Metadata.UID != g.Status.HostUID || !c.applied(g, now) {
		return false
	}
	return observed(now, g).Guest.State == g.Spec.State
}

// applied reports whether a host has applied the current version of the Guest's part.
func (c *Controller) applied(g *api.Guest, m *api.Machine) bool {
	p, err := PartOn(c.Cache, g, m.Metadata.UID)
	if err != nil || p == nil {
		return false
	}
	raw, err := api.EncodePart(p)
	seen := observed(m, g)
	return err == nil && seen.Digest == api.PartDigest(raw) && seen.State == api.PartApplied && seen.Guest != nil
}

// stopped reports whether the host has applied the part with state Stopped: an earlier report that it was stopped
// does not count.
func (c *Controller) stopped(g *api.Guest, seen api.PartStatus) bool {
	m, ok := store.Cached[api.Machine](c.Cache, g.Status.Host)
	return ok && c.applied(g, m) && seen.Guest != nil && seen.Guest.State == api.GuestStopped
}
