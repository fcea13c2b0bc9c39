// Package control owns the common shape of controllers: which changes make which objects due, one step with one
// object, and how a step writes. Its base is a level-triggered loop: names are added, each is held by one worker at
// a time, and is due again when it is added again, after the delay that its step requested, or after a back-off.
package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// stepFunc brings one object to its desired state. It returns the delay after which to look again: AtOnce, or 0 for
// the next change only.
type stepFunc func(ctx context.Context, name string) (time.Duration, error)

// AtOnce is the delay of a step that must be repeated without waiting for a change.
const AtOnce time.Duration = 1

// loop runs a stepFunc over a set of names. The zero value is not usable; see newLoop.
type loop struct {
	fn         stepFunc
	log        *slog.Logger
	minBackoff time.Duration
	maxBackoff time.Duration

	mu      sync.Mutex
	wake    *sync.Cond
	ready   []string          // due now, in order
	queued  map[string]bool   // in ready
	running map[string]bool   // held by a worker
	again   map[string]bool   // added while running
	timers  map[string]*timer // due later
	fails   map[string]int    // consecutive errors
	closed  bool
}

type timer struct {
	at   time.Time
	t    *time.Timer
	soon bool // something was added, and is being collected
}

// newLoop returns a loop whose errors back off from 1 s to 1 min.
func newLoop(fn stepFunc, log *slog.Logger) *loop {
	l := &loop{fn: fn, log: log, minBackoff: time.Second, maxBackoff: time.Minute,
		queued: map[string]bool{}, running: map[string]bool{}, again: map[string]bool{},
		timers: map[string]*timer{}, fails: map[string]int{}}
	l.wake = sync.NewCond(&l.mu)
	return l
}

// Add makes a name due now. It never blocks.
func (l *loop) Add(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(name)
}

// AddSoon makes a name due after a delay, unless it is due earlier; further additions until then are merged. It
// never blocks.
func (l *loop) AddSoon(name string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed && !l.queued[name] {
		l.addAfter(name, d)
		l.timers[name].soon = true
	}
}

func (l *loop) add(name string) {
	if l.closed || l.queued[name] {
		return
	}
	if l.running[name] {
		l.again[name] = true
		return
	}
	if t := l.timers[name]; t != nil {
		t.t.Stop()
		delete(l.timers, name)
	}
	l.queued[name] = true
	l.ready = append(l.ready, name)
	l.wake.Signal()
}

// addAfter makes a name due later, unless it is due earlier.
func (l *loop) addAfter(name string, d time.Duration) {
	at := time.Now().Add(d)
	if old := l.timers[name]; old != nil {
		if old.at.Before(at) {
			return
		}
		old.t.Stop()
	}
	t := &timer{at: at}
	t.t = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.timers[name] == t {
			l.add(name)
		}
	})
	l.timers[name] = t
}

// Run works until ctx ends, then waits for the steps. It may be called again later. At most the given number of
// workers take steps concurrently; a step that waits aside holds no worker.
func (l *loop) Run(ctx context.Context, workers int) {
	l.mu.Lock()
	l.closed = false
	l.mu.Unlock()
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	var steps sync.WaitGroup
	defer steps.Wait()
	free := make(slots, workers)
	ctx = context.WithValue(ctx, slotsKey{}, free)
	for {
		name, ok := l.take()
		if !ok {
			return
		}
		free.take()
		steps.Go(func() {
			defer free.give()
			after, err := l.fn(ctx, name)
			l.done(ctx, name, after, err)
		})
	}
}

// slots are the workers of a loop: it is full when all are busy.
type slots chan struct{}

type slotsKey struct{}

func (s slots) take() { s <- struct{}{} }
func (s slots) give() { <-s }

// Aside waits for something slow without holding one of the controller's workers: however many steps wait for a BMC
// that does not answer, other steps are taken. ctx is that of the step.
func Aside(ctx context.Context, slow func() error) error {
	if workers, ok := ctx.Value(slotsKey{}).(slots); ok {
		workers.give()
		defer workers.take()
	}
	return slow()
}

func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for name, t := range l.timers {
		t.t.Stop()
		delete(l.timers, name)
	}
	l.ready = nil
	clear(l.queued)
	clear(l.again)
	clear(l.fails)
	l.wake.Broadcast()
}

func (l *loop) take() (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) == 0 && !l.closed {
		l.wake.Wait()
	}
	if l.closed {
		return "", false
	}
	name := l.ready[0]
	l.ready = l.ready[1:]
	delete(l.queued, name)
	l.running[name] = true
	return name, true
}

func (l *loop) done(ctx context.Context, name string, after time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, name)
	if l.closed {
		return
	}
	if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
		after = l.backoff(name)
		l.log.Warn("reconcile failed", "name", name, "error", err, "again", after)
	} else {
		delete(l.fails, name)
	}
	if (l.again[name] || after == AtOnce) && err == nil {
		delete(l.again, name)
		l.add(name)
		return
	}
	delete(l.again, name)
	if after > 0 {
		l.addAfter(name, after)
	}
}

// idle reports whether no name is due or being collected, and no worker holds one.
func (l *loop) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.timers {
		if t.soon {
			return false
		}
	}
	return len(l.ready) == 0 && len(l.running) == 0
}

func (l *loop) backoff(name string) time.Duration {
	d := l.maxBackoff
	if n := l.fails[name]; n < 16 {
		d = min(l.minBackoff<<n, l.maxBackoff)
	}
	l.fails[name]++
	return d
}
