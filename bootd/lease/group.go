package lease

import "sync"

// group merges concurrent writes: while one is in progress, the next ones are collected and written together. The
// first waiting caller writes for the others, so no goroutine is needed.
type group struct {
	apply func([]*change) error

	mu      sync.Mutex
	busy    bool
	pending []*change
}

// change is one caller's write: one lease put or removed, and others removed with it.
type change struct {
	slot    *slot
	lease   Lease // as written to the Backend
	granted Lease // as granted to the client
	remove  bool
	drop    []*slot // the holder's former addresses
	lost    bool    // another client got the address meanwhile

	lead chan struct{} // makes its caller write the next batch
	done chan error
}

// do returns when c is durable or has failed.
func (g *group) do(c *change) error {
	c.lead, c.done = make(chan struct{}, 1), make(chan error, 1)
	g.mu.Lock()
	g.pending = append(g.pending, c)
	wait := g.busy
	g.busy = true
	g.mu.Unlock()
	if wait {
		select {
		case err := <-c.done:
			return err
		case <-c.lead:
		}
	}
	g.write()
	return <-c.done
}

// write writes one batch, which begins with the caller's own change, and passes the lead to a waiting caller.
func (g *group) write() {
	g.mu.Lock()
	n, leases := 0, 0
	for n < len(g.pending) && leases+1+len(g.pending[n].drop) <= MaxBatch {
		leases += 1 + len(g.pending[n].drop)
		n++
	}
	batch := g.pending[:n:n]
	g.pending = g.pending[n:]
	g.mu.Unlock()

	err := g.apply(batch)
	for _, c := range batch {
		c.done <- err
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pending) == 0 {
		g.busy = false
		return
	}
	g.pending[0].lead <- struct{}{}
}
