package subnet_test

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/subnet"
	"github.com/rackweft/rackweft/internal/wait"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// TestConditions: a Subnet's condition follows how it is served, its news are
// events, and nothing is said of a spec that is not in service yet.
func TestConditions(t *testing.T) {
	s := testsite.Open(t)
	var busy, applied atomic.Bool
	c := &subnet.Controller{Env: s.Env(), Served: wait.NewSignal(), Judge: func(*api.Subnet) (control.Finding, bool) {
		if busy.Load() {
			return control.Finding{Status: api.False, Reason: "NotListening", Message: "port 67 is taken"}, applied.Load()
		}
		return control.Finding{Status: api.True, Reason: "Serving"}, applied.Load()
	}}
	ctl := c.Control()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = ctl.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	s.Create(&api.Subnet{Base: testsite.Named("pxe"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}}})
	ready := func() *api.Condition {
		now, _ := store.Cached[api.Subnet](s.Cache, "pxe")
		return now.Status.Conditions.Get(api.CondReady)
	}
	if err := ctl.Idle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cond := ready(); cond != nil {
		t.Errorf("before it is in service it is %+v", cond)
	}
	until := func(reason string) {
		t.Helper()
		c.Served.Set()
		if !waittest.Soon(time.Minute, func() bool { cond := ready(); return cond != nil && cond.Reason == reason }) {
			t.Fatalf("it is %+v, want %s", ready(), reason)
		}
	}
	applied.Store(true)
	until("Serving")
	busy.Store(true)
	until("NotListening")
	if err := ctl.Idle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Happened("Serving") != 1 || s.Happened("NotListening") != 1 {
		t.Errorf("events %+v", s.Events())
	}
}
