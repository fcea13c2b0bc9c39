// Package wait provides what a loop waits with: a delay that a context can cut
// short, and a signal to wake it.
package wait

import (
	"context"
	"time"
)

// For waits for d. It returns ctx's error at once when ctx is done.
func For(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return ctx.Err()
}

// Signal wakes the one loop that receives from it. Setting it never blocks;
// setting it again before the loop receives has no further effect.
type Signal chan struct{}

// NewSignal returns a Signal that is not set.
func NewSignal() Signal { return make(Signal, 1) }

// Set wakes the loop, now or as soon as it receives.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Wait waits until the Signal is set, at most for d. It returns ctx's error at
// once when ctx is done.
func (s Signal) Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-s:
	case <-timer.C:
	}
	return ctx.Err()
}
