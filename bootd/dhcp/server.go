package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/ipv4"
	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/internal/prom"
)

// Config configures a Server. Only Interfaces is required.
type Config struct {
	Interfaces []string      // to listen on, by name; relays may send to any of them
	ServerIDs  []netip.Addr  // addresses that Answers may name as Server although no interface has them
	Workers    int           // packets answered concurrently. Default: 64
	Queue      int           // packets that may wait for a worker; more are dropped. Default: 4096
	Timeout    time.Duration // for one decision. Default: 5 s. Clients repeat after 4 s.
	Log        *slog.Logger
	Metrics    prometheus.Registerer // holds the server's metrics while it runs; nil for none
}

// Server answers DHCP clients on ports 67 and 4011 of its interfaces.
type Server struct {
	cfg        Config
	decider    Decider
	metrics    *metrics
	ipxe       recentMACs
	complaints *rate.Limiter // a broken store must not flood the log

	links   []*link
	queue   chan inbound
	buffers sync.Pool // of *[]byte
	ready   chan struct{}
}

// maxPacket is more than any request: clients do not know an MTU above 1500
// yet.
const maxPacket = 1536

// New returns a Server that runs once.
func New(cfg Config, d Decider) (*Server, error) {
	if len(cfg.Interfaces) == 0 {
		return nil, errors.New("dhcp: no interface to listen on: name one with --interface, or in a Subnet")
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 64
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 4096
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg:        cfg,
		decider:    d,
		metrics:    newMetrics(),
		complaints: rate.NewLimiter(1, 10),
		queue:      make(chan inbound, cfg.Queue),
		buffers:    sync.Pool{New: func() any { b := make([]byte, maxPacket); return &b }},
		ready:      make(chan struct{}),
	}, nil
}

// Ready is closed when all sockets listen.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run listens and answers until ctx ends; then it finishes pending answers and
// returns nil. It returns an error if it cannot listen, or if an interface is
// removed or replaced: run a new Server then.
func (s *Server) Run(ctx context.Context) error {
	unregister, err := prom.Register(s.cfg.Metrics, s.metrics.all()...)
	if err != nil {
		return fmt.Errorf("register DHCP metrics: %w", err)
	}
	defer unregister()
	defer s.closeLinks()
	for _, name := range s.cfg.Interfaces {
		l, err := openLink(ctx, name)
		if err != nil {
			return err
		}
		if !l.canUnicast() {
			s.cfg.Log.Warn("dhcp: replies are broadcast: the interface has no address, or AF_PACKET is not permitted (CAP_NET_RAW)",
				"interface", name)
		}
		s.links = append(s.links, l)
		if l.advertiser, err = openAdvertiser(ctx, l); err != nil {
			s.cfg.Log.Info("dhcp: iPXE will wait for an IPv6 router: no router advertisements", "interface", name, "error", err)
		}
	}
	s.cfg.Log.Info("dhcp: listening", "interfaces", s.cfg.Interfaces, "ports", []int{serverPort, bootPort})
	close(s.ready)

	var readers, workers sync.WaitGroup
	for range s.cfg.Workers {
		workers.Go(func() { s.work(context.WithoutCancel(ctx)) })
	}
	failed := make(chan error, 3*len(s.links))
	for _, l := range s.links {
		readers.Go(func() { failed <- s.read(l, l.lease, false) })
		readers.Go(func() { failed <- s.read(l, l.boot, true) })
		if l.advertiser != nil {
			readers.Go(func() { failed <- l.advertiser.run(&s.ipxe) })
		}
	}
	err = s.watch(ctx, failed)
	for _, l := range s.links {
		if stopErr := l.stop(); stopErr != nil {
			s.cfg.Log.Warn("dhcp: stopping reads failed", "interface", l.name, "error", stopErr)
		}
	}
	readers.Wait()
	close(s.queue)
	workers.Wait()
	return err
}

// watch waits for the end, and keeps the interfaces' addresses up to date.
func (s *Server) watch(ctx context.Context, failed <-chan error) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-tick.C:
		}
		for _, l := range s.links {
			if err := l.refresh(); err != nil {
				return err
			}
		}
	}
}

func (s *Server) closeLinks() {
	for _, l := range s.links {
		if err := l.close(); err != nil {
			s.cfg.Log.Warn("dhcp: closing sockets failed", "interface", l.name, "error", err)
		}
	}
}

// read queues the packets of one socket until it is stopped. When the queue is
// full the newest packet is dropped: the senders of older ones have waited
// longer.
func (s *Server) read(l *link, conn *ipv4.PacketConn, boot bool) error {
	const batch = 32
	messages := make([]ipv4.Message, batch)
	for i := range messages {
		messages[i].Buffers = [][]byte{s.buffer()}
		messages[i].OOB = ipv4.NewControlMessage(ipv4.FlagDst | ipv4.FlagInterface)
	}
	for {
		n, err := conn.ReadBatch(messages, 0)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("read DHCP packets on %s: %w", l.name, err)
		}
		for i := range messages[:n] {
			m := &messages[i]
			in, ok := l.inbound(m, boot)
			if !ok {
				s.metrics.drop("malformed")
				continue
			}
			select {
			case s.queue <- in:
				m.Buffers[0] = s.buffer()
			default:
				s.metrics.drop("queue_full")
			}
		}
	}
}

// buffer returns a buffer of maxPacket bytes, of which the socket cannot fill
// the last.
func (s *Server) buffer() []byte {
	return (*s.buffers.Get().(*[]byte))[:maxPacket-1]
}

// inbound describes a received message; it returns false for one that cannot be
// a DHCP request.
func (l *link) inbound(m *ipv4.Message, boot bool) (inbound, bool) {
	from, ok := m.Addr.(*net.UDPAddr)
	if !ok || m.N >= maxPacket-1 {
		return inbound{}, false
	}
	in := inbound{data: m.Buffers[0][:m.N], from: from.AddrPort(), link: l, boot: boot}
	in.from = netip.AddrPortFrom(in.from.Addr().Unmap(), in.from.Port())
	var cm ipv4.ControlMessage
	if err := cm.Parse(m.OOB[:m.NN]); err == nil {
		if dst := toAddr(cm.Dst); l.has(dst) {
			in.local = dst
		}
	}
	return in, true
}
