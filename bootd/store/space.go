package store

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/internal/wait"
)

// space watches etcd's disk space: it refuses writes while the file system is nearly full, and recovers etcd from
// its NOSPACE alarm.
type space struct {
	etcd  *etcd
	alarm atomic.Bool // etcd refuses writes: its quota is used up
	wake  wait.Signal // the alarm was raised
	end   context.CancelFunc
	done  sync.WaitGroup
}

// retryInterval is how often a full store tries to free space.
const retryInterval = 10 * time.Second

func newSpace(e *etcd) *space {
	ctx, cancel := context.WithCancel(context.Background())
	sp := &space{etcd: e, wake: wait.NewSignal(), end: cancel}
	if e.server == nil {
		return sp // an external cluster has its own administrator
	}
	sp.full() // an alarm survives a restart: check
	sp.done.Go(func() { sp.run(ctx) })
	return sp
}

func (sp *space) stop() {
	sp.end()
	sp.done.Wait()
}

// check reports an ErrNoSpace when the file system has less than the reserve.
func (sp *space) check(ctx context.Context) error {
	e := sp.etcd
	if e.server == nil || isUrgent(ctx) {
		return nil
	}
	if e.stale != nil {
		return e.stale
	}
	return unwritable(e.conf.Dir, e.conf.Reserve)
}

func (sp *space) quotaError() error {
	e := sp.etcd
	if e.server == nil {
		return fmt.Errorf("%w: etcd (%s) has reached its quota: compact and defragment it, then disarm its NOSPACE alarm", ErrNoSpace, e.where)
	}
	return fmt.Errorf("%w: its database has reached the quota of %d MiB: delete objects that are not needed or raise the quota; reads continue",
		ErrNoSpace, e.conf.Quota>>20)
}

// full records that etcd refused a write because of its quota.
func (sp *space) full() {
	sp.alarm.Store(true)
	sp.wake.Set()
}

func (sp *space) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-sp.wake:
		}
		for sp.alarm.Load() {
			if err := sp.relieve(ctx); err != nil && ctx.Err() == nil {
				sp.etcd.log.Error("the store has no space left", "error", err)
			}
			if !sp.alarm.Load() {
				break
			}
			if wait.For(ctx, retryInterval) != nil {
				return
			}
		}
	}
}

// relieve compacts and defragments etcd, and disarms its alarm when that freed a tenth of the quota.
func (sp *space) relieve(ctx context.Context) error {
	e := sp.etcd
	alarms, err := e.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("list etcd's alarms: %w", err)
	}
	if !hasNoSpace(alarms) {
		sp.alarm.Store(false)
		return nil
	}
	if err := e.compact(ctx); err != nil {
		return err
	}
	if _, err := e.client.Defragment(ctx, e.server.endpoint); err != nil {
		return fmt.Errorf("defragment etcd: %w", err)
	}
	status, err := e.client.Status(ctx, e.server.endpoint)
	if err != nil {
		return fmt.Errorf("measure etcd: %w", err)
	}
	if status.DbSize > e.conf.Quota/10*9 {
		return sp.quotaError()
	}
	if _, err := e.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("disarm etcd's alarm: %w", err)
	}
	sp.alarm.Store(false)
	e.log.Warn("the store had reached its quota; space was freed", "databaseMiB", status.DbSize>>20)
	return nil
}

func hasNoSpace(r *clientv3.AlarmResponse) bool {
	for _, a := range r.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return true
		}
	}
	return false
}
