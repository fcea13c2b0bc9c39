package bgp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	gobgp "github.com/osrg/gobgp/v3/api"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bgp/fib"
	"github.com/rackweft/rackweft/internal/wait"
)

const (
	lookInterval = time.Second // between looks at the part's file and the sessions
	// lookShare limits the share of time spent on reading sessions when there
	// are many; a session that comes up or goes down is read at once.
	lookShare        = 500
	mostLookInterval = 10 * time.Second
	resyncInterval   = 30 * time.Second // between comparisons of all routes with the kernel
	settleDelay      = 100 * time.Millisecond
	kernelDelay      = 300 * time.Millisecond
	eorTimeout       = 30 * time.Second // after which a neighbour without End-of-RIB counts as complete
	// rearranging is how long others may take to advertise the routes of a
	// neighbour that was removed: bootd may inform them later than this host.
	rearranging    = 10 * time.Second
	mostOpening    = 5 * time.Minute // limit for advertising everything to all neighbours
	lookupPrefixes = 256             // if more changed, all are read
	// gcAtRest and gcAtStart are values of GOGC: the host's memory belongs to
	// its guests, but a start produces much garbage.
	gcAtRest, gcAtStart = 50, 200
)

// Options configure a speaker.
type Options struct {
	Part   string // the file with the bgp part
	Socket string // the unix socket of its state
	// Inside has a directory for each Network with peering guests, named by its
	// uid, with the part and the socket of the inner speaker.
	Inside  string
	Version string
	Log     *slog.Logger
	Notify  Notifier
}

// Notifier receives the speaker's state.
type Notifier interface {
	Ready()
	Status(line string)
	// Watchdog returns when ctx is done; healthy reports whether the speaker
	// works.
	Watchdog(ctx context.Context, healthy func() bool)
}

// speaker is this process's speaker. Its loop owns all fields but events and
// opening.
type speaker struct {
	options Options
	log     *logger
	ops     chan func()
	kernel  wait.Signal // the kernel's other routes have changed
	events  events
	opening atomic.Int64 // when opening the gate began, in ns since 1970; 0 when it is not being opened

	server   *bgpServer
	fib      *fib.FIB
	services *serviceChecks
	started  time.Time
	raw      []byte // the part's file as last seen
	status   Status
	learned  map[netip.Prefix][]netip.Addr
	guests   map[netip.Prefix][]netip.Addr // guests that are the best next hops
	counts   map[string]int                // accepted routes by the neighbour's address
	tally    *tally
	onLo     map[netip.Prefix]bool // this host's own and its services' addresses

	shut       time.Time // when the gate was shut
	news       time.Time // when a route or a session last came or went
	untidy     bool      // many routes have come since memory was last returned
	lastUp     time.Time
	held       bool                // result of holds at the last look
	rearranged time.Time           // when a neighbour was last removed from the part
	complete   map[netip.Addr]bool // neighbours that have advertised all their routes
	limited    map[string]time.Time
	looked     time.Time     // when the sessions were last read
	looking    time.Duration // how long that took
	retry      bool          // apply failed in part
}

// ErrRestart means that the speaker must be restarted to apply its part.
// Neighbours see a graceful restart.
var ErrRestart = errors.New("the part changes what a speaker is started with")

// Run runs a speaker until ctx is done. Afterwards the process must end: GoBGP
// cannot stop without sending its neighbours a notification, and only a lost
// connection counts as a graceful restart.
func Run(ctx context.Context, o Options) error {
	s := &speaker{options: o, log: newLogger(o.Log), ops: make(chan func()), kernel: wait.NewSignal(), started: time.Now(),
		learned: map[netip.Prefix][]netip.Addr{}, guests: map[netip.Prefix][]netip.Addr{}, complete: map[netip.Addr]bool{}, limited: map[string]time.Time{},
		tally:    newTally(),
		services: &serviceChecks{wake: wait.NewSignal(), all: map[serviceKey]*serviceCheck{}},
		events:   events{wake: wait.NewSignal(), dirty: map[netip.Prefix]bool{}}}
	s.status = Status{PID: os.Getpid(), Version: o.Version, Started: s.started}
	debug.SetGCPercent(gcAtRest)
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	listener, err := listen(o.Socket)
	if err != nil {
		return err
	}
	tasks.Go(func() { s.serve(ctx, listener) })
	tasks.Go(func() { s.watchKernel(ctx) })
	defer s.services.stop()
	tasks.Go(func() { o.Notify.Watchdog(ctx, func() bool { return s.alive(ctx) }) })
	return s.loop(ctx)
}

func (s *speaker) watchKernel(ctx context.Context) {
	for ctx.Err() == nil {
		if err := fib.Watch(ctx, s.kernel); err != nil {
			s.options.Log.Warn("bgp: watching the kernel's routes again", "error", err)
			s.kernel.Set()
			_ = wait.For(ctx, time.Second)
		}
	}
}

func (s *speaker) loop(ctx context.Context) error {
	look, resync := time.NewTicker(lookInterval), time.NewTicker(resyncInterval)
	defer look.Stop()
	defer resync.Stop()
	var routes, kernel, gate <-chan time.Time // set while something is waiting
	if err := s.look(ctx); err != nil {
		return err
	}
	s.options.Notify.Ready()
	for {
		if gate == nil && s.deferring() {
			gate = time.After(quiet)
		}
		select {
		case <-ctx.Done():
			return nil
		case op := <-s.ops:
			op()
		case <-s.events.wake:
			if routes == nil {
				routes = time.After(settleDelay)
			}
		case <-s.services.wake:
			s.announceServices(ctx)
		case <-s.kernel:
			if kernel == nil {
				kernel = time.After(kernelDelay)
			}
		case <-routes:
			routes = nil
			s.takeEvents(ctx)
		case <-gate:
			gate = nil
			s.openGateWhenSettled(ctx)
		case <-kernel:
			kernel = nil
			s.resyncKernel()
		case <-look.C:
			if err := s.look(ctx); err != nil {
				return err
			}
		case <-resync.C:
			s.resync(ctx)
		}
	}
}

// look applies the part's file if it has changed, and looks at the sessions.
func (s *speaker) look(ctx context.Context) error {
	raw, err := os.ReadFile(s.options.Part)
	switch {
	case errors.Is(err, fs.ErrNotExist): // the current part stays applied
	case err != nil:
		s.status.Refused = err.Error()
	case string(raw) != string(s.raw) || s.retry:
		if err := s.apply(ctx, raw); err != nil {
			return err
		}
	}
	if s.server != nil {
		s.advertiseGuests(ctx)
		if now := time.Now(); now.Sub(s.looked) >= min(mostLookInterval, lookShare*s.looking) {
			s.lookAtSessions(ctx)
		}
	}
	s.tidy(time.Now())
	s.options.Notify.Status(s.status.Line())
	return nil
}

// tidy returns memory to the host after a burst of routes, because it belongs
// to its guests: by itself, Go would take minutes.
func (s *speaker) tidy(now time.Time) {
	if s.untidy && !s.deferring() && now.Sub(s.news) > time.Second {
		s.untidy = false
		debug.SetGCPercent(gcAtRest)
		debug.FreeOSMemory()
	}
}

func (s *speaker) apply(ctx context.Context, raw []byte) error {
	s.raw, s.retry = raw, false
	sum := sha256.Sum256(raw)
	s.status.Part = hex.EncodeToString(sum[:])
	part, err := parsePart(raw)
	if err != nil {
		s.status.Refused = err.Error()
		s.options.Log.Error("bgp: invalid part; the previous one stays applied", "file", s.options.Part, "error", err)
		return nil
	}
	s.status.Refused, s.status.Problem = "", ""
	if s.server == nil {
		if err := s.start(ctx, part); err != nil {
			return err
		}
	} else if needsRestart(s.server.part, part) {
		s.options.Log.Info("bgp: restarting: the part changes settings that are fixed at the start", "file", s.options.Part)
		return ErrRestart
	}
	if lacksOne(part.Neighbors, s.server.part.Neighbors) {
		s.rearranged = time.Now()
	}
	err = s.server.apply(ctx, part)
	if s.shut.IsZero() {
		s.shut = time.Now()
		if s.deferring() {
			debug.SetGCPercent(gcAtStart)
		}
	}
	if err != nil {
		s.retry = true
		s.status.Problem = err.Error()
		s.options.Log.Warn("bgp: the part is applied only partly", "error", err)
	}
	s.services.watch(ctx, part.Services)
	s.announceServices(ctx)
	s.advertiseGuests(ctx)
	s.status.Network, s.status.Deferring = part.Network, s.deferring()
	s.status.Zone, s.status.Role, s.status.ASN, s.status.RouterID = part.Zone, part.Role, part.ASN, part.RouterID
	s.resync(ctx)
	return nil
}

// lacksOne reports whether now lacks a neighbour of before.
func lacksOne(now, before []api.BGPNeighbor) bool {
	return slices.ContainsFunc(before, func(b api.BGPNeighbor) bool {
		return !slices.ContainsFunc(now, func(n api.BGPNeighbor) bool { return n.Name == b.Name })
	})
}

// start starts as a restarting speaker if the kernel still has routes of an
// earlier one.
func (s *speaker) start(ctx context.Context, part api.BGPPart) error {
	options := fibOptions(part)
	options.Log = s.options.Log
	f, err := fib.Open(options)
	if err != nil {
		return err
	}
	if err := f.Refresh(); err != nil {
		return err
	}
	restarting := f.Known() > 0
	server, err := startServer(ctx, part, restarting, s.log)
	if err != nil {
		return err
	}
	s.fib, s.server, s.status.Settled, s.lastUp = f, server, !restarting, time.Now()
	s.options.Log.Info("bgp: started", "zone", part.Zone, "role", part.Role, "restarting", restarting, "routes", f.Known())
	return s.watch(ctx)
}

func (s *speaker) watch(ctx context.Context) error {
	err := s.server.WatchEvent(ctx, &gobgp.WatchEventRequest{
		Peer: &gobgp.WatchEventRequest_Peer{},
		Table: &gobgp.WatchEventRequest_Table{Filters: []*gobgp.WatchEventRequest_Table_Filter{
			{Type: gobgp.WatchEventRequest_Table_Filter_BEST, Init: true},
			{Type: gobgp.WatchEventRequest_Table_Filter_EOR, Init: true},
		}},
	}, s.events.note)
	if err != nil {
		return fmt.Errorf("watch GoBGP: %w", err)
	}
	return nil
}

func (s *speaker) takeEvents(ctx context.Context) {
	dirty, complete, peers := s.events.take()
	s.news = time.Now()
	s.untidy = s.untidy || len(dirty) > lookupPrefixes
	if peers {
		s.lookAtSessions(ctx)
	}
	for _, addr := range complete {
		s.complete[addr] = true
	}
	switch {
	case len(dirty) > lookupPrefixes:
		s.readRoutes(ctx, nil)
	case len(dirty) > 0:
		s.readRoutes(ctx, slices.Collect(maps.Keys(dirty)))
	}
	s.syncKernel(ctx)
}

// alive is the watchdog's check: the loop answers. While GoBGP advertises
// everything to all neighbours it does not answer; that takes some 10 µs per
// route and neighbour.
func (s *speaker) alive(ctx context.Context) bool {
	if since := s.opening.Load(); since != 0 && time.Since(time.Unix(0, since)) < mostOpening {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return s.do(ctx, func() {}) == nil
}

// do runs f in the loop.
func (s *speaker) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case s.ops <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
