package waittest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		after := func(d time.Duration) func() bool { return func() bool { return time.Since(start) >= d } }
		for _, c := range []struct {
			name string
			at   time.Duration
			want bool
		}{{"at once", 0, true}, {"in time", time.Second, true}, {"at the last moment", time.Minute, true}, {"never", time.Hour, false}} {
			start = time.Now()
			if got := Soon(time.Minute, after(c.at)); got != c.want {
				t.Errorf("%s: %t", c.name, got)
			}
			if took := time.Since(start); took > time.Minute+200*time.Millisecond {
				t.Errorf("%s: it took %s", c.name, took)
			}
		}
	})
}

func TestPass(t *testing.T) {
	n := 0
	Pass(t, time.Minute, func() error { return nil }, func() error {
		if n++; n < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

func TestServe(t *testing.T) {
	ended := false
	t.Run("until its test ends", func(t *testing.T) {
		ready := make(chan struct{})
		Serve(t, func(ctx context.Context) error {
			close(ready)
			<-ctx.Done()
			ended = true
			return nil
		}, ready)
		if ended {
			t.Error("it has ended before")
		}
	})
	if !ended {
		t.Error("it outlives its test")
	}
}
