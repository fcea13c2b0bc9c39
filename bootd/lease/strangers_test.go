package lease

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// ward is a registered machine whose address strangers are after.
type ward struct {
	Holder
	addr netip.Addr
	told time.Time // until when it may use the address
}

// wards gives three registered machines their addresses: one reserved, two of the pool. A fourth MAC is
// registered and has none yet.
func (f *fixture) wards() []*ward {
	f.machines = map[string]bool{mac(1): true, mac(2): true, mac(3): true, mac(4): true}
	f.reserve()
	var all []*ward
	for n := 1; n <= 3; n++ {
		w := &ward{Holder: known(n)}
		w.addr = f.offer(w.Holder)
		w.told = f.commit(w.Holder, w.addr, time.Hour).Expires
		all = append(all, w)
	}
	return all
}

func (f *fixture) reserve() {
	f.SetReservations([]Reservation{{Subnet: "pxe", MAC: mac(1), Address: ip("198.18.0.7"), Machine: "m1"}}, nil)
}

// unharmed checks that every ward has its address: in force for as long as it was told, nobody else's
// ever, and granted again whenever it asks.
func (f *fixture) unharmed(all []*ward) {
	f.t.Helper()
	for _, w := range all {
		l, ok := f.Lookup(w.addr)
		if ok && l.MAC != w.MAC {
			f.t.Fatalf("%s of %s is leased to %s", w.addr, w.MAC, l.MAC)
		}
		if !ok && w.told.After(f.clock.now()) {
			f.t.Fatalf("the lease of %s to %s has ended before its time", w.addr, w.MAC)
		}
		if a := f.offer(w.Holder); a != w.addr {
			f.t.Fatalf("%s is offered %s instead of its own %s", w.MAC, a, w.addr)
		}
	}
}

// forge plays one frame of a stranger, who may use the MAC of any machine and name any address.
func (f *fixture) forge(kind, who, where byte) {
	h := unknown(100 + int(who)%24)
	if n := int(who) % 32; n >= 24 {
		h = known(1 + n%4)
	}
	a := ip("198.18.0.7")
	for range where % 14 { // the reserved one, then the range and what is beside it
		if a == ip("198.18.0.7") {
			a = ip("198.18.0.98")
		}
		a = a.Next()
	}
	ctx := f.t.Context()
	switch kind % 8 {
	case 0:
		_, _ = f.Release(ctx, h.MAC, a)
	case 1:
		_, _ = f.Decline(ctx, h.MAC, a)
	case 2, 3:
		_, _ = f.Commit(ctx, h, "pxe", a, time.Hour) // as long as the Subnet says, whoever asks
	case 4:
		if offered, err := f.Offer(h, "pxe", a); err == nil {
			_, _ = f.Commit(ctx, h, "pxe", offered, time.Hour)
		}
	case 5:
		if offered, err := f.Offer(h, "pxe", a); err == nil {
			_, _ = f.Decline(ctx, h.MAC, offered)
		}
	case 6:
		f.clock.advance(time.Duration(where) * time.Minute)
	case 7:
		if where == 0 {
			f.restart(pxe())
			f.reserve()
		}
	}
}

func (f *fixture) strangers(frames []byte) {
	all := f.wards()
	for len(frames) >= 3 {
		f.forge(frames[0], frames[1], frames[2])
		frames = frames[3:]
		f.unharmed(all)
		f.check()
	}
	for _, w := range all {
		f.commit(w.Holder, w.addr, time.Hour)
	}
}

// TestStrangersTakeNothing sends forged frames at random: whatever they are, no registered machine loses
// its address.
func TestStrangersTakeNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		frames := make([]byte, 3*200)
		for i := range frames {
			frames[i] = byte(r.Uint32())
		}
		newFixture(t, pxe()).strangers(frames)
	}
}

func FuzzStrangersTakeNothing(f *testing.F) {
	f.Add([]byte{0, 25, 2, 2, 5, 2}) // a RELEASE in a ward's name, then a REQUEST for its address
	f.Add([]byte{1, 25, 2, 2, 5, 2}) // the same with a DECLINE
	f.Add([]byte{2, 25, 9, 2, 5, 2}) // a REQUEST in its name for another address
	f.Add([]byte{6, 0, 90, 2, 5, 2}) // a machine that is off for long
	f.Fuzz(func(t *testing.T, frames []byte) { newFixture(t, pxe()).strangers(frames[:min(len(frames), 3*60)]) })
}

func TestKeptForTheRegistered(t *testing.T) {
	f := newFixture(t, pxe())
	f.machines = map[string]bool{mac(1): true}
	own := f.acquire(known(1))

	if released, err := f.Release(t.Context(), mac(1), own); released || err != nil {
		t.Errorf("release in the name of a registered machine: %v, %v", released, err)
	}
	_, err := f.Decline(t.Context(), mac(1), own)
	wantErr(t, err, ErrReserved, "arping "+own.String())
	_, err = f.Commit(t.Context(), known(1), "pxe", ip("198.18.0.108"), time.Hour)
	wantErr(t, err, ErrUnavailable, own.String())
	if l, ok := f.Lookup(own); !ok || l.MAC != mac(1) {
		t.Fatalf("the lease is %+v, %v", l, ok)
	}

	// Switched off for a month, it leaves its address to nobody, even when all others are taken.
	f.clock.advance(30 * 24 * time.Hour)
	_, err = f.Commit(t.Context(), known(2), "pxe", own, time.Hour)
	wantErr(t, err, ErrUnavailable, "kept for the registered "+mac(1))
	for n := 2; n <= 9; n++ {
		if a, err := f.Offer(known(n), "pxe", own); err != nil || a == own {
			t.Fatalf("%s, %v", a, err)
		} else {
			f.commit(known(n), a, time.Hour)
		}
	}
	_, err = f.Offer(known(10), "pxe", own)
	wantErr(t, err, ErrExhausted, "1 kept for registered machines that are off")

	// Its Machine is deleted: now the address is anybody's.
	f.machines = nil
	if a := f.acquire(known(10)); a != own {
		t.Errorf("machine 10 got %s, want %s, the only free one", a, own)
	}
}

// TestRegisteredLater shows that a MAC which had its address as a stranger keeps it once it is registered.
func TestRegisteredLater(t *testing.T) {
	f := newFixture(t, pxe())
	own := f.acquire(unknown(1))
	f.clock.advance(24 * time.Hour)
	f.machines = map[string]bool{mac(1): true}
	for n := 2; n < 40; n++ {
		a, err := f.Offer(known(n), "pxe", own)
		if err != nil && !errors.Is(err, ErrExhausted) {
			t.Fatal(err)
		}
		if a == own {
			t.Fatalf("%s was given to another", own)
		}
	}
	if a := f.acquire(known(1)); a != own {
		t.Errorf("got %s, want %s", a, own)
	}
}
