package boot

import (
	"context"
	"sync"
	"time"
)

// takes tracks the clients that receive the pointers and configs of BootAttempts, each of which is for one client
// once. The same client is the same connection, or another one while no part of the body had arrived over the
// first. Ignition never does more: it retries when there was no answer, and gives up when one was interrupted
// (v2.26.0, internal/resource).
type takes struct {
	mu  sync.Mutex
	by  map[takeKey]*take
	now func() time.Time
}

type takeKey struct{ attempt, what string }

type take struct {
	conn    string
	running chan struct{} // closed when the transfer in progress ends; nil for none
	taken   bool
	since   time.Time
}

// turn is the answer to a client that requests something.
type turn int

const (
	yours  turn = iota // it may receive it; end must be called
	again              // it has received it on this connection and may receive it again; end must be called
	busy               // another connection is receiving it, and does not finish
	second             // another connection has received it
)

const (
	// turnPatience is how long a client waits for another's transfer to end.
	turnPatience = 5 * time.Second
	// takeAge is how long the connection of a taker is remembered; the Machine's status also records that something
	// was taken.
	takeAge  = time.Hour
	maxTakes = 1 << 14
)

func newTakes() *takes { return &takes{by: map[takeKey]*take{}, now: time.Now} }

// begin waits for the client's turn.
func (t *takes) begin(ctx context.Context, key takeKey, conn string) turn {
	ctx, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	for {
		is, wait := t.try(key, conn)
		if wait == nil {
			return is
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return busy
		}
	}
}

// try returns a channel to wait for while another transfer is in progress.
func (t *takes) try(key takeKey, conn string) (turn, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[key]
	switch {
	case x == nil:
		t.forget()
		x = new(take)
		t.by[key] = x
	case x.running != nil:
		return busy, x.running
	case x.taken && (conn == "" || x.conn != conn):
		return second, nil
	}
	x.conn, x.running, x.since = conn, make(chan struct{}), t.now()
	if x.taken {
		return again, nil
	}
	return yours, nil
}

// end ends a transfer that begin permitted.
func (t *takes) end(key takeKey, taken bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[key]
	x.taken = x.taken || taken
	close(x.running)
	x.running = nil
}

// forget frees memory: attempts that ended long ago are dropped.
func (t *takes) forget() {
	if len(t.by) < maxTakes {
		return
	}
	for key, x := range t.by {
		if x.running == nil && t.now().Sub(x.since) > takeAge {
			delete(t.by, key)
		}
	}
}
