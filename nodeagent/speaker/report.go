package speaker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp"
	"github.com/rackweft/rackweft/nodeagent"
)

const (
	askInterval   = 5 * time.Second  // between reads of the speaker's status
	routeInterval = 30 * time.Second // between reads of a reflector's routes, which are many
	auditInterval = time.Minute      // between reads of digests of reflectors' routes
)

// Run implements nodeagent.Runner: it reports the speaker's state to bootd.
func (s *Speaker) Run(ctx context.Context, host nodeagent.Host) {
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	r := reporter{host: host, client: s.client, inside: s.options.Inside, received: map[string]api.BGPAudit{}, states: map[string]map[string]bool{}}
	r.report(ctx)
	for {
		select {
		case <-tick.C:
			r.report(ctx)
		case a := <-s.audits:
			r.audit(ctx, a)
		case <-ctx.Done():
			return
		}
	}
}

// reporter remembers what it has reported.
type reporter struct {
	host   nodeagent.Host
	client *bgp.Client
	inside *Inside

	// states holds whether a session was up, by Network ("" is the host's own speaker)
	// and name.
	states   map[string]map[string]bool
	services map[serviceKey]string // their states
	routes   []api.BGPRoute
	omitted  int
	read     time.Time // of routes
	learned  int

	audited  time.Time               // when digests were read
	digests  map[string]string       // of the routes of reflectors and uplinks, by name
	received map[string]api.BGPAudit // what this reflector's peers received, as they last reported
}

func (r *reporter) report(ctx context.Context) {
	var out api.BGPStatus
	reported := r.own(ctx, &out)
	if r.inside != nil {
		for _, s := range r.inside.statuses(ctx) {
			r.events(s)
			out.Networks = append(out.Networks, api.BGPNetworkStatus{Network: s.Network, Sessions: toSessions(s), Kernel: s.FIB.Installed,
				Unresolved: s.FIB.Unsettled, Problem: cmp.Or(s.Refused, s.Problem, s.Filter)})
			reported = true
		}
	}
	if reported {
		r.host.BGP(out)
	}
}

// own reports the host's own speaker. A host without a Zone has none; if one is
// missing, the part's status says so.
func (r *reporter) own(ctx context.Context, out *api.BGPStatus) bool {
	status, err := r.status(ctx)
	if err != nil || status.Zone == "" {
		return false
	}
	r.events(status)
	r.serviceEvents(status)
	if status.Role == api.BGPReflector && (time.Since(r.read) > routeInterval || status.Learned != r.learned) {
		if err := r.readRoutes(ctx, status); err != nil {
			return false
		}
	}
	*out = toStatus(status, r.routes, r.omitted)
	for i := range out.Sessions {
		if x := &out.Sessions[i]; x.State == api.BGPEstablished {
			if x.Digest = r.digests[x.Peer]; x.Digest != "" {
				x.Digested = r.audited
			}
		}
	}
	return true
}

// status requests digests, too, when they are due: they cost a look at every route.
func (r *reporter) status(ctx context.Context) (bgp.Status, error) {
	if time.Since(r.audited) < auditInterval {
		return r.client.Status(ctx)
	}
	status, err := r.client.StatusWithDigests(ctx)
	if err != nil {
		return status, err
	}
	r.audited, r.digests = time.Now(), map[string]string{}
	for _, n := range status.Sessions {
		r.digests[n.Name] = n.Digest
	}
	return status, nil
}

// audit has the speaker check whether a peer has received what was advertised to
// it. A peer whose routes still change would only seem to lack some, so its report
// counts when it is the same twice in a row.
func (r *reporter) audit(ctx context.Context, a api.BGPAudit) {
	before := r.received[a.Neighbor]
	r.received[a.Neighbor] = a
	if before.Digest != a.Digest || before.Digested.Equal(a.Digested) {
		return
	}
	got, err := r.client.Audit(ctx, a.Neighbor, a.Digest)
	if err != nil || !got.Healed {
		return // a neighbour that has gone meanwhile needs no audit
	}
	r.host.Event(api.Event{Type: api.Warning, Reason: "RoutesRetold",
		Message: fmt.Sprintf("%s had received %d routes, not exactly the %d that were advertised to it: all were advertised again", a.Neighbor, a.Received, got.Count)})
}

// events reports every session that came up or went down.
func (r *reporter) events(status bgp.Status) {
	states, before := map[string]bool{}, r.states[status.Network]
	kind, name := "Zone", status.Zone
	if status.Network != "" {
		kind, name = "Network", status.Network
	}
	for _, n := range status.Sessions {
		states[n.Name] = n.Established()
		was, known := before[n.Name]
		switch {
		case was && !n.Established():
			r.host.Event(api.Event{Kind: kind, Name: name, Type: api.Warning, Reason: "SessionDown",
				Message: fmt.Sprintf("the session with %s %s (%s) is down: %s", n.Role, peerName(n), n.Address, cmp.Or(n.Reason, "the speaker restarted"))})
		case known && !was && n.Established():
			r.host.Event(api.Event{Kind: kind, Name: name, Type: api.Normal, Reason: "SessionUp",
				Message: fmt.Sprintf("the session with %s %s (%s) is up", n.Role, peerName(n), n.Address)})
		}
	}
	r.states[status.Network] = states
}

// serviceKey is one address of one service.
type serviceKey struct {
	service string
	address netip.Addr
}

// serviceEvents reports every address of a service that is no longer announced,
// and those that are announced again.
func (r *reporter) serviceEvents(status bgp.Status) {
	states := map[serviceKey]string{}
	for _, x := range status.Services {
		key := serviceKey{x.Service, x.Address}
		states[key] = x.State
		was := r.services[key]
		switch {
		case x.State == was:
		case x.State == api.ServiceWithdrawn || x.State == api.ServiceLastResort:
			how := "withdrawn"
			if x.State == api.ServiceLastResort {
				how = "announced as a last resort only"
			}
			r.host.Event(api.Event{Kind: "Zone", Name: status.Zone, Type: api.Warning, Reason: "ServiceDown",
				Message: fmt.Sprintf("%s of service %s is %s: %s", x.Address, x.Service, how, x.LastError)})
		case x.State == api.ServiceAnnounced && (was == api.ServiceWithdrawn || was == api.ServiceLastResort):
			r.host.Event(api.Event{Kind: "Zone", Name: status.Zone, Type: api.Normal, Reason: "ServiceUp",
				Message: fmt.Sprintf("%s of service %s is announced again", x.Address, x.Service)})
		}
	}
	r.services = states
}

func (r *reporter) readRoutes(ctx context.Context, status bgp.Status) error {
	names := map[string]string{}
	for _, n := range status.Sessions {
		names[n.Address.String()] = n.Name
	}
	all, err := r.client.Routes(ctx, "", "")
	if err != nil {
		return err
	}
	all = bestWays(all)
	r.routes, r.read, r.learned = nil, time.Now(), status.Learned
	r.omitted = max(0, len(all)-api.MaxBGPRoutes)
	for _, x := range all[:len(all)-r.omitted] {
		r.routes = append(r.routes, api.BGPRoute{Prefix: x.Prefix, NextHop: x.NextHop, From: names[x.Neighbor], ASPath: x.ASPath, Stale: x.Stale})
	}
	return nil
}

// bestWays returns the best routes, each next hop of a prefix once: with add-path,
// other reflectors advertise the same.
func bestWays(all []bgp.Route) []bgp.Route {
	type way struct {
		prefix netip.Prefix
		hop    netip.Addr
	}
	seen := map[way]bool{}
	return slices.DeleteFunc(all, func(x bgp.Route) bool {
		w := way{x.Prefix, x.NextHop}
		again := seen[w]
		seen[w] = seen[w] || x.Best
		return again || !x.Best
	})
}

// peerName returns the name without the role, which a speaker inside a Network puts
// before it because a guest may have a host's name.
func peerName(n bgp.Session) string { return strings.TrimPrefix(n.Name, n.Role+"/") }

// toStatus converts a speaker's status to the one that bootd receives.
func toStatus(s bgp.Status, routes []api.BGPRoute, omitted int) api.BGPStatus {
	out := api.BGPStatus{Role: s.Role, Kernel: s.FIB.Installed, Unresolved: s.FIB.Unsettled, Services: s.Services}
	if s.Role == api.BGPReflector {
		out.Routes, out.Omitted = routes, omitted
	}
	out.Sessions = toSessions(s)
	return out
}

func toSessions(s bgp.Status) []api.BGPSession {
	var out []api.BGPSession
	for _, n := range s.Sessions {
		if n.Silent() {
			continue
		}
		out = append(out, api.BGPSession{Peer: peerName(n), Address: n.Address, Role: n.Role, State: n.State, Since: n.Since,
			Received: n.Received, Accepted: n.Accepted, Advertised: n.Advertised, Flaps: n.Flaps(), LastError: n.Reason})
	}
	return out
}
