package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/api"
)

// runCache starts a cache and waits until it is filled.
func runCache(t testing.TB, s *Store) *Cache {
	t.Helper()
	c := NewCache(s, testLog(t))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-c.Synced():
	case <-time.After(20 * time.Second):
		t.Fatal("the cache was not filled")
	}
	return c
}

// waitCache waits until the cache has what the store has.
func waitCache(t testing.TB, s *Store, c *Cache) {
	t.Helper()
	_, revision, err := s.List(t.Context(), kindOf(t, "site"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.WaitRevision(ctx, revision); err != nil {
		t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	s := open(t, Config{})
	k := kindOf(t, "machine")
	create(t, s, machine("a"))
	_, from, err := s.List(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, machine("b"), &api.Zone{Base: api.Base{Metadata: api.Metadata{Name: "z"}}})
	if _, err := Mutate(t.Context(), s, "a", func(m *api.Machine) error { m.Spec.Profile = "worker"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), k, "a", ""); err != nil {
		t.Fatal(err)
	}
	var got []string
	last := from
	for e, err := range s.Watch(t.Context(), k, from) {
		if err != nil {
			t.Fatal(err)
		}
		m := e.Object.(*api.Machine)
		if e.Revision <= last || m.Metadata.ResourceVersion != strconv.FormatInt(e.Revision, 10) {
			t.Errorf("revision %d after %d, resourceVersion %s", e.Revision, last, m.Metadata.ResourceVersion)
		}
		last = e.Revision
		got = append(got, fmt.Sprintf("%s %s %s", e.Type, m.Metadata.Name, m.Spec.Profile))
		if len(got) == 3 {
			break
		}
	}
	want := fmt.Sprint([]string{"ADDED b ", "MODIFIED a worker", "DELETED a worker"})
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestWatchBehindCompaction(t *testing.T) {
	s := open(t, Config{})
	k := kindOf(t, "machine")
	for i := range 5 {
		create(t, s, machine(fmt.Sprintf("m%d", i)))
	}
	if err := s.compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []int64{1, 1 << 40} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for e, err := range s.Watch(ctx, k, from) {
			if !errors.Is(err, ErrCompacted) {
				t.Errorf("from %d: %v, %v", from, e, err)
			}
			break
		}
		cancel()
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	s := open(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.Watch(ctx, kindOf(t, "machine"), 0) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

func TestCache(t *testing.T) {
	s := open(t, Config{})
	create(t, s, machine("b", "52:54:00:00:00:02"), machine("a", "52:54:00:00:00:01"))
	c := runCache(t, s)
	names := func() string {
		text := ""
		for _, m := range CachedList[api.Machine](c) {
			text += m.Metadata.Name + " "
		}
		return text
	}
	if names() != "a b " {
		t.Errorf("at first: %s", names())
	}

	bonded := machine("c")
	bonded.Spec.Links = []api.Link{{Name: "bond0", Bond: &api.Bond{Mode: "802.3ad", Members: []api.MAC{"52:54:00:00:00:03", "52:54:00:00:00:04"}}}}
	create(t, s, bonded)
	if err := s.Delete(t.Context(), kindOf(t, "machine"), "b", ""); err != nil {
		t.Fatal(err)
	}
	after, err := Mutate(t.Context(), s, "a", func(m *api.Machine) error { m.Spec.Links[0].MAC = "52:54:00:00:00:05"; return nil })
	if err != nil {
		t.Fatal(err)
	}
	waitCache(t, s, c)
	if names() != "a c " {
		t.Errorf("after changes: %s", names())
	}
	for mac, want := range map[api.MAC]string{
		"52:54:00:00:00:01": "", "52:54:00:00:00:02": "", "52:54:00:00:00:03": "c", "52:54:00:00:00:04": "c", "52:54:00:00:00:05": "a",
	} {
		m, ok := CachedMachineByMAC(c, mac)
		if ok != (want != "") || ok && m.Metadata.Name != want {
			t.Errorf("%s belongs to %v, want %q", mac, m, want)
		}
	}
	if m, ok := Cached[api.Machine](c, "a"); !ok || m.Metadata.ResourceVersion != after.Metadata.ResourceVersion {
		t.Errorf("a is %+v", m)
	}
	if m, ok := Cached[api.Machine](c, "b"); ok || m != nil {
		t.Errorf("b is %+v", m)
	}
	if _, ok := Cached[api.HostSpec](c, "a"); ok {
		t.Error("a HostSpec is stored nowhere")
	}
	objects, revision := c.CachedObjects(kindOf(t, "machine"))
	if len(objects) != 2 || revision != c.Revision() {
		t.Errorf("%d objects at %d", len(objects), revision)
	}
}

// TestCacheSurvivesCompaction cuts the cache off, compacts what it missed away
// and lets it go on.
func TestCacheSurvivesCompaction(t *testing.T) {
	s := open(t, Config{})
	create(t, s, machine("kept"), machine("changed"), machine("deleted"))
	c := NewCache(s, testLog(t))
	if err := c.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), kindOf(t, "machine"), "deleted", ""); err != nil {
		t.Fatal(err)
	}
	create(t, s, machine("new"))
	if _, err := Mutate(t.Context(), s, "changed", func(m *api.Machine) error { m.Spec.Profile = "p"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.follow(t.Context()); !errors.Is(err, ErrCompacted) {
		t.Fatalf("the watch ended with %v", err)
	}
	heard := map[string]string{}
	f := c.Subscription()
	c.attach(f)
	for _, ok := f.take(); ok; _, ok = f.take() {
	}
	if err := c.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for x, ok := f.take(); ok; x, ok = f.take() {
		heard[x.Name] = fmt.Sprint(x.Old != nil, x.New != nil)
	}
	want := map[string]string{"deleted": "true false", "new": "false true", "changed": "true true"}
	if fmt.Sprint(heard) != fmt.Sprint(want) {
		t.Errorf("heard %v, want %v", heard, want)
	}
}

func TestSubscribe(t *testing.T) {
	s := open(t, Config{})
	create(t, s, machine("a"), &api.Zone{Base: api.Base{Metadata: api.Metadata{Name: "z"}}})
	c := runCache(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	changes := make(chan Change)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := c.Subscribe(ctx, func(x Change) {
			select {
			case changes <- x:
			case <-ctx.Done():
			}
		}, kindOf(t, "machine"))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	defer func() { cancel(); wg.Wait() }()

	if x := <-changes; x.Name != "a" || x.Old != nil || x.New == nil {
		t.Errorf("first: %+v", x)
	}
	create(t, s, machine("b"))
	waitCache(t, s, c)
	// The subscriber stands in fn with b, so what follows is joined.
	for i := range 20 {
		if _, err := Mutate(t.Context(), s, "a", func(m *api.Machine) error { m.Spec.Location.Unit = i + 1; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	create(t, s, machine("brief"))
	if err := s.Delete(t.Context(), kindOf(t, "machine"), "brief", ""); err != nil {
		t.Fatal(err)
	}
	create(t, s, machine("last"))
	waitCache(t, s, c)
	if x := <-changes; x.Name != "b" {
		t.Errorf("second: %+v", x)
	}
	x := <-changes
	if x.Name != "a" || x.Old.(*api.Machine).Spec.Location.Unit != 0 || x.New.(*api.Machine).Spec.Location.Unit != 20 {
		t.Errorf("the joined change: %+v", x)
	}
	if x := <-changes; x.Name != "last" {
		t.Errorf("after the joined one: %+v", x)
	}
}

func TestWaitRevisionOfSomethingElse(t *testing.T) {
	s := open(t, Config{})
	c := runCache(t, s)
	if err := s.Raw.Put(t.Context(), "epoch", []byte("1")); err != nil {
		t.Fatal(err)
	}
	waitCache(t, s, c)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.WaitRevision(ctx, 1<<40); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a revision to come: %v", err)
	}
}

func BenchmarkCachedMachineByMAC(b *testing.B) {
	c := NewCache(nil, testLog(b))
	for i := range 500 {
		c.set(c.byPlural["machines"], fmt.Sprintf("m%03d", i), machine(fmt.Sprintf("m%03d", i), api.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", i/256, i%256))), 1)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, ok := CachedMachineByMAC(c, "52:54:00:00:01:01"); !ok {
				b.Error("not found")
			}
		}
	})
}

// TestQuietWatch: a watch of a kind that nobody changes moves on with the store.
func TestQuietWatch(t *testing.T) {
	s := open(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	zones := api.KindOf(new(api.Zone))
	_, from, err := s.List(ctx, zones)
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, machine("r1u07"))
	// Etcd says how far it is every minute, and when it is asked.
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		for ctx.Err() == nil {
			_ = s.Client().RequestProgress(clientv3.WithRequireLeader(ctx))
			time.Sleep(20 * time.Millisecond)
		}
	})
	for e, err := range s.Watch(ctx, zones, from) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != api.Synced || e.Object != nil {
			t.Fatalf("%+v", e)
		}
		if e.Revision > from {
			break
		}
	}
	cancel()
}

// TestReferrers follows who names what while objects come, change and go.
func TestReferrers(t *testing.T) {
	s := open(t, Config{})
	create(t, s, machine("before"))
	if _, err := Mutate(t.Context(), s, "before", func(m *api.Machine) error { m.Spec.Zone = "yellow"; return nil }); err != nil {
		t.Fatal(err)
	}
	c := runCache(t, s)
	var mirrored []string
	c.Mirror(func(x Change) { mirrored = append(mirrored, x.Name) })
	names := func(kind, name string) string {
		waitCache(t, s, c)
		var list []string
		for _, o := range c.CachedReferrers(kind, name) {
			list = append(list, o.Meta().Name)
		}
		slices.Sort(list)
		return strings.Join(list, " ")
	}
	after := machine("after")
	after.Spec.Zone, after.Spec.Profile = "yellow", "worker"
	create(t, s, after)
	profile := &api.Profile{Base: api.Base{Metadata: api.Metadata{Name: "worker"}}, Spec: api.ProfileSpec{Image: "debian", Layers: []string{"a", "b"}}}
	create(t, s, profile)
	for _, x := range []struct{ kind, name, want string }{
		{"Zone", "yellow", "after before"}, {"Profile", "worker", "after"}, {"Layer", "b", "worker"}, {"Image", "debian", "worker"}, {"Subnet", "yellow", ""},
	} {
		if got := names(x.kind, x.name); got != x.want {
			t.Errorf("%s %s is named by %q, want %q", x.kind, x.name, got, x.want)
		}
	}
	if _, err := Mutate(t.Context(), s, "before", func(m *api.Machine) error { m.Spec.Zone = "red"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), kindOf(t, "machine"), "after", ""); err != nil {
		t.Fatal(err)
	}
	if got := names("Zone", "yellow") + "/" + names("Zone", "red") + "/" + names("Profile", "worker"); got != "/before/" {
		t.Errorf("after changes: %q", got)
	}
	if got := strings.Join(mirrored, " "); got != "before after worker before after" {
		t.Errorf("the mirror has seen %q", got)
	}
}
