package bgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"
	packet "github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/wait"
)

// A reflector that restarts is the only one, and a host finds its way back to it
// later than others: these must not hear meanwhile that there are no more routes.
func TestReflectorWaitsForClients(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	need(t, "nft")
	z := newZone(t, 3)
	z.reflectors = z.reflectors[:1]
	r1, c1, c2, c3 := z.reflectors[0], z.clients[0], z.clients[1], z.clients[2]
	for _, c := range z.clients {
		c.in("ip", "addr", "add", c.service()+"/32", "dev", "lo")
	}
	z.tell()
	for _, h := range []*host{r1, c1, c2, c3} {
		h.speak()
	}
	eventually(t, c1.has("198.19.12.0/24", c2.address.String()), c2.has("198.19.11.0/24", c1.address.String()),
		c3.has("198.19.12.0/24", c2.address.String()))

	f := flow(t, [2]*host{c1, c2}, [2]*host{c3, c2})
	r1.kill()
	c2.in("nft", "add table ip late; add chain ip late out { type filter hook output priority 0; }; add rule ip late out tcp dport 179 drop")
	r1.speak()
	eventually(t, up(c1, "r1"), up(c3, "r1"))
	time.Sleep(2 * time.Second) // whatever r1 has to say has been said
	c2.in("nft", "delete table ip late")
	eventually(t, up(c2, "r1"), func() error {
		if s := r1.status(); !s.Settled || s.Deferring {
			return fmt.Errorf("r1 has not settled: %s", s.Line())
		}
		return nil
	})
	time.Sleep(time.Second)
	if n := f.lost(); n > 0 {
		t.Errorf("%d packets are lost", n)
	}
	log, err := os.ReadFile(filepath.Join(r1.dir, "log"))
	must(t, err)
	if bytes.Contains(log, []byte("level=ERROR")) || bytes.Contains(log, []byte("may be late")) {
		t.Errorf("r1 says\n%s", log)
	}
	for _, h := range []*host{c1, c3} {
		must(t, h.has("198.19.12.0/24", c2.address.String())())
	}
}

// GoBGP ends the deferral of a neighbour by itself when another one's End-of-RIB does not come. When that was before the gate
// is opened, nothing was advertised to the neighbour, which is made good.
func TestGateOpensAfterGoBGPsTimer(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	door := free.Addr().(*net.TCPAddr).AddrPort()
	must(t, free.Close())
	client := func(name string, unit byte) api.BGPNeighbor {
		return api.BGPNeighbor{Name: name, Address: netip.AddrFrom4([4]byte{127, 0, 0, unit}), ASN: 64601, Role: api.BGPClient, Passive: true, Families: []string{api.FamilyIPv4}}
	}
	route, hop := netip.MustParsePrefix("198.19.11.0/24"), netip.MustParseAddr("198.18.9.11")
	p := api.BGPPart{ASN: 64601, RouterID: door.Addr(), ClusterID: door.Addr(), Role: api.BGPReflector, Listen: []netip.Addr{door.Addr()}, Port: int(door.Port()),
		Community: "64601:1:7", GracefulRestart: api.Duration(2 * time.Second), // GoBGP's timer is half of it
		Neighbors: []api.BGPNeighbor{client("c1", 11), client("c2", 12), client("silent", 13)},
		Accept:    []api.BGPAccept{{Client: "c1", Prefixes: []netip.Prefix{route}, NextHops: []netip.Addr{hop}}}}
	s, err := startServer(t.Context(), p, false, newLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	must(t, s.apply(t.Context(), p))
	c1, c2 := connectedTo(t, door, p.Neighbors[0]), connectedTo(t, door, p.Neighbors[1])
	must(t, c1.addPath(t.Context(), route, hop, false))
	withoutEndOfRIB(t, door, p.Neighbors[2])
	eventually(t, func() error {
		ended := map[string]bool{}
		err := s.ListPeer(t.Context(), &gobgp.ListPeerRequest{}, func(n *gobgp.Peer) {
			ended[n.Conf.Description] = n.State.SessionState == gobgp.PeerState_ESTABLISHED && !n.GracefulRestart.LocalRestarting
		})
		if err == nil && !(ended["c1"] && ended["c2"]) {
			err = fmt.Errorf("GoBGP's timers have not ended: %v", ended)
		}
		return err
	})
	must(t, s.openGate(t.Context()))
	eventually(t, func() error {
		found := false
		err := c2.ListPath(t.Context(), &gobgp.ListPathRequest{TableType: gobgp.TableType_GLOBAL, Family: toFamily(true)}, func(d *gobgp.Destination) {
			found = found || d.Prefix == route.String()
		})
		if err == nil && !found {
			err = fmt.Errorf("c2 has not received %s", route)
		}
		return err
	})
}

// connectedTo is a GoBGP without policies that is n to the speaker at door.
func connectedTo(t *testing.T, door netip.AddrPort, n api.BGPNeighbor) *bgpServer {
	t.Helper()
	s := &bgpServer{BgpServer: server.NewBgpServer(server.LoggerOption(newLogger(slog.New(slog.DiscardHandler))))}
	go s.Serve()
	must(t, s.StartBgp(t.Context(), &gobgp.StartBgpRequest{Global: &gobgp.Global{Asn: n.ASN, RouterId: n.Address.String(), ListenPort: -1}}))
	peer := s.peer(api.BGPPart{ASN: n.ASN, Port: int(door.Port()), ClusterID: n.Address, GracefulRestart: api.Duration(2 * time.Second)},
		api.BGPNeighbor{Name: "r1", Address: door.Addr(), Source: n.Address, ASN: n.ASN, Role: api.BGPReflector, Families: n.Families})
	must(t, s.AddPeer(t.Context(), &gobgp.AddPeerRequest{Peer: peer}))
	return s
}

// withoutEndOfRIB has a session as n that says it will send an End-of-RIB, and does not.
func withoutEndOfRIB(t *testing.T, door netip.AddrPort, n api.BGPNeighbor) {
	t.Helper()
	family := packet.RF_IPv4_UC
	open := packet.NewBGPOpenMessage(packet.AS_TRANS, gateHoldTime, n.Address.String(), []packet.OptionParameterInterface{packet.NewOptionParameterCapability(
		[]packet.ParameterCapabilityInterface{packet.NewCapMultiProtocol(family), packet.NewCapFourOctetASNumber(n.ASN),
			packet.NewCapGracefulRestart(false, false, 1, []*packet.CapGracefulRestartTuple{packet.NewCapGracefulRestartTuple(family, false)})})})
	eventually(t, func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: n.Address.AsSlice()}}
		conn, err := d.DialContext(t.Context(), "tcp", door.String())
		if err != nil {
			return err
		}
		g := &gate{conn: conn}
		if err := errors.Join(g.send(open), g.send(packet.NewBGPKeepAliveMessage()), g.await(packet.BGP_MSG_KEEPALIVE)); err != nil {
			return errors.Join(err, conn.Close())
		}
		t.Cleanup(func() { _ = conn.Close() })
		return nil
	})
}

// GoBGP closes what connects before the neighbor has left its idle state, which
// takes it longer on a busy host: it stays idle here until it is enabled.
func TestGateMeetsIdleNeighbor(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	door := free.Addr().(*net.TCPAddr).AddrPort()
	must(t, free.Close())
	p := api.BGPPart{ASN: 64601, RouterID: door.Addr(), Role: api.BGPReflector, Listen: []netip.Addr{door.Addr()}, Port: int(door.Port()),
		GracefulRestart: api.Duration(time.Minute), Neighbors: []api.BGPNeighbor{{Name: "c1"}}}
	s, err := startServer(t.Context(), p, false, newLogger(slog.New(slog.DiscardHandler)))
	must(t, err)
	idle := gatePeer(p)
	idle.Conf.AdminDown = true
	must(t, s.AddPeer(t.Context(), &gobgp.AddPeerRequest{Peer: idle}))
	if g, err := tryGate(t.Context(), door, p.ASN); err == nil {
		_ = g.conn.Close()
		t.Fatal("an idle neighbor takes a connection")
	}
	enabled := make(chan error, 1)
	go func() {
		_ = wait.For(t.Context(), 10*gateRetry)
		enabled <- s.EnablePeer(t.Context(), &gobgp.EnablePeerRequest{Address: gateAddress().String()})
	}()
	g, err := dialGate(t.Context(), door, p.ASN)
	must(t, errors.Join(err, <-enabled))
	must(t, errors.Join(g.open(), s.dropGate(t.Context())))
}

// Whom GoBGP never lets in ends with the reason, and so does whoever is told to stop.
func TestGateGivesUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*gateRetry)
	defer cancel()
	if _, err := dialGate(ctx, netip.MustParseAddrPort("127.0.0.1:1"), 64601); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}

// GoBGP answers nothing while it tells everybody everything: that is no reason to
// be killed by the watchdog, unless it never ends.
func TestAliveWhileOpening(t *testing.T) {
	for name, c := range map[string]struct {
		since time.Time
		want  bool
	}{
		"it hangs":            {time.Time{}, false},
		"it tells":            {time.Now().Add(-time.Minute), true},
		"it tells for longer": {time.Now().Add(-2 * mostOpening), false},
	} {
		s := &speaker{ops: make(chan func())} // whose loop does not answer
		if !c.since.IsZero() {
			s.opening.Store(c.since.UnixNano())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if got := s.alive(ctx); got != c.want {
			t.Errorf("%s: alive is %v", name, got)
		}
		cancel()
	}
}
