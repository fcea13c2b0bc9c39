package nodeagent

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff waits longer each time, up to max, with jitter so that a rack that
// lost its bootd does not come back in step.
type backoff struct {
	min, max time.Duration
	next     time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// wait returns early when ctx is done.
func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, b.min), b.max)
	sleep(ctx, b.next/2+rand.N(b.next/2+1))
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// sleepUntil waits for a wake-up, at most d.
func sleepUntil(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	case <-ctx.Done():
	}
}
