package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	// connectRetry is between attempts to connect; GoBGP waits up to twice as
	// long.
	connectRetry = 3 * time.Second
	// limitPause is the delay before a retry of a session that exceeded
	// maxPrefixes.
	limitPause = time.Minute
	// stagger is the delay between neighbours to which a reflector starts to
	// answer: of many that come up at once, some were seen to miss routes.
	stagger = 10 * time.Millisecond
	// mostPaths is GoBGP's limit of paths per prefix. Beyond it, GoBGP confuses
	// which paths it has sent to whom, and does not withdraw the others.
	mostPaths = 255
	// warnPercent of maxPrefixes causes a warning.
	warnPercent = 75
)

// bgpServer is GoBGP, configured by a part. It is not safe for concurrent use.
type bgpServer struct {
	*server.BgpServer
	log        *logger
	restarting bool  // sent to neighbours in the session's capabilities
	gate       *gate // nil when advertisements are not deferred

	part      api.BGPPart // as applied; zero before the first
	policy    *policy
	sessions  map[string]api.BGPNeighbor // by name
	originate map[netip.Prefix]bool      // as GoBGP has them
	served    map[netip.Addr]service     // as GoBGP has them; not in originate
	guests    map[netip.Prefix]bool      // of guests inside Networks, as GoBGP has them; not in originate
	stations  map[netip.AddrPort]bool
}

// startServer starts GoBGP for p. The fields that needsRestart compares cannot
// change afterwards.
func startServer(ctx context.Context, p api.BGPPart, restarting bool, log *logger) (*bgpServer, error) {
	s := &bgpServer{BgpServer: server.NewBgpServer(server.LoggerOption(log)), log: log, restarting: restarting,
		sessions: map[string]api.BGPNeighbor{}, originate: map[netip.Prefix]bool{}, served: map[netip.Addr]service{}, guests: map[netip.Prefix]bool{}, stations: map[netip.AddrPort]bool{}}
	go s.Serve() // runs until the process ends: it cannot be stopped
	listen := int32(p.Port)
	if len(p.Listen) == 0 {
		listen = -1
	}
	err := s.StartBgp(ctx, &gobgp.StartBgpRequest{Global: &gobgp.Global{
		Asn: p.ASN, RouterId: p.RouterID.String(), ListenPort: listen, ListenAddresses: texts(p.Listen),
		Families:         globalFamilies(p),
		UseMultiplePaths: true,
	}})
	if err != nil {
		return nil, fmt.Errorf("start BGP: %w", err)
	}
	empty := &gobgp.SetPoliciesRequest{Policies: []*gobgp.Policy{{Name: importPolicy}, {Name: exportPolicy}}}
	if err := s.SetPolicies(ctx, empty); err != nil {
		return nil, fmt.Errorf("set policies: %w", err)
	}
	for name, direction := range map[string]gobgp.PolicyDirection{importPolicy: gobgp.PolicyDirection_IMPORT, exportPolicy: gobgp.PolicyDirection_EXPORT} {
		err := s.SetPolicyAssignment(ctx, &gobgp.SetPolicyAssignmentRequest{Assignment: &gobgp.PolicyAssignment{
			Name: "global", Direction: direction, DefaultAction: gobgp.RouteAction_REJECT, Policies: []*gobgp.Policy{{Name: name}}}})
		if err != nil {
			return nil, fmt.Errorf("assign the %s policy: %w", name, err)
		}
	}
	return s, nil
}

// globalFamilies are the families for which GoBGP keeps tables, by GoBGP's
// numbers: each costs memory.
func globalFamilies(p api.BGPPart) []uint32 {
	const ipv4Unicast, ipv6Unicast, evpn = 0, 1, 9
	if p.EVPN {
		return []uint32{ipv4Unicast, ipv6Unicast, evpn}
	}
	return []uint32{ipv4Unicast, ipv6Unicast}
}

// apply configures GoBGP by p. Sessions of unchanged neighbours stay up. The
// next apply retries what failed.
func (s *bgpServer) apply(ctx context.Context, p api.BGPPart) error {
	policy := compilePolicy(p)
	var faults []error
	fail := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	first := s.part.ASN == 0
	s.removeNeighbors(ctx, p, fail)
	if door, ok := gateDoor(p); ok && first && s.gate == nil {
		fail(s.shutGate(ctx, p, door))
	}
	if err := s.setPolicy(ctx, policy); err != nil {
		return errors.Join(append(faults, err)...) // without its policy no neighbour is added
	}
	old := s.policy
	s.policy = policy
	again := old == nil || old.own != policy.own || !slices.Equal(s.part.NextHops, p.NextHops)
	fail(s.announce(ctx, p, again))
	if again {
		fail(s.serve(ctx, p, s.served, true))
		fail(s.originateGuests(ctx, p, maps.Clone(s.guests), true))
	}
	for _, n := range p.Neighbors {
		had, known := s.sessions[n.Name]
		if known {
			n = duringSession(had, n)
		}
		var err error
		switch {
		case !known:
			if err = s.addPeer(ctx, p, n); first && n.Passive {
				_ = wait.For(ctx, stagger)
			}
		case needsUpdate(had, n):
			err = s.updatePeer(ctx, p, n)
		}
		if err == nil {
			s.sessions[n.Name] = n
		}
		fail(err)
		if known && old != nil {
			fail(s.reset(ctx, n, old.in[n.Name] != policy.in[n.Name], old.out[n.Name] != policy.out[n.Name]))
		}
	}
	if s.gate == nil { // monitoring stations need not see the gate
		fail(s.monitor(ctx, p))
	}
	s.part = p
	return errors.Join(faults...)
}

// setPolicy installs p in GoBGP. Before the gate is open nothing is exported:
// when all paths are advertised, GoBGP would otherwise record for each path to
// whom it has sent it.
func (s *bgpServer) setPolicy(ctx context.Context, p *policy) error {
	exports := p.exports
	if s.gate != nil {
		exports = nil
	}
	err := s.SetPolicies(ctx, &gobgp.SetPoliciesRequest{DefinedSets: p.sets, Policies: []*gobgp.Policy{
		{Name: importPolicy, Statements: p.imports}, {Name: exportPolicy, Statements: exports}}})
	if err != nil {
		return fmt.Errorf("set policies: %w", err)
	}
	return nil
}

// removeNeighbors ends the sessions that p does not have or has differently.
func (s *bgpServer) removeNeighbors(ctx context.Context, p api.BGPPart, fail func(error)) {
	restart := s.part.AllPaths != p.AllPaths || s.part.GracefulRestart != p.GracefulRestart || s.part.LongLived != p.LongLived || s.part.ClusterID != p.ClusterID
	for name, had := range s.sessions {
		i := slices.IndexFunc(p.Neighbors, func(n api.BGPNeighbor) bool { return n.Name == name })
		if i >= 0 && !restart && !needsSession(had, p.Neighbors[i]) {
			continue
		}
		if err := s.DeletePeer(ctx, &gobgp.DeletePeerRequest{Address: had.Address.String()}); err != nil {
			fail(fmt.Errorf("remove neighbor %s: %w", name, err))
			continue
		}
		delete(s.sessions, name)
	}
}

// needsSession reports whether a change needs a new session. Reflection does
// not: for GoBGP every host is a client, and the policy decides what is
// reflected. Otherwise a host that becomes a reflector would lose its session,
// because GoBGP ends one with a hard reset (RFC 8538).
func needsSession(a, b api.BGPNeighbor) bool {
	return a.Address != b.Address || a.Source != b.Source || a.ASN != b.ASN ||
		a.Password != b.Password || a.Hops != b.Hops || !slices.Equal(a.Families, b.Families)
}

// duringSession returns n without the changes that must wait for the end of its
// session. Who connects matters only for the next session; and a reflector that
// becomes a client may not know it yet, and advertises all routes until then.
func duringSession(had, n api.BGPNeighbor) api.BGPNeighbor {
	n.Passive = had.Passive
	n.MaxPrefixes = max(n.MaxPrefixes, had.MaxPrefixes)
	return n
}

// betweenSessions applies the changes that duringSession has deferred, when the
// session is down. If the neighbour is to connect, it is removed and added
// again, which drops its routes: when both connect, GoBGP lets neither session
// through.
func (s *bgpServer) betweenSessions(ctx context.Context, name string) error {
	had := s.sessions[name]
	i := slices.IndexFunc(s.part.Neighbors, func(n api.BGPNeighbor) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	n := s.part.Neighbors[i]
	var err error
	switch {
	case had.Passive != n.Passive:
		if err := s.DeletePeer(ctx, &gobgp.DeletePeerRequest{Address: had.Address.String()}); err != nil {
			return fmt.Errorf("turn the session with %s around: %w", name, err)
		}
		delete(s.sessions, name)
		err = s.addPeer(ctx, s.part, n)
	case had.MaxPrefixes != n.MaxPrefixes:
		err = s.updatePeer(ctx, s.part, n)
	default:
		return nil
	}
	if err == nil {
		s.sessions[name] = n
	}
	return err
}

func needsUpdate(a, b api.BGPNeighbor) bool {
	return a.MaxPrefixes != b.MaxPrefixes || a.HoldTime != b.HoldTime || a.KeepAlive != b.KeepAlive
}

func (s *bgpServer) addPeer(ctx context.Context, p api.BGPPart, n api.BGPNeighbor) error {
	if err := s.AddPeer(ctx, &gobgp.AddPeerRequest{Peer: s.peer(p, n)}); err != nil {
		return fmt.Errorf("add neighbor %s: %w", n.Name, err)
	}
	if why, failed := s.log.withoutKey(n.Address.String()); failed {
		err := s.DeletePeer(ctx, &gobgp.DeletePeerRequest{Address: n.Address.String()})
		return errors.Join(fmt.Errorf("neighbor %s: the kernel takes no MD5 key: %s", n.Name, why), err)
	}
	return nil
}

// updatePeer changes a neighbour without dropping its session. GoBGP then
// forgets, until the next session, that graceful restart was negotiated.
func (s *bgpServer) updatePeer(ctx context.Context, p api.BGPPart, n api.BGPNeighbor) error {
	if _, err := s.UpdatePeer(ctx, &gobgp.UpdatePeerRequest{Peer: s.peer(p, n)}); err != nil {
		return fmt.Errorf("update neighbor %s: %w", n.Name, err)
	}
	return nil
}

// reset evaluates the policy for a neighbour's routes again. Before the gate is
// open it would advertise an End-of-RIB, so it waits for openGate.
func (s *bgpServer) reset(ctx context.Context, n api.BGPNeighbor, in, out bool) error {
	out = out && s.gate == nil
	direction := gobgp.ResetPeerRequest_BOTH
	switch {
	case !in && !out:
		return nil
	case !out:
		direction = gobgp.ResetPeerRequest_IN
	case !in:
		direction = gobgp.ResetPeerRequest_OUT
	}
	err := s.ResetPeer(ctx, &gobgp.ResetPeerRequest{Address: n.Address.String(), Soft: true, Direction: direction})
	if err != nil {
		return fmt.Errorf("apply the policy to neighbor %s: %w", n.Name, err)
	}
	return nil
}

// peer returns a neighbour in GoBGP's form.
func (s *bgpServer) peer(p api.BGPPart, n api.BGPNeighbor) *gobgp.Peer {
	restart := seconds(p.GracefulRestart)
	out := &gobgp.Peer{
		Conf: &gobgp.PeerConf{NeighborAddress: n.Address.String(), PeerAsn: n.ASN, AuthPassword: n.Password, Description: n.Name},
		Timers: &gobgp.Timers{Config: &gobgp.TimersConfig{HoldTime: seconds64(n.HoldTime), KeepaliveInterval: seconds64(n.KeepAlive),
			ConnectRetry: uint64(connectRetry / time.Second), IdleHoldTimeAfterReset: 1}},
		Transport:      &gobgp.Transport{PassiveMode: n.Passive, RemotePort: uint32(p.Port)},
		RouteReflector: &gobgp.RouteReflector{RouteReflectorClient: n.ASN == p.ASN && p.Role != api.BGPNetwork, RouteReflectorClusterId: p.ClusterID.String()},
		GracefulRestart: &gobgp.GracefulRestart{Enabled: true, RestartTime: restart, DeferralTime: deferralTime(p),
			NotificationEnabled: true, LonglivedEnabled: p.LongLived > 0, LocalRestarting: s.restarting},
	}
	if n.Source.IsValid() {
		out.Transport.LocalAddress = n.Source.String()
	}
	switch {
	case n.Role == api.BGPGuest:
		// Calico's BIRD sends with any TTL unless configured otherwise. The
		// filter of the Network's namespace excludes guests of other hosts. A
		// guest with GTSM accepts everything that this end sends.
		out.EbgpMultihop = &gobgp.EbgpMultihop{Enabled: true, MultihopTtl: 255}
		// All guests have one ASN, and would refuse a route with it in its
		// path.
		out.Conf.ReplacePeerAsn = true
	case n.Hops == 1:
		out.TtlSecurity = &gobgp.TtlSecurity{Enabled: true, TtlMin: 255}
	case n.Role == api.BGPUplink:
		out.EbgpMultihop = &gobgp.EbgpMultihop{Enabled: true, MultihopTtl: uint32(n.Hops)}
	}
	for _, f := range n.Families {
		family, limit, paths := toFamily(f == api.FamilyIPv4), n.MaxPrefixes, &gobgp.AddPathsConfig{}
		switch {
		case f == api.FamilyEVPN: // routes of different VTEPs differ by their RD
			family, limit = evpn(), evpnLimit(n)
		case p.AllPaths && n.ASN == p.ASN:
			paths.Receive, paths.SendMax = true, mostPaths
		}
		out.AfiSafis = append(out.AfiSafis, &gobgp.AfiSafi{
			Config:            &gobgp.AfiSafiConfig{Family: family, Enabled: true},
			AddPaths:          &gobgp.AddPaths{Config: paths},
			MpGracefulRestart: &gobgp.MpGracefulRestart{Config: &gobgp.MpGracefulRestartConfig{Enabled: true}},
			LongLivedGracefulRestart: &gobgp.LongLivedGracefulRestart{Config: &gobgp.LongLivedGracefulRestartConfig{
				Enabled: p.LongLived > 0, RestartTime: seconds(p.LongLived)}},
			PrefixLimits: &gobgp.PrefixLimit{Family: family, MaxPrefixes: uint32(limit), ShutdownThresholdPct: warnPercent},
		})
	}
	return out
}

func toFamily(v4 bool) *gobgp.Family {
	if v4 {
		return &gobgp.Family{Afi: gobgp.Family_AFI_IP, Safi: gobgp.Family_SAFI_UNICAST}
	}
	return &gobgp.Family{Afi: gobgp.Family_AFI_IP6, Safi: gobgp.Family_SAFI_UNICAST}
}

func evpn() *gobgp.Family {
	return &gobgp.Family{Afi: gobgp.Family_AFI_L2VPN, Safi: gobgp.Family_SAFI_EVPN}
}

// isUnicast reports whether routes of a family go into the kernel.
func isUnicast(f *gobgp.Family) bool {
	return f.GetSafi() == gobgp.Family_SAFI_UNICAST
}

// deferralTime is how many seconds a restarting speaker waits for neighbours'
// routes before it advertises its own.
func deferralTime(p api.BGPPart) uint32 { return min(30, max(1, seconds(p.GracefulRestart)/2)) }

func seconds(d api.Duration) uint32   { return uint32(time.Duration(d) / time.Second) }
func seconds64(d api.Duration) uint64 { return uint64(seconds(d)) }

// service is how an address is announced.
type service struct {
	last bool // less preferred than any other host's
}

// serve makes exactly these addresses of the host and its services originated
// by GoBGP; with again, all of them are sent again.
func (s *bgpServer) serve(ctx context.Context, p api.BGPPart, want map[netip.Addr]service, again bool) error {
	var faults []error
	for a, how := range want {
		had, known := s.served[a]
		hop := ownNextHop(p, api.HostPrefix(a))
		if known && had == how && !again || !hop.IsValid() {
			continue
		}
		if err := s.addPath(ctx, api.HostPrefix(a), hop, how.last); err != nil {
			faults = append(faults, err)
			continue
		}
		s.served[a] = how
	}
	for a := range s.served {
		if _, ok := want[a]; ok {
			continue
		}
		if err := s.deletePath(ctx, api.HostPrefix(a)); err != nil {
			faults = append(faults, err)
			continue
		}
		delete(s.served, a)
	}
	return errors.Join(faults...)
}

// originateGuests makes exactly these prefixes of guests originated by GoBGP; with again,
// all of them are sent again.
func (s *bgpServer) originateGuests(ctx context.Context, p api.BGPPart, want map[netip.Prefix]bool, again bool) error {
	var faults []error
	for x := range want {
		hop := ownNextHop(p, x)
		if s.guests[x] && !again || !hop.IsValid() {
			continue
		}
		if err := s.addPath(ctx, x, hop, false); err != nil {
			faults = append(faults, err)
			continue
		}
		s.guests[x] = true
	}
	for x := range s.guests {
		if want[x] {
			continue
		}
		if err := s.deletePath(ctx, x); err != nil {
			faults = append(faults, err)
			continue
		}
		delete(s.guests, x)
	}
	return errors.Join(faults...)
}

// announce makes exactly the part's routes originated by GoBGP; with again, all
// of them are sent again.
func (s *bgpServer) announce(ctx context.Context, p api.BGPPart, again bool) error {
	want := map[netip.Prefix]bool{}
	for _, x := range p.Originate {
		want[x] = ownNextHop(p, x).IsValid()
	}
	var faults []error
	for x, routed := range want {
		if !routed || s.originate[x] && !again {
			continue
		}
		if err := s.originatePath(ctx, x, ownNextHop(p, x)); err != nil {
			faults = append(faults, err)
		}
	}
	for x := range s.originate {
		if want[x] || slices.Contains(p.Aggregates, x) {
			continue
		}
		if err := s.withdraw(ctx, x); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// ownNextHop returns the part's next hop of x's family; it may be invalid.
func ownNextHop(p api.BGPPart, x netip.Prefix) netip.Addr {
	i := slices.IndexFunc(p.NextHops, func(a netip.Addr) bool { return a.Is4() == x.Addr().Is4() })
	if i < 0 {
		return netip.Addr{}
	}
	return p.NextHops[i]
}

// aggregate makes exactly the active aggregates originated by GoBGP, with the
// session's own address as the next hop.
func (s *bgpServer) aggregate(ctx context.Context, active map[netip.Prefix]bool) error {
	var faults []error
	for _, x := range s.part.Aggregates {
		switch {
		case slices.Contains(s.part.Originate, x) || active[x] == s.originate[x]:
		case active[x]:
			faults = append(faults, s.originatePath(ctx, x, unspecified(x)))
		default:
			faults = append(faults, s.withdraw(ctx, x))
		}
	}
	return errors.Join(faults...)
}

func unspecified(x netip.Prefix) netip.Addr {
	if x.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (s *bgpServer) originatePath(ctx context.Context, x netip.Prefix, hop netip.Addr) error {
	if err := s.addPath(ctx, x, hop, false); err != nil {
		return err
	}
	s.originate[x] = true
	return nil
}

func (s *bgpServer) withdraw(ctx context.Context, x netip.Prefix) error {
	if err := s.deletePath(ctx, x); err != nil {
		return err
	}
	delete(s.originate, x)
	return nil
}

// addPath makes GoBGP originate x. As a last resort, neighbours and this host
// prefer any other path to it (RFC 8326).
func (s *bgpServer) addPath(ctx context.Context, x netip.Prefix, hop netip.Addr, last bool) error {
	path, err := newPath(x, hop)
	if err == nil && last {
		err = addAttributes(path, &gobgp.LocalPrefAttribute{LocalPref: 1}, &gobgp.CommunitiesAttribute{Communities: []uint32{65535 << 16}})
	}
	if err == nil {
		_, err = s.AddPath(ctx, &gobgp.AddPathRequest{TableType: gobgp.TableType_GLOBAL, Path: path})
	}
	if err != nil {
		return fmt.Errorf("originate %s: %w", x, err)
	}
	return nil
}

func (s *bgpServer) deletePath(ctx context.Context, x netip.Prefix) error {
	path, err := newPath(x, unspecified(x))
	if err == nil {
		err = s.DeletePath(ctx, &gobgp.DeletePathRequest{TableType: gobgp.TableType_GLOBAL, Path: path})
	}
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", x, err)
	}
	return nil
}

func addAttributes(path *gobgp.Path, attributes ...proto.Message) error {
	for _, a := range attributes {
		packed, err := anypb.New(a)
		if err != nil {
			return err
		}
		path.Pattrs = append(path.Pattrs, packed)
	}
	return nil
}

func newPath(x netip.Prefix, hop netip.Addr) (*gobgp.Path, error) {
	nlri, err := anypb.New(&gobgp.IPAddressPrefix{Prefix: x.Addr().String(), PrefixLen: uint32(x.Bits())})
	if err != nil {
		return nil, err
	}
	origin, err := anypb.New(&gobgp.OriginAttribute{Origin: 0})
	if err != nil {
		return nil, err
	}
	family := toFamily(x.Addr().Is4())
	var next *anypb.Any
	if x.Addr().Is4() {
		next, err = anypb.New(&gobgp.NextHopAttribute{NextHop: hop.String()})
	} else {
		next, err = anypb.New(&gobgp.MpReachNLRIAttribute{Family: family, NextHops: []string{hop.String()}, Nlris: []*anypb.Any{nlri}})
	}
	if err != nil {
		return nil, err
	}
	return &gobgp.Path{Family: family, Nlri: nlri, Pattrs: []*anypb.Any{origin, next}}, nil
}

// monitor sends to exactly these monitoring stations.
func (s *bgpServer) monitor(ctx context.Context, p api.BGPPart) error {
	var faults []error
	for a := range s.stations {
		if slices.Contains(p.BMP, a) {
			continue
		}
		if err := s.DeleteBmp(ctx, &gobgp.DeleteBmpRequest{Address: a.Addr().String(), Port: uint32(a.Port())}); err != nil {
			faults = append(faults, fmt.Errorf("drop monitoring station %s: %w", a, err))
			continue
		}
		delete(s.stations, a)
	}
	for _, a := range p.BMP {
		if s.stations[a] {
			continue
		}
		err := s.AddBmp(ctx, &gobgp.AddBmpRequest{Address: a.Addr().String(), Port: uint32(a.Port()), Policy: gobgp.AddBmpRequest_ALL,
			SysName: p.RouterID.String(), SysDescr: "rackweft"})
		if err != nil {
			faults = append(faults, fmt.Errorf("add monitoring station %s: %w", a, err))
			continue
		}
		s.stations[a] = true
	}
	return errors.Join(faults...)
}

// reopen retries a session that exceeded maxPrefixes.
func (s *bgpServer) reopen(ctx context.Context, n api.BGPNeighbor) {
	if err := s.EnablePeer(ctx, &gobgp.EnablePeerRequest{Address: n.Address.String()}); err != nil && !strings.Contains(err.Error(), "already") {
		s.log.Warn("cannot retry a session", map[string]interface{}{"Key": n.Address.String(), "Error": err})
	}
}
