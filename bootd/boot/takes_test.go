package boot

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
)

// thing is what a BootAttempt gives once.
type thing struct {
	what  string
	stage api.Stage
	// take asks for it on the named connection. It returns nil when it was refused,
	// else what is to be called when it was written.
	take func(conn string) (sent func(arrived bool))
}

func (b *bench) things(d *Decider, at string) []thing {
	return []thing{
		{thePointer, api.StageInitrd, func(conn string) func(bool) {
			r := b.asks(at)
			r.Conn = conn
			p, err := d.Pointer(b.t.Context(), r)
			if err != nil {
				return nil
			}
			return p.Sent
		}},
		{theConfig, api.StagePointer, func(conn string) func(bool) {
			r := b.fetches(at)
			r.Conn = conn
			c, err := d.ConfigFor(b.t.Context(), r)
			if err != nil {
				return nil
			}
			return c.Sent
		}},
	}
}

// wantSecond checks that n second takers were seen and written down, and that
// they failed the attempt.
func (b *bench) wantSecond(what string, n int) {
	b.t.Helper()
	b.Sync()
	m := b.Machine(host)
	a := m.Status.Attempt
	cond := m.Status.Conditions.Get(api.CondTrust)
	if n == 0 {
		if !a.Open() || cond != nil && cond.Status == api.False || b.Happened("SecondTaker") != 0 {
			b.t.Errorf("a second %s is seen: %+v, %+v", what, a, cond)
		}
		return
	}
	if a.Result != api.ResultFailed || a.Cause != api.CauseSecondTaker || m.Status.Phase != api.PhaseFailed || m.Status.HostKey != "" {
		b.t.Errorf("the attempt goes on: %+v", a)
	}
	if cond == nil || cond.Status != api.False || cond.Reason != "SecondTaker" || !strings.Contains(cond.Message, what) {
		b.t.Errorf("condition %+v", cond)
	}
	if seen := b.Happened("SecondTaker"); seen != n {
		b.t.Errorf("%d events, want %d: %v", seen, n, b.Events())
	}
	decided, listed := 0, 0
	for _, d := range b.Decisions() {
		if d.Question == what && strings.Contains(d.Reason, "two came for") {
			decided++
			if d.Peer == "" || d.MAC != hostMAC {
				b.t.Errorf("who it was is not written down: %+v", d)
			}
		}
	}
	for _, t := range a.Takers {
		if t.What == what && t.Second {
			listed++
			if !t.Address.IsValid() || t.MAC != hostMAC {
				b.t.Errorf("taker %+v", t)
			}
		}
	}
	if decided != n || listed != min(n, api.MaxTakers-1) {
		b.t.Errorf("%d decisions, %d takers in the attempt, want %d", decided, listed, n)
	}
}

func TestSecondTaker(t *testing.T) {
	for i := range 2 {
		what := []string{thePointer, theConfig}[i]
		for _, c := range []struct {
			name  string
			play  func(t *testing.T, b *bench, x thing)
			times int
		}{
			{"the same connection goes on", func(t *testing.T, _ *bench, x thing) {
				for range 3 {
					if sent := x.take("a"); sent == nil {
						t.Error("refused")
					} else {
						sent(true)
					}
				}
			}, 0},
			{"nothing had arrived", func(t *testing.T, b *bench, x thing) {
				x.take("a")(false)
				sent := x.take("b")
				if sent == nil {
					t.Fatal("refused")
				}
				sent(true)
				if b.Happened("BrokeOff") != 1 {
					t.Errorf("events %v", b.Events())
				}
			}, 0},
			{"another connection", func(t *testing.T, b *bench, x thing) {
				x.take("a")(true)
				for _, conn := range []string{"b", "c", "", "b"} {
					b.Sync() // what is refused depends on whether the attempt is known to be over
					if x.take(conn) != nil {
						t.Errorf("connection %q got it", conn)
					}
				}
			}, 1}, // the attempt is over then: the others come with a secret that is spent
			{"another connection, and bootd was restarted", func(t *testing.T, b *bench, x thing) {
				x.take("a")(true)
				b.d.attempts.takes = newTakes()
				if x.take("a") != nil {
					t.Error("it got it")
				}
			}, 1},
			{"another bootd at the same time", func(t *testing.T, b *bench, x thing) {
				conf := b.conf
				conf.Metrics = nil
				other, err := New(conf)
				if err != nil {
					t.Fatal(err)
				}
				here, there := x.take("a"), b.things(other, b.at)[i].take("a")
				here(true)
				there(true)
			}, 1},
			{"twenty at once", func(t *testing.T, b *bench, x thing) {
				var got atomic.Int32
				var all sync.WaitGroup
				for n := range 20 {
					all.Go(func() {
						if sent := x.take(string(rune('A' + n))); sent != nil {
							got.Add(1)
							time.Sleep(200 * time.Millisecond) // so that the others wait for the end of it
							sent(true)
						}
					})
				}
				all.Wait()
				if got.Load() != 1 {
					t.Errorf("%d got it", got.Load())
				}
			}, -1},
		} {
			t.Run(what+"/"+c.name, func(t *testing.T) {
				b := newBench(t)
				b.at = b.lease(hostMAC).String()
				x := b.things(b.d, b.at)[i]
				b.attempt(x.stage)
				c.play(t, b, x)
				if c.times >= 0 {
					b.wantSecond(what, c.times)
					return
				}
				b.Sync()
				if seen := b.Happened("SecondTaker") + b.Happened("SpentSecret") + b.Happened("TwoAtOnce"); seen != 19 || b.Machine(host).Status.Attempt.Cause != api.CauseSecondTaker {
					t.Errorf("%d of 19 were seen: %+v", seen, b.Machine(host).Status.Attempt)
				}
			})
		}
	}
}

// TestSpentSecrets: whoever comes with a secret of an attempt that is over gets
// nothing, and is written down every time.
func TestSpentSecrets(t *testing.T) {
	b := newBench(t)
	at := b.lease(hostMAC).String()
	b.Change(host, func(m *api.Machine) {
		m.Status.History = []api.BootAttempt{*testsite.Attempt("try-1", api.StageConfig)}
		m.Status.Attempt = testsite.Attempt("try-2", api.StageDHCP)
	})
	for i := range 3 {
		for _, x := range b.things(b.d, at) {
			if x.take("a") != nil {
				t.Errorf("a %s was given", x.what)
			}
		}
		csr, _ := b.Request()
		if _, err := b.d.Join(t.Context(), b.joinToken(), addr(at), api.JoinRequest{Machine: host, CSR: csr}); testsite.Status(err) != 403 {
			t.Errorf("join: %v", err)
		}
		if n := b.Happened("SpentSecret"); n != 3*(i+1) {
			t.Errorf("%d events after %d rounds: %v", n, i+1, b.Events())
		}
	}
	if a := b.Machine(host).Status.Attempt; !a.Open() || a.ID != "try-2" {
		t.Errorf("the attempt that is open suffers: %+v", a)
	}
}

// TestTurns: one at a time, and who waits is not kept waiting for ever.
func TestTurns(t *testing.T) {
	x, key := newTakes(), takeKey{"try-1", thePointer}
	if is := x.begin(t.Context(), key, "a"); is != yours {
		t.Fatalf("the first: %d", is)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if is := x.begin(ctx, key, "b"); is != busy {
		t.Errorf("another one meanwhile: %d", is)
	}
	waiting := make(chan turn)
	go func() { waiting <- x.begin(t.Context(), key, "b") }()
	x.end(key, true)
	if is := <-waiting; is != second {
		t.Errorf("who waited: %d", is)
	}
	if is := x.begin(t.Context(), key, "a"); is != again {
		t.Errorf("the first again: %d", is)
	}
	x.end(key, false)
	if is := x.begin(t.Context(), key, "b"); is != second {
		t.Errorf("after a second transfer that broke off, the first is forgotten: %d", is)
	}
	if is := x.begin(t.Context(), takeKey{"try-2", thePointer}, "b"); is != yours {
		t.Errorf("in another attempt: %d", is)
	}
}

func TestTurnsAreBounded(t *testing.T) {
	x, now := newTakes(), time.Now()
	x.now = func() time.Time { return now }
	for i := range maxTakes + 10 {
		key := takeKey{string(rune(i)), theConfig}
		x.begin(t.Context(), key, "a")
		x.end(key, true)
		now = now.Add(time.Second)
	}
	if len(x.by) > maxTakes {
		t.Errorf("%d are remembered", len(x.by))
	}
}

func TestWitnessesAreBounded(t *testing.T) {
	l, now := newLedger(), time.Now()
	l.now = func() time.Time { return now }
	n := 0
	for range 10_000 {
		if l.witness(host) {
			n++
		}
	}
	if n != 100 {
		t.Errorf("%d were written down", n)
	}
	if !l.witness("r1u08") {
		t.Error("another Machine's are not written down")
	}
	now = now.Add(time.Minute)
	if !l.witness(host) {
		t.Error("never again")
	}
}
