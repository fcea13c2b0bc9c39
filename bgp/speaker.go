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
	lookInterval = time.Second // at the part's file and the sessions
	// lookShare is which part of the time looking at the sessions may take where
	// they are many; that one comes or goes is seen at once.
	lookShare        = 500
	mostLookInterval = 10 * time.Second
	resyncInterval   = 30 * time.Second // of routes and kernel as a whole
	settleDelay      = 100 * time.Millisecond
	kernelDelay      = 300 * time.Millisecond
	untold           = 30 * time.Second // a neighbour takes to tell its routes, if it does not say that it has
	// rearranging is how long others take to tell what one told that is a
	// neighbour no more: they may hear of it from bootd later than this host.
	rearranging    = 10 * time.Second
	mostOpening    = 5 * time.Minute // may it take to tell all neighbours all there is
	lookupPrefixes = 256             // more that changed are read with all others
	// gcAtRest and gcAtStart are how much garbage there may be, in percent of what
	// is used: the host's memory is its guests', but a start makes very much of it.
	gcAtRest, gcAtStart = 50, 200
)

// Options make a speaker.
type Options struct {
	Part   string // the file with the bgp part
	Socket string // the unix socket that it serves its state on
	// Inside has a directory for each Network whose guests peer, named for its
	// uid, with the part and the socket of the speaker in it.
	Inside  string
	Version string
	Log     *slog.Logger
	Notify  Notifier
}

// Notifier is told how the speaker fares.
type Notifier interface {
	Ready()
	Status(line string)
	// Watchdog returns when ctx is done; healthy says that the speaker works.
	Watchdog(ctx context.Context, healthy func() bool)
}

// speaker is the one of this process. Its loop owns everything but events and opening.
type speaker struct {
	options Options
	log     *logger
	ops     chan func()
	kernel  wait.Signal // the kernel's other routes have changed
	events  events
	opening atomic.Int64 // since when, in ns since 1970, the gate is being opened; 0 when it is not

	server   *bgpServer
	fib      *fib.FIB
	services *serviceChecks
	started  time.Time
	raw      []byte // the part's file as last seen
	status   Status
	learned  map[netip.Prefix][]netip.Addr
	guests   map[netip.Prefix][]netip.Addr // guests that are the best ways there
	counts   map[string]int                // routes let in, by the neighbour's address
	tally    *tally
	onLo     map[netip.Prefix]bool // this host's own and its services' addresses

	shut       time.Time // when the gate was
	news       time.Time // when a route or a session last came or went
	untidy     bool      // much has come since memory was last given back
	lastUp     time.Time
	held       bool                // as the last look saw it
	rearranged time.Time           // when the part last took a neighbour away
	complete   map[netip.Addr]bool // neighbours that told all their routes
	limited    map[string]time.Time
	looked     time.Time     // when the sessions last were
	looking    time.Duration // took so long
	retry      bool          // apply failed in part
}

// ErrRestart says that the speaker has to be started anew to be what its part
// says. Neighbours take it for a restart.
var ErrRestart = errors.New("the part changes what a speaker is started with")

// Run is a speaker until ctx is done. Afterwards the process has to end: GoBGP
// does not stop without telling its neighbours good-bye, and it is the loss of
// the connection that they take for a restart.
func Run(ctx context.Context, o Options) error {
	s := &speaker{options: o, log: newLogger(o.Log), ops: make(chan func()), kernel: wait.NewSignal(), started: time.Now(),
		learned: map[netip.Prefix][]netip.Addr{}, guests: map[netip.Prefix][]netip.Addr{}, complete: map[netip.Addr]bool{}, limited: map[string]time.Time{},
		tally:    newTally(),
		services: &serviceChecks{wake: wait.NewSignal(), all: map[serviceKey]*serviceCheck{}},
		events:   events{wake: wait.NewSignal(), dirty: map[netip.Prefix]bool{}}}
	s.status = Status{PID: os.Getpid(), Version: o.Version, Started: s.started}
	debug.SetGCPercent(gcAtRest)
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	listener, err := listen(o.Socket)
	if err != nil {
		return err
	}
	beside.Go(func() { s.serve(ctx, listener) })
	beside.Go(func() { s.watchKernel(ctx) })
	defer s.services.stop()
	beside.Go(func() { o.Notify.Watchdog(ctx, func() bool { return s.alive(ctx) }) })
	return s.loop(ctx)
}

func (s *speaker) watchKernel(ctx context.Context) {
	for ctx.Err() == nil {
		if err := fib.Watch(ctx, s.kernel); err != nil {
			s.options.Log.Warn("bgp: look at the kernel's routes anew", "error", err)
			s.kernel.Set()
			_ = wait.For(ctx, time.Second)
		}
	}
}

func (s *speaker) loop(ctx context.Context) error {
	look, resync := time.NewTicker(lookInterval), time.NewTicker(resyncInterval)
	defer look.Stop()
	defer resync.Stop()
	var routes, kernel, gate <-chan time.Time // armed while something waits
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
			s.tellAtLast(ctx)
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
	case errors.Is(err, fs.ErrNotExist): // what runs goes on
	case err != nil:
		s.status.Refused = err.Error()
	case string(raw) != string(s.raw) || s.retry:
		if err := s.apply(ctx, raw); err != nil {
			return err
		}
	}
	if s.server != nil {
		s.tellOfGuests(ctx)
		if now := time.Now(); now.Sub(s.looked) >= min(mostLookInterval, lookShare*s.looking) {
			s.lookAtSessions(ctx)
		}
	}
	s.tidy(time.Now())
	s.options.Notify.Status(s.status.Line())
	return nil
}

// tidy gives back what a burst of routes took of the host's memory, which is its
// guests': left alone, Go does so over minutes.
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
		s.options.Log.Error("bgp: the part is refused; what runs goes on", "file", s.options.Part, "error", err)
		return nil
	}
	s.status.Refused, s.status.Problem = "", ""
	if s.server == nil {
		if err := s.start(ctx, part); err != nil {
			return err
		}
	} else if needsRestart(s.server.part, part) {
		s.options.Log.Info("bgp: starting anew, for what the part changes is fixed from the start", "file", s.options.Part)
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
		s.options.Log.Warn("bgp: not all of the part is applied", "error", err)
	}
	s.services.watch(ctx, part.Services)
	s.announceServices(ctx)
	s.tellOfGuests(ctx)
	s.status.Network, s.status.Deferring = part.Network, s.deferring()
	s.status.Zone, s.status.Role, s.status.ASN, s.status.RouterID = part.Zone, part.Role, part.ASN, part.RouterID
	s.resync(ctx)
	return nil
}

// lacksOne reports whether one of before is not among now.
func lacksOne(now, before []api.BGPNeighbor) bool {
	return slices.ContainsFunc(before, func(b api.BGPNeighbor) bool {
		return !slices.ContainsFunc(now, func(n api.BGPNeighbor) bool { return n.Name == b.Name })
	})
}

// start begins as a restarting speaker if the kernel still forwards by routes
// of an earlier one.
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

// alive is what feeds the watchdog: the loop answers. GoBGP does not while it
// tells everybody all there is, which takes it some 10 µs for each route and
// neighbour.
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
