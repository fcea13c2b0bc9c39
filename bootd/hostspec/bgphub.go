package hostspec

import (
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/text"
)

// maxSessions and maxNetworks limit what is stored of one host's report: of its own speaker, also of its services,
// and as many sessions again of those inside Networks.
const (
	maxSessions = 4096
	maxNetworks = 1024
)

// bgpReport stores a host's report about its speaker.
func (h *Hub) bgpReport(s *stream, r *api.BGPStatus) {
	kept, ahead := *r, skew(h.Cache, s.peer.Name)
	kept.Role, kept.Problem = text.Clip(r.Role, 16), text.Clip(r.Problem, 512)
	kept.Sessions = keptSessions(r.Sessions, maxSessions, ahead)
	kept.Networks = slices.Clone(r.Networks[:min(len(r.Networks), maxNetworks)])
	room := maxSessions
	for i := range kept.Networks {
		x := &kept.Networks[i]
		x.Network, x.Problem = text.Clip(x.Network, 64), text.Clip(x.Problem, 512)
		x.Sessions = keptSessions(x.Sessions, room, ahead)
		room -= len(x.Sessions)
	}
	kept.Services = slices.Clone(r.Services[:min(len(r.Services), maxSessions)])
	for i := range kept.Services {
		x := &kept.Services[i]
		x.Service, x.State, x.LastError = text.Clip(x.Service, 64), text.Clip(x.State, 16), text.Clip(x.LastError, 256)
		if !x.Since.IsZero() {
			x.Since = x.Since.Add(-ahead)
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

// skew is the lead of a host's clock, as measured when it connected.
func skew(cache *store.Cache, host string) time.Duration {
	m, ok := store.Cached[api.Machine](cache, host)
	if !ok || m.Status.Host == nil {
		return 0
	}
	return time.Duration(m.Status.Host.ClockSkew)
}

// auditEvery is how often a reflector receives what a host has received from it. It compares only when it receives
// the same twice.
const auditEvery = 2 * time.Minute

// relayAudits forwards to the reflectors what a host reports to have received from them: BGP has no message for
// that, and GoBGP has been seen to leave out routes when many sessions come up at once. The caller holds mu.
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
		to.out.put(audits, api.ServerFrame{Audit: &api.BGPAudit{Neighbor: s.peer.Name, Received: x.Received, Digest: x.Digest, Digested: x.Digested}}) // if the lane is full it is sent next time
	}
}

// audit is relayAudits for a host without a new report.
func (h *Hub) audit(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relayAudits(s)
}

// BGP returns a host's last report about its speaker to this bootd, nil when there is none or the host is not
// connected. It is shared, and must not be modified.
func (h *Hub) BGP(host string) *api.BGPStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[host] == nil {
		return nil
	}
	return h.bgp[host]
}
