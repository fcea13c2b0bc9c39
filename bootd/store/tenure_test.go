package store

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
)

// wire carries connections to an etcd until it is cut: then nothing comes
// through any more, and no connection ends.
type wire struct {
	path string
	cut  atomic.Bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	w := &wire{path: filepath.Join(t.TempDir(), "wire")}
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	pump := func(to, from net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if n > 0 && !w.cut.Load() {
				_, _ = to.Write(b[:n])
			}
			if err != nil {
				if !w.cut.Load() {
					_ = to.Close()
				}
				return
			}
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("unix", strings.TrimPrefix(to, "unix://"))
			if err != nil {
				_ = c.Close()
				continue
			}
			mu.Lock()
			open = append(open, c, up)
			mu.Unlock()
			wg.Go(func() { pump(up, c) })
			wg.Go(func() { pump(c, up) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return w
}

// far is a store that reaches etcd over a wire.
func far(t *testing.T, owner *Store) (*Store, *wire) {
	t.Helper()
	w := newWire(t, owner.server.endpoint)
	s, err := Open(t.Context(), Config{Dir: t.TempDir(), Endpoints: []string{"unix://" + w.path}, SessionTTL: 2 * time.Second}, newSealer(t), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, w
}

// TestCutOffLeader: the leader that etcd does not hear any more has stopped to
// act before the next one begins.
func TestCutOffLeader(t *testing.T) {
	owner := open(t, Config{SessionTTL: 2 * time.Second})
	for range 3 {
		s, w := far(t, owner)
		ctx, stop := context.WithCancel(t.Context())
		leads, last := make(chan struct{}), atomic.Int64{}
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = s.Elect(ctx, "controllers", "cut off", func(ctx context.Context) error {
				close(leads)
				for CheckLead(ctx) == nil {
					last.Store(int64(sinceBoot()))
					time.Sleep(time.Millisecond)
				}
				stop() // it stands for no other term
				return ctx.Err()
			})
		})
		<-leads
		w.cut.Store(true)
		var next time.Duration
		err := owner.Elect(t.Context(), "controllers", "next", func(ctx context.Context) error {
			next = sinceBoot()
			return CheckLead(ctx)
		})
		if err != nil {
			t.Error(err)
		}
		wg.Wait()
		if overlap := time.Duration(last.Load()) - next; overlap >= 0 {
			t.Errorf("two leaders for %s", overlap)
		} else {
			t.Logf("nobody led for %s", -overlap)
		}
		stop()
	}
}

func TestCheckLeadOfNoLeader(t *testing.T) {
	if err := CheckLead(t.Context()); err == nil {
		t.Error("who was not elected leads")
	}
}

// TestCutOffHolder: a bootd that etcd does not hear any more holds the Site no
// longer when the next one takes it, and what it then writes is not stored.
func TestCutOffHolder(t *testing.T) {
	owner := open(t, Config{})
	first, w := far(t, owner)
	second, _ := far(t, owner)
	if err := first.Holding(); !errors.Is(err, ErrNotHolder) {
		t.Errorf("before it holds: %v", err)
	}
	hold := func(s *Store, waits func(Holder)) {
		t.Helper()
		if err := s.Hold(t.Context(), waits); err != nil {
			t.Fatal(err)
		}
	}
	hold(first, func(h Holder) { t.Errorf("it waits for %s", h) })
	create(t, first, machine("a"))
	if err := first.Holding(); err != nil {
		t.Error(err)
	}
	waited := make(chan Holder, 1)
	var last atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for first.Holding() == nil {
			last.Store(int64(sinceBoot()))
			time.Sleep(time.Millisecond)
		}
	})
	go func() {
		<-waited
		w.cut.Store(true)
	}()
	hold(second, func(h Holder) {
		if h.StateDir != first.conf.Dir || h.PID == 0 || h.Host == "" {
			t.Errorf("it waits for %+v", h)
		}
		waited <- h
	})
	taken := sinceBoot()
	wg.Wait()
	if overlap := time.Duration(last.Load()) - taken; overlap >= 0 {
		t.Errorf("two held the Site for %s", overlap)
	}
	create(t, second, machine("b"))
	if err := first.KeepHold(t.Context()); !errors.Is(err, ErrNotHolder) {
		t.Errorf("KeepHold: %v", err)
	}

	// Even one whose clock is wrong writes nothing.
	w.cut.Store(false)
	first.hold.tenure.lost = t.Context()
	first.hold.tenure.until.Store(int64(sinceBoot() + time.Hour))
	if err := first.Holding(); err != nil {
		t.Error(err)
	}
	var err error
	for range 100 { // until the connection is made again
		if err = first.Create(t.Context(), machine("c")); errors.Is(err, ErrNotHolder) {
			break
		}
		first.hold.tenure.until.Store(int64(sinceBoot() + time.Hour))
		time.Sleep(100 * time.Millisecond)
	}
	if !errors.Is(err, ErrNotHolder) {
		t.Errorf("a write behind the fence: %v", err)
	}
	if _, err := Get[api.Machine](t.Context(), second, "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is stored: %v", err)
	}
	if err := second.Delete(t.Context(), kindOf(t, "machine"), "b", ""); err != nil {
		t.Error(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	third, _ := far(t, owner)
	hold(third, func(h Holder) { t.Errorf("one that was closed is waited for: %s", h) })
}
