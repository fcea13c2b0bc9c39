package bgp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	// freshDeferral is how long a speaker without routes in the kernel waits
	// for neighbours before it advertises anything: as long as running
	// neighbours take to connect.
	freshDeferral = 2*connectRetry + 2*time.Second
	// quiet: once no route and no session has come for this long, all
	// neighbours are taken to have advertised their routes.
	quiet = 300 * time.Millisecond
	// gateHoldTime, in seconds, exceeds the time until the gate opens, because
	// the gate sends no keepalives. (Without a hold time GoBGP gives its writes
	// no time.)
	gateHoldTime = 600
	// gateTimeout bounds the set-up of a session within this process. The
	// watchdog's timeout is longer.
	gateTimeout = 10 * time.Second
	// openTimeout bounds GoBGP's answer to the gate's End-of-RIB.
	openTimeout = 5 * time.Second
	// gateRetry is the interval of attempts to connect: GoBGP closes
	// connections that come before the neighbor has left its idle state.
	gateRetry = 20 * time.Millisecond
)

// gate prevents GoBGP from advertising anything until the neighbours have
// advertised the routes that a starting speaker passes on (RFC 4724, section
// 4.1, the deferral of route selection). GoBGP itself waits only for the
// End-of-RIB of neighbours that are connected already: the first one to connect
// would receive an End-of-RIB too early, and drop routes that it learned from
// neighbours that are still to come. GoBGP would also advertise each route by
// itself to everyone, where all at once cost a fraction.
//
// So the gate is an additional neighbour, in this process, and GoBGP waits for
// its End-of-RIB as well. It speaks only a family in which there are no routes.
type gate struct {
	conn   net.Conn
	opened chan error // receives once: GoBGP has advertised everything, or the connection has ended
}

// gateAddress is the source address of the gate's connection.
func gateAddress() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 179}) }

// gateDoor returns the address that the gate connects to, if the part's speaker
// passes on neighbours' routes.
func gateDoor(p api.BGPPart) (netip.AddrPort, bool) {
	i := slices.IndexFunc(p.Listen, netip.Addr.Is4)
	if i < 0 || len(p.Neighbors) == 0 || p.Role != api.BGPReflector && p.Role != api.BGPNetwork {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(p.Listen[i], uint16(p.Port)), true
}

// shutGate defers advertisements to neighbours that are added afterwards until
// openGate.
func (s *bgpServer) shutGate(ctx context.Context, p api.BGPPart, door netip.AddrPort) error {
	if err := s.AddPeer(ctx, &gobgp.AddPeerRequest{Peer: gatePeer(p)}); err != nil {
		return fmt.Errorf("add the speaker's own neighbor: %w", err)
	}
	g, err := dialGate(ctx, door, p.ASN)
	if err != nil {
		return errors.Join(fmt.Errorf("connect to GoBGP on %s: %w", door, err), s.dropGate(ctx))
	}
	s.gate, s.restarting = g, true
	return nil
}

// gatePeer is the gate as GoBGP's neighbour.
func gatePeer(p api.BGPPart) *gobgp.Peer {
	family := &gobgp.Family{Afi: gobgp.Family_AFI_IP, Safi: gobgp.Family_SAFI_FLOW_SPEC_UNICAST}
	return &gobgp.Peer{
		Conf:            &gobgp.PeerConf{NeighborAddress: gateAddress().String(), PeerAsn: p.ASN},
		Transport:       &gobgp.Transport{PassiveMode: true},
		Timers:          &gobgp.Timers{Config: &gobgp.TimersConfig{HoldTime: gateHoldTime, KeepaliveInterval: gateHoldTime / 3, IdleHoldTimeAfterReset: 1}},
		GracefulRestart: &gobgp.GracefulRestart{Enabled: true, RestartTime: 1, DeferralTime: deferralTime(p), LocalRestarting: true},
		AfiSafis: []*gobgp.AfiSafi{{Config: &gobgp.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &gobgp.MpGracefulRestart{Config: &gobgp.MpGracefulRestartConfig{Enabled: true}}}},
	}
}

func (s *bgpServer) dropGate(ctx context.Context) error {
	if err := s.DeletePeer(ctx, &gobgp.DeletePeerRequest{Address: gateAddress().String()}); err != nil {
		return fmt.Errorf("remove the speaker's own neighbor: %w", err)
	}
	return nil
}

// openGate makes GoBGP advertise all routes to every neighbour.
func (s *bgpServer) openGate(ctx context.Context) error {
	g := s.gate
	s.gate, s.restarting = nil, false
	return errors.Join(s.setPolicy(ctx, s.policy), s.advertiseAfterTimer(ctx), g.open(), s.dropGate(ctx), s.monitor(ctx, s.part))
}

// advertiseAfterTimer advertises all routes to the neighbours for which GoBGP has ended the deferral by itself. It does so
// when the End-of-RIB of another neighbour does not come, by a timer that runs from the start of each session; nothing was
// exported then.
func (s *bgpServer) advertiseAfterTimer(ctx context.Context) error {
	var missed []string
	err := s.ListPeer(ctx, &gobgp.ListPeerRequest{}, func(n *gobgp.Peer) {
		if n.State.SessionState == gobgp.PeerState_ESTABLISHED && !n.GracefulRestart.LocalRestarting {
			missed = append(missed, n.Conf.NeighborAddress)
		}
	})
	if err != nil {
		return fmt.Errorf("list the neighbors that wait for routes: %w", err)
	}
	var faults []error
	for _, address := range missed {
		request := &gobgp.ResetPeerRequest{Address: address, Soft: true, Direction: gobgp.ResetPeerRequest_OUT}
		if err := s.ResetPeer(ctx, request); err != nil {
			faults = append(faults, fmt.Errorf("advertise to neighbor %s: %w", address, err))
		}
	}
	return errors.Join(faults...)
}

func (s *speaker) deferring() bool { return s.server != nil && s.server.gate != nil }

// openGateWhenSettled opens the gate once all neighbours have advertised their routes,
// or have had the time to.
func (s *speaker) openGateWhenSettled(ctx context.Context) {
	now := time.Now()
	patience := time.Duration(deferralTime(s.server.part)) * time.Second
	if s.status.Settled { // since the start: no neighbour has routes from this process
		patience = min(patience, freshDeferral)
	}
	if late := now.Sub(s.shut) > patience; !late {
		calm := s.news.Add(quiet)
		if now.Before(calm) {
			return
		}
		if s.looked.Before(calm) {
			s.lookAtSessions(ctx)
		}
		if slices.ContainsFunc(s.status.Sessions, func(n Session) bool { return !n.complete }) {
			return
		}
	}
	s.opening.Store(now.UnixNano())
	err := s.server.openGate(ctx)
	s.opening.Store(0)
	if err != nil {
		s.options.Log.Warn("bgp: advertisements to neighbors may be late", "error", err)
	}
	s.status.Deferring, s.news, s.untidy = false, now, true
	s.options.Log.Info("bgp: advertising to neighbors", "after", now.Sub(s.started).Round(time.Millisecond), "sessions", len(s.status.Sessions))
}

// dialGate returns once the session is up. It retries because the scheduler
// determines when GoBGP's neighbor leaves its idle state.
func dialGate(ctx context.Context, speaker netip.AddrPort, asn uint32) (*gate, error) {
	ctx, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	for {
		g, err := tryGate(ctx, speaker, asn)
		if err == nil {
			return g, nil
		}
		if wait.For(ctx, gateRetry) != nil {
			return nil, err
		}
	}
}

// tryGate makes one attempt, until ctx is done.
func tryGate(ctx context.Context, speaker netip.AddrPort, asn uint32) (*gate, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: gateAddress().AsSlice()}}
	conn, err := d.DialContext(ctx, "tcp", speaker.String())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	g := &gate{conn: conn, opened: make(chan error, 1)}
	err = g.establish(asn)
	if late := !stop(); late { // the deadline of the connection is set to the past, or will be
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go func() { g.opened <- g.await(bgp.BGP_MSG_UPDATE) }() // open waits for it
	return g, nil
}

func (g *gate) establish(asn uint32) error {
	family := bgp.RF_FS_IPv4_UC
	capabilities := []bgp.ParameterCapabilityInterface{
		bgp.NewCapMultiProtocol(family), bgp.NewCapFourOctetASNumber(asn),
		bgp.NewCapGracefulRestart(false, false, 1, []*bgp.CapGracefulRestartTuple{bgp.NewCapGracefulRestartTuple(family, false)})}
	open := bgp.NewBGPOpenMessage(bgp.AS_TRANS, gateHoldTime, gateAddress().String(), []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability(capabilities)})
	for _, m := range []*bgp.BGPMessage{open, bgp.NewBGPKeepAliveMessage()} {
		if err := g.send(m); err != nil {
			return err
		}
	}
	return g.await(bgp.BGP_MSG_KEEPALIVE)
}

// open sends End-of-RIB, waits for GoBGP's, which it sends to everyone along
// with its routes, and ends the session.
func (g *gate) open() error {
	err := g.send(bgp.NewEndOfRib(bgp.RF_FS_IPv4_UC))
	if err == nil {
		// If a neighbour has not sent its End-of-RIB yet, GoBGP's own timer
		// ends the wait.
		err = g.conn.SetReadDeadline(time.Now().Add(openTimeout))
	}
	if err != nil {
		return errors.Join(err, g.conn.Close())
	}
	if err = <-g.opened; errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil
	}
	return errors.Join(err, g.conn.Close())
}

func (g *gate) send(m *bgp.BGPMessage) error {
	raw, err := m.Serialize()
	if err != nil {
		return err
	}
	_, err = g.conn.Write(raw)
	return err
}

// await reads up to the first message of this type.
func (g *gate) await(typ uint8) error {
	header := make([]byte, bgp.BGP_HEADER_LENGTH)
	for {
		if _, err := io.ReadFull(g.conn, header); err != nil {
			return err
		}
		body := make([]byte, max(0, int(binary.BigEndian.Uint16(header[16:]))-len(header)))
		if _, err := io.ReadFull(g.conn, body); err != nil {
			return err
		}
		switch header[18] {
		case typ:
			return nil
		case bgp.BGP_MSG_NOTIFICATION:
			return fmt.Errorf("GoBGP ends the session: notification %v", body)
		}
	}
}
