package lease

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory is a Backend that remembers, and that can be made to fail or to wait.
type memory struct {
	mu      sync.Mutex
	leases  map[netip.Addr]Lease
	calls   int
	puts    int
	err     error
	gate    chan struct{} // if set, every Apply waits until it is closed
	waiting atomic.Int64  // how many leases wait at the gate
}

func (m *memory) List(context.Context) ([]Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.leases)), m.err
}

func (m *memory) Apply(_ context.Context, put, del []Lease) error {
	if m.gate != nil {
		m.waiting.Store(int64(len(put)))
		<-m.gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.err != nil {
		return m.err
	}
	seen := map[netip.Addr]bool{}
	for _, l := range slices.Concat(put, del) {
		if seen[l.Address] {
			return fmt.Errorf("address %s comes twice", l.Address)
		}
		seen[l.Address] = true
	}
	if len(seen) > MaxBatch {
		return fmt.Errorf("%d leases in one call", len(seen))
	}
	m.puts += len(put)
	for _, l := range put {
		m.leases[l.Address] = l
	}
	for _, l := range del {
		delete(m.leases, l.Address)
	}
	return nil
}

type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

type fixture struct {
	*Table
	t       *testing.T
	backend *memory
	clock   *clock
	// machines are the MACs of registered Machines, whose addresses are kept.
	machines map[string]bool
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(n int) string { return fmt.Sprintf("52:54:00:00:%02x:%02x", n>>8, n&255) }

func known(n int) Holder   { return Holder{MAC: mac(n), Machine: fmt.Sprintf("m%d", n)} }
func unknown(n int) Holder { return Holder{MAC: mac(n)} }

// pxe is a pool of .100 to .109, without .105.
func pxe() Subnet {
	return Subnet{Name: "pxe", Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")},
		Range: Range{ip("198.18.0.100"), ip("198.18.0.109")}, Exclude: []netip.Addr{ip("198.18.0.105"), ip("198.18.0.1")}}
}

func newFixture(t *testing.T, subnets ...Subnet) *fixture {
	t.Helper()
	f := &fixture{t: t, backend: &memory{leases: map[netip.Addr]Lease{}}, clock: &clock{time.Unix(1e9, 0)}}
	f.restart(subnets...)
	return f
}

// restart makes a new table from what the backend has.
func (f *fixture) restart(subnets ...Subnet) {
	f.t.Helper()
	table, err := New(f.t.Context(), f.backend, f.clock.now, func(mac string) bool { return f.machines[mac] })
	if err != nil {
		f.t.Fatal(err)
	}
	if err := table.SetSubnets(subnets); err != nil {
		f.t.Fatal(err)
	}
	f.Table = table
}

func (f *fixture) offer(h Holder) netip.Addr {
	f.t.Helper()
	a, err := f.Offer(h, "pxe", netip.Addr{})
	if err != nil {
		f.t.Fatal(err)
	}
	return a
}

func (f *fixture) commit(h Holder, a netip.Addr, d time.Duration) Lease {
	f.t.Helper()
	l, err := f.Commit(f.t.Context(), h, "pxe", a, d)
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

func (f *fixture) acquire(h Holder) netip.Addr {
	f.t.Helper()
	a := f.offer(h)
	f.commit(h, a, time.Hour)
	return a
}

func wantErr(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestStickyAddress(t *testing.T) {
	f := newFixture(t, pxe())
	first := f.acquire(known(1))
	if first != ip("198.18.0.100") {
		t.Errorf("the first address is %s", first)
	}
	if again := f.offer(Holder{MAC: strings.ToUpper(mac(1)), Machine: "m1"}); again != first {
		t.Errorf("offered %s, then %s", first, again)
	}
	f.clock.advance(3 * time.Hour)
	if _, ok := f.Lookup(first); ok {
		t.Error("an expired lease is in force")
	}
	for n := 2; n <= 9; n++ { // the other eight addresses
		if a := f.acquire(known(n)); a == first {
			t.Errorf("%s was given away while others were free", a)
		}
	}
	if a := f.acquire(known(1)); a != first {
		t.Errorf("after expiry machine 1 got %s instead of %s", a, first)
	}
	_, err := f.Offer(known(10), "pxe", netip.Addr{})
	wantErr(t, err, ErrExhausted, "subnet pxe", "all 9 of 198.18.0.100-198.18.0.109", "widen")

	f.clock.advance(30 * time.Minute)
	f.commit(known(1), first, time.Hour) // all but machine 1's run out
	f.clock.advance(40 * time.Minute)
	if a := f.acquire(known(10)); a == first {
		t.Errorf("%s was given to two", a)
	}
}

func TestRestartFindsLeases(t *testing.T) {
	f := newFixture(t, pxe())
	a := f.acquire(Holder{MAC: mac(1), Machine: "r1u07", Hostname: "r1u07"})
	f.restart(pxe())
	l, ok := f.Lookup(a)
	if !ok || l.Machine != "r1u07" || l.MAC != mac(1) || l.Hostname != "r1u07" || l.Subnet != "pxe" {
		t.Errorf("lease after restart: %+v, %v", l, ok)
	}
	if got := f.ByMAC(mac(1)); len(got) != 1 || got[0].Address != a {
		t.Errorf("leases of the MAC: %v", got)
	}
	if b := f.acquire(known(2)); b == a {
		t.Errorf("%s given to two across a restart", a)
	}
	_, err := f.Commit(t.Context(), known(3), "pxe", a, time.Hour)
	wantErr(t, err, ErrUnavailable, mac(1))
	if b := f.offer(known(1)); b != a {
		t.Errorf("after a restart machine 1 is offered %s instead of %s", b, a)
	}
}

// TestPromiseOutlivesRestart shows that what a client was told is never longer than what is stored.
func TestPromiseOutlivesRestart(t *testing.T) {
	f := newFixture(t, pxe())
	a := f.offer(known(1))
	for range 12 {
		l := f.commit(known(1), a, time.Hour)
		if stored := f.backend.leases[a]; l.Expires.After(stored.Expires) {
			t.Fatalf("told %s, stored %s", l.Expires, stored.Expires)
		}
		if l.Expires != f.clock.now().Add(time.Hour) {
			t.Fatalf("lease for %s", l.Expires.Sub(f.clock.now()))
		}
		f.clock.advance(30 * time.Minute)
	}
	if f.backend.puts != 6 {
		t.Errorf("12 renewals at half time were written %d times, want every other", f.backend.puts)
	}
	f.commit(Holder{MAC: mac(1), Machine: "m1", Hostname: "new"}, a, time.Hour)
	f.commit(known(1), a, time.Hour) // a boot ROM without a host name
	if f.backend.puts != 7 || f.backend.leases[a].Hostname != "new" {
		t.Errorf("%d writes, hostname %q", f.backend.puts, f.backend.leases[a].Hostname)
	}
}

func TestReservations(t *testing.T) {
	f := newFixture(t, pxe())
	squatter := f.acquire(known(9)) // .100
	f.SetReservations([]Reservation{
		{Subnet: "pxe", MAC: strings.ToUpper(mac(1)), Address: ip("198.18.0.7"), Machine: "m1"},
		{Subnet: "pxe", MAC: mac(2), Address: ip("198.18.0.101"), Machine: "m2"},
		{Subnet: "pxe", MAC: mac(3), Address: squatter, Machine: "m3"},
	}, []netip.Addr{ip("198.18.0.102")})

	if a := f.acquire(known(1)); a != ip("198.18.0.7") {
		t.Errorf("reserved machine got %s", a)
	}
	if l, ok := f.Lookup(ip("198.18.0.7")); !ok || l.Machine != "m1" {
		t.Errorf("lease of a reserved address: %+v, %v", l, ok)
	}
	_, err := f.Commit(t.Context(), known(1), "pxe", ip("198.18.0.103"), time.Hour)
	wantErr(t, err, ErrUnavailable, "198.18.0.7")

	// Nobody else gets a reserved, unavailable or excluded address, not even by asking for it.
	for n := 20; n < 25; n++ {
		for _, wanted := range []string{"198.18.0.7", "198.18.0.101", "198.18.0.102", "198.18.0.105", "198.18.0.200"} {
			_, err := f.Commit(t.Context(), known(n), "pxe", ip(wanted), time.Hour)
			wantErr(t, err, ErrUnavailable)
			a, err := f.Offer(known(n), "pxe", ip(wanted))
			if err != nil || a == ip(wanted) {
				t.Errorf("asking for %s: offered %s, %v", wanted, a, err)
			}
		}
	}

	// An address reserved while somebody has it: the holder loses it at its next renewal, not before.
	_, err = f.Offer(known(3), "pxe", netip.Addr{})
	wantErr(t, err, ErrUnavailable, squatter.String(), mac(9), "renewal is refused")
	_, err = f.Commit(t.Context(), known(9), "pxe", squatter, time.Hour)
	wantErr(t, err, ErrUnavailable, mac(3))
	if a := f.acquire(known(3)); a != squatter {
		t.Errorf("after the refusal machine 3 got %s", a)
	}
	if a := f.acquire(known(9)); a == squatter {
		t.Errorf("%s is with two", a)
	}

	_, err = f.Decline(t.Context(), mac(1), ip("198.18.0.7"))
	wantErr(t, err, ErrReserved, "arping 198.18.0.7")
	if a := f.offer(known(1)); a != ip("198.18.0.7") {
		t.Errorf("after a decline of its reservation: %s", a)
	}
}

func TestMACFlood(t *testing.T) {
	s := pxe()
	s.Limit = 6
	f := newFixture(t, s)
	f.SetReservations([]Reservation{{Subnet: "pxe", MAC: mac(1), Address: ip("198.18.0.7"), Machine: "m1"}}, nil)
	granted := 0
	var last error
	for n := 1000; n < 3000; n++ {
		a, err := f.Offer(unknown(n), "pxe", netip.Addr{})
		if err != nil {
			last = err
			continue
		}
		granted++
		switch granted % 3 {
		case 0:
			if _, err := f.Decline(t.Context(), mac(n), a); err != nil {
				t.Fatal(err)
			}
		case 1:
			l := f.commit(unknown(n), a, 24*time.Hour)
			if d := l.Expires.Sub(f.clock.now()); d != 10*time.Minute {
				t.Errorf("unregistered lease of %s", d)
			}
		}
	}
	if granted != 6 {
		t.Errorf("%d addresses for unregistered MACs, the limit is 6", granted)
	}
	wantErr(t, last, ErrExhausted, "subnet pxe", "register the machine or raise the limit")
	_, err := f.Commit(t.Context(), unknown(5000), "pxe", ip("198.18.0.109"), time.Hour)
	wantErr(t, err, ErrExhausted)
	for n := 1; n <= 4; n++ { // one reserved, three that the flood may not have
		f.acquire(known(n))
	}
	f.clock.advance(11 * time.Minute)
	f.acquire(unknown(6000))
}

func TestRegistrationLiftsLimit(t *testing.T) {
	s := pxe()
	s.Limit = 1
	f := newFixture(t, s)
	a := f.acquire(unknown(1))
	if _, err := f.Offer(unknown(2), "pxe", netip.Addr{}); !errors.Is(err, ErrExhausted) {
		t.Errorf("second unregistered machine: %v", err)
	}
	if l := f.commit(known(1), a, time.Hour); l.Machine != "m1" || l.Expires != f.clock.now().Add(time.Hour) {
		t.Errorf("lease after registration: %+v", l)
	}
	f.acquire(unknown(2))
	if u, err := f.Usage("pxe"); err != nil || u != (Usage{Size: 9, Busy: 2, Unregistered: 1}) {
		t.Errorf("usage %+v, %v", u, err)
	}
}

func TestReleaseAndDecline(t *testing.T) {
	f := newFixture(t, pxe())
	a := f.acquire(known(1))
	if _, err := f.Release(t.Context(), mac(2), a); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Lookup(a); !ok {
		t.Fatal("another MAC released the lease")
	}
	if _, err := f.Release(t.Context(), mac(1), a); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Lookup(a); ok {
		t.Error("the lease is in force after its release")
	}
	f.restart(pxe())
	if _, ok := f.Lookup(a); ok {
		t.Error("the release was forgotten by a restart")
	}
	if b := f.acquire(known(1)); b != a {
		t.Errorf("after its release machine 1 got %s instead of %s", b, a)
	}

	if _, err := f.Decline(t.Context(), mac(2), a); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Lookup(a); !ok {
		t.Fatal("another MAC declined the address")
	}
	if _, err := f.Decline(t.Context(), mac(1), a); err != nil {
		t.Fatal(err)
	}
	f.restart(pxe())
	_, err := f.Commit(t.Context(), known(1), "pxe", a, time.Hour)
	wantErr(t, err, ErrUnavailable, "quarantine")
	if b := f.acquire(known(1)); b == a {
		t.Errorf("%s was offered again right after its decline", b)
	}
	if got := f.Leases(); len(got) != 2 || !got[0].Quarantined() || got[0].Address != a {
		t.Errorf("leases: %+v", got)
	}
	f.clock.advance(10*time.Minute + time.Second)
	f.commit(known(3), a, time.Hour)

	// One machine that declines everything cannot use the pool up.
	for range 50 {
		if _, err := f.Decline(t.Context(), mac(4), f.acquire(known(4))); err != nil {
			t.Fatal(err)
		}
	}
	if u, _ := f.Usage("pxe"); u.Quarantined != 2 {
		t.Errorf("%d of %d addresses in quarantine", u.Quarantined, u.Size)
	}
}

func TestOneDynamicAddressPerMAC(t *testing.T) {
	f := newFixture(t, pxe())
	for n := 100; n < 105; n++ {
		f.commit(known(1), ip(fmt.Sprintf("198.18.0.%d", n)), time.Hour)
	}
	if got := f.ByMAC(mac(1)); len(got) != 1 || got[0].Address != ip("198.18.0.104") {
		t.Errorf("leases: %+v", got)
	}
	if len(f.backend.leases) != 1 {
		t.Errorf("stored: %+v", f.backend.leases)
	}
}

func TestSubnetsChange(t *testing.T) {
	f := newFixture(t, pxe())
	a := f.acquire(known(1))
	moved := pxe()
	moved.Range = Range{ip("198.18.0.0"), ip("198.18.0.3")} // 0 is the network, 1 excluded
	if err := f.SetSubnets([]Subnet{moved}); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Lookup(a); !ok {
		t.Error("the lease is gone before its time")
	}
	_, err := f.Commit(t.Context(), known(1), "pxe", a, time.Hour)
	wantErr(t, err, ErrUnavailable, "198.18.0.0-198.18.0.3")
	if b := f.acquire(known(1)); b != ip("198.18.0.2") {
		t.Errorf("in the new range: %s", b)
	}
	if err := f.SetSubnets(nil); err != nil {
		t.Fatal(err)
	}
	_, err = f.Offer(known(1), "pxe", netip.Addr{})
	wantErr(t, err, ErrNoSubnet, "pxe")
	if err := f.Prune(t.Context()); err != nil || len(f.backend.leases) != 2 {
		t.Errorf("pruned leases in force: %v, %d left", err, len(f.backend.leases))
	}
	f.clock.advance(24 * time.Hour)
	if err := f.Prune(t.Context()); err != nil || len(f.backend.leases) != 0 {
		t.Errorf("prune: %v, %d left", err, len(f.backend.leases))
	}

	reversed, overlapping := pxe(), pxe()
	reversed.Range.First, reversed.Range.Last = reversed.Range.Last, reversed.Range.First
	overlapping.Name = "other"
	for _, bad := range [][]Subnet{{reversed}, {pxe(), overlapping}} {
		if err := f.SetSubnets(bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	static := Subnet{Name: "pxe"}
	if err := f.SetSubnets([]Subnet{static, {Name: "mgmt"}}); err != nil {
		t.Fatal(err)
	}
	_, err = f.Offer(known(1), "pxe", netip.Addr{})
	wantErr(t, err, ErrExhausted, "no range")
}

func TestBackendFailure(t *testing.T) {
	f := newFixture(t, pxe())
	a := f.offer(known(1))
	f.backend.err = errors.New("disk full")
	_, err := f.Commit(t.Context(), known(1), "pxe", a, time.Hour)
	if err == nil || !strings.Contains(err.Error(), "disk full") || !strings.Contains(err.Error(), a.String()) {
		t.Errorf("error is %v", err)
	}
	if _, ok := f.Lookup(a); ok {
		t.Error("a lease that was not written is in force")
	}
	f.backend.err = nil
	f.commit(known(1), a, time.Hour)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Commit(canceled, known(2), "pxe", f.offer(known(2)), time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("commit with a cancelled context: %v", err)
	}
}

// TestUnwritableBackend grants what needs no write: a reserved address, and the
// rest of a lease that is written.
func TestUnwritableBackend(t *testing.T) {
	f := newFixture(t, pxe())
	f.SetReservations([]Reservation{{MAC: mac(7), Subnet: "pxe", Address: ip("198.18.0.7")}}, nil)
	a := f.acquire(known(1))
	f.backend.err = fmt.Errorf("%w: disk full", ErrUnwritable)
	f.clock.advance(50 * time.Minute) // 40 of the 90 that are written remain
	if l := f.commit(known(1), a, time.Hour); l.Expires != f.clock.t.Add(40*time.Minute) || l.Address != a {
		t.Errorf("the rest of a lease: %+v", l)
	}
	if l := f.commit(known(7), ip("198.18.0.7"), time.Hour); l.Expires != f.clock.t.Add(time.Hour) {
		t.Errorf("a reserved address: %+v", l)
	}
	_, err := f.Commit(t.Context(), known(2), "pxe", f.offer(known(2)), time.Hour)
	wantErr(t, err, ErrUnwritable, "disk full")
	f.clock.advance(40*time.Minute - time.Second)
	_, err = f.Commit(t.Context(), known(1), "pxe", a, time.Hour)
	wantErr(t, err, ErrUnwritable)
	f.backend.err = nil
	if l := f.commit(known(1), a, time.Hour); l.Expires != f.clock.t.Add(time.Hour) {
		t.Errorf("written again: %+v", l)
	}
}

// TestGroupCommit holds one write back until 499 more have gathered behind it.
func TestGroupCommit(t *testing.T) {
	s := pxe()
	s.Range = Range{ip("198.18.4.1"), ip("198.18.7.254")}
	f := newFixture(t, s)
	f.backend.gate = make(chan struct{})
	const machines = 500
	var wg sync.WaitGroup
	errs := make(chan error, machines)
	commit := func(n int) {
		h := known(n)
		a, err := f.Offer(h, "pxe", netip.Addr{})
		if err == nil {
			_, err = f.Commit(context.Background(), h, "pxe", a, time.Hour)
		}
		errs <- err
	}
	for n := range machines {
		wg.Go(func() { commit(n) })
	}
	for gathered := 0; gathered < machines; time.Sleep(time.Millisecond) {
		f.writes.mu.Lock()
		gathered = len(f.writes.pending) + int(f.backend.waiting.Load())
		f.writes.mu.Unlock()
		if len(errs) > 0 {
			t.Fatal("a commit returned before anything was written")
		}
	}
	close(f.backend.gate)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	if f.backend.calls > 1+machines/MaxBatch || len(f.backend.leases) != machines {
		t.Errorf("%d leases in %d writes", len(f.backend.leases), f.backend.calls)
	}
}

// TestNoAddressTwice plays many machines at random against the one rule that matters, with restarts.
func TestNoAddressTwice(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := pxe()
	s.Range.Last = ip("198.18.0.130")
	f := newFixture(t, s)
	reservations := []Reservation{{Subnet: "pxe", MAC: mac(1), Address: ip("198.18.0.110"), Machine: "m1"}}
	f.SetReservations(reservations, nil)

	type promise struct {
		mac   string
		until time.Time
	}
	promised := map[netip.Addr]promise{}
	for range 20000 {
		n := 1 + r.IntN(60)
		h := known(n)
		if n%2 == 0 {
			h = unknown(n)
		}
		switch r.IntN(20) {
		case 0:
			f.restart(s)
			f.SetReservations(reservations, nil)
		case 1, 2:
			for _, l := range f.ByMAC(h.MAC) {
				if _, err := f.Release(t.Context(), h.MAC, l.Address); err != nil {
					t.Fatal(err)
				}
				delete(promised, l.Address)
			}
		case 3:
			for _, l := range f.ByMAC(h.MAC) {
				if _, err := f.Decline(t.Context(), h.MAC, l.Address); err == nil {
					delete(promised, l.Address)
				}
			}
		case 4, 5, 6:
			f.clock.advance(time.Duration(r.IntN(600)) * time.Second)
		default:
			wanted := ip("198.18.0.100")
			for range r.IntN(31) {
				wanted = wanted.Next()
			}
			a, err := f.Offer(h, "pxe", wanted)
			if r.IntN(4) == 0 {
				a = wanted
			} else if err != nil {
				continue
			}
			l, err := f.Commit(t.Context(), h, "pxe", a, time.Duration(1+r.IntN(3600))*time.Second)
			if err != nil {
				continue
			}
			if p := promised[a]; p.mac != h.MAC && p.until.After(f.clock.now()) {
				t.Fatalf("%s promised to %s until %s was given to %s", a, p.mac, p.until, h.MAC)
			}
			if a == ip("198.18.0.105") || (a == ip("198.18.0.110")) != (n == 1) {
				t.Fatalf("%s was given to %s", a, h.MAC)
			}
			for old, p := range promised { // it has moved
				if p.mac == h.MAC {
					delete(promised, old)
				}
			}
			promised[a] = promise{h.MAC, l.Expires}
		}
		f.check()
	}
}

// check compares the pools' books with the slots.
func (f *fixture) check() {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.pool("pxe")
	if err != nil {
		f.t.Fatal(err)
	}
	var busy, idle, unknown, quarantined, owned int
	for a, s := range f.slots {
		if a != s.addr || s.writing != 0 {
			f.t.Fatalf("slot %+v under %s", s, a)
		}
		if s.mac != "" {
			owned++
			if !slices.Contains(f.byMAC[s.mac], s) {
				f.t.Fatalf("%s does not know its %s", s.mac, a)
			}
		}
		if s.pool == nil {
			continue
		}
		if (s.at >= 0) == (s.idle != nil) || (s.at >= 0) != s.until.After(f.now()) {
			f.t.Fatalf("%s: at %d, idle %v, until %s", a, s.at, s.idle != nil, s.until)
		}
		switch {
		case s.at < 0:
			idle++
			continue
		case s.mac == "":
			quarantined++
		case !s.known:
			unknown++
		}
		busy++
	}
	for _, slots := range f.byMAC {
		owned -= len(slots)
	}
	if busy != len(p.busy) || idle != p.idle.Len()+p.spared.Len() || unknown != p.unknown || quarantined != p.quarantined || owned != 0 {
		f.t.Fatalf("%d busy of %d, %d idle of %d, %d unknown of %d, %d quarantined of %d, %d owned too many",
			len(p.busy), busy, p.idle.Len()+p.spared.Len(), idle, p.unknown, unknown, p.quarantined, quarantined, owned)
	}
	if unknown+quarantined > max(p.limit(), quarantined) {
		f.t.Fatalf("%d unregistered and %d in quarantine, limit %d", unknown, quarantined, p.limit())
	}
}

func BenchmarkOfferCommit(b *testing.B) {
	backend := &memory{leases: map[netip.Addr]Lease{}}
	table, err := New(b.Context(), backend, time.Now, func(string) bool { return true })
	if err != nil {
		b.Fatal(err)
	}
	if err := table.SetSubnets([]Subnet{{Name: "pxe", Range: Range{ip("198.18.0.1"), ip("198.19.255.254")}}}); err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		n = (n + 1) % 60000
		h := known(n)
		a, err := table.Offer(h, "pxe", netip.Addr{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := table.Commit(b.Context(), h, "pxe", a, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}
