package store

import (
	"context"
	"fmt"
	"iter"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/api"
)

// Event is one change of one object.
type Event struct {
	Type api.WatchType // Added, Modified, Deleted or Synced
	// Object is the object after the change, or before its deletion; then its resourceVersion is that of the
	// deletion. It is nil for Synced: every change up to Revision has been yielded.
	Object   api.Object
	Revision int64

	kind string // of an event in a tail
	memo *memo
}

// Watch yields every change of a kind after the revision `from` (a List's), or
// from now on when it is 0. It ends with an error: ErrCompacted when the
// changes since `from` are no longer known, or ctx's.
//
//	for e, err := range s.Watch(ctx, k, from) { … }
func (s *Store) Watch(ctx context.Context, k api.Kind, from int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if err := storable(k, "any"); err != nil {
			yield(Event{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for resp, err := range s.etcd.follow(ctx, prefix(k), from, clientv3.WithPrevKV()) {
			if err != nil {
				yield(Event{}, fmt.Errorf("watch %s: %w", k.Plural, err))
				return
			}
			if resp.IsProgressNotify() && !yield(Event{Type: api.Synced, Revision: resp.Header.Revision}, nil) {
				return
			}
			for _, e := range resp.Events {
				event, err := s.event(k, e)
				if err != nil {
					s.etcd.log.Error("a change in the store is skipped", "error", err)
					continue
				}
				if !yield(event, nil) {
					return
				}
			}
		}
	}
}

func (s *Store) event(k api.Kind, e *clientv3.Event) (Event, error) {
	event := Event{Type: api.Modified, Revision: e.Kv.ModRevision}
	kv := e.Kv
	switch {
	case e.IsCreate():
		event.Type = api.Added
	case e.Type == clientv3.EventTypeDelete:
		event.Type = api.Deleted
		kv = e.PrevKv
	}
	if kv == nil {
		// The object's last state was compacted away; only its name is known.
		kv = &mvccpb.KeyValue{Key: e.Kv.Key, Value: []byte("{}")}
	}
	o, err := decode(k, kv)
	if err != nil && event.Type == api.Deleted {
		o, err = decode(k, &mvccpb.KeyValue{Key: e.Kv.Key, Value: []byte("{}")})
	}
	if err != nil {
		return Event{}, err
	}
	redact(o)
	o.Meta().ResourceVersion = formatRevision(e.Kv.ModRevision)
	event.Object = o
	return event, nil
}
