package nodeagent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/rackweft/rackweft/internal/wait"
)

// backoff waits longer each time, up to max, with jitter so that the hosts of a
// rack do not reconnect to bootd in step.
type backoff struct {
	min, max time.Duration
	next     time.Duration
}

func (b *backoff) reset() { b.next = 0 }

// wait returns early when ctx is done.
func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, b.min), b.max)
	_ = wait.For(ctx, b.next/2+rand.N(b.next/2+1))
}
