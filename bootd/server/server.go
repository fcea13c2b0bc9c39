package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/internal/budget"
	"github.com/rackweft/rackweft/internal/prom"
	"github.com/rackweft/rackweft/internal/receipt"
)

const (
	// headerTime limits the TLS handshake and the headers of a request.
	headerTime = 10 * time.Second
	// bodyTime limits an ordinary request's body and answer; a long one must make progress within each such
	// period.
	bodyTime = 30 * time.Second
	idleTime = 2 * time.Minute
	// pingAfter is how long an HTTP/2 connection may be silent before it is pinged.
	pingAfter   = 15 * time.Second
	headerBytes = 64 << 10
	// maxConns is how many TLS connections are open at once: each host holds one.
	// At most maxStrangers of them are unauthenticated and not from a Machine's address.
	maxConns, maxStrangers, maxConnsPerPeer = 16384, 1024, 128
	// stopTime is how long ordinary requests may take to end at a stop.
	stopTime = 4 * time.Second
)

// Server is bootd's HTTP API.
type Server struct {
	conf    Config
	log     *slog.Logger
	mux     *http.ServeMux
	openapi []byte
	metrics *metrics
	conns   receipt.Conns
	auth    *auth
	streams *streams
	// channels pair people's requests with the hosts' channels.
	channels *channels

	listening chan struct{} // closed when addr is set
	addr      net.Addr
}

// New prepares a Server; Run serves.
func New(c Config) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Server{
		conf: c, log: c.Log, mux: http.NewServeMux(), metrics: newMetrics(), listening: make(chan struct{}),
		streams: &streams{lasts: newLasting()}, channels: newChannels(),
	}
	s.auth = &auth{tokens: hashTokens(c.Tokens), failures: newLimiter(1, 10), store: c.Store, recovery: c.Recovery, metrics: s.metrics, log: c.Log}
	s.streams.ctx, s.streams.stop = context.WithCancel(context.Background())
	if _, err := prom.Register(c.Registerer, s.metrics.all()...); err != nil {
		return nil, fmt.Errorf("register the API server's metrics: %w", err)
	}
	if err := s.route(); err != nil {
		return nil, err
	}
	return s, nil
}

// Listening is closed when Run has opened its listeners.
func (s *Server) Listening() <-chan struct{} { return s.listening }

// Addr is the address of the TLS listener, nil without one. It is set once
// Listening is closed.
func (s *Server) Addr() net.Addr { return s.addr }

// Run opens the listeners and serves until ctx ends; then streams end at once,
// and ordinary requests within a few seconds. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	defer s.streams.stop()
	var servers []*http.Server
	g, gctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener, trusted bool, run func(*http.Server) error) {
		server := s.httpServer(trusted)
		servers = append(servers, server)
		g.Go(func() error {
			if err := run(server); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	local, err := s.listenUnix()
	if err != nil {
		return err
	}
	remote, err := s.listenTLS(ctx)
	if err != nil {
		return errors.Join(err, closeUnix(local, s.conf.Socket))
	}
	if local != nil {
		serve(local, true, func(h *http.Server) error { return h.Serve(local) })
	}
	if remote != nil {
		s.addr = remote.Addr()
		serve(remote, false, func(h *http.Server) error {
			h.TLSConfig = s.conf.TLS.Clone()
			return h.ServeTLS(remote, "", "")
		})
	}
	g.Go(func() error { return s.followHosts(gctx) })
	close(s.listening)
	<-gctx.Done()
	s.streams.stop()
	s.stop(servers)
	err = g.Wait()
	s.streams.hijacked.Wait()
	return errors.Join(err, closeUnix(local, s.conf.Socket))
}

// stop lets requests under way end, all servers side by side, then cuts them.
func (s *Server) stop(servers []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, h := range servers {
		wg.Go(func() {
			if err := h.Shutdown(ctx); err != nil {
				s.log.Warn("requests are cut off", "error", errors.Join(err, h.Close()))
			}
		})
	}
	wg.Wait()
}

type (
	trustedKey struct{}
	connKey    struct{}
)

// vouch marks a caller's connection as authenticated, so that strangers' connections do not displace it.
func vouch(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		budget.Trust(c)
	}
}

func (s *Server) httpServer(trusted bool) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(trusted)
	handler := http.Handler(s.mux)
	if trusted {
		handler = s.profiled()
	}
	return &http.Server{
		Handler:           s.whileHeld(handler),
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    headerBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), trustedKey{}, trusted)
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(s.conns.Context(ctx, c), connKey{}, c)
		},
	}
}

func (s *Server) listenTLS(ctx context.Context) (net.Listener, error) {
	if s.conf.Listen == "" {
		return nil, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.conf.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(s.conf.Listen)
		return nil, fmt.Errorf("port %s of the API is in use: \"ss -tlnp sport = :%s\" shows by whom: %w", port, port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for the API on %s: %w", s.conf.Listen, err)
	}
	return budget.Listen(l, budget.Limits{
		Total: maxConns, PerPeer: maxConnsPerPeer, Reserve: maxConns - maxStrangers, Known: s.conf.Known,
		Refused: func(limit string) { s.metrics.refused.WithLabelValues(limit).Inc() },
		Closed:  func(string) { s.metrics.refused.WithLabelValues("idle").Inc() },
		Open:    func(n int) { s.metrics.conns.Set(float64(n)) },
	}), nil
}

// listenUnix creates the socket in a directory of its own and moves it into place, so that only root can open it
// at any time.
func (s *Server) listenUnix() (net.Listener, error) {
	path := s.conf.Socket
	if path == "" {
		return nil, nil
	}
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("another bootd serves %s: stop it, or use another --run-dir", path), c.Close())
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the API's socket: %w", err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s")
	if err != nil {
		return nil, fmt.Errorf("make the API's socket: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "s")})
	if err != nil {
		return nil, fmt.Errorf("make the API's socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(filepath.Join(dir, "s"), 0o600)
	if err == nil {
		err = os.Rename(filepath.Join(dir, "s"), path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the API's socket: %w", err), l.Close())
	}
	return l, nil
}

func closeUnix(l net.Listener, path string) error {
	if l == nil {
		return nil
	}
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the API's socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the API's socket: %w", err)
	}
	return nil
}
