package guest

import (
	"fmt"
	"time"

	"github.com/rackweft/rackweft/api"
)

// Ask writes a verb into a Guest's status for its host, or the Controller, to
// carry out. The error tells a person why not.
func Ask(g *api.Guest, verb string, a api.GuestAction) error {
	name := g.Metadata.Name
	if g.Metadata.DeletionTimestamp != nil {
		return fmt.Errorf("guest %s is being deleted", name)
	}
	if g.Status.Host == "" {
		return fmt.Errorf("guest %s has no host yet: weftctl describe guest %s says why", name, name)
	}
	if verb == api.GuestVerbMove {
		return askMove(g, a)
	}
	if a.To != "" || a.LoseDisks {
		return fmt.Errorf("%s takes neither a host nor disks", verb)
	}
	if g.Spec.State != running {
		return fmt.Errorf("guest %s is to be %s: only one that is to be Running can be asked to %s", name, g.Spec.State, verb)
	}
	g.Status.Request = &api.GuestRequest{ID: a.ID, Verb: verb}
	return nil
}

func askMove(g *api.Guest, a api.GuestAction) error {
	name := g.Metadata.Name
	if a.To == g.Status.Host {
		return fmt.Errorf("guest %s is on %s already", name, a.To)
	}
	move := g.Status.Move
	if a.LoseDisks {
		askLosing(g, a)
		return nil
	}
	if move != nil && (move.Asked || move.Step != api.MoveChoosing) {
		return fmt.Errorf("guest %s is being moved since %s", name, move.Started.Format(time.TimeOnly))
	}
	g.Status.Move = &api.GuestMove{Reason: "Asked", To: a.To, Asked: true, Step: api.MoveChoosing, Started: time.Now().UTC()}
	return nil
}

// askLosing has a Guest begin anew elsewhere. What a transfer has begun is called
// back first.
func askLosing(g *api.Guest, a api.GuestAction) {
	next := &api.GuestMove{Reason: "Asked", To: a.To, Asked: true, LoseDisks: true, Step: api.MoveStopping, Started: time.Now().UTC()}
	if old := g.Status.Move; old != nil && (old.Step == api.MoveTransfer || old.Step == api.MoveBack) {
		if old.Step == api.MoveTransfer {
			g.Status.Left = append(g.Status.Left, api.GuestPlace{Host: old.Target.Host, HostUID: old.Target.HostUID})
		}
		next.ID, next.Target, next.Step = old.ID, old.Target, api.MoveBack
	}
	g.Status.Move = next
}
