package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/internal/testsite"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/hardware"
	"github.com/rackweft/rackweft/hardware/fleet"
)

// rig is a Keeper with Machines whose consoles the test holds.
type rig struct {
	*testsite.Site
	t      *testing.T
	keeper *Keeper
	macs   int
	dial   func(context.Context, *api.Machine, fleet.Price) (*hardware.Console, error) // instead of ends

	mu      sync.Mutex
	refuse  error // what opening ends with
	prices  []fleet.Price
	events  []string
	learned []api.ConsoleKind
	ends    chan net.Conn // the Machine's end of each console that was opened
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{Site: testsite.Open(t), t: t, ends: make(chan net.Conn, 8)}
	r.keeper = New(Config{Cache: r.Cache, Log: slog.New(slog.DiscardHandler), Open: r.open,
		Learned: func(_ context.Context, _ *api.Machine, kind api.ConsoleKind, _ api.HostKey) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.learned = append(r.learned, kind)
			return nil
		},
		Event: func(_ api.Object, _ api.EventType, reason, _ string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, reason)
		}})
	ctx, cancel := context.WithCancel(t.Context())
	var ran sync.WaitGroup
	ran.Go(func() {
		if err := r.keeper.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		ran.Wait()
		r.keeper.Close()
	})
	return r
}

func (r *rig) open(ctx context.Context, m *api.Machine, price fleet.Price) (*hardware.Console, error) {
	if r.dial != nil {
		return r.dial(ctx, m, price)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prices = append(r.prices, price)
	if r.refuse != nil {
		return nil, r.refuse
	}
	near, far := net.Pipe()
	r.ends <- far
	return &hardware.Console{ReadWriteCloser: near, Kind: hardware.ConsoleSSH, Freed: price.Other}, nil
}

func (r *rig) opened() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.prices)
}

// machine makes one with a BMC that answers, and opens a BootAttempt.
func (r *rig) machine(name string, attempt bool) *api.Machine {
	r.t.Helper()
	r.create(name, attempt)
	r.Sync()
	now, _ := store.Cached[api.Machine](r.Cache, name)
	return now
}

// create is machine before the Keeper knows of it.
func (r *rig) create(name string, attempt bool) {
	r.t.Helper()
	r.macs++
	m := testsite.NewMachine(name, api.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", r.macs>>8, r.macs&0xff)))
	m.Spec.BMC = &api.BMC{Address: fmt.Sprintf("https://198.18.%d.%d", 1+r.macs>>8, r.macs&0xff), Credentials: "bmc"}
	m.Status.Conditions.Set(time.Now(), api.CondBMC, api.True, "Reachable", "")
	if attempt {
		m.Status.Attempt = testsite.Attempt("a1", api.StagePowerOn)
		m.Status.Attempt.Number = 1
	}
	r.Create(m)
}

// end gives the Machine's end of the console that was opened next.
func (r *rig) end() net.Conn {
	r.t.Helper()
	select {
	case far := <-r.ends:
		r.t.Cleanup(func() { _ = far.Close() })
		return far
	case <-time.After(10 * time.Second):
		r.t.Fatal("no console was opened")
		return nil
	}
}

func (r *rig) eventually(what string, holds func() bool) {
	r.t.Helper()
	r.within(10*time.Second, what, holds)
}

func (r *rig) within(limit time.Duration, what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not so: %s", what)
		}
	}
}

func (r *rig) said(m *api.Machine) string {
	var all []string
	for _, line := range r.keeper.Lines(m, 1000) {
		all = append(all, line.Text)
	}
	return strings.Join(all, "|")
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// TestBootAttemptIsHeard: with no one attached, from its opening to its end; the lines stay, and say of which attempt they are.
func TestBootAttemptIsHeard(t *testing.T) {
	r := newRig(t)
	idle := r.machine("r1u02", false)
	m := r.machine("r1u01", true)
	far := r.end()
	write(t, far, "\x1b[2J\x1b[01;01HiPXE initialising devices...\r\nhttp://198.18.0.1:8080/kern")
	r.eventually("the lines are kept", func() bool {
		return r.said(m) == "iPXE initialising devices...|http://198.18.0.1:8080/kern"
	})
	if last := r.keeper.LastLine(m); last != "http://198.18.0.1:8080/kern" {
		t.Errorf("last line %q", last)
	}
	now := r.Change("r1u01", func(m *api.Machine) { m.Status.Attempt.Result = api.ResultFailed })
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the console is open after the BootAttempt")
	}
	if r.said(m) == "" || r.keeper.LastLine(now) == "" {
		t.Error("the lines are gone with the BootAttempt")
	}
	now = r.Change("r1u01", func(m *api.Machine) {
		m.Status.Attempt = testsite.Attempt("a2", api.StagePowerOn)
		m.Status.Attempt.Number = 2
	})
	if last := r.keeper.LastLine(now); last != "" {
		t.Errorf("a line of the attempt before is said to be of this one: %q", last)
	}
	far = r.end()
	write(t, far, " again\n")
	r.eventually("the next attempt is heard", func() bool { return r.keeper.LastLine(now) != "" })
	if r.said(idle) != "" || r.opened() != 2 {
		t.Errorf("%d consoles were opened; of the idle Machine: %q", r.opened(), r.said(idle))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.prices[0].Login || r.learned[0] != "ssh" {
		t.Errorf("prices %v, learned %v", r.prices, r.learned)
	}
}

// TestPersonsShareTheConsole, get the last lines first, and survive a BMC that ends it.
func TestPersonsShareTheConsole(t *testing.T) {
	r := newRig(t)
	m := r.machine("r1u01", true)
	far := r.end()
	write(t, far, "booting\r\n")
	r.eventually("it is heard", func() bool { return r.said(m) == "booting" })
	one, err := r.keeper.Attach(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.keeper.Attach(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(far, "login: \x1b[1m") }()
	for _, person := range []io.Reader{one, two} {
		read(t, person, "booting\r\nlogin: \x1b[1m")
	}
	go func() { _, _ = io.WriteString(two, "root\r") }()
	read(t, far, "root\r")
	if n := r.opened(); n != 1 {
		t.Errorf("%d consoles were opened", n)
	}
	r.Change("r1u01", func(m *api.Machine) { m.Status.Attempt.Result = api.ResultActive })
	go func() { _, _ = io.WriteString(far, "still here\r\n") }()
	read(t, one, "still here\r\n")
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	_ = far.Close()
	again := r.end()
	read(t, two, "still here\r\n\r\n[rackweft: the BMC has ended the console (EOF); it is opened again]\r\n")
	go func() { _, _ = io.WriteString(again, "back") }()
	read(t, two, "back")
	if err := errors.Join(two.Close(), two.Close()); err != nil {
		t.Error(err)
	}
	if _, err := again.Read(make([]byte, 1)); err == nil {
		t.Error("the console is open with no one attached")
	}
	if _, err := two.Write([]byte("x")); err == nil {
		t.Error("one who has left can type")
	}
}

// TestConsoleOnlyWhenAttached: a Machine may say that its console is for persons alone, also while it is listened to.
func TestConsoleOnlyWhenAttached(t *testing.T) {
	r := newRig(t)
	m := r.machine("r1u01", true)
	far := r.end()
	only := *m.Spec.BMC
	only.Console = api.ConsoleAttached
	m = r.Change("r1u01", func(m *api.Machine) { m.Spec.BMC = &only })
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the console is open with no one attached")
	}
	one, err := r.keeper.Attach(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	far = r.end()
	write(t, far, "for the person\r\n")
	read(t, one, "for the person\r\n")
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("the console is open after the person has left")
	}
	if n := r.opened(); n != 2 {
		t.Errorf("it was opened %d times", n)
	}
}

// TestConsoleOfABootdBefore: in a BootAttempt from before this bootd, whoever has the console when it is first opened is the
// bootd that was killed, and is ended, which an event says. Nobody is after that, nor in another BootAttempt.
func TestConsoleOfABootdBefore(t *testing.T) {
	for name, c := range map[string]struct {
		kind  api.ConsoleKind
		age   time.Duration
		inUse bool // the BMC has no way to end the other one's
		want  []bool
	}{
		"inherited":            {"ssh", time.Minute, false, []bool{true, false}},
		"without a way":        {"ssh", time.Minute, true, []bool{true, false}},
		"never opened":         {"", time.Minute, false, []bool{false, false}},
		"a new BootAttempt":    {"ssh", -time.Minute, false, []bool{false, false}},
		"without a BMC for it": {api.NoConsole, time.Minute, false, []bool{false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if c.inUse {
				r.refuse = hardware.ErrInUse
			}
			r.machine("r1u01", false)
			r.Change("r1u01", func(m *api.Machine) {
				m.Status.BMC.Console = c.kind
				m.Status.Attempt = testsite.Attempt("a1", api.StagePowerOn)
				m.Status.Attempt.Number, m.Status.Attempt.Started = 1, r.keeper.started.Add(-c.age)
			})
			r.eventually("it is tried", func() bool { return r.opened() == 1 })
			r.mu.Lock()
			r.refuse = nil
			r.mu.Unlock()
			if !c.inUse {
				_ = r.end().Close()
			}
			now, _ := store.Cached[api.Machine](r.Cache, "r1u01")
			if one, err := r.keeper.Attach(t.Context(), now); err == nil { // has it opened without the pause
				defer func() { _ = one.Close() }()
			}
			r.eventually("it is opened again", func() bool { return r.opened() == 2 })
			r.mu.Lock()
			defer r.mu.Unlock()
			for i, want := range c.want {
				if r.prices[i].Other != want {
					t.Errorf("opening %d ends another client's: %t", i+1, r.prices[i].Other)
				}
			}
			if said := slices.Contains(r.events, "ConsoleFreed"); said != (c.want[0] && !c.inUse) {
				t.Errorf("events %v", r.events)
			}
		})
	}
}

// lost is a console whose connection is cut off when the Machine's end is closed.
type lost struct{ net.Conn }

func (c lost) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		err = hardware.ErrLost
	}
	return n, err
}

// TestLostConsole: where the connection to the BMC was lost, its console may still be given to that one, and is taken back once.
func TestLostConsole(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var prices []fleet.Price
	r.dial = func(_ context.Context, _ *api.Machine, price fleet.Price) (*hardware.Console, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if prices = append(prices, price); len(prices) == 2 {
			return nil, hardware.ErrInUse
		}
		near, far := net.Pipe()
		r.ends <- far
		return &hardware.Console{ReadWriteCloser: lost{near}, Kind: hardware.ConsoleSSH}, nil
	}
	m := r.machine("r1u01", true)
	_ = r.end().Close()
	for n := range 2 {
		one, err := r.keeper.Attach(t.Context(), m) // has it opened without the pause
		if err == nil {
			defer func() { _ = one.Close() }()
		}
		r.eventually("it is opened again", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(prices) == n+2
		})
	}
	_ = r.end()
	r.mu.Lock()
	defer r.mu.Unlock()
	if prices[0].Other || !prices[1].Other || prices[2].Other {
		t.Errorf("prices %+v: want the second alone to end another client's", prices)
	}
}

// TestRefusal: a person sees it at once, and what only a person can mend is not tried again in the same BootAttempt.
func TestRefusal(t *testing.T) {
	r := newRig(t)
	r.refuse = fmt.Errorf("open: %w", hardware.ErrUnauthorized)
	m := r.machine("r1u01", true)
	r.eventually("it is tried", func() bool { return r.opened() == 1 })
	if _, err := r.keeper.Attach(t.Context(), m); !errors.Is(err, hardware.ErrUnauthorized) {
		t.Errorf("attach: %v", err)
	}
	r.Change("r1u01", func(m *api.Machine) { m.Metadata.Labels = map[string]string{"a": "b"} })
	r.eventually("the listener has ended", func() bool {
		r.keeper.mu.Lock()
		defer r.keeper.mu.Unlock()
		return !r.keeper.ports[m.Metadata.UID].running
	})
	if n := r.opened(); n != 2 {
		t.Errorf("it was opened %d times: once, and once for the person", n)
	}
	r.mu.Lock()
	r.refuse = &hardware.UnsupportedError{Verb: "find the console", Err: hardware.ErrUnsupported}
	r.mu.Unlock()
	r.Change("r1u01", func(m *api.Machine) { m.Status.Attempt.Number = 2 })
	r.eventually("it is known that there is none", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.learned) == 1 && r.learned[0] == api.NoConsole
	})
	if _, err := r.keeper.Attach(t.Context(), new(api.Machine)); err == nil {
		t.Error("a Machine without a BMC has a console")
	}
}

// TestSlowPerson is dropped; the console is heard all the same.
func TestSlowPerson(t *testing.T) {
	r := newRig(t)
	m := r.machine("r1u01", true)
	far := r.end()
	slow, err := r.keeper.Attach(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for n := range backlog + 10 {
		write(t, far, fmt.Sprintf("line %d\n", n))
	}
	r.eventually("all is heard", func() bool { return r.keeper.LastLine(m) == fmt.Sprintf("line %d", backlog+9) })
	if _, err := io.ReadAll(slow); !errors.Is(err, errSlow) {
		t.Errorf("the slow one ends with %v", err)
	}
}
