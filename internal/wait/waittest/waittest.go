// Package waittest waits, in tests, for effects of other goroutines and
// processes.
package waittest

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Soon reports whether is becomes true within d. It calls is at least once, and
// a last time after d.
func Soon(d time.Duration, is func() bool) bool {
	const most = 100 * time.Millisecond
	end := time.Now().Add(d)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, most) {
		late := time.Now().After(end)
		switch {
		case is():
			return true
		case late:
			return false
		}
		time.Sleep(pause)
	}
}

// Until waits until is becomes true, and fails the test when it does not within
// d.
func Until(t testing.TB, d time.Duration, what string, is func() bool) {
	t.Helper()
	if !Soon(d, is) {
		t.Fatalf("it never happens: %s", what)
	}
}

// Pass waits until all checks return nil, and fails the test with their errors
// when they do not within d.
func Pass(t testing.TB, d time.Duration, checks ...func() error) {
	t.Helper()
	var err error
	all := func() bool {
		var faults []error
		for _, check := range checks {
			faults = append(faults, check())
		}
		err = errors.Join(faults...)
		return err == nil
	}
	if !Soon(d, all) {
		t.Fatal(err)
	}
}

// Serve runs a server until the test ends, and returns when it is ready. It must
// end without an error when its context does.
func Serve(t testing.TB, run func(context.Context) error, ready <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("it ends before it is ready: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("it ends with %v", err)
		}
	})
}
