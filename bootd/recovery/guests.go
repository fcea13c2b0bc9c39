package recovery

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
)

// claim is a Guest as reported by one host.
type claim struct {
	place api.GuestPlace // the host
	held  api.HeldGuest
}

func (c claim) role() string {
	if c.held.Transfer == nil {
		return ""
	}
	return c.held.Transfer.Role
}

// owns reports whether a host owns the Guest, which is neither still moving to it nor has left it.
func (c claim) owns() bool {
	return c.role() != api.TransferTarget && c.role() != api.TransferLeft
}

func (c claim) runs() bool {
	return c.held.State == api.GuestRunning || c.held.State == api.GuestPaused
}

// whereabouts is the decision about a Guest's place.
type whereabouts struct {
	uid      string
	owner    *claim // nil: no host owns it
	move     *api.GuestMove
	left     []api.GuestPlace
	others   []claim // of other uids, by the same name
	conflict string
}

// locate decides from the hosts' reports where a Guest is; g is the store's Guest of that name, nil for none. A
// running Guest takes precedence over the backup.
func locate(g *api.Guest, claims []claim, now time.Time) whereabouts {
	w := whereabouts{uid: uidOf(g, claims)}
	var own []claim
	for _, c := range claims {
		switch {
		case c.held.UID != w.uid:
			w.others = append(w.others, c)
		case c.owns():
			own = append(own, c)
		}
	}
	slices.SortStableFunc(own, func(a, b claim) int {
		return cmp.Or(first(a.runs(), b.runs()), first(!a.held.Gone, !b.held.Gone), first(at(g, a), at(g, b)), strings.Compare(a.place.Host, b.place.Host))
	})
	if len(own) > 1 {
		w.conflict = fmt.Sprintf("Guest %s is on %s: the one on %s counts; look at the others, and remove what is left of it there", own[0].held.Name, hostsOf(own), own[0].place.Host)
	}
	if len(own) > 0 {
		w.owner = &own[0]
	}
	w.settleMove(claims, now)
	return w
}

// uidOf chooses among Guests of one name.
func uidOf(g *api.Guest, claims []claim) string {
	best := slices.MinFunc(claims, func(a, b claim) int {
		return cmp.Or(first(a.runs(), b.runs()), first(!a.held.Gone, !b.held.Gone), strings.Compare(a.held.UID, b.held.UID))
	})
	if g != nil && slices.ContainsFunc(claims, func(c claim) bool { return c.held.UID == g.Metadata.UID }) {
		return g.Metadata.UID
	}
	return best.held.UID
}

// settleMove resumes an unfinished move at the point that its hosts have reached.
func (w *whereabouts) settleMove(claims []claim, now time.Time) {
	var moving *api.GuestTransfer
	if w.owner != nil {
		moving = w.owner.held.Transfer
	}
	var target *api.GuestPlace
	for _, c := range claims {
		switch {
		case c.held.UID != w.uid:
		case c.role() == api.TransferLeft:
			w.left = append(w.left, api.GuestPlace{Host: c.place.Host, HostUID: c.place.HostUID, Held: c.held.Transfer.ID})
		case c.role() != api.TransferTarget:
		case moving != nil && moving.Role == api.TransferSource && moving.ID == c.held.Transfer.ID:
			target = &c.place
		case w.owner != nil: // of a finished move
			w.left = append(w.left, c.place)
		}
	}
	if moving == nil {
		return
	}
	w.move = &api.GuestMove{ID: moving.ID, Reason: "Restored", Asked: true, Mode: api.MigrateStop, Step: api.MoveBack, Target: target,
		Started: now.UTC(), Deadline: now.Add(movePatience).UTC()}
	if moving.Live {
		w.move.Mode = api.MigrateLive
	}
	switch {
	case moving.Role == api.TransferSource && target != nil:
		w.move.Step = api.MoveTransfer
	case target == nil:
		w.move.Target = &api.GuestPlace{Host: moving.Peer.Host, HostUID: moving.Peer.UID}
	}
}

// movePatience is how long an unfinished move may continue.
const movePatience = 10 * time.Minute

// apply writes a Guest's place.
func (w whereabouts) apply(g *api.Guest) {
	if w.owner == nil {
		return
	}
	s := &g.Status
	if s.HostUID != w.owner.place.HostUID {
		s.Request, s.Result, s.State = nil, nil, ""
	}
	s.Host, s.HostUID = w.owner.place.Host, w.owner.place.HostUID
	if len(w.owner.held.Addresses) > 0 {
		s.Addresses = w.owner.held.Addresses
	}
	s.Move = w.move
	s.Left = slices.DeleteFunc(s.Left, func(p api.GuestPlace) bool {
		return p.HostUID == s.HostUID || slices.ContainsFunc(w.left, func(l api.GuestPlace) bool { return l.HostUID == p.HostUID })
	})
	s.Left = append(s.Left, w.left...)
	s.Conditions.Remove(api.CondPlaced) // its controller writes it again
}

func (w whereabouts) part(c claim) api.RecoveryPart {
	return api.RecoveryPart{Kind: "Guest", Name: c.held.Name, UID: c.held.UID, Network: c.held.Network, Host: c.place.Host, HostUID: c.place.HostUID, Addresses: c.held.Addresses}
}

func at(g *api.Guest, c claim) bool { return g != nil && g.Status.HostUID == c.place.HostUID }

// first orders true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func hostsOf(claims []claim) string {
	names := make([]string, len(claims))
	for i, c := range claims {
		names[i] = c.place.Host
	}
	return strings.Join(names, " and ")
}
