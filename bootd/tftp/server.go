// Package tftp is the TFTP boot server: it serves boot firmware its first file
// (RFC 1350, 2347, 2348, 2349). It owns the UDP sockets, the rules for names,
// and the limits on clients. It opens files through a Source, and does not
// depend on storage.
//
// The protocol is implemented by github.com/pin/tftp, with one socket per
// transfer, which is several times faster than one socket for all. It never
// answers an option that the client did not send, has no windowsize, and never
// repeats a block because of a repeated acknowledgement.
//
// EDK2 requests every file twice: first only for its size (tsize), which it
// takes from the OACK, and then ends the transfer with ERROR 8, "User aborted".
// That is a probe and not a failure.
package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pin/tftp/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/prom"
)

// Config configures a Server. Only Source is required.
type Config struct {
	Listen   netip.AddrPort // UDP. Default: port 69 of all IPv4 addresses. Firmware knows only port 69.
	Source   Source
	Parallel int // concurrent transfers, 1 or more. Default: 256. Three times as many may wait.
	PerPeer  int // concurrent requests per address. Default: 8
	// Known reports whether an address is a registered Machine's: a quarter of
	// the transfers and of the waiting requests is reserved for those. nil:
	// none is.
	Known    func(netip.Addr) bool
	MaxBlock int           // largest block in bytes that a client can request, 512 to 65464. Default: 1468, which fits any path
	Timeout  time.Duration // until a block is repeated. Default: 1 s
	Retries  int           // repetitions of a block before the transfer fails. Default: 8

	// Observe is called once for every transfer that has ended, other than size
	// probes. It must return quickly.
	Observe func(Transfer)
	Log     *slog.Logger
	Metrics prometheus.Registerer // holds the server's metrics while it runs; nil for none
}

// Transfer is one file sent to one client, completely or in part.
type Transfer struct {
	Peer     netip.AddrPort
	File     string // cleaned: without leading slashes
	Bytes    int64  // bytes of the file that were sent
	Duration time.Duration
	Err      error // nil if the client has acknowledged everything
}

// Server answers TFTP read requests.
type Server struct {
	cfg        Config
	metrics    *metrics
	admitted   *budget.Slots
	slots      chan struct{}
	strangers  chan struct{} // the slots for unknown clients
	complaints *rate.Limiter // any client can cause messages, which must not flood the log

	ready chan struct{}
	addr  netip.AddrPort
}

// slotWait is less than the 4 s after which firmware repeats its request.
const slotWait = 3 * time.Second

// New returns a Server that runs once.
func New(cfg Config) (*Server, error) {
	if cfg.Source == nil {
		return nil, errors.New("tftp: no source of files")
	}
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.AddrPortFrom(netip.IPv4Unspecified(), 69)
	}
	setDefault(&cfg.Parallel, 256)
	setDefault(&cfg.PerPeer, 8)
	setDefault(&cfg.MaxBlock, 1468) // 1500 less the headers of IPv4, UDP and TFTP
	setDefault(&cfg.Timeout, time.Second)
	setDefault(&cfg.Retries, 8)
	if cfg.MaxBlock < 512 || cfg.MaxBlock > 65464 {
		return nil, fmt.Errorf("tftp: block size %d is not between 512 and 65464", cfg.MaxBlock)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg:        cfg,
		metrics:    newMetrics(),
		admitted:   budget.NewSlots(budget.Limits{Total: 4 * cfg.Parallel, PerPeer: cfg.PerPeer, Reserve: cfg.Parallel, Known: cfg.Known}),
		slots:      make(chan struct{}, cfg.Parallel),
		strangers:  make(chan struct{}, cfg.Parallel-cfg.Parallel/4),
		complaints: rate.NewLimiter(5, 50),
		ready:      make(chan struct{}),
	}, nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Ready is closed when the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is the address on which the server listens, once it is ready.
func (s *Server) Addr() netip.AddrPort {
	<-s.ready
	return s.addr
}

// Run listens and answers until ctx ends, and then returns nil. It ends running
// transfers with an error to the client; if a client is silent, that takes up
// to Timeout × (Retries + 1).
func (s *Server) Run(ctx context.Context) error {
	unregister, err := prom.Register(s.cfg.Metrics, s.metrics.all()...)
	if err != nil {
		return fmt.Errorf("register TFTP metrics: %w", err)
	}
	defer unregister()
	conn, err := listen(s.cfg.Listen)
	if err != nil {
		return err
	}
	s.addr = conn.LocalAddr().(*net.UDPAddr).AddrPort()

	server := tftp.NewServer(
		func(name string, w io.ReaderFrom) error { return s.read(ctx, name, w) },
		s.write,
	)
	server.SetBlockSize(s.cfg.MaxBlock) // clamped further to the MTU of the interface
	server.SetTimeout(s.cfg.Timeout)
	server.SetRetries(s.cfg.Retries)
	server.SetBackoff(func(int) time.Duration { return 0 }) // the timeout is the pause

	var stopper sync.WaitGroup
	stopper.Go(func() {
		<-ctx.Done()
		server.Shutdown() // waits for all transfers
	})
	s.cfg.Log.Info("tftp: listening", "address", s.addr)
	close(s.ready)
	// Serve only returns an error before it has read anything; after that only Shutdown ends it.
	if err := server.Serve(conn); err != nil {
		return errors.Join(fmt.Errorf("serve TFTP on UDP %s: %w", s.addr, err), conn.Close())
	}
	stopper.Wait()
	return nil
}

func listen(at netip.AddrPort) (*net.UDPConn, error) {
	network := "udp4" // a socket for both families reports no IPv4 interface, and so no MTU
	if at.Addr().Is6() {
		network = "udp6"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("tftp: %w: is another TFTP server running (see ss -lunp 'sport = :%d'), "+
			"or does this program lack CAP_NET_BIND_SERVICE?", err, at.Port())
	}
	return conn, nil
}

// read handles one read request; the error that it returns is sent to the client.
func (s *Server) read(ctx context.Context, asked string, w io.ReaderFrom) error {
	peer := peerOf(w)
	admitted, limit := s.admitted.Take(peer.Addr())
	if limit != "" {
		s.metrics.ended("busy", 0)
		return errors.New("too many requests")
	}
	defer s.admitted.Release(admitted)

	name, err := cleanName(asked)
	if err != nil {
		s.metrics.ended("bad_name", 0)
		s.complain(slog.LevelWarn, asked, peer, err)
		return errors.New("bad file name")
	}
	done, err := s.slot(ctx, admitted.Known())
	if err != nil {
		s.metrics.ended("busy", 0)
		s.complain(slog.LevelWarn, name, peer, err)
		return err
	}
	defer done()

	file, err := s.cfg.Source(ctx, peer, name)
	if errors.Is(err, fs.ErrNotExist) {
		s.metrics.ended("missing", 0)
		s.complain(slog.LevelInfo, name, peer, errors.New("no such boot file"))
		return errors.New("no such boot file")
	}
	if err != nil {
		s.metrics.ended("failed", 0)
		s.complain(slog.LevelError, name, peer, fmt.Errorf("open it: %w", err))
		return errors.New("the server cannot open this file; its log says why")
	}
	err = s.send(ctx, peer, name, file, w)
	if closeErr := file.Close(); closeErr != nil {
		s.complain(slog.LevelWarn, name, peer, fmt.Errorf("close it: %w", closeErr))
	}
	return err
}

// slot waits until one of the Parallel transfers ends. An unknown client first
// waits for a slot in strangers.
func (s *Server) slot(ctx context.Context, known bool) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, slotWait)
	defer cancel()
	if !known {
		if err := s.enter(ctx, s.strangers); err != nil {
			return nil, err
		}
	}
	leave := func() {
		if !known {
			<-s.strangers
		}
	}
	if err := s.enter(ctx, s.slots); err != nil {
		leave()
		return nil, err
	}
	return func() { <-s.slots; leave() }, nil
}

func (s *Server) enter(ctx context.Context, slots chan<- struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return errors.New("the server stops")
	}
	return fmt.Errorf("%d transfers are running: try again", cap(slots))
}

func (s *Server) send(ctx context.Context, peer netip.AddrPort, name string, file io.ReadSeeker, w io.ReaderFrom) error {
	s.metrics.active.Inc()
	defer s.metrics.active.Dec()
	start := time.Now()
	n, err := w.ReadFrom(&untilDone{ctx: ctx, ReadSeeker: file})
	t := Transfer{Peer: peer, File: name, Bytes: n, Duration: time.Since(start), Err: err}
	switch outcome := outcomeOf(err); outcome {
	case "done":
		s.metrics.done(n, t.Duration)
		s.cfg.Log.Debug("tftp: sent", "file", name, "peer", peer, "bytes", n, "duration", t.Duration)
	case "probe", "duplicate":
		s.metrics.ended(outcome, n)
		return err
	default:
		s.metrics.ended(outcome, n)
		s.complain(slog.LevelWarn, name, peer, fmt.Errorf("transfer failed after %d bytes: %w", n, err))
	}
	if s.cfg.Observe != nil {
		s.cfg.Observe(t)
	}
	return err
}

// outcomeOf parses the client's error code from the text, because pin/tftp does
// not return it otherwise.
func outcomeOf(err error) string {
	switch {
	case err == nil:
		return "done"
	case strings.HasPrefix(err.Error(), "sending block 0: code="):
		return "probe" // block 0 is the OACK. Code 8 by RFC 2347, but some firmware says 0 (pin/tftp#125).
	case strings.HasPrefix(err.Error(), "sending block 1: code=5,"):
		return "duplicate" // the client had sent its request twice, and loads from the other transfer
	default:
		return "failed"
	}
}

func (s *Server) write(name string, w io.WriterTo) error {
	s.metrics.ended("write", 0)
	s.complain(slog.LevelWarn, name, peerOf(w), errors.New("write requests are refused"))
	return errors.New("this server is read-only")
}

func (s *Server) complain(level slog.Level, name string, peer netip.AddrPort, err error) {
	if !s.complaints.Allow() {
		return
	}
	if len(name) > 255 {
		name = name[:255] + "…"
	}
	s.cfg.Log.Log(context.Background(), level, fmt.Sprintf("tftp: file %q asked by %s: %v", name, peer.Addr(), err))
}

// peerOf returns the peer of a transfer in either direction.
func peerOf(transfer any) netip.AddrPort {
	t, ok := transfer.(interface{ RemoteAddr() net.UDPAddr })
	if !ok {
		return netip.AddrPort{}
	}
	udp := t.RemoteAddr()
	peer := udp.AddrPort()
	return netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
}

// untilDone fails reads once ctx has ended. It can seek, so that pin/tftp finds
// the size, except for netascii transfers, where it must not report one.
type untilDone struct {
	ctx context.Context
	io.ReadSeeker
}

func (r *untilDone) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, errors.New("the server stops")
	}
	return r.ReadSeeker.Read(p)
}
