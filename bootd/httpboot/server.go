package httpboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/prom"
	"github.com/rackweft/rackweft/internal/receipt"
)

// Config configures a Server. Decider and Assets are required.
type Config struct {
	Listen  netip.AddrPort // TCP. Default: port 8080 of all IPv4 addresses
	Decider Decider
	Assets  Assets
	Files   fs.FS // the iPXE binaries, by name; nil for none

	MaxConns        int // open connections. Default: 4096
	MaxConnsPerPeer int // per address. Default: 32
	// Known reports whether an address is a registered Machine's: a quarter of
	// MaxConns is reserved for those. nil: none is.
	Known        func(netip.Addr) bool
	WriteTimeout time.Duration // for a client to receive 512 KiB. Default: 60 s

	// Observe is called once for every GET of a file or blob, when it has
	// ended. Progress is called at most once a second while it runs. Both must
	// return quickly.
	Observe  func(Transfer)
	Progress func(Transfer)
	Log      *slog.Logger
	Metrics  prometheus.Registerer // holds the server's metrics while it runs; nil for none
}

// Server answers boot firmware, iPXE and Ignition.
type Server struct {
	cfg        Config
	metrics    *metrics
	complaints *rate.Limiter // any client can cause messages, which must not flood the log

	conns receipt.Conns
	ready chan struct{}
	addr  netip.AddrPort
}

// stopAfter is how long requests may continue when the server stops: long
// enough for scripts, too short for images, which clients resume or request
// again.
const stopAfter = 2 * time.Second

// New returns a Server that runs once.
func New(cfg Config) (*Server, error) {
	if cfg.Decider == nil || cfg.Assets == nil {
		return nil, errors.New("httpboot: no decider or no assets")
	}
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.AddrPortFrom(netip.IPv4Unspecified(), 8080)
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 4096
	}
	if cfg.MaxConnsPerPeer <= 0 {
		cfg.MaxConnsPerPeer = 32
	}
	if cfg.WriteTimeout <= 0 {
		cfg.WriteTimeout = time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg:        cfg,
		metrics:    newMetrics(),
		complaints: rate.NewLimiter(5, 50),
		ready:      make(chan struct{}),
	}, nil
}

// Ready is closed when the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is where the server listens, once it is ready.
func (s *Server) Addr() netip.AddrPort {
	<-s.ready
	return s.addr
}

// Run listens and answers until ctx ends, and then returns nil within two
// seconds.
func (s *Server) Run(ctx context.Context) error {
	unregister, err := prom.Register(s.cfg.Metrics, s.metrics.all()...)
	if err != nil {
		return fmt.Errorf("register HTTP boot metrics: %w", err)
	}
	defer unregister()
	network := "tcp4"
	if s.cfg.Listen.Addr().Is6() {
		network = "tcp"
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, s.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("httpboot: %w: find out who uses the port with ss -ltnp 'sport = :%d'", err, s.cfg.Listen.Port())
	}
	s.addr = l.Addr().(*net.TCPAddr).AddrPort()
	limited := budget.Listen(l, budget.Limits{
		Total: s.cfg.MaxConns, PerPeer: s.cfg.MaxConnsPerPeer, Reserve: s.cfg.MaxConns / 4, Known: s.cfg.Known,
		Refused: func(limit string) { s.metrics.refused.WithLabelValues(limit).Inc() },
		Closed:  func(string) { s.metrics.refused.WithLabelValues("idle").Inc() },
		Open:    func(n int) { s.metrics.conns.Set(float64(n)) },
	})
	server := &http.Server{
		Handler:           s.routes(),
		ConnContext:       s.conns.Context,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      s.cfg.WriteTimeout, // extended by transferWriter
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	var stopper sync.WaitGroup
	served := make(chan struct{})
	stopper.Go(func() {
		select {
		case <-ctx.Done():
		case <-served:
		}
		s.stop(context.WithoutCancel(ctx), server)
	})
	s.cfg.Log.Info("httpboot: listening", "address", s.addr)
	close(s.ready)
	err = server.Serve(limited)
	close(served)
	stopper.Wait()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP boot on %s: %w", s.addr, err)
	}
	return nil
}

func (s *Server) stop(ctx context.Context, server *http.Server) {
	grace, cancel := context.WithTimeout(ctx, stopAfter)
	defer cancel()
	if err := server.Shutdown(grace); err == nil {
		return
	}
	if err := server.Close(); err != nil {
		s.cfg.Log.Warn("httpboot: closing connections failed", "error", err)
	}
}
