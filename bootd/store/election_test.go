package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/rackweft/rackweft/internal/wait/waittest"
)

func TestElectionHasOneLeader(t *testing.T) {
	s := open(t, Config{})
	var leaders, terms atomic.Int32
	done := errors.New("done")
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b", "c"} {
		wg.Go(func() {
			err := s.Elect(t.Context(), "machine", id, func(ctx context.Context) error {
				if n := leaders.Add(1); n != 1 {
					t.Errorf("%d leaders at once", n)
				}
				terms.Add(1)
				time.Sleep(20 * time.Millisecond)
				leaders.Add(-1)
				return done
			})
			if !errors.Is(err, done) {
				t.Errorf("%s: %v", id, err)
			}
		})
	}
	wg.Wait()
	if terms.Load() != 3 {
		t.Errorf("%d terms", terms.Load())
	}
}

func TestElectionEndsWithItsContext(t *testing.T) {
	s := open(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	leading := make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- s.Elect(ctx, "machine", "a", func(ctx context.Context) error { close(leading); <-ctx.Done(); return ctx.Err() })
	}()
	<-leading
	waiting, stop := context.WithCancel(t.Context())
	second := make(chan error)
	go func() {
		second <- s.Elect(waiting, "machine", "b", func(context.Context) error { t.Error("b leads as well"); return nil })
	}()
	waittest.Until(t, time.Minute, "b stands for election", func() bool {
		got, err := s.client.Get(t.Context(), electionPrefix+"machine/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && got.Count == 2
	})
	stop()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("who waited ended with %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the leader ended with %v", err)
	}
	// The lead was given up, not left to time out.
	soon, give := context.WithTimeout(t.Context(), 5*time.Second)
	defer give()
	if err := s.Elect(soon, "machine", "c", func(context.Context) error { return nil }); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// TestLostLeadCancels revokes the leader's lease behind its back.
func TestLostLeadCancels(t *testing.T) {
	s := open(t, Config{})
	var terms int
	err := s.Elect(t.Context(), "machine", "a", func(ctx context.Context) error {
		if terms++; terms == 2 {
			return nil
		}
		leases, err := s.client.Leases(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, l := range leases.Leases {
			if _, err := s.client.Revoke(ctx, l.ID); err != nil {
				t.Error(err)
			}
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil || terms != 2 {
		t.Errorf("%d terms, %v", terms, err)
	}
}
