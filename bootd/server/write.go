package server

import (
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/admission"
	"github.com/rackweft/rackweft/bootd/store"
)

// cacheTime bounds how long a write waits for the cache.
const cacheTime = 5 * time.Second

// write is one change under way: no other may be judged by what stood before it.
type write struct {
	writes   *writes
	release  func()
	revision int64 // of what was written; 0 for nothing
	failed   bool  // the store may have taken what it said that it has not
}

// writes are made one after the other as far as they may concern each other.
type writes struct {
	store  *store.Store
	cache  *store.Cache
	turns  *turns
	behind atomic.Int64 // revision that the cache must have before anything is judged
}

// begin waits until an object may be judged and written: until every write that
// could change the verdict is in the cache. The caller calls end.
func (x *writes) begin(ctx context.Context, o api.Object) (*write, error) {
	claims, apart := admission.Claims(o)
	return x.beginWith(ctx, claims, apart)
}

// beginDelete waits until an object may be deleted: until no object is written
// that may come to name it.
func (x *writes) beginDelete(ctx context.Context, k api.Kind, name string) (*write, error) {
	claims, apart := admission.DeletionClaims(k, name)
	return x.beginWith(ctx, claims, apart)
}

func (x *writes) beginWith(ctx context.Context, claims []string, apart bool) (*write, error) {
	if !apart {
		return x.beginAlone(ctx)
	}
	release, err := x.turns.take(ctx, claims)
	return x.begun(ctx, release, err)
}

// beginAlone waits until nothing else is written.
func (x *writes) beginAlone(ctx context.Context) (*write, error) {
	release, err := x.turns.takeAll(ctx)
	return x.begun(ctx, release, err)
}

func (x *writes) begun(ctx context.Context, release func(), err error) (*write, error) {
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, cacheTime)
	defer cancel()
	select {
	case <-x.cache.Synced():
	case <-limited.Done():
	}
	if err := x.cache.WaitRevision(limited, x.behind.Load()); err != nil {
		release()
		return nil, problem(http.StatusServiceUnavailable, "nothing can be written now: %s", err)
	}
	return &write{writes: x, release: release}, nil
}

// wrote notes the resourceVersion that a write made.
func (w *write) wrote(version string) {
	if revision, err := strconv.ParseInt(version, 10, 64); err == nil {
		w.revision = max(w.revision, revision)
	}
}

// barrier makes the write wait for all that the store has by now: any list tells
// its revision, and there is one Site at most.
func (w *write) barrier(ctx context.Context) {
	if _, revision, err := w.writes.store.List(ctx, api.KindOf(new(api.Site))); err == nil {
		w.revision = max(w.revision, revision)
	}
}

// end lets others be judged once the cache has what was written. Where it does
// not get it in time, the next write waits for it.
func (w *write) end() {
	defer w.release()
	ctx, cancel := context.WithTimeout(context.Background(), cacheTime) // a client that leaves changes nothing
	defer cancel()
	if w.failed {
		w.barrier(ctx)
	}
	if w.writes.cache.WaitRevision(ctx, w.revision) == nil {
		return
	}
	for {
		old := w.writes.behind.Load()
		if old >= w.revision || w.writes.behind.CompareAndSwap(old, w.revision) {
			return
		}
	}
}
