package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/index"
	"github.com/rackweft/rackweft/internal/wait"
)

// Cache is the store's objects in memory, kept current by one watch. Reads
// never wait for etcd. The objects that it returns are shared by all readers and must not be modified. Its
// Secrets have no data.
type Cache struct {
	store *Store
	log   *slog.Logger

	mu       sync.RWMutex
	byPlural map[string]*table
	byType   map[reflect.Type]*table // *api.Machine → its table
	macs     map[api.MAC][]string    // → the Machines that have it, sorted
	refs     index.Keyed[ref, ref]   // object → the objects that refer to it
	revision int64
	moved    chan struct{} // closed when revision changes, and replaced
	feeds    map[*Subscription]struct{}
	mirrors  []func(Change)
	tail     tail
	derived  sync.Map // by type: results of Derived

	synced   chan struct{}
	syncOnce sync.Once
}

// table is the objects of one kind.
type table struct {
	kind    api.Kind
	objects map[string]api.Object
	names   []string // sorted
}

type ref struct{ kind, name string }

// NewCache prepares a cache; it is empty until Run has filled it.
func NewCache(s *Store, log *slog.Logger) *Cache {
	c := &Cache{
		store: s, log: log,
		byPlural: map[string]*table{}, byType: map[reflect.Type]*table{}, macs: map[api.MAC][]string{},
		moved: make(chan struct{}), synced: make(chan struct{}), feeds: map[*Subscription]struct{}{}, tail: tail{size: tailSize},
	}
	for _, k := range api.Kinds() {
		if k.Computed {
			continue
		}
		t := &table{kind: k, objects: map[string]api.Object{}}
		c.byPlural[k.Plural] = t
		c.byType[reflect.TypeOf(k.New())] = t
	}
	return c
}

// Run fills the cache and keeps it current until ctx ends. When etcd is unreachable the cache does not change and
// Run retries.
func (c *Cache) Run(ctx context.Context) error {
	for {
		err := c.load(ctx)
		if err == nil {
			err = c.follow(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrCompacted) {
			c.log.Info("the cache reads everything again", "reason", err)
		} else {
			c.log.Warn("the cache is not updated until etcd answers again", "error", err)
		}
		if err := wait.For(ctx, time.Second); err != nil {
			return err
		}
	}
}

// load makes the cache equal to the store.
func (c *Cache) load(ctx context.Context) error {
	found := map[string]map[string]api.Object{}
	for plural := range c.byPlural {
		found[plural] = map[string]api.Object{}
	}
	revision, err := c.store.scan(ctx, objectPrefix, func(kv *mvccpb.KeyValue) {
		if t := c.table(kv); t != nil {
			if o := c.decode(t, kv); o != nil {
				found[t.kind.Plural][o.Meta().Name] = o
			}
		}
	})
	if err != nil {
		return fmt.Errorf("fill the cache: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for plural, objects := range found {
		c.become(c.byPlural[plural], objects, revision)
	}
	c.tail.reset(revision)
	c.advance(revision)
	c.syncOnce.Do(func() { close(c.synced) })
	return nil
}

// become makes a table hold exactly these objects.
func (c *Cache) become(t *table, objects map[string]api.Object, revision int64) {
	for _, name := range slices.Clone(t.names) {
		if objects[name] == nil {
			c.set(t, name, nil, revision)
		}
	}
	for name, o := range objects {
		old := t.objects[name]
		if old == nil || old.Meta().ResourceVersion != o.Meta().ResourceVersion {
			c.set(t, name, o, revision)
		}
	}
}

// follow applies one change after the other.
func (c *Cache) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp, err := range c.store.follow(ctx, objectPrefix, c.Revision()) {
		if err != nil {
			return err
		}
		c.take(resp)
	}
	return errors.New("etcd ended the watch")
}

type change struct {
	table    *table
	name     string
	object   api.Object // nil: deleted
	created  bool
	revision int64
}

func (c *Cache) take(resp clientv3.WatchResponse) {
	changes := make([]change, 0, len(resp.Events))
	var revision int64
	if resp.IsProgressNotify() {
		revision = resp.Header.Revision
	}
	for _, e := range resp.Events {
		revision = e.Kv.ModRevision
		t := c.table(e.Kv)
		if t == nil {
			continue
		}
		next := change{table: t, name: nameOf(e.Kv), created: e.IsCreate(), revision: revision}
		if e.Type != clientv3.EventTypeDelete {
			if next.object = c.decode(t, e.Kv); next.object == nil {
				continue
			}
		}
		changes = append(changes, next)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range changes {
		c.tail.add(x, x.table.objects[x.name])
		c.set(x.table, x.name, x.object, x.revision)
	}
	c.advance(revision)
}

// table returns the table that a key belongs to; leases have none.
func (c *Cache) table(kv *mvccpb.KeyValue) *table {
	plural, name, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), objectPrefix), "/")
	if name == "" {
		return nil
	}
	return c.byPlural[plural]
}

func (c *Cache) decode(t *table, kv *mvccpb.KeyValue) api.Object {
	o, err := decode(t.kind, kv)
	if err != nil {
		c.log.Error("an object in the store is skipped", "error", err)
		return nil
	}
	redact(o)
	return o
}

// set puts an object into its table, or removes it when o is nil, and notifies subscribers. The caller holds mu.
func (c *Cache) set(t *table, name string, o api.Object, revision int64) {
	old := t.objects[name]
	if old == nil && o == nil {
		return
	}
	at, there := slices.BinarySearch(t.names, name)
	switch {
	case o == nil:
		delete(t.objects, name)
		t.names = slices.Delete(t.names, at, at+1)
	case !there:
		t.names = slices.Insert(t.names, at, name)
		fallthrough
	default:
		t.objects[name] = o
	}
	c.index(name, old, o)
	c.indexRefs(ref{t.kind.Name, name}, old, o)
	x := Change{Kind: t.kind, Name: name, Old: old, New: o, Revision: revision}
	for _, fn := range c.mirrors {
		fn(x)
	}
	for f := range c.feeds {
		f.put(x)
	}
}

// index keeps macs current.
func (c *Cache) index(name string, old, now api.Object) {
	if m, ok := old.(*api.Machine); ok {
		for _, mac := range m.MACs() {
			c.macs[mac] = slices.DeleteFunc(c.macs[mac], func(n string) bool { return n == name })
			if len(c.macs[mac]) == 0 {
				delete(c.macs, mac)
			}
		}
	}
	if m, ok := now.(*api.Machine); ok {
		for _, mac := range m.MACs() {
			if at, there := slices.BinarySearch(c.macs[mac], name); !there {
				c.macs[mac] = slices.Insert(c.macs[mac], at, name)
			}
		}
	}
}

// indexRefs keeps refs current.
func (c *Cache) indexRefs(at ref, old, now api.Object) {
	if old != nil {
		for _, r := range api.References(old) {
			c.refs.Remove(ref{r.Kind, r.Name}, at)
		}
	}
	if now != nil {
		for _, r := range api.References(now) {
			c.refs.Add(ref{r.Kind, r.Name}, at)
		}
	}
}

// CachedReferrers returns the objects whose spec refers to another one, which need not exist, in no order. They
// are shared and must not be modified.
func (c *Cache) CachedReferrers(kind, name string) []api.Object {
	c.mu.RLock()
	defer c.mu.RUnlock()
	found := map[ref]struct{}{}
	c.refs.Collect(ref{kind, name}, found)
	list := make([]api.Object, 0, len(found))
	for _, t := range c.byPlural {
		for at := range found {
			if at.kind == t.kind.Name {
				list = append(list, t.objects[at.name])
			}
		}
	}
	return list
}

// advance raises the revision. The caller holds mu.
func (c *Cache) advance(revision int64) {
	if revision == 0 || revision == c.revision {
		return
	}
	c.revision = revision
	close(c.moved)
	c.moved = make(chan struct{})
}

// Synced is closed when the cache has been filled for the first time.
func (c *Cache) Synced() <-chan struct{} { return c.synced }

// Revision is the store revision of the cache.
func (c *Cache) Revision() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

// WaitRevision returns when the cache has everything up to a revision: that of a List, or an object's
// resourceVersion.
func (c *Cache) WaitRevision(ctx context.Context, revision int64) error {
	for {
		c.mu.RLock()
		now, moved := c.revision, c.moved
		c.mu.RUnlock()
		if now >= revision {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the cache reaches revision %d from %d: %w", revision, now, ctx.Err())
		case <-moved:
		case <-time.After(50 * time.Millisecond):
			// The revision may be from another store: etcd reports its progress. The request must use the watch's
			// stream, hence the same kind of context.
			_ = c.store.client.RequestProgress(clientv3.WithRequireLeader(ctx))
		}
	}
}

// Cached returns an object of a known type: Cached[api.Machine](c, "r1u07").
// It is shared and must not be modified.
func Cached[T any, P kind[T]](c *Cache, name string) (P, bool) {
	t := c.byType[reflect.TypeFor[P]()]
	if t == nil {
		return nil, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	o, ok := t.objects[name].(P)
	return o, ok
}

// CachedList returns all objects of a known type, sorted by name. The slice is
// the caller's; the objects are shared and must not be modified.
func CachedList[T any, P kind[T]](c *Cache) []P {
	t := c.byType[reflect.TypeFor[P]()]
	if t == nil {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make([]P, len(t.names))
	for i, name := range t.names {
		list[i] = t.objects[name].(P)
	}
	return list
}

// CachedMachineByMAC returns the Machine that has the MAC on a link or in a
// bond; the first by name if there are several. It is shared and must not be modified.
func CachedMachineByMAC(c *Cache, mac api.MAC) (*api.Machine, bool) {
	t := c.byPlural["machines"]
	c.mu.RLock()
	defer c.mu.RUnlock()
	names := c.macs[mac]
	if len(names) == 0 {
		return nil, false
	}
	return t.objects[names[0]].(*api.Machine), true
}

// RegisteredByMAC is CachedMachineByMAC without discovered Machines, which bootd created from unregistered MACs.
func RegisteredByMAC(c *Cache, mac api.MAC) (*api.Machine, bool) {
	m, ok := CachedMachineByMAC(c, mac)
	if !ok || m.Metadata.Labels[api.DiscoveredLabel] == "true" {
		return nil, false
	}
	return m, true
}

// CachedObject returns an object of any kind; see Cached.
func (c *Cache) CachedObject(k api.Kind, name string) (api.Object, bool) {
	t := c.byPlural[k.Plural]
	if t == nil {
		return nil, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	o, ok := t.objects[name]
	return o, ok
}

// CachedObjects returns all objects of any kind, sorted by name, and their revision, from which a Watch misses
// nothing.
func (c *Cache) CachedObjects(k api.Kind) ([]api.Object, int64) {
	t := c.byPlural[k.Plural]
	if t == nil {
		return nil, 0
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	list := make([]api.Object, len(t.names))
	for i, name := range t.names {
		list[i] = t.objects[name]
	}
	return list, c.revision
}
