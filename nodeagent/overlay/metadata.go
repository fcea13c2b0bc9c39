package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/budget"
)

// metadataAddress is the address at which guests fetch their config, on every Network.
func metadataAddress() netip.Prefix { return netip.MustParsePrefix("169.254.169.254/32") }

const (
	metadataPort = 80
	// metadataConns bounds the open connections of one address.
	metadataConns = 4
	// metadataTime bounds one request, including the time that a slow bootd takes.
	metadataTime = 2 * time.Minute
)

// ServeConfigs sets the handler of requests to 169.254.169.254, port 80, by the Guest
// with that uid; "" means that the source is not a Guest of the Network on this host.
// The handler ends with the request's context. Without it, and before Run, guests get
// no answer.
func (o *Overlay) ServeConfigs(config func(w http.ResponseWriter, r *http.Request, uid string)) {
	o.serving.mu.Lock()
	defer o.serving.mu.Unlock()
	o.serving.config = config
}

// configServer serves configs to the guests of one Network on this host.
type configServer struct {
	ctx    context.Context
	cancel context.CancelFunc
	http   *http.Server
	done   chan struct{} // closed when it no longer accepts

	entering sync.Mutex // held while a request is accepted
	handling sync.WaitGroup
}

// serveConfigs runs the configServer of a Network while one of its guests has a config
// to fetch. It is called with mu held.
func (s *serving) serveConfigs(n network, to *served, ports []guestPort) error {
	wanted := s.config != nil && slices.ContainsFunc(ports, func(p guestPort) bool { return p.config })
	if to.configs != nil && (!wanted || to.configs.ended()) {
		to.configs.end()
		to.configs = nil
	}
	if !wanted || to.configs != nil {
		return nil
	}
	listener, err := s.listenConfigs(n)
	if err != nil {
		return fmt.Errorf("serve configs on %s: %w", bridgeName(n.vni), err)
	}
	to.configs = s.startConfigs(n, listener)
	return nil
}

func (s *serving) listenConfigs(n network) (l net.Listener, err error) {
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			// The address may not exist yet: a bridge gets it when it is created.
			err = errors.Join(unix.BindToDevice(int(fd), bridgeName(n.vni)), unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1))
		}), err)
	}}
	config.SetMultipathTCP(false)
	err = withinPath(s.tenants.pathOf(n), func() error {
		l, err = config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(metadataAddress().Addr(), metadataPort).String())
		return err
	})
	return l, err
}

func (s *serving) startConfigs(n network, listener net.Listener) *configServer {
	ctx, cancel := context.WithCancel(s.ctx)
	c := &configServer{ctx: ctx, cancel: cancel, done: make(chan struct{})}
	c.http = &http.Server{Handler: c.handler(s, n.name), BaseContext: func(net.Listener) context.Context { return ctx },
		ReadTimeout: 10 * time.Second, WriteTimeout: metadataTime, MaxHeaderBytes: 8 << 10,
		ErrorLog: log.New(io.Discard, "", 0)} // guests can cause them
	c.http.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { _ = c.http.Close() })
	s.running.Go(func() {
		defer close(c.done)
		defer stop()
		err := c.http.Serve(budget.Listen(listener, budget.Limits{PerPeer: metadataConns, Idle: metadataTime}))
		if ctx.Err() == nil {
			s.log.Warn("overlay: configs are not served until the next pass", "network", n.name, "error", err)
		}
		c.finish()
	})
	return c
}

// handler passes requests to the config handler, with the guest that sent them.
func (s *configServer) handler(of *serving, network string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			return
		}
		defer s.handling.Done()
		of.config(w, r, of.guestAt(network, r.RemoteAddr))
	})
}

// enter counts a request, unless the server has ended.
func (s *configServer) enter() bool {
	s.entering.Lock()
	defer s.entering.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.handling.Add(1)
	return true
}

// end closes all connections and waits until nothing of the server runs.
func (s *configServer) end() {
	s.finish()
	<-s.done
}

// finish closes all connections and waits for their handlers.
func (s *configServer) finish() {
	s.entering.Lock() // no request is entering now, and none follows
	s.cancel()
	s.entering.Unlock()
	_ = s.http.Close()
	s.handling.Wait()
}

func (s *configServer) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// guestAt returns the uid of the guest with an address here, or "". The taps' filters
// ensure that no other guest sends from that address.
func (o *Overlay) guestAt(network, remote string) string {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return ""
	}
	ports, _ := o.portsOf(network)
	i := slices.IndexFunc(ports, func(p guestPort) bool { return slices.Contains(p.addresses, from.Addr().Unmap()) })
	if i < 0 {
		return ""
	}
	return ports[i].uid
}
