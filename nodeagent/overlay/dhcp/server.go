// Package dhcp owns the services for guests at their gateway: addresses by DHCPv4 (RFC
// 2131) and DHCPv6 (RFC 8415), IPv6 router advertisements (RFC 4861), and DNS, which is
// forwarded to resolvers outside of their Network. It serves only the guests in its
// table.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Options configure a Server.
type Options struct {
	// Within runs f on a thread that is in the Network's namespace.
	Within func(f func() error) error
	// Bridge is the interface that guests are plugged into. It has the address Gateway4,
	// and Gateway6 if a guest has an IPv6 address.
	Bridge    string
	Forwarder *Forwarder
	Log       *slog.Logger
}

// Server serves the guests of one Network on this host. Its goroutines are
// few and small: there may be hundreds of Servers.
type Server struct {
	within  func(f func() error) error
	bridge  *net.Interface
	forward *Forwarder
	log     *slog.Logger
	// complaints limits the rate of log messages that guests can cause.
	complaints *rate.Limiter

	table atomic.Pointer[table]
	share *share
	seen  *neighbours

	packets4 *packet.Conn
	packets6 *packet.Conn // nil without IPv6
	udp      []*net.UDPConn
	tcp      []*net.TCPListener
}

// Open opens the sockets: those of IPv6 only if a guest of n has an IPv6 address. The
// caller must call Run or Close.
func Open(o Options, n Network) (*Server, error) {
	s := &Server{within: o.Within, forward: o.Forwarder, log: o.Log, complaints: rate.NewLimiter(rate.Every(10*time.Second), 3), share: newShare(), seen: newNeighbours()}
	s.Set(n)
	if err := o.Within(func() error { return s.open(o.Bridge) }); err != nil {
		s.Close()
		return nil, fmt.Errorf("serve guests on %s: %w", o.Bridge, err)
	}
	return s, nil
}

// Set replaces the Network that is served. Guests with IPv6 addresses need a Server that
// was opened with one.
func (s *Server) Set(n Network) {
	s.table.Store(newTable(n))
	s.share.keep(s.table.Load().byMAC)
}

// Index is the bridge's index: after the bridge was recreated the Server receives
// nothing.
func (s *Server) Index() int { return s.bridge.Index }

// IPv6 reports whether the Server serves IPv6.
func (s *Server) IPv6() bool { return s.packets6 != nil }

func (s *Server) open(bridge string) (err error) {
	found, err := net.InterfaceByName(bridge)
	if err != nil {
		return fmt.Errorf("find the bridge: %w", err)
	}
	// Its address shares memory with the list of all interfaces, which would stay.
	s.bridge = &net.Interface{Index: found.Index, Name: bridge, HardwareAddr: slices.Clone(found.HardwareAddr)}
	if s.packets4, err = listenPackets(s.bridge, unix.ETH_P_IP, filter4()); err != nil {
		return err
	}
	gateways := []netip.Addr{Gateway4()}
	if s.table.Load().IPv6() {
		if s.packets6, err = listenPackets(s.bridge, unix.ETH_P_IPV6, filter6()); err != nil {
			return err
		}
		gateways = append(gateways, Gateway6())
	}
	for _, a := range gateways {
		if err := s.listenDNS(a); err != nil {
			return err
		}
	}
	return nil
}

// Run serves until ctx is done; nothing runs after it returns. An error means that a
// socket failed: open another Server.
func (s *Server) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer context.AfterFunc(ctx, s.Close)()
	jobs := []func(context.Context) error{s.serve4}
	if s.packets6 != nil {
		jobs = append(jobs, s.serve6)
	}
	for _, c := range s.udp {
		jobs = append(jobs, func(ctx context.Context) error { return s.serveUDP(ctx, c) })
	}
	for _, l := range s.tcp {
		jobs = append(jobs, func(ctx context.Context) error { return s.serveTCP(ctx, l) })
	}
	var all sync.WaitGroup
	for _, job := range jobs {
		all.Go(func() {
			if err := job(ctx); err != nil {
				fail(err)
			}
		})
	}
	all.Wait()
	s.Close()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Close closes the sockets, which releases the namespace.
func (s *Server) Close() {
	if s.packets4 != nil {
		_ = s.packets4.Close()
	}
	if s.packets6 != nil {
		_ = s.packets6.Close()
	}
	for _, c := range s.udp {
		_ = c.Close()
	}
	for _, l := range s.tcp {
		_ = l.Close()
	}
}

// serve4 answers DHCPv4.
func (s *Server) serve4(ctx context.Context) error {
	return s.read(ctx, s.packets4, nil, func(from MAC, b []byte) {
		payload, ok := payload4(b)
		if !ok {
			return
		}
		r, err := s.table.Load().answer4(from, payload)
		s.complain("DHCP", from, err)
		if r != nil {
			s.send(s.packets4, r.mac, udpPacket4(r.to, r.data))
		}
	})
}

// serve6 answers DHCPv6 and router solicitations, and advertises the router.
func (s *Server) serve6(ctx context.Context) error {
	return s.read(ctx, s.packets6, s.advertise, func(from MAC, b []byte) {
		source, next, rest, ok := next6(b)
		if !ok {
			return
		}
		if next == unix.IPPROTO_ICMPV6 {
			s.solicited(from, source)
			return
		}
		payload, ok := udpPayload(rest)
		if !ok || !source.IsLinkLocalUnicast() {
			return
		}
		answer, err := s.table.Load().answer6(from, payload)
		s.complain("DHCPv6", from, err)
		if answer != nil {
			s.send(s.packets6, from, udpPacket6(source, answer))
		}
	})
}

// solicited advertises the router to a guest that solicits.
func (s *Server) solicited(from MAC, source netip.Addr) {
	t := s.table.Load()
	g, known := t.byMAC[from]
	if !known || len(g.addresses6()) == 0 {
		s.complain("a router solicitation", from, errNotServed)
		return
	}
	if !source.IsLinkLocalUnicast() { // it has no address yet
		source = allNodes()
	}
	s.sendAdvertisement(t, from, source)
}

// advertise advertises the router to all guests.
func (s *Server) advertise() {
	if t := s.table.Load(); t.IPv6() {
		s.sendAdvertisement(t, allNodesMAC(), allNodes())
	}
}

func (s *Server) sendAdvertisement(t *table, mac MAC, to netip.Addr) {
	ra, err := t.advertisement(s.bridge.HardwareAddr)
	if err != nil {
		s.complain("a router advertisement", mac, err)
		return
	}
	s.send(s.packets6, mac, icmpPacket6(to, ra))
}

// read passes each packet of a socket to handle, until ctx is done. At the start and
// from time to time it calls regularly, unless that is nil.
func (s *Server) read(ctx context.Context, c *packet.Conn, regularly func(), handle func(from MAC, b []byte)) error {
	b := make([]byte, maxPacket)
	next := time.Now()
	for ctx.Err() == nil {
		if regularly != nil && !time.Now().Before(next) {
			regularly()
			next = time.Now().Add(advertiseEvery)
			if err := c.SetReadDeadline(next); err != nil && ctx.Err() == nil {
				return err
			}
		}
		n, addr, err := c.ReadFrom(b)
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ENETDOWN): // of a bridge that is down: it may come up
			continue
		case err != nil:
			return fmt.Errorf("read packets on %s: %w", s.bridge.Name, err)
		}
		if from, ok := addr.(*packet.Addr); ok && len(from.HardwareAddr) == len(MAC{}) {
			handle(MAC(from.HardwareAddr), b[:n])
		}
	}
	return nil
}

// send drops packets that cannot be sent: clients retry.
func (s *Server) send(c *packet.Conn, to MAC, b []byte) {
	if _, err := c.WriteTo(b, &packet.Addr{HardwareAddr: to[:]}); err != nil && !errors.Is(err, net.ErrClosed) {
		s.complain("an answer", to, err)
	}
}

// complain logs why a guest got no answer.
func (s *Server) complain(what string, from MAC, err error) {
	if err != nil && s.complaints.Allow() {
		s.log.Warn("guests: not served", "bridge", s.bridge.Name, "guest", from, "asked", what, "error", err)
	}
}
