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

// write is one change in progress: no other may be judged by the state before it.
type write struct {
	writes   *writes
	release  func()
	revision int64 // of the write; 0 for none
	failed   bool  // the store may have made a write that it reported as failed
}

// writes are serialized where one may affect the other.
type writes struct {
	store  *store.Store
	cache  *store.Cache
	turns  *turns
	behind atomic.Int64 // revision that the cache must have before anything is judged
}

// begin waits until an object may be judged and written: until the cache contains every write that could change
// the verdict. The caller calls end.
func (x *writes) begin(ctx context.Context, o api.Object) (*write, error) {
	claims, apart := admission.Claims(o)
	return x.beginWith(ctx, claims, apart)
}

// beginDelete waits until an object may be deleted: until no object is being written that may refer to it.
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

// beginAlone waits until nothing else is being written.
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

// wrote records the resourceVersion of a write.
func (w *write) wrote(version string) {
	if revision, err := strconv.ParseInt(version, 10, 64); err == nil {
		w.revision = max(w.revision, revision)
	}
}

// barrier makes the write wait for the store's current revision: any list returns it, and there is at most one
// Site.
func (w *write) barrier(ctx context.Context) {
	if _, revision, err := w.writes.store.List(ctx, api.KindOf(new(api.Site))); err == nil {
		w.revision = max(w.revision, revision)
	}
}

// end permits other verdicts once the cache has the write. If that takes too long, the next write waits for it.
func (w *write) end() {
	defer w.release()
	ctx, cancel := context.WithTimeout(context.Background(), cacheTime) // also when the client has disconnected
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
