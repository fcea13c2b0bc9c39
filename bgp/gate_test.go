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
