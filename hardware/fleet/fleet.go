// Package fleet shares BMCs among those that use them. Each BMC in use has one owner: a goroutine that holds the one
// login and carries out one call at a time, in the order in which they came; a long reading yields to those that wait
// (hardware.Yield). It starts with the first call and ends when
// the BMC has been idle for a while, so the number of silent BMCs does not matter to the others.
//
// Machines that are systems of one BMC share its owner: an owner belongs to an address and a user. Nothing is tried again
// here: a command that failed may have been carried out.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

const (
	keep         = time.Minute      // how long a login is kept while its BMC is idle
	shortConnect = 3 * time.Second  // what a BMC that was silent last time has to answer in
	silentFor    = 10 * time.Minute // how long that is remembered
	refusedFor   = 5 * time.Minute  // how long a password that a console refused is not sent to it again
)

// ErrClosed: the fleet carries out nothing any more.
var ErrClosed = errors.New("the fleet of BMCs is closed")

// Connect logs in to a BMC.
type Connect func(context.Context, hardware.Endpoint) (hardware.Service, error)

// Fleet is all BMCs that are in use. Its methods are safe for concurrent use.
type Fleet struct {
	connect Connect
	log     *slog.Logger
	ctx     context.Context // over when the fleet is closed
	cancel  context.CancelFunc
	owned   sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and the counts of the owners
	owners  map[key]*owner
	silent  map[key]time.Time // when a BMC last did not answer
	refused map[key]refusal   // of the password, when a console was opened
}

// refusal is an endpoint whose password was refused.
type refusal struct {
	endpoint hardware.Endpoint
	at       time.Time
	err      error
}

// key tells owners apart.
type key struct{ address, username string }

// New returns a fleet that logs in with connect. Close it.
func New(connect Connect, log *slog.Logger) *Fleet {
	f := &Fleet{connect: connect, log: log, owners: map[key]*owner{}, silent: map[key]time.Time{}, refused: map[key]refusal{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close lets the calls that are running end, with their contexts over, logs out everywhere, and waits for that. Calls that
// wait for their turn fail with ErrClosed.
func (f *Fleet) Close() {
	f.mu.Lock()
	f.cancel()
	f.mu.Unlock()
	f.owned.Wait()
}

// Do carries out call with the endpoint's BMC when it is its turn, logged in. What it is for is said in errors only. When
// ctx is over Do stops waiting; a call that has begun sees it by its own context, and Do waits for it.
func (f *Fleet) Do(ctx context.Context, endpoint hardware.Endpoint, what string, call func(context.Context, hardware.BMC) error) error {
	o, err := f.enlist(endpoint)
	if err != nil {
		return fmt.Errorf("%s on BMC %s: %w", what, endpoint.Address, err)
	}
	j := job{ctx: ctx, endpoint: endpoint, call: call, done: make(chan error, 1)}
	select {
	case o.jobs <- j:
		return <-j.done
	case <-ctx.Done():
		err = fmt.Errorf("waiting for its turn: %w", context.Cause(ctx))
	case <-f.ctx.Done():
		err = ErrClosed
	}
	f.leave(o)
	return fmt.Errorf("%s on BMC %s: %w", what, endpoint.Address, err)
}

// Price is at what price a console is opened.
type Price struct {
	Login bool // also with a login that the BMC has not to spare
	Other bool // where another client has the console, that one's is ended first, as far as the BMC has a way to do that
}

// Console opens the serial console by the first way that leads there; ctx bounds the opening only. A login that the console
// needs is kept until it is closed; one that the BMC has not to spare only at that price: ErrCrowded otherwise. It is
// opened aside: the BMC's other calls do not wait for it. A password that was refused is not sent again for five minutes,
// whoever asks.
func (f *Fleet) Console(ctx context.Context, endpoint hardware.Endpoint, price Price) (*hardware.Console, error) {
	if err := f.refusal(endpoint); err != nil {
		return nil, err
	}
	opened, err := f.openConsole(ctx, endpoint, price)
	if errors.Is(err, hardware.ErrUnauthorized) {
		f.noteRefusal(endpoint, err)
	}
	return opened, err
}

func (f *Fleet) openConsole(ctx context.Context, endpoint hardware.Endpoint, price Price) (*hardware.Console, error) {
	var ways []hardware.ConsoleWay
	var o *owner
	spare := false
	err := f.Do(ctx, endpoint, "find the console", func(ctx context.Context, b hardware.BMC) (err error) {
		if ways, err = b.Consoles(ctx); err != nil {
			return err
		}
		o = f.hold(endpoint)
		spare = o.service.Spare()
		return nil
	})
	if err != nil {
		return nil, err
	}
	release := sync.OnceFunc(func() { f.release(o) })
	opened, login, err := openFirst(ctx, ways, Price{Login: price.Login || spare, Other: price.Other})
	if !login {
		release()
	}
	if err != nil {
		return nil, err
	}
	opened.ReadWriteCloser = &console{opened.ReadWriteCloser, release}
	return opened, nil
}

// openFirst opens the console by the first way that leads there, and reports whether that way needs the login. What is
// distrusted, or has refused the password, is asked for no other way. A silent way leaves time for the others.
func openFirst(ctx context.Context, ways []hardware.ConsoleWay, price Price) (opened *hardware.Console, login bool, err error) {
	var failed []error
	for i, way := range ways {
		if way.Login && !price.Login {
			failed = append(failed, fmt.Errorf("console by %s: %w", way.Kind, hardware.ErrCrowded))
			continue
		}
		share, cancel := shareOf(ctx, len(ways)-i)
		opened, err = openWay(share, way, price.Other)
		cancel()
		if err == nil {
			return opened, way.Login, nil
		}
		failed = append(failed, err)
		if hardware.Distrusted(err) || errors.Is(err, hardware.ErrUnauthorized) || ctx.Err() != nil {
			break
		}
	}
	return nil, false, errors.Join(failed...)
}

// shareOf bounds one of the ways that are left to its share of the time that is left.
func shareOf(ctx context.Context, ways int) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)/time.Duration(ways))
}

// openWay opens the console; where another client has it, and end is true, after that one's was ended.
func openWay(ctx context.Context, way hardware.ConsoleWay, end bool) (*hardware.Console, error) {
	opened, err := way.Open(ctx)
	if !end || way.Free == nil || !errors.Is(err, hardware.ErrInUse) {
		return opened, err
	}
	if freeErr := way.Free(ctx); freeErr != nil {
		return nil, errors.Join(err, freeErr)
	}
	if opened, err = way.Open(ctx); err != nil {
		return nil, fmt.Errorf("after the other client's was ended: %w", err)
	}
	opened.Freed = true
	return opened, nil
}

// console lets its owner go when it is closed.
type console struct {
	io.ReadWriteCloser
	release func() // the second call does nothing
}

func (c *console) Close() error {
	defer c.release()
	return c.ReadWriteCloser.Close()
}

func keyOf(e hardware.Endpoint) key { return key{address: e.Address, username: e.Username} }

// enlist finds the owner, or starts it, and keeps it from ending before the call has reached it.
func (f *Fleet) enlist(endpoint hardware.Endpoint) (*owner, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return nil, ErrClosed
	}
	k := keyOf(endpoint)
	o := f.owners[k]
	if o == nil {
		o = &owner{fleet: f, key: k, jobs: make(chan job), freed: make(chan struct{}, 1)}
		f.owners[k] = o
		f.owned.Go(o.run)
	}
	o.waiting++
	return o, nil
}

// leave takes a call back that did not reach its owner.
func (f *Fleet) leave(o *owner) {
	f.mu.Lock()
	o.waiting--
	f.mu.Unlock()
	o.wake()
}

// hold keeps the endpoint's login while something of it is open. It is called within a call, so the owner is there.
func (f *Fleet) hold(endpoint hardware.Endpoint) *owner {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.owners[keyOf(endpoint)]
	o.held++
	return o
}

func (f *Fleet) release(o *owner) {
	f.mu.Lock()
	o.held--
	f.mu.Unlock()
	o.wake()
}

// holds reports whether something is open that needs the owner's login.
func (f *Fleet) holds(o *owner) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return o.held > 0
}

// retire takes an owner off the list unless it is needed.
func (f *Fleet) retire(o *owner) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() == nil && (o.waiting > 0 || o.held > 0) {
		return false
	}
	delete(f.owners, o.key)
	return true
}

// wasSilent reports whether a BMC did not answer when it was last asked.
func (f *Fleet) wasSilent(k key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.silent[k]
	return ok && time.Since(at) < silentFor
}

// answered notes whether a BMC answers, and forgets what was noted long ago.
func (f *Fleet) answered(k key, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !errors.Is(err, hardware.ErrUnreachable) {
		delete(f.silent, k)
		return
	}
	f.silent[k] = time.Now()
	for other, at := range f.silent {
		if time.Since(at) >= silentFor {
			delete(f.silent, other)
		}
	}
}

// refusal is why a console is not opened with the endpoint's password; nil when it may be.
func (f *Fleet) refusal(e hardware.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, ok := f.refused[keyOf(e)]
	left := refusedFor - time.Since(last.at)
	if !ok || left <= 0 || last.endpoint.Password != e.Password || last.endpoint.IPMI != e.IPMI {
		return nil
	}
	return fmt.Errorf("not tried again for %s, accounts lock; a changed Secret is tried at once: %w", left.Round(time.Second), last.err)
}

// noteRefusal notes that the endpoint's password was refused, and forgets what was noted long ago.
func (f *Fleet) noteRefusal(e hardware.Endpoint, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other, last := range f.refused {
		if time.Since(last.at) >= refusedFor {
			delete(f.refused, other)
		}
	}
	f.refused[keyOf(e)] = refusal{endpoint: e, at: time.Now(), err: err}
}
