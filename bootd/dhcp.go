package bootd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	// dhcpLook is how often the interfaces to serve are checked, dhcpRetry the delay before a failed one is tried
	// again.
	dhcpLook  = time.Second
	dhcpRetry = 5 * time.Second
)

// dhcpFaults holds why DHCP does not answer, by interface.
type dhcpFaults struct {
	mu sync.Mutex
	by map[string]error
}

func (f *dhcpFaults) of(iface string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[iface]
}

// set reports whether the fault is new.
func (f *dhcpFaults) set(iface string, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.by[iface]
	if f.by == nil {
		f.by = map[string]error{}
	}
	if err == nil {
		delete(f.by, iface)
		return old != nil
	}
	f.by[iface] = err
	return old == nil || old.Error() != err.Error()
}

// dhcpServers are the DHCP servers of this bootd, one per interface.
type dhcpServers struct {
	interfaces []string // that the configuration names
	ifaces     *interfaces
	store      *store.Store
	cache      *store.Cache
	decider    *boot.Decider
	faults     *dhcpFaults
	served     wait.Signal // set when the served interfaces change
	metrics    prometheus.Registerer
	log        *slog.Logger
}

// wanted returns the interfaces that the configuration names and those of provisioning Subnets, if this machine has
// them.
func (d *dhcpServers) wanted() []string {
	names := slices.Clone(d.interfaces)
	here := d.ifaces.get()
	for _, s := range store.CachedList[api.Subnet](d.cache) {
		if _, ok := here[s.Spec.Interface]; ok && s.Spec.Purpose == api.Provisioning {
			names = append(names, s.Spec.Interface)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// dhcpServer is DHCP on one interface.
type dhcpServer struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // why it ended; set when done is closed
}

func (s *dhcpServer) stop() {
	s.cancel()
	<-s.done
}

// run keeps a DHCP server on every interface that needs one. Those that the configuration names must work at the
// start; a later failure, or one of a Subnet's interface, is retried and affects nothing else.
func (d *dhcpServers) run(ctx context.Context, ready chan<- struct{}) error {
	running, retry := map[string]*dhcpServer{}, map[string]time.Time{}
	defer func() {
		for _, s := range running {
			s.stop()
		}
	}()
	for _, name := range d.interfaces {
		if running[name] != nil {
			continue
		}
		s, err := d.start(ctx, name)
		if err != nil {
			return err
		}
		running[name] = s
	}
	d.adjust(ctx, running, retry)
	if len(d.wanted()) == 0 {
		d.log.Warn("DHCP serves no network yet: no --interface, and no provisioning Subnet has an interface of this machine")
	}
	close(ready)
	tick := time.NewTicker(dhcpLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			d.adjust(ctx, running, retry)
		}
	}
}

// adjust starts and stops servers to match the Subnets and interfaces.
func (d *dhcpServers) adjust(ctx context.Context, running map[string]*dhcpServer, retry map[string]time.Time) {
	wanted, news := d.wanted(), false
	for name, s := range running {
		select {
		case <-s.done: // the interface was removed
			delete(running, name)
			retry[name] = time.Now().Add(dhcpRetry)
			news = d.fault(name, s.err) || news
			continue
		default:
		}
		if !slices.Contains(wanted, name) {
			s.stop()
			delete(running, name)
			d.log.Info("DHCP no longer serves an interface", "interface", name)
		}
	}
	for _, name := range wanted {
		if running[name] != nil || time.Now().Before(retry[name]) {
			continue
		}
		s, err := d.start(ctx, name)
		if ctx.Err() != nil {
			return
		}
		news = d.fault(name, err) || news
		if err != nil {
			retry[name] = time.Now().Add(dhcpRetry)
			continue
		}
		running[name] = s
	}
	if news {
		d.served.Set()
	}
}

func (d *dhcpServers) fault(name string, err error) (news bool) {
	news = d.faults.set(name, err)
	if news && err != nil {
		d.log.Error("DHCP does not answer; retrying", "interface", name, "error", err)
	}
	return news
}

// start returns when the server listens, or has failed to.
func (d *dhcpServers) start(ctx context.Context, name string) (*dhcpServer, error) {
	var own []netip.Addr // a request received on another interface may name any of them
	for _, prefixes := range d.ifaces.get() {
		for _, p := range prefixes {
			own = append(own, p.Addr())
		}
	}
	server, err := dhcp.New(dhcp.Config{
		Interfaces: []string{name}, ServerIDs: own, Log: d.log,
		Metrics: prometheus.WrapRegistererWith(prometheus.Labels{"interface": name}, d.metrics),
	}, held{d.decider, d.store})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &dhcpServer{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer cancel()
		s.err = server.Run(ctx)
	}()
	select {
	case <-server.Ready():
		return s, nil
	case <-s.done:
		if s.err == nil {
			return nil, fmt.Errorf("start DHCP on %s: %w", name, context.Canceled)
		}
		return nil, s.err
	}
}
