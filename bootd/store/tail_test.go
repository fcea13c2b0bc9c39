package store

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
)

// TestCacheWatch compares what the cache's watch yields with what etcd's own does,
// from every revision, also where the cache has forgotten in the middle.
func TestCacheWatch(t *testing.T) {
	s := open(t, Config{})
	k := kindOf(t, "machine")
	create(t, s, machine("before"))
	c := runCache(t, s)
	first := c.Revision()
	change := func(name, profile string) {
		t.Helper()
		if _, err := Mutate(t.Context(), s, name, func(m *api.Machine) error { m.Spec.Profile = profile; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(name string) {
		t.Helper()
		if err := s.Delete(t.Context(), k, name, ""); err != nil {
			t.Fatal(err)
		}
	}
	change("before", "a")
	create(t, s, machine("m"), &api.Zone{Base: api.Base{Metadata: api.Metadata{Name: "z"}}})
	change("m", "b")
	remove("m")
	create(t, s, machine("m"))
	remove("before")
	change("m", "last")
	waitCache(t, s, c)
	_, last, err := s.List(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read := func(watch func(context.Context, api.Kind, int64) func(func(Event, error) bool), from int64) []string {
		t.Helper()
		var list []string
		for e, err := range watch(ctx, k, from) {
			if err != nil {
				t.Fatalf("from %d: %v", from, err)
			}
			if e.Type == api.Synced {
				continue
			}
			m := e.Object.(*api.Machine)
			list = append(list, fmt.Sprint(e.Type, m.Metadata.Name, m.Metadata.UID, m.Metadata.ResourceVersion, m.Spec.Profile, e.Revision))
			if e.Revision == last {
				break
			}
		}
		return list
	}
	ofStore := func(ctx context.Context, k api.Kind, from int64) func(func(Event, error) bool) {
		return s.Watch(ctx, k, from)
	}
	ofCache := func(ctx context.Context, k api.Kind, from int64) func(func(Event, error) bool) {
		return c.Watch(ctx, k, from)
	}
	for from := first; from < last; from++ {
		if diff := cmp.Diff(read(ofStore, from), read(ofCache, from)); diff != "" {
			t.Errorf("from %d (-etcd +cache): %s", from, diff)
		}
	}
	if m, ok := Cached[api.Machine](c, "m"); !ok || m.Metadata.ResourceVersion != formatRevision(last) {
		t.Errorf("the cache has %+v", m)
	}

	c.mu.Lock()
	c.tail.reset(first + 3)
	c.mu.Unlock()
	if diff := cmp.Diff(read(ofStore, first), read(ofCache, first)); diff != "" {
		t.Errorf("what the cache has forgotten (-etcd +cache): %s", diff)
	}

	gone, leave := context.WithCancel(t.Context())
	leave()
	for _, err := range c.Watch(gone, k, last) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	for e, err := range c.Watch(ctx, k, 1<<40) {
		if !errors.Is(err, ErrCompacted) {
			t.Errorf("from a revision of another history: %+v, %v", e, err)
		}
	}
}

// TestWatchesShare has several watches encode the events that they share.
func TestWatchesShare(t *testing.T) {
	s := open(t, Config{})
	c := runCache(t, s)
	from := c.Revision()
	create(t, s, machine("a"), machine("b"))
	encoded := 0
	for range 5 {
		for e, err := range c.Watch(t.Context(), kindOf(t, "machine"), from) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == api.Synced {
				continue
			}
			if raw, err := e.Encoded(func() ([]byte, error) { encoded++; return []byte(e.Object.Meta().Name), nil }); err != nil || string(raw) != e.Object.Meta().Name {
				t.Errorf("%s, %v", raw, err)
			}
			if e.Object.Meta().Name == "b" {
				break
			}
		}
	}
	if encoded != 2 {
		t.Errorf("2 events were encoded %d times", encoded)
	}
}

func TestTailIsBounded(t *testing.T) {
	c := &Cache{revision: 10, moved: make(chan struct{}), tail: tail{size: tailSize}}
	c.tail.reset(10)
	k := kindOf(t, "machine")
	for i := range int64(10 * tailSize) {
		ch := change{table: &table{kind: k}, name: "m", object: machine("m"), revision: 11 + i}
		if i%7 == 0 {
			ch.object = nil
		}
		c.tail.add(ch, machine("m"))
		c.revision = ch.revision
		if n := len(c.tail.events); n > 2*tailSize {
			t.Fatalf("%d events are kept", n)
		}
		from := c.revision - min(i, tailSize-1) - 1
		if events, upTo, _, known := c.since(k.Name, from); !known || upTo != c.revision || int64(len(events)) != c.revision-from {
			t.Fatalf("since %d at %d: %d events up to %d, known: %v", from, c.revision, len(events), upTo, known)
		}
	}
	if _, _, _, known := c.since(k.Name, 10); known {
		t.Error("what was forgotten is known")
	}
}
