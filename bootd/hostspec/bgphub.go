package hostspec

import (
	"maps"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

// neighborsChanged marks the streams of the hosts to which a Machine is a
// neighbour. The caller holds mu.
func (h *Hub) neighborsChanged(c store.Change) {
	if h.Compiler.BGP == nil {
		return
	}
	old, _ := c.Old.(*api.Machine)
	now, _ := c.New.(*api.Machine)
	if sameNeighbor(h.Cache, old, now) {
		return
	}
	for _, m := range []*api.Machine{old, now} {
		if m == nil || m.Spec.Zone == "" {
			continue
		}
		z, ok := store.Cached[api.Zone](h.Cache, m.Spec.Zone)
		if ok && slices.ContainsFunc(z.Status.Reflectors, func(r api.ReflectorStatus) bool { return r.Machine == c.Name }) {
			h.markZone(z.Metadata.Name)
		} else {
			h.markReflectors(m.Spec.Zone)
		}
	}
}

// sameReflectors reports whether the same hosts reflect, and the same have uplinks:
// how far else each has come is in no part.
func sameReflectors(a, b *api.Zone) bool {
	return slices.EqualFunc(a.Status.Reflectors, b.Status.Reflectors, func(x, y api.ReflectorStatus) bool {
		return x.Machine == y.Machine && x.UID == y.UID && x.State.HasUplinks() == y.State.HasUplinks()
	})
}

// sameLoopbacks reports whether the same addresses are chosen for the same hosts.
func sameLoopbacks(a, b *api.Zone) bool {
	return slices.EqualFunc(a.Status.Loopbacks, b.Status.Loopbacks, func(x, y api.LoopbackStatus) bool {
		return x.UID == y.UID && slices.Equal(x.Addresses, y.Addresses)
	})
}

// sameNeighbor reports whether a Machine is to others what it was.
func sameNeighbor(cache *store.Cache, old, now *api.Machine) bool {
	if old == nil || now == nil {
		return false
	}
	a, b := old.Metadata, now.Metadata
	return a.UID == b.UID && a.Generation == b.Generation && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(reportedAddresses(cache, old), reportedAddresses(cache, now))
}

// markReflectors marks the streams of a Zone's reflectors. The caller holds mu.
func (h *Hub) markReflectors(zone string) {
	z, ok := store.Cached[api.Zone](h.Cache, zone)
	if !ok {
		return
	}
	for _, r := range z.Status.Reflectors {
		if s := h.streams[r.Machine]; s != nil {
			s.mark()
		}
	}
}

// markZone marks the streams of a Zone's hosts. The caller holds mu.
func (h *Hub) markZone(zone string) {
	for name, s := range h.streams {
		if m, ok := store.Cached[api.Machine](h.Cache, name); ok && m.Spec.Zone == zone {
			s.mark()
		}
	}
}

// maxSessions and maxNetworks bound what is kept of one host's report: of its
// own speaker, its services as well, and as many sessions again of those inside of Networks.
const (
	maxSessions = 4096
	maxNetworks = 1024
)

// bgpReport keeps what a host says of its speaker.
func (h *Hub) bgpReport(s *stream, r *api.BGPStatus) {
	kept, skew := *r, h.skew(s.peer.Name)
	kept.Role, kept.Problem = text.Clip(r.Role, 16), text.Clip(r.Problem, 512)
	kept.Sessions = keptSessions(r.Sessions, maxSessions, skew)
	kept.Networks = slices.Clone(r.Networks[:min(len(r.Networks), maxNetworks)])
	room := maxSessions
	for i := range kept.Networks {
		x := &kept.Networks[i]
		x.Network, x.Problem = text.Clip(x.Network, 64), text.Clip(x.Problem, 512)
		x.Sessions = keptSessions(x.Sessions, room, skew)
		room -= len(x.Sessions)
	}
	kept.Services = slices.Clone(r.Services[:min(len(r.Services), maxSessions)])
	for i := range kept.Services {
		x := &kept.Services[i]
		x.Service, x.State, x.LastError = text.Clip(x.Service, 64), text.Clip(x.State, 16), text.Clip(x.LastError, 256)
		if !x.Since.IsZero() {
			x.Since = x.Since.Add(-skew)
		}
	}
	kept.Routes = slices.Clone(r.Routes[:min(len(r.Routes), api.MaxBGPRoutes)])
	for i := range kept.Routes {
		x := &kept.Routes[i]
		x.From, x.ASPath = text.Clip(x.From, 64), x.ASPath[:min(len(x.ASPath), 64)]
	}
	kept.Omitted += len(r.Routes) - len(kept.Routes)
	kept.Reported = time.Now().UTC()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[s.peer.Name] != s {
		return // another stream of the host is newer
	}
	if h.bgp == nil {
		h.bgp = map[string]*api.BGPStatus{}
	}
	h.bgp[s.peer.Name] = &kept
	h.relayAudits(s)
}

func keptSessions(list []api.BGPSession, most int, skew time.Duration) []api.BGPSession {
	kept := slices.Clone(list[:min(len(list), most)])
	for i := range kept {
		x := &kept[i]
		x.Peer, x.Role, x.State, x.LastError, x.Digest = text.Clip(x.Peer, 64), text.Clip(x.Role, 16), text.Clip(x.State, 16), text.Clip(x.LastError, 256), text.Clip(x.Digest, 80)
		if !x.Since.IsZero() {
			x.Since = x.Since.Add(-skew)
		}
	}
	return kept
}

// skew is how far a host's clock is ahead, as it found out when it connected.
func (h *Hub) skew(host string) time.Duration {
	m, ok := store.Cached[api.Machine](h.Cache, host)
	if !ok || m.Status.Host == nil {
		return 0
	}
	return time.Duration(m.Status.Host.ClockSkew)
}

// auditEvery is how often a reflector hears what a host has received of it. It
// looks only when it hears the same twice.
const auditEvery = 2 * time.Minute

// relayAudits tells the reflectors what a host says that it has received of
// them: BGP has no message for that, and GoBGP has been seen to leave routes out
// when many sessions come up at once. The caller holds mu.
func (h *Hub) relayAudits(s *stream) {
	report := h.bgp[s.peer.Name]
	if report == nil || h.streams[s.peer.Name] != s || time.Since(s.audited) < auditEvery {
		return
	}
	for _, x := range report.Sessions {
		to := h.streams[x.Peer]
		if to == nil || x.Role != api.BGPReflector || x.State != api.BGPEstablished || x.Digest == "" {
			continue
		}
		s.audited = time.Now()
		select {
		case to.audits <- api.BGPAudit{Neighbor: s.peer.Name, Received: x.Received, Digest: x.Digest, Digested: x.Digested}:
		default: // it is said again
		}
	}
}

// audit is relayAudits for a host that has nothing new to report.
func (h *Hub) audit(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relayAudits(s)
}

// BGP is what a host has last reported of its speaker to this bootd, nil when
// that is nothing or the host is not connected. It is shared, and must not be
// changed.
func (h *Hub) BGP(host string) *api.BGPStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[host] == nil {
		return nil
	}
	return h.bgp[host]
}
