package bgp

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp/health"
	"github.com/rackweft/rackweft/bgp/loopback"
	"github.com/rackweft/rackweft/internal/wait"
)

// serviceKey is one address of one service.
type serviceKey struct {
	service string
	address netip.Addr
}

// serviceCheck is the state of one address.
type serviceCheck struct {
	cancel context.CancelFunc
	check  *api.ServiceCheck // nil always passes
	last   bool

	known    bool // looked at; the fields below are valid only then
	passes   bool
	since    time.Time
	failures int
	fault    string // why it failed last
}

// serviceChecks checks the services behind addresses, with one goroutine for
// each that has a check.
type serviceChecks struct {
	wake    wait.Signal // the result of a check has changed
	running sync.WaitGroup

	mu  sync.Mutex
	all map[serviceKey]*serviceCheck
}

// watch starts the checks of these services, and stops all others. An unchanged
// check continues.
func (c *serviceChecks) watch(ctx context.Context, services []api.BGPService) {
	c.mu.Lock()
	defer c.mu.Unlock()
	want := map[serviceKey]bool{}
	for _, s := range services {
		for _, a := range s.Addresses {
			key := serviceKey{s.Name, a}
			want[key] = true
			had, known := c.all[key]
			if known && reflect.DeepEqual(had.check, s.Check) {
				had.last = s.LastResort
				continue
			}
			if known {
				had.cancel()
			}
			c.begin(ctx, key, s)
		}
	}
	for key, had := range c.all {
		if !want[key] {
			had.cancel()
			delete(c.all, key)
		}
	}
}

// begin starts the check of one address. The caller holds mu.
func (c *serviceChecks) begin(ctx context.Context, key serviceKey, s api.BGPService) {
	ctx, cancel := context.WithCancel(ctx)
	one := &serviceCheck{cancel: cancel, check: s.Check, last: s.LastResort, since: time.Now()}
	c.all[key] = one
	if s.Check == nil {
		one.known, one.passes = true, true
		return
	}
	c.running.Go(func() {
		health.Watch(ctx, key.address, *s.Check, func(passes bool, fault error) { c.note(one, passes, fault) })
	})
}

func (c *serviceChecks) note(one *serviceCheck, passes bool, fault error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one.known, one.passes, one.since = true, passes, time.Now()
	if !passes {
		one.failures++
		one.fault = fault.Error()
	}
	c.wake.Set()
}

// stop stops all checks and waits for them.
func (c *serviceChecks) stop() {
	c.mu.Lock()
	for _, one := range c.all {
		one.cancel()
	}
	c.mu.Unlock()
	c.running.Wait()
}

// states returns the state of each address by service and address, and how to
// announce those that pass.
func (c *serviceChecks) states() ([]api.BGPServiceStatus, map[netip.Addr]service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []api.BGPServiceStatus
	announce := map[netip.Addr]service{}
	for _, key := range slices.SortedFunc(maps.Keys(c.all), serviceKey.compare) {
		one := c.all[key]
		x := api.BGPServiceStatus{Service: key.service, Address: key.address, State: api.ServiceChecking, Since: one.since, Failures: one.failures, LastError: one.fault}
		switch {
		case !one.known:
		case one.passes:
			x.State = api.ServiceAnnounced
			announce[key.address] = service{}
		case one.last:
			x.State = api.ServiceLastResort
			announce[key.address] = service{last: true}
		default:
			x.State = api.ServiceWithdrawn
		}
		list = append(list, x)
	}
	return list, announce
}

func (k serviceKey) compare(o serviceKey) int {
	return cmp.Or(strings.Compare(k.service, o.service), k.address.Compare(o.address))
}

// announceServices puts the host's own and its services' addresses on lo, and
// announces those whose check passes. An address stays on lo while its check
// fails, because the check connects to it.
func (s *speaker) announceServices(ctx context.Context) {
	if s.server == nil {
		return
	}
	own := ownAddresses(s.server.part)
	s.onLo = map[netip.Prefix]bool{}
	for _, a := range own {
		s.onLo[api.HostPrefix(a)] = true
		delete(s.learned, api.HostPrefix(a))
	}
	if err := loopback.Sync(own); err != nil {
		s.retry = true
		s.status.Problem = err.Error()
		s.options.Log.Warn("bgp: cannot update all addresses of lo", "error", err)
	}
	before := s.status.Services
	list, announce := s.services.states()
	for i := range list {
		if x := &list[i]; !ownNextHop(s.server.part, api.HostPrefix(x.Address)).IsValid() {
			x.State, x.LastError = api.ServiceWithdrawn, "this host has no address of that family for the next hop"
			delete(announce, x.Address)
		}
	}
	for _, a := range s.server.part.Loopbacks {
		announce[a] = service{}
	}
	if err := s.server.serve(ctx, s.server.part, announce, false); err != nil {
		s.retry = true
		s.status.Problem = err.Error()
		s.options.Log.Warn("bgp: cannot announce all services", "error", err)
	}
	s.status.Services, s.status.Loopbacks = list, nil
	for _, a := range s.server.part.Loopbacks {
		if _, announced := s.server.served[a]; announced {
			s.status.Loopbacks = append(s.status.Loopbacks, a)
		}
	}
	for _, x := range list {
		i := slices.IndexFunc(before, func(o api.BGPServiceStatus) bool { return o.Service == x.Service && o.Address == x.Address })
		if i < 0 || before[i].State != x.State {
			s.options.Log.Info("bgp: service", "name", x.Service, "address", x.Address, "state", x.State, "error", x.LastError)
		}
	}
	s.aggregate(ctx)
}

// servesWithin reports whether an address within x is announced.
func (s *speaker) servesWithin(x netip.Prefix) bool {
	for a := range s.server.served {
		if x.Contains(a) && x != api.HostPrefix(a) {
			return true
		}
	}
	return false
}
