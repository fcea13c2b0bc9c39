package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/wait"
)

// tenure is an etcd lease on which this process depends. It ends for its holder before it can end for etcd, by
// this machine's own clock: etcd counts from the receipt of a renewal, and the holder from its sending.
type tenure struct {
	etcd  *etcd
	lease clientv3.LeaseID
	ttl   time.Duration
	until atomic.Int64 // by sinceBoot
	lost  context.Context
	lose  context.CancelCauseFunc
	done  sync.WaitGroup
}

// margin is how long before its end a tenure is given up, so that requests in flight can finish. It is a tenth of
// the lease, at most a second.
func (t *tenure) margin() time.Duration { return min(t.ttl/10, time.Second) }

var errLost = errors.New("etcd received no renewal from this bootd in time")

// sinceBoot is a clock that cannot be set, and that runs while the machine
// sleeps.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("the kernel has no clock since its boot: %v", err)) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// newTenure gets a lease and renews it until end is called or ctx ends.
func (e *etcd) newTenure(ctx context.Context) (*tenure, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	sent := sinceBoot()
	resp, err := e.client.Grant(limited, int64(max(e.conf.SessionTTL/time.Second, 1)))
	if err != nil {
		return nil, e.explain(ctx, err)
	}
	t := &tenure{etcd: e, lease: resp.ID, ttl: time.Duration(resp.TTL) * time.Second}
	t.until.Store(int64(sent + t.ttl))
	t.lost, t.lose = context.WithCancelCause(context.Background())
	t.done.Go(t.renew)
	return t, nil
}

// check is nil while the lease cannot have ended.
func (t *tenure) check() error {
	if t.lost.Err() != nil {
		return context.Cause(t.lost)
	}
	if t.left() <= 0 {
		return errLost
	}
	return nil
}

func (t *tenure) left() time.Duration {
	return time.Duration(t.until.Load()) - sinceBoot() - t.margin()
}

// renew renews the lease, and reports its loss at once.
func (t *tenure) renew() {
	pause := t.ttl / 4
	for {
		// A timer that is late, because the process was suspended, finds no time left.
		if err := wait.For(t.lost, min(pause, max(t.left(), 0))); err != nil {
			return
		}
		if t.left() <= 0 {
			t.lose(errLost)
			return
		}
		pause = t.ttl / 4
		if err := t.renewOnce(); errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.lose(errLost)
			return
		} else if err != nil {
			pause = t.ttl / 20
		}
	}
}

func (t *tenure) renewOnce() error {
	ctx, cancel := context.WithTimeout(t.lost, max(t.left(), time.Millisecond))
	defer cancel()
	sent := sinceBoot()
	resp, err := t.etcd.client.KeepAliveOnce(ctx, t.lease)
	if err != nil {
		return err
	}
	t.until.Store(int64(sent + time.Duration(resp.TTL)*time.Second))
	return nil
}

// end stops renewing and revokes the lease at once, with all keys attached to it. Without that the next holder
// waits for the lease's end.
func (t *tenure) end() {
	t.lose(context.Canceled)
	t.done.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := t.etcd.client.Revoke(ctx, t.lease)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.etcd.log.Warn("cannot revoke a lease in etcd; it expires by itself", "error", err)
	}
}
