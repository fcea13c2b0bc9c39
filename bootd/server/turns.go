package server

import (
	"context"
	"sync"
)

// turns lets writes run in parallel unless they share a claim.
type turns struct {
	mu      sync.Mutex
	held    map[string]bool
	running int
	alone   bool          // the running write has all claims
	waiting int           // writes that wait for all claims: no other may begin
	freed   chan struct{} // closed and replaced when one ends
}

func newTurns() *turns { return &turns{held: map[string]bool{}, freed: make(chan struct{})} }

// take waits until no other write has any of the claims. The caller calls done.
func (t *turns) take(ctx context.Context, claims []string) (done func(), err error) {
	err = t.wait(ctx, func() bool {
		if t.alone || t.waiting > 0 {
			return false
		}
		for _, c := range claims {
			if t.held[c] {
				return false
			}
		}
		for _, c := range claims {
			t.held[c] = true
		}
		return true
	})
	return func() { t.end(claims) }, err
}

// takeAll waits until no other write runs, and prevents others from beginning.
func (t *turns) takeAll(ctx context.Context) (done func(), err error) {
	t.mu.Lock()
	t.waiting++
	t.mu.Unlock()
	err = t.wait(ctx, func() bool {
		if t.running > 0 {
			return false
		}
		t.alone = true
		return true
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
	if err != nil {
		t.wake() // others may have waited only for this one
	}
	return func() { t.end(nil) }, err
}

// wait retries whenever a write ends.
func (t *turns) wait(ctx context.Context, try func() bool) error {
	for {
		t.mu.Lock()
		if try() {
			t.running++
			t.mu.Unlock()
			return nil
		}
		freed := t.freed
		t.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *turns) end(claims []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	t.alone = false
	for _, c := range claims {
		delete(t.held, c)
	}
	t.wake()
}

// wake is called with mu held.
func (t *turns) wake() {
	close(t.freed)
	t.freed = make(chan struct{})
}
