package redfishtest

import (
	"context"
	"sync"
	"time"
)

// Clock is the time that a BMC and its server live by. It does not run: a test moves it.
type Clock struct {
	mu   sync.Mutex
	at   time.Time
	real bool
}

// NewClock returns a clock with the given time.
func NewClock(at time.Time) *Clock { return &Clock{at: at} }

// RealClock returns a clock that runs as everyone's does.
func RealClock() *Clock { return &Clock{real: true} }

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real {
		return time.Now()
	}
	return c.at
}

// Advance moves the clock; a real one is not to be moved.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// Pause moves the clock instead of waiting. It serves a client that has its way to wait replaced.
func (c *Clock) Pause(ctx context.Context, d time.Duration) error {
	c.Advance(d)
	return ctx.Err()
}
