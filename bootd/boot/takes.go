package boot

import (
	"context"
	"sync"
	"time"
)

// takes knows who is being given the pointers and configs of BootAttempts, each
// of which is for one client once. What counts as the same client going on: the
// same connection, or another one when nothing of the body had arrived by the
// first. That is all that Ignition ever does: it asks again when no answer
// came, and gives up when one broke off (v2.26.0, internal/resource).
type takes struct {
	mu  sync.Mutex
	by  map[takeKey]*take
	now func() time.Time
}

type takeKey struct{ attempt, what string }

type take struct {
	conn    string
	running chan struct{} // closed when the transfer under way ends; nil for none
	taken   bool
	since   time.Time
}

// turn is what a client is told that wants to take something.
type turn int

const (
	yours  turn = iota // it may have it; end must be called
	again              // it has had it by this connection and may have it again; end must be called
	busy               // another connection is at it, and does not come to an end
	second             // another connection has had it
)

const (
	// turnPatience is how long a client waits for the end of another's transfer.
	turnPatience = 5 * time.Second
	// takeAge is how long the connection of a taker is remembered; that something
	// was taken stands in the Machine's status besides.
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

// try returns a channel to wait for while another transfer is under way.
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

// end ends a transfer that begin allowed.
func (t *takes) end(key takeKey, taken bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[key]
	x.taken = x.taken || taken
	close(x.running)
	x.running = nil
}

// forget makes room: of attempts that are long over nothing needs to be known.
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
