package store

import (
	"context"
	"iter"
	"reflect"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
)

// tailSize is the minimum number of newest changes that are kept for watches, and half the maximum. KeepTail
// changes it.
const tailSize = 1024

// tail is the newest changes, of all kinds. The cache's mu guards it.
type tail struct {
	events []Event // by revision
	base   int64   // every change after it is in events
	size   int
}

// memo caches the encoding of an event, for all watches.
type memo struct {
	once sync.Once
	raw  []byte
	err  error
}

// Encoded returns fn's encoding of the event. Where several watches share the event, fn is called once, and its
// bytes are shared.
func (e Event) Encoded(fn func() ([]byte, error)) ([]byte, error) {
	if e.memo == nil {
		return fn()
	}
	e.memo.once.Do(func() { e.memo.raw, e.memo.err = fn() })
	return e.memo.raw, e.memo.err
}

// reset drops everything: single changes up to a revision are not known.
func (t *tail) reset(revision int64) { t.events, t.base = nil, revision }

// KeepTail sets how many of the newest changes are kept for watches, and drops the current ones: an earlier watch
// is served by etcd.
func (c *Cache) KeepTail(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tail.size = n
	c.tail.reset(c.revision)
}

// add keeps a change of an object that was old, or nil.
func (t *tail) add(x change, old api.Object) {
	e := Event{Type: api.Modified, Object: x.object, Revision: x.revision, kind: x.table.kind.Name, memo: new(memo)}
	switch {
	case x.object == nil && old == nil:
		return
	case x.object == nil:
		e.Type, e.Object = api.Deleted, copyOf(old)
		e.Object.Meta().ResourceVersion = formatRevision(x.revision)
	case x.created:
		e.Type = api.Added
	}
	t.events = append(t.events, e)
	if old := len(t.events) - t.size; old > t.size {
		t.base = t.events[old-1].Revision
		t.events = slices.Clone(t.events[old:]) // so that dropped events are freed
	}
}

// copyOf is a shallow copy, whose metadata may be set.
func copyOf(o api.Object) api.Object {
	c := reflect.New(reflect.TypeOf(o).Elem())
	c.Elem().Set(reflect.ValueOf(o).Elem())
	return c.Interface().(api.Object)
}

// since lists the changes of a kind after a revision, and the revision up to which they are complete; false when
// they are no longer known.
func (c *Cache) since(kind string, from int64) (events []Event, upTo int64, moved <-chan struct{}, known bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if from < c.tail.base {
		return nil, 0, nil, false
	}
	all := c.tail.events
	for _, e := range all[sort.Search(len(all), func(i int) bool { return all[i].Revision > from }):] {
		if e.kind == kind {
			events = append(events, e)
		}
	}
	return events, max(from, c.revision), c.moved, true
}

// Watch is Store.Watch from the cache, if that has the changes since `from`, which must not be 0: changes for
// many watches are then read, decoded and encoded once. Its objects are shared and must not be modified.
func (c *Cache) Watch(ctx context.Context, k api.Kind, from int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		reached := c.WaitRevision(limited, from) == nil // otherwise it may be a revision of another history
		cancel()
		for reached {
			events, upTo, moved, known := c.since(k.Name, from)
			if !known {
				break
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
			if upTo > from && !yield(Event{Type: api.Synced, Revision: upTo}, nil) {
				return
			}
			from = upTo
			select {
			case <-ctx.Done():
				yield(Event{}, ctx.Err())
				return
			case <-moved:
			}
		}
		for e, err := range c.store.Watch(ctx, k, from) {
			if !yield(e, err) {
				return
			}
		}
	}
}
