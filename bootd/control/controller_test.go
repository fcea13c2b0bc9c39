package control_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
)

type zones = control.Controller[*api.Zone]

func zone(name string) *api.Zone {
	return &api.Zone{Base: testsite.Named(name), Spec: api.ZoneSpec{ASN: 64600 + uint32(name[len(name)-1])}}
}

// run runs a controller for as long as the test.
func run(t *testing.T, c *zones) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := c.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the controller ended with %v", err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

func idle(t *testing.T, c *zones) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Idle(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestIdle: after Idle all is done that follows from what was written before,
// by a step's own writes too, and by changes that are gathered.
func TestIdle(t *testing.T) {
	s := testsite.Open(t)
	c := &zones{Env: s.Env(), Kinds: []string{"Zone", "Subnet"}, Workers: 2, Gather: map[string]time.Duration{"Subnet": 30 * time.Millisecond}}
	var mu sync.Mutex
	steps := map[string]int{}
	c.Due = func(ch store.Change) []string {
		if ch.Kind.Name == "Subnet" {
			return []string{"b"}
		}
		return []string{ch.Name}
	}
	c.Step = func(ctx context.Context, z *api.Zone) (time.Duration, error) {
		mu.Lock()
		steps[z.Metadata.Name]++
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		return time.Hour, control.Write(ctx, c.Env, z, func(z *api.Zone) bool {
			if len(z.Status.Loopbacks) == 3 {
				return false
			}
			z.Status.Loopbacks = append(z.Status.Loopbacks, api.LoopbackStatus{Machine: "m"})
			return true
		})
	}
	s.Create(zone("a"), zone("b"))
	run(t, c)
	idle(t, c)
	for _, name := range []string{"a", "b"} {
		z, err := store.Get[api.Zone](t.Context(), s.Store, name)
		if err != nil || len(z.Status.Loopbacks) != 3 {
			t.Errorf("Zone %s: %+v, %v", name, z, err)
		}
	}
	before := steps["b"]
	if err := s.Store.Create(t.Context(), &api.Subnet{Base: testsite.Named("s"), Spec: api.SubnetSpec{Purpose: api.Production}}); err != nil {
		t.Fatal(err)
	}
	idle(t, c)
	if steps["b"] != before+1 {
		t.Errorf("a gathered change made %d steps, want 1", steps["b"]-before)
	}
}

// TestSteps: AtOnce takes a step again, Sources make objects due, and of one that
// is gone Gone hears.
func TestSteps(t *testing.T) {
	s := testsite.Open(t)
	steps := 0
	gone := make(chan string, 8)
	told := make(chan struct{})
	c := &zones{Env: s.Env(), Kinds: []string{"Zone"}, Workers: 1, Gone: func(name string) { gone <- name }}
	c.Due = func(ch store.Change) []string { return []string{ch.Name} }
	c.Step = func(context.Context, *api.Zone) (time.Duration, error) {
		if steps++; steps < 3 {
			return control.AtOnce, nil
		}
		return 0, nil
	}
	c.Sources = append(c.Sources, func(ctx context.Context, due func(...string)) error {
		due("nowhere")
		close(told)
		<-ctx.Done()
		return ctx.Err()
	})
	s.Create(zone("a"))
	run(t, c)
	<-told
	idle(t, c)
	if steps != 3 {
		t.Errorf("%d steps, want 3", steps)
	}
	if name := <-gone; name != "nowhere" {
		t.Errorf("%s is said to be gone", name)
	}
	kind, err := api.LookupKind("Zone")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Store.Delete(t.Context(), kind, "a", ""); err != nil {
		t.Fatal(err)
	}
	idle(t, c)
	if name := <-gone; name != "a" {
		t.Errorf("%s is said to be gone", name)
	}
}

// TestWrite: only the object that was looked at is changed, one that is gone is
// left alone, and the cache has what was written.
func TestWrite(t *testing.T) {
	s := testsite.Open(t)
	s.Create(zone("a"))
	z, _ := store.Cached[api.Zone](s.Cache, "a")
	asn := func(asn uint32) func(*api.Zone) bool {
		return func(z *api.Zone) bool { z.Spec.ASN = asn; return true }
	}
	if err := control.Write(t.Context(), s.Env(), z, asn(64999)); err != nil {
		t.Fatal(err)
	}
	if now, _ := store.Cached[api.Zone](s.Cache, "a"); now.Spec.ASN != 64999 {
		t.Errorf("the cache has ASN %d after the write", now.Spec.ASN)
	}
	unchanged := func(z *api.Zone) bool { z.Spec.ASN = 1; return false }
	if err := control.Write(t.Context(), s.Env(), z, unchanged); err != nil {
		t.Fatal(err)
	}
	other := *z
	other.Metadata.UID = "another"
	if err := control.Write(t.Context(), s.Env(), &other, asn(2)); err != nil {
		t.Fatal(err)
	}
	if now, err := store.Get[api.Zone](t.Context(), s.Store, "a"); err != nil || now.Spec.ASN != 64999 {
		t.Errorf("ASN %d, %v: it was changed by what is not to change it", now.Spec.ASN, err)
	}
	if err := control.Write(t.Context(), s.Env(), zone("b"), asn(3)); err != nil {
		t.Errorf("a Zone that is gone: %v", err)
	}
}

func TestFinalizers(t *testing.T) {
	z := zone("a")
	if !control.AddFinalizer(z, "x") || control.AddFinalizer(z, "x") || !control.HasFinalizer(z, "x") {
		t.Errorf("finalizers %v", z.Metadata.Finalizers)
	}
	now := time.Now()
	z.Metadata.DeletionTimestamp = &now
	if control.AddFinalizer(z, "y") {
		t.Error("an object that is being deleted was given a finalizer")
	}
	if !control.DropFinalizer(z, "x") || control.DropFinalizer(z, "x") || slices.Contains(z.Metadata.Finalizers, "x") {
		t.Errorf("finalizers %v", z.Metadata.Finalizers)
	}
}

// TestReport: an event is made of what is news, which is not a message alone, and
// nothing is written of a spec that has changed since.
func TestReport(t *testing.T) {
	s := testsite.Open(t)
	s.Create(zone("a"))
	z, _ := store.Cached[api.Zone](s.Cache, "a")
	report := func(f control.Finding) *api.Condition {
		t.Helper()
		if err := control.Report(t.Context(), s.Env(), z, f, nil); err != nil {
			t.Fatal(err)
		}
		now, _ := store.Cached[api.Zone](s.Cache, "a")
		return now.Status.Conditions.Get(api.CondReady)
	}
	report(control.Finding{Status: api.False, Reason: "Changing", Message: "1 of 2"})
	if c := report(control.Finding{Status: api.False, Reason: "Changing", Message: "2 of 2"}); c == nil || c.Message != "2 of 2" {
		t.Errorf("the condition is %+v", c)
	}
	report(control.Finding{Status: api.True, Reason: "Serving"})
	report(control.Finding{Status: api.False, Reason: "Leaving", Event: api.Normal})
	report(control.Finding{Status: api.False, Reason: "Quietly", Silent: true})
	want := []api.Event{
		{Name: "a", Type: api.Warning, Reason: "Changing", Message: "1 of 2"},
		{Name: "a", Type: api.Normal, Reason: "Serving"},
		{Name: "a", Type: api.Normal, Reason: "Leaving"},
	}
	if !slices.Equal(s.Events(), want) {
		t.Errorf("events %+v, want %+v", s.Events(), want)
	}
	old := z
	if err := control.Write(t.Context(), s.Env(), z, func(z *api.Zone) bool { z.Spec.ASN++; return true }); err != nil {
		t.Fatal(err)
	}
	z = old
	if c := report(control.Finding{Status: api.True, Reason: "Old"}); c.Reason != "Quietly" || s.Happened("Old") > 0 {
		t.Errorf("a finding of an older spec was written: %+v", c)
	}
	also := func(z *api.Zone) bool { z.Status.Loopbacks = make([]api.LoopbackStatus, 1); return true }
	z, _ = store.Cached[api.Zone](s.Cache, "a")
	if err := control.Report(t.Context(), s.Env(), z, control.Finding{Status: api.False, Reason: "Quietly"}, also); err != nil {
		t.Fatal(err)
	}
	if now, _ := store.Cached[api.Zone](s.Cache, "a"); len(now.Status.Loopbacks) != 1 {
		t.Error("what else belongs into the write was not written")
	}
}
