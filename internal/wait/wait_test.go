package wait

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := For(t.Context(), time.Minute); err != nil {
			t.Errorf("For: %v", err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("waited %s, want 1m", took)
		}
	})
}

func TestForEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := For(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("For: %v, want the context's error", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("waited %s, want 1s", took)
		}
		// Both are ready: it must not look as if there were time left.
		for range 100 {
			if err := For(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("For without a time, after its context: %v", err)
			}
		}
	})
}

func TestSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSignal()
		wait := func(want time.Duration) {
			t.Helper()
			start := time.Now()
			if err := s.Wait(t.Context(), time.Minute); err != nil {
				t.Errorf("Wait: %v", err)
			}
			if took := time.Since(start); took != want {
				t.Errorf("waited %s, want %s", took, want)
			}
		}
		s.Set()
		s.Set()
		wait(0)
		wait(time.Minute)
		time.AfterFunc(time.Second, s.Set)
		wait(time.Second)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Wait(ctx, time.Minute); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait: %v, want the context's error", err)
		}
	})
}
