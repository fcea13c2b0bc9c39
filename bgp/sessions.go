package bgp

import (
	"context"
	"slices"
	"strings"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/api"
)

// holds reports whether the kernel keeps routes that no neighbour advertises
// any longer: without any session, until the hold is over; until the first
// session has received everything; and, after a neighbour was removed, until
// others have had time to advertise its routes.
func (s *speaker) holds(now time.Time) bool {
	if now.Sub(s.rearranged) < rearranging {
		return true
	}
	complete := func(n Session) bool {
		return n.Established() && (s.complete[n.Address] || now.Sub(n.Since) > eorTimeout)
	}
	if slices.ContainsFunc(s.status.Sessions, complete) {
		return false
	}
	hold := time.Duration(s.server.part.StaleHold)
	return hold < 0 || now.Before(s.lastUp.Add(hold))
}

// lookAtSessions reads the sessions, and does what is due.
func (s *speaker) lookAtSessions(ctx context.Context) {
	now := time.Now()
	was := slices.ContainsFunc(s.status.Sessions, Session.Established)
	s.status.Sessions = s.sessions(ctx, now)
	s.looked, s.looking = now, time.Since(now)
	up := slices.ContainsFunc(s.status.Sessions, Session.Established)
	if was || up {
		s.lastUp = now
	}
	s.status.HeldSince, s.status.HeldUntil = time.Time{}, time.Time{}
	if !up && s.fib.Known() > 0 {
		s.status.HeldSince = s.lastUp
		if hold := time.Duration(s.server.part.StaleHold); hold >= 0 {
			s.status.HeldUntil = s.lastUp.Add(hold)
		}
	}
	settled, held := s.status.Settled || s.settled(now), s.holds(now)
	over := s.held && !held
	s.held = held
	if settled != s.status.Settled || over || s.status.Filter != "" {
		s.status.Settled = settled
		s.server.restarting = s.deferring() || !settled
		s.syncKernel(ctx)
	}
}

// settled reports whether every neighbour has advertised all its routes since
// the start, or has had the time to.
func (s *speaker) settled(now time.Time) bool {
	if now.After(s.started.Add(time.Duration(s.server.part.GracefulRestart))) {
		return true
	}
	for _, n := range s.status.Sessions {
		if !n.Established() || !s.complete[n.Address] {
			return false
		}
	}
	return len(s.status.Sessions) > 0
}

func (s *speaker) sessions(ctx context.Context, now time.Time) []Session {
	names := map[string]api.BGPNeighbor{}
	for _, n := range s.server.sessions {
		names[n.Address.String()] = n
	}
	var out []Session
	err := s.server.ListPeer(ctx, &gobgp.ListPeerRequest{}, func(p *gobgp.Peer) {
		n, ok := names[p.Conf.NeighborAddress]
		if !ok {
			return
		}
		session := Session{Name: n.Name, Address: n.Address, Role: n.Role, State: strings.ToLower(p.State.SessionState.String()),
			Reason: s.log.reason(p.Conf.NeighborAddress), Losses: s.log.lost(p.Conf.NeighborAddress), Accepted: s.counts[n.Address.String()]}
		if session.Established() && p.Timers.GetState().GetUptime() != nil {
			session.Since = p.Timers.State.Uptime.AsTime()
			s.tally.negotiate(s.server.part, n, p.State.RemoteCap, session.Since)
			if !s.deferring() {
				session.Advertised = s.tally.advertised[n.Address]
			}
		}
		session.complete = session.Established()
		for _, a := range p.AfiSafis {
			if r := a.MpGracefulRestart.GetState(); r.GetReceived() && !r.GetEndOfRibReceived() {
				session.complete = false
			}
			if isUnicast(a.State.GetFamily()) {
				session.Received += int(a.State.GetReceived())
			} else {
				session.EVPN += int(a.State.GetReceived())
			}
		}
		s.mind(ctx, n, p, &session, now)
		out = append(out, session)
	})
	if err != nil {
		s.options.Log.Warn("bgp: cannot read the sessions", "error", err)
	}
	slices.SortFunc(out, func(a, b Session) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// mind resets the state of a session that is down, and retries one that
// exceeded maxPrefixes.
func (s *speaker) mind(ctx context.Context, n api.BGPNeighbor, p *gobgp.Peer, session *Session, now time.Time) {
	if !session.Established() {
		delete(s.complete, n.Address)
		if err := s.server.betweenSessions(ctx, n.Name); err != nil {
			s.retry = true
			s.options.Log.Warn("bgp: cannot configure a neighbor as the part says", "error", err)
		}
	}
	if p.State.AdminState != gobgp.PeerState_PFX_CT {
		delete(s.limited, n.Name)
		return
	}
	session.State = "limited"
	since, known := s.limited[n.Name]
	switch {
	case !known:
		s.limited[n.Name] = now
		s.options.Log.Error("bgp: session ended: too many prefixes; it will be retried",
			"neighbor", n.Name, "limit", n.MaxPrefixes, "pause", limitPause)
	case now.Sub(since) >= limitPause:
		s.limited[n.Name] = now
		s.server.reopen(ctx, n)
	}
}
