package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// world is all BMCs: what was done with them, and how they behave.
type world struct {
	t *testing.T

	mu      sync.Mutex
	entries []hardware.Endpoint // logins
	logins  map[string]int      // open ones by address
	outs    int
	most    map[string]int // most calls at once by address
	now     map[string]int
	silent  func(address string) bool
	refuses string // a password
	crowded bool
	console error // that opening the console by SSH ends with
	opens   int   // of the console by SSH
	hangs   bool  // opening it does not end by itself
	freed   error // that ending another client's ends with
}

func newWorld(t *testing.T) *world {
	return &world{t: t, logins: map[string]int{}, most: map[string]int{}, now: map[string]int{}, silent: func(string) bool { return false }}
}

func (w *world) connect(ctx context.Context, e hardware.Endpoint) (hardware.Service, error) {
	w.mu.Lock()
	silent := w.silent(e.Address)
	w.entries = append(w.entries, e)
	w.mu.Unlock()
	if silent {
		wait := e.ConnectTimeout
		if wait == 0 {
			wait = 10 * time.Second
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		return nil, fmt.Errorf("%w: no route", hardware.ErrUnreachable)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuses == e.Password {
		return nil, fmt.Errorf("%w: no", hardware.ErrUnauthorized)
	}
	if w.logins[e.Address]++; w.logins[e.Address] > 1 {
		w.t.Errorf("%d logins at once on %s", w.logins[e.Address], e.Address)
	}
	return &service{world: w, address: e.Address}, nil
}

type service struct {
	world   *world
	address string
}

func (s *service) System(_ context.Context, id string) (hardware.BMC, error) {
	return &server{service: s, id: id}, nil
}
func (s *service) Spare() bool         { return !s.world.crowded }
func (s *service) Fingerprint() string { return "sha256:ab" }
func (s *service) Close(context.Context) error {
	time.Sleep(time.Second) // a logout takes its time
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	s.world.logins[s.address]--
	s.world.outs++
	return nil
}

type server struct {
	hardware.BMC
	service *service
	id      string
}

// PowerState takes a second, and counts how many are asked at once.
func (s *server) PowerState(ctx context.Context) (hardware.PowerState, error) {
	w, at := s.service.world, s.service.address
	w.mu.Lock()
	w.now[at]++
	w.most[at] = max(w.most[at], w.now[at])
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.now[at]--
		w.mu.Unlock()
	}()
	select {
	case <-time.After(time.Second):
		return hardware.PowerOn, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (s *server) Consoles(context.Context) ([]hardware.ConsoleWay, error) {
	open := func(context.Context) (*hardware.Console, error) {
		return &hardware.Console{ReadWriteCloser: stream{}}, nil
	}
	refused := func(ctx context.Context) (*hardware.Console, error) {
		if s.service.world.hangs {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		s.service.world.mu.Lock()
		defer s.service.world.mu.Unlock()
		s.service.world.opens++
		if s.service.world.console != nil {
			return nil, s.service.world.console
		}
		return &hardware.Console{ReadWriteCloser: stream{}, Kind: hardware.ConsoleSSH}, nil
	}
	free := func(context.Context) error {
		s.service.world.mu.Lock()
		defer s.service.world.mu.Unlock()
		if s.service.world.freed == nil {
			s.service.world.console = nil
		}
		return s.service.world.freed
	}
	return []hardware.ConsoleWay{{Kind: hardware.ConsoleSSH, Open: refused, Free: free}, {Kind: hardware.ConsoleWebSocket, Login: true, Open: open}}, nil
}

type stream struct{ io.ReadWriter }

func (stream) Close() error { return nil }

func endpoint(n int) hardware.Endpoint {
	return hardware.Endpoint{Address: fmt.Sprintf("https://198.18.0.%d", n), Username: "u", Password: "p"}
}

func look(ctx context.Context, f *Fleet, e hardware.Endpoint) error {
	return f.Do(ctx, e, "look", func(ctx context.Context, b hardware.BMC) error {
		_, err := b.PowerState(ctx)
		return err
	})
}

func (w *world) counts() (logins, logouts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.entries), w.outs
}

func (w *world) expect(t *testing.T, what string, logins, logouts int) {
	t.Helper()
	if in, out := w.counts(); in != logins || out != logouts {
		t.Errorf("%s: %d logins and %d logouts, want %d and %d", what, in, out, logins, logouts)
	}
}

func bubble(t *testing.T, test func(t *testing.T, w *world, f *Fleet)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := New(w.connect, slog.New(slog.DiscardHandler))
		test(t, w, f)
		f.Close()
		for at, n := range w.logins {
			if n != 0 {
				t.Errorf("%d logins left on %s", n, at)
			}
		}
		for at, n := range w.most {
			if n > 1 {
				t.Errorf("%d calls at once on %s", n, at)
			}
		}
		if len(f.owners) != 0 {
			t.Errorf("%d owners are left", len(f.owners))
		}
	})
}

// TestOneLogin: systems of one BMC share one login, one call at a time, and it ends a minute after the last.
func TestOneLogin(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		var group sync.WaitGroup
		for n := range 20 {
			group.Go(func() {
				e := endpoint(1)
				e.SystemID = fmt.Sprint(n % 3)
				if err := look(t.Context(), f, e); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		w.expect(t, "after 20 calls", 1, 0)
		time.Sleep(50 * time.Second)
		if err := look(t.Context(), f, endpoint(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		w.expect(t, "in use", 1, 0)
		time.Sleep(time.Minute)
		w.expect(t, "idle", 1, 1)
		if err := look(t.Context(), f, endpoint(1)); err != nil {
			t.Fatal(err)
		}
		w.expect(t, "used again", 2, 1)
	})
}

// TestNoLoginToSpare: it ends at once, though not while others wait for the same BMC.
func TestNoLoginToSpare(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		w.crowded = true
		var group sync.WaitGroup
		for range 5 {
			group.Go(func() {
				if err := look(t.Context(), f, endpoint(1)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		time.Sleep(2 * time.Second)
		w.expect(t, "after the last", 1, 1)
		for range 3 { // the next one comes while it is logged out
			if err := look(t.Context(), f, endpoint(1)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestSilentBMCs: many that do not answer slow no other, and are given less time when asked again.
func TestSilentBMCs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		w.silent = func(at string) bool { return !strings.HasSuffix(at, ".7") }
		var group sync.WaitGroup
		silent := func() {
			for n := range silentBMCs {
				group.Go(func() {
					if err := look(t.Context(), f, endpoint(1000+10*n)); !errors.Is(err, hardware.ErrUnreachable) {
						t.Errorf("error %v, want ErrUnreachable", err)
					}
				})
			}
		}
		silent()
		synctest.Wait()
		begun := time.Now()
		if err := look(t.Context(), f, endpoint(7)); err != nil || time.Since(begun) != time.Second {
			t.Errorf("beside silent ones a look takes %s, %v, want 1s", time.Since(begun), err)
		}
		group.Wait()
		begun = time.Now()
		silent()
		group.Wait()
		if took := time.Since(begun); took != shortConnect {
			t.Errorf("a BMC that was silent is waited for %s, want %s", took, shortConnect)
		}
		time.Sleep(silentFor)
		_ = look(t.Context(), f, endpoint(1000))
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.silent) != 1 {
			t.Errorf("%d silent BMCs are remembered, want 1", len(f.silent))
		}
	})
}

// TestQueueEndsWithItsContext: who waits may leave, who runs is waited for.
func TestQueueEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		ran := make(chan error, 1)
		go func() { ran <- look(t.Context(), f, endpoint(1)) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		begun := time.Now()
		err := look(ctx, f, endpoint(1))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for its turn") || time.Since(begun) != 300*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
		if err := <-ran; err != nil {
			t.Error(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := look(ctx, f, endpoint(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call that runs: %v", err)
		}
	})
}

// TestLongReadingYields: what is asked for in the middle of a long reading has its turn at the reading's next request.
func TestLongReadingYields(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		read := make(chan error, 1)
		go func() {
			read <- f.Do(t.Context(), endpoint(1), "read", func(ctx context.Context, b hardware.BMC) error {
				for range 100 {
					hardware.Yield(ctx)
					if _, err := b.PowerState(ctx); err != nil {
						return err
					}
				}
				return nil
			})
		}()
		time.Sleep(10*time.Second + 500*time.Millisecond)
		begun := time.Now()
		e := endpoint(1)
		e.SystemID = "2"
		if err := look(t.Context(), f, e); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 1500*time.Millisecond {
			t.Errorf("it took %s, want the end of the request under way and its own second", took)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
		w.expect(t, "after both", 1, 0)
	})
}

// TestAnotherLogin: another password, or another certificate pinned, is another login; a fingerprint that was learned of
// this login is not, and one without a fingerprint is where only pinned ones are entered.
func TestAnotherLogin(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		learned, changed, moved, untrusted := endpoint(1), endpoint(1), endpoint(1), endpoint(1)
		learned.Fingerprint, changed.Password, moved.Fingerprint = "SHA256:AB", "new", "sha256:cd"
		untrusted.PinnedOnly = true
		for n, e := range []hardware.Endpoint{endpoint(1), learned, changed, moved, untrusted} {
			if err := look(t.Context(), f, e); err != nil {
				t.Fatal(err)
			}
			w.expect(t, fmt.Sprint("login ", n), max(1, n), max(0, n-1))
		}
	})
}

// TestRefusedLogin: nothing is kept of it, and the next call may bring the right password.
func TestRefusedLogin(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		w.refuses = "p"
		if err := look(t.Context(), f, endpoint(1)); !errors.Is(err, hardware.ErrUnauthorized) {
			t.Errorf("error %v, want ErrUnauthorized", err)
		}
		w.expect(t, "refused", 1, 0)
		right := endpoint(1)
		right.Password = "q"
		if err := look(t.Context(), f, right); err != nil {
			t.Error(err)
		}
	})
}

// TestClose ends what runs, refuses what waits, and logs out.
func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		var group sync.WaitGroup
		var mu sync.Mutex
		refused, ended := 0, 0
		for range 3 {
			group.Go(func() {
				err := f.Do(t.Context(), endpoint(1), "wait", func(ctx context.Context, _ hardware.BMC) error {
					<-ctx.Done()
					return ctx.Err()
				})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, ErrClosed):
					refused++
				case errors.Is(err, context.Canceled):
					ended++
				}
			})
		}
		synctest.Wait()
		f.Close()
		group.Wait()
		w.expect(t, "closed", 1, 1)
		if refused != 2 || ended != 1 {
			t.Errorf("%d calls were refused and %d ended, want 2 and 1", refused, ended)
		}
		if err := look(t.Context(), f, endpoint(1)); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// TestConsoleKeepsTheLogin until it is closed.
func TestConsoleKeepsTheLogin(t *testing.T) {
	for _, crowded := range []bool{false, true} {
		bubble(t, func(t *testing.T, w *world, f *Fleet) {
			w.crowded = crowded
			w.console = errors.New("no shell")
			console, err := f.Console(t.Context(), endpoint(1), Price{Login: true})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			w.expect(t, "open", 1, 0)
			if err := errors.Join(console.Close(), console.Close()); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Minute)
			w.expect(t, "closed", 1, 1)
		})
	}
}

// TestConsoleIsNotOpenedAtAnyPrice: not with a login that the BMC has not to spare, and not by another way when the BMC is
// distrusted or refuses the password. The login is not kept then.
func TestConsoleIsNotOpenedAtAnyPrice(t *testing.T) {
	for _, want := range []error{hardware.ErrCrowded, hardware.ErrUnauthorized, &hardware.HostKeyMismatchError{Address: "a", Want: "b", Got: "c"}} {
		bubble(t, func(t *testing.T, w *world, f *Fleet) {
			need := want != hardware.ErrCrowded
			w.crowded, w.console = true, want
			if !need {
				w.console = errors.New("no shell")
			}
			if console, err := f.Console(t.Context(), endpoint(1), Price{Login: need}); console != nil || !errors.Is(err, want) {
				t.Errorf("console %v, %v; want %v", console, err, want)
			}
			time.Sleep(2 * time.Minute)
			w.expect(t, "given up", 1, 1)
		})
	}
}

// TestSilentWay: a way to the console that does not answer leaves time for the next one.
func TestSilentWay(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		w.hangs = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		console, err := f.Console(ctx, endpoint(1), Price{Login: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := console.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedConsole: a password that the console refused is not sent to it again for five minutes; another one is at once.
func TestRefusedConsole(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, f *Fleet) {
		w.console = fmt.Errorf("%w: no", hardware.ErrUnauthorized)
		corrected := endpoint(1)
		corrected.Password = "corrected"
		for n, c := range []struct {
			after time.Duration
			e     hardware.Endpoint
			opens int
		}{{0, endpoint(1), 1}, {4 * time.Minute, endpoint(1), 1}, {2 * time.Minute, endpoint(1), 2}, {0, corrected, 3}, {0, corrected, 3}, {0, endpoint(2), 4}} {
			time.Sleep(c.after)
			if _, err := f.Console(t.Context(), c.e, Price{Login: true}); !errors.Is(err, hardware.ErrUnauthorized) || w.opens != c.opens {
				t.Errorf("call %d: %v after %d tries, want %d", n, err, w.opens, c.opens)
			}
		}
	})
}

// TestConsoleOfAnotherClient is ended only at that price, and only where it is what is in the way.
func TestConsoleOfAnotherClient(t *testing.T) {
	inUse, failed := fmt.Errorf("open: %w", hardware.ErrInUse), errors.New("the command is unknown")
	for name, c := range map[string]struct {
		console, freed error
		other          bool
		want           error
	}{
		"ended":                   {inUse, nil, true, nil},
		"not at that price":       {inUse, nil, false, hardware.ErrInUse},
		"it is not ended":         {inUse, failed, true, failed},
		"something else is so":    {failed, nil, true, failed},
		"no one has the console":  {nil, failed, true, nil},
		"the password is refused": {hardware.ErrUnauthorized, nil, true, hardware.ErrUnauthorized},
	} {
		bubble(t, func(t *testing.T, w *world, f *Fleet) {
			w.crowded, w.console, w.freed = true, c.console, c.freed // so that the way with a login is not taken
			console, err := f.Console(t.Context(), endpoint(1), Price{Other: c.other})
			if !errors.Is(err, c.want) {
				t.Fatalf("%s: %v, want %v", name, err, c.want)
			}
			if err == nil && console.Freed != (c.console != nil) {
				t.Errorf("%s: another client's was ended: %t", name, console.Freed)
			}
		})
	}
}
