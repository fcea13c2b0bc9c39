package guest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
)

// Ask writes a verb into a Guest's status for its host, or the Controller, to carry out. The error tells a person
// why it is refused.
func Ask(g *api.Guest, verb string, a api.GuestAction) error {
	name := g.Metadata.Name
	if g.Metadata.DeletionTimestamp != nil {
		return fmt.Errorf("guest %s is being deleted", name)
	}
	if g.Status.Host == "" {
		return fmt.Errorf("guest %s has no host yet: weftctl describe guest %s says why", name, name)
	}
	r := &api.GuestRequest{ID: a.ID, Verb: verb, Snapshot: a.Snapshot}
	if r.AboutSnapshot() {
		return askSnapshot(g, r, a)
	}
	if a.Snapshot != "" {
		return fmt.Errorf("%s does not take a snapshot", verb)
	}
	if verb == api.GuestVerbMove {
		return askMove(g, a)
	}
	if a.To != "" || a.LoseDisks || a.Mode != "" {
		return fmt.Errorf("%s takes neither a host nor disks nor a mode", verb)
	}
	if g.Spec.State != api.GuestRunning {
		return fmt.Errorf("guest %s has desired state %s: %[3]s needs Running", name, g.Spec.State, verb)
	}
	g.Status.Request = r
	return nil
}

// askSnapshot refuses what the host would refuse, as far as bootd knows.
func askSnapshot(g *api.Guest, r *api.GuestRequest, a api.GuestAction) error {
	name := g.Metadata.Name
	if a.To != "" || a.LoseDisks {
		return fmt.Errorf("%s takes neither a host nor lost disks", r.Verb)
	}
	if err := api.ValidateName(r.Snapshot); err != nil {
		return fmt.Errorf("the snapshot's name: %w", err)
	}
	if g.Status.Move != nil {
		return fmt.Errorf("guest %s is being moved: wait until it has its new host", name)
	}
	if q := g.Status.Request; q != nil && (g.Status.Result == nil || g.Status.Result.ID != q.ID) {
		return fmt.Errorf("host %s has not finished the %s of guest %s: wait for it, see weftctl describe guest %s", g.Status.Host, q.Verb, name, name)
	}
	known := slices.ContainsFunc(g.Status.Snapshots, func(s api.GuestSnapshot) bool { return s.Name == r.Snapshot })
	switch {
	case r.Verb == api.GuestSnapshotCreate:
		if err := mayHaveSnapshot(g, r.Snapshot, known); err != nil {
			return err
		}
	case !known:
		return fmt.Errorf("guest %s has no snapshot %s: weftctl guest snapshot list %s", name, r.Snapshot, name)
	case r.Verb == api.GuestSnapshotRevert && (g.Spec.State != api.GuestStopped || g.Status.State != api.GuestStopped):
		return fmt.Errorf("guest %s is not stopped, and its disks would change while it runs: weftctl guest stop %s", name, name)
	}
	g.Status.Request = r
	return nil
}

func mayHaveSnapshot(g *api.Guest, snapshot string, known bool) error {
	name := g.Metadata.Name
	raw := slices.IndexFunc(g.Spec.Disks, func(d api.Disk) bool { return d.Format == "raw" })
	switch {
	case raw >= 0:
		return fmt.Errorf("disk %s of guest %s is raw, which has no snapshots: weftctl guest export %s copies it", g.Spec.Disks[raw].Name, name, name)
	case known:
		return fmt.Errorf("guest %s already has a snapshot %s: delete it, or choose another name", name, snapshot)
	case len(g.Status.Snapshots) >= api.MaxSnapshots:
		return fmt.Errorf("guest %s has %d snapshots, which is the limit: delete one", name, len(g.Status.Snapshots))
	}
	return nil
}

func askMove(g *api.Guest, a api.GuestAction) error {
	name := g.Metadata.Name
	if a.To == g.Status.Host {
		return fmt.Errorf("guest %s is already on %s", name, a.To)
	}
	move := g.Status.Move
	switch {
	case a.Mode != "" && a.Mode != api.MigrateLive && a.Mode != api.MigrateStop:
		return fmt.Errorf("invalid mode %q: want Live or Stop", a.Mode)
	case a.Mode == api.MigrateLive && a.LoseDisks:
		return errors.New("a Guest that starts with empty disks cannot move live: omit one of the two")
	case a.Mode == api.MigrateLive && g.Spec.State == api.GuestStopped:
		return fmt.Errorf("guest %s has desired state Stopped: it cannot move live", name)
	}
	if a.LoseDisks {
		askLosing(g, a)
		return nil
	}
	if move != nil && (move.Asked || move.Step != api.MoveChoosing) {
		return fmt.Errorf("guest %s is being moved since %s", name, move.Started.Format(time.TimeOnly))
	}
	g.Status.Move = &api.GuestMove{Reason: "Asked", To: a.To, Asked: true, Mode: a.Mode, Only: a.Mode == api.MigrateLive, Step: api.MoveChoosing, Started: time.Now().UTC()}
	return nil
}

// askLosing makes a Guest start elsewhere with empty disks. A transfer in progress is cancelled first.
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
