package overlay

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/nodeagent"
	"github.com/rackweft/rackweft/nodeagent/overlay/dhcp"
)

// serving runs the servers for the guests of this host: one Server for each Network
// with guests here.
type serving struct {
	tenants   tenants
	log       *slog.Logger
	forwarder *dhcp.Forwarder
	// config is the handler that ServeConfigs set; guestAt finds the guest that sent a
	// request.
	config  func(w http.ResponseWriter, r *http.Request, uid string)
	guestAt func(network, remote string) (uid string)

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before it and after it
	running sync.WaitGroup
	servers map[string]*served // by the Network's uid
}

// run serves guests until ctx is done and all servers have ended. It calls begun once
// servers can be started.
func (s *serving) run(ctx context.Context, begun func()) {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	begun()
	<-ctx.Done()
	s.mu.Lock()
	s.ctx = nil
	s.mu.Unlock()
	s.running.Wait()
}

// served is a running Server.
type served struct {
	*dhcp.Server
	namespace uint64 // inode
	network   dhcp.Network
	stop      context.CancelFunc
	done      chan struct{}
	configs   *configServer // nil while no guest has a config to fetch
}

// end stops the Server and waits until it holds nothing of the namespace.
func (s *served) end() {
	if s.configs != nil {
		s.configs.end()
	}
	s.stop()
	<-s.done
}

func (s *served) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Run implements nodeagent.Runner: it serves the guests at their gateways until ctx is
// done, and reports repairs.
func (o *Overlay) Run(ctx context.Context, host nodeagent.Host) {
	o.ledger.tellTo(host)
	defer o.ledger.tellTo(nil)
	o.serving.run(ctx, host.Changed) // Networks that were applied before are not served yet
}

// toServe returns the configuration that the guests on those ports are served.
func toServe(n network, ports []guestPort) dhcp.Network {
	out := dhcp.Network{MTU: n.mtu, Domain: n.domain, Resolvers: n.dns}
	for _, p := range ports {
		g := dhcp.Guest{Name: p.guest, MAC: dhcp.MAC(p.mac)}
		for _, a := range p.addresses {
			if a.Is4() || n.lease6.IsValid() { // without it the gateway has no IPv6
				g.Addresses = append(g.Addresses, a)
			}
		}
		out.Guests = append(out.Guests, g)
	}
	return out
}

// serve ensures that a Server runs for the guests on the Network's ports, and none if
// there are no guests.
func (s *serving) serve(tenant place, n network, ports []guestPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.ctx.Err() != nil {
		return nil
	}
	have := s.servers[n.uid]
	if len(ports) == 0 {
		s.drop(n.uid)
		return nil
	}
	want := toServe(n, ports)
	namespace, bridge, err := whereToServe(tenant, n)
	if err != nil {
		return err
	}
	if have != nil && (have.ended() || have.namespace != namespace || have.Index() != bridge || have.IPv6() != want.IPv6()) {
		s.drop(n.uid)
		have = nil
	}
	switch {
	case have == nil:
		if have, err = s.start(n, want, namespace); err != nil {
			return err
		}
	case !reflect.DeepEqual(have.network, want):
		have.Set(want)
		have.network = want
	}
	return s.serveConfigs(n, have, ports)
}

// whereToServe identifies a namespace and a bridge, so that recreated ones are noticed.
func whereToServe(tenant place, n network) (namespace uint64, bridge int, err error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(tenant.ns), &stat); err != nil {
		return 0, 0, fmt.Errorf("look at the network namespace: %w", err)
	}
	l, err := tenant.LinkByName(bridgeName(n.vni))
	if err != nil {
		return 0, 0, fmt.Errorf("find %s: %w", bridgeName(n.vni), err)
	}
	return stat.Ino, l.Attrs().Index, nil
}

// start is called with mu held.
func (s *serving) start(n network, want dhcp.Network, namespace uint64) (*served, error) {
	path := s.tenants.pathOf(n)
	server, err := dhcp.Open(dhcp.Options{Bridge: bridgeName(n.vni), Forwarder: s.forwarder, Log: s.log,
		Within: func(f func() error) error { return withinPath(path, f) }}, want)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(s.ctx)
	run := &served{Server: server, namespace: namespace, network: want, stop: stop, done: make(chan struct{})}
	s.servers[n.uid] = run
	s.running.Go(func() {
		defer close(run.done)
		defer stop()
		if err := server.Run(ctx); err != nil {
			s.log.Warn("overlay: guests are not served until the next pass", "network", n.name, "error", err)
		}
	})
	return run, nil
}

// stop ends the servers of a Network before it is removed.
func (s *serving) stop(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(uid)
}

func (s *serving) drop(uid string) {
	if have := s.servers[uid]; have != nil {
		have.end()
		delete(s.servers, uid)
	}
}

func withinPath(path string, f func() error) error {
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return within(ns, f)
}
