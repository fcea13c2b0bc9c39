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
	if d := retained(g); d != "" && !a.LoseDisks {
		return fmt.Errorf("guest %s has disk %s (retain), which is on %s: it would begin anew elsewhere; to have it so, weftctl guest move %s --lose-disks", name, d, g.Status.Host, name)
	}
	if g.Status.Move != nil && g.Status.Move.Asked {
		return fmt.Errorf("guest %s is being moved since %s", name, g.Status.Move.Started.Format(time.TimeOnly))
	}
	g.Status.Move = &api.GuestMove{Reason: "Asked", To: a.To, Asked: true, Started: time.Now().UTC()}
	return nil
}
