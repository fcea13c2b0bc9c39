// Package wait owns how a loop waits: for a time that its context may cut
// short, and for others that wake it.
package wait

import (
	"context"
	"time"
)

// For waits for d. It returns ctx's error, at once, when ctx is done.
func For(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	return ctx.Err()
}

// Signal wakes the one loop that receives from it. It is set without waiting;
// being set again before the loop receives makes no second wake-up.
type Signal chan struct{}

// NewSignal makes a Signal that is not set.
func NewSignal() Signal { return make(Signal, 1) }

// Set wakes the loop, now or as soon as it receives.
func (s Signal) Set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Wait waits until the Signal is set, at most for d. It returns ctx's error, at
// once, when ctx is done.
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
