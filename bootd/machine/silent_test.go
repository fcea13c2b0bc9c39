package machine

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fleet"
	"github.com/rackweft/rackweft/internal/wait/waittest"
)

// healthy is the BMC of the one Machine that has one that answers.
type healthy struct{ hardware.Service }

func (healthy) System(context.Context, string) (hardware.BMC, error) { return nil, nil }
func (healthy) Spare() bool                                          { return true }
func (healthy) Fingerprint() string                                  { return "" }
func (healthy) Close(context.Context) error                          { return nil }

// TestSilentBMCs: a thousand BMCs that do not answer hold up neither a new Machine nor what a person asks for.
func TestSilentBMCs(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand Machines in a real store: not with -short")
	}
	const silent = 1000
	b := newBench(t)
	var waiting atomic.Int64
	connect := func(ctx context.Context, e hardware.Endpoint) (hardware.Service, error) {
		if e.Address == "https://198.18.1.1" {
			return healthy{}, nil
		}
		waiting.Add(1)
		defer waiting.Add(-1)
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", hardware.ErrUnreachable, ctx.Err())
	}
	all := fleet.New(connect, slog.New(slog.DiscardHandler))
	t.Cleanup(all.Close)
	b.c.Use = func(ctx context.Context, e hardware.Endpoint, what string, call func(context.Context, BMC) error) error {
		return all.Do(ctx, e, what, func(ctx context.Context, _ hardware.BMC) error { return call(ctx, b.bmc) })
	}
	for n := range silent {
		m := &api.Machine{Base: named(fmt.Sprintf("silent-%d", n)), Spec: api.MachineSpec{
			Zone: "yellow", Profile: "worker", Location: api.Location{Rack: "r2"},
			Links: []api.Link{{Name: "pxe0", MAC: api.MAC(fmt.Sprintf("52:54:00:02:%02x:%02x", n/256, n%256))}},
			BMC:   &api.BMC{Address: fmt.Sprintf("https://198.18.%d.%d", 2+n/250, 1+n%250), Credentials: "bmc"},
		}}
		b.create(m)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.c.Control().Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	waittest.Until(t, 2*time.Minute, "all silent BMCs are waited for", func() bool { return waiting.Load() == silent })

	begun := time.Now()
	b.machine("r1u01", 1)
	waittest.Until(t, 20*time.Second, "the new Machine is powered on", func() bool {
		return b.get("r1u01").Status.Attempt.Reached(api.StagePowerOn)
	})
	on := time.Since(begun)
	begun = time.Now()
	if _, err := b.request("r1u01", api.Request{ID: "x", Verb: api.VerbPower, Argument: "reset", By: "root"}); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, 20*time.Second, "power reset is done", func() bool { return b.get("r1u01").Status.Requests[0].State == api.RequestDone })
	t.Logf("beside %d silent BMCs a new Machine was powered on in %s, and power reset took %s", waiting.Load(), on, time.Since(begun))
	if n := waiting.Load(); n != silent {
		t.Errorf("%d silent BMCs were waited for meanwhile, want all %d", n, silent)
	}
}
