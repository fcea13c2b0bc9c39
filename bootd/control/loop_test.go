package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneWorkerPerName(t *testing.T) {
	var inside, max, runs atomic.Int32
	var l *loop
	done := make(chan struct{})
	l = newLoop(func(context.Context, string) (time.Duration, error) {
		if n := inside.Add(1); n > max.Load() {
			max.Store(n)
		}
		time.Sleep(time.Millisecond)
		inside.Add(-1)
		if runs.Add(1) == 20 {
			close(done)
			return 0, nil
		}
		if runs.Load() < 20 {
			l.Add("a")
		}
		return 0, nil
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx, 4) })
	l.Add("a")
	<-done
	cancel()
	wg.Wait()
	if max.Load() != 1 {
		t.Errorf("%d workers held one name at once", max.Load())
	}
}

func TestBackoffAndRequeue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		l := newLoop(func(context.Context, string) (time.Duration, error) {
			at = append(at, time.Since(start))
			switch len(at) {
			case 1, 2:
				return 0, errors.New("no")
			case 3:
				return 10 * time.Second, nil
			}
			return 0, nil
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.Run(ctx, 1) })
		l.Add("a")
		time.Sleep(time.Hour)
		cancel()
		wg.Wait()
		want := []time.Duration{0, time.Second, 3 * time.Second, 13 * time.Second}
		if len(at) != len(want) {
			t.Fatalf("ran at %v, want %v", at, want)
		}
		for i := range want {
			if at[i] != want[i] {
				t.Fatalf("ran at %v, want %v", at, want)
			}
		}
	})
}

// TestAddSoon gathers what is added in a row, and keeps to what is due earlier.
func TestAddSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		l := newLoop(func(context.Context, string) (time.Duration, error) {
			at = append(at, time.Since(start))
			return time.Hour, nil
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.Run(ctx, 1) })
		for range 10 {
			l.AddSoon("a", time.Second)
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		l.AddSoon("a", time.Second)
		l.Add("a")
		time.Sleep(time.Minute)
		cancel()
		wg.Wait()
		if want := []time.Duration{time.Second, time.Minute + 500*time.Millisecond}; !slices.Equal(at, want) {
			t.Errorf("it ran at %v, want %v", at, want)
		}
	})
}

// TestAside: steps that wait aside hold up no others, and the bound on workers holds for the rest.
func TestAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const silent, well, workers = 1000, 20, 4
		var atWork, most, done atomic.Int64
		l := newLoop(func(ctx context.Context, name string) (time.Duration, error) {
			if n := atWork.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer atWork.Add(-1)
			if strings.HasPrefix(name, "silent") {
				atWork.Add(-1)
				err := Aside(ctx, func() error { time.Sleep(time.Hour); return nil })
				atWork.Add(1)
				return 0, err
			}
			time.Sleep(time.Second)
			done.Add(1)
			return 0, nil
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { l.Run(ctx, workers) })
		for n := range silent {
			l.Add(fmt.Sprint("silent", n))
		}
		for n := range well {
			l.Add(fmt.Sprint("well", n))
		}
		time.Sleep(well/workers*time.Second + time.Second/2)
		if done.Load() != well || most.Load() > workers {
			t.Errorf("beside %d that wait, %d steps of %d were done, at most %d at once", silent, done.Load(), well, most.Load())
		}
		time.Sleep(2 * time.Hour)
		cancel()
		running.Wait()
	})
}
