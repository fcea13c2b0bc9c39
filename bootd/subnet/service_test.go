package subnet_test

import (
	"context"
	"fmt"
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
)

// TestService: Subnets are applied after each change of a spec that matters, and
// not when a status changes.
func TestService(t *testing.T) {
	s := testsite.Open(t)
	var applied atomic.Int32
	service := &subnet.Service{Cache: s.Cache, Served: wait.NewSignal(), Log: s.Log,
		Serve:    func(context.Context) error { applied.Add(1); return nil },
		Reserves: func(_, now api.Object) bool { return now.Meta().Name == "pins" }}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = service.Run(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	served := func(what string, change func()) {
		t.Helper()
		before := applied.Load()
		change()
		if err := service.Served.Wait(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if applied.Load() == before {
			t.Errorf("not applied after %s", what)
		}
	}
	served("a new Subnet", func() {
		s.Create(&api.Subnet{Base: testsite.Named("pxe"), Spec: api.SubnetSpec{Purpose: api.Provisioning, Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}}})
	})
	served("a Machine that pins an address", func() {
		s.Create(machine("pins", 1))
	})
	before := applied.Load()
	pxe, _ := store.Cached[api.Subnet](s.Cache, "pxe")
	if err := control.Report(t.Context(), s.Env(), pxe, control.Finding{Status: api.True, Reason: "Serving"}, nil); err != nil {
		t.Fatal(err)
	}
	s.Create(machine("other", 2))
	served("a new Site", func() { s.Create(&api.Site{Base: testsite.Named("site")}) })
	if n := applied.Load() - before; n != 1 {
		t.Errorf("applied %d times after a status, a Machine that pins nothing else and a Site", n)
	}
}

func machine(name string, n int) *api.Machine {
	return &api.Machine{Base: testsite.Named(name), Spec: api.MachineSpec{Links: []api.Link{{Name: "eth0", MAC: api.MAC(fmt.Sprintf("52:54:00:00:00:%02x", n))}}}}
}
