// Package budget limits how many connections or transfers a server has open: in
// total, per address, and for unknown peers together, so that a part stays
// reserved for known ones. When a limit is reached, the connection that has
// been idle for longest is closed to admit the new one.
package budget

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of a server. A limit of 0 is unlimited.
type Limits struct {
	// Total is how many may be open, PerPeer how many per address (IPv6: per
	// /64).
	Total, PerPeer int
	// Reserve is the part of Total that unknown peers cannot use.
	Reserve int
	// Known reports whether an address is a known peer's. It is called once per
	// connection and must return quickly. nil: all peers are unknown.
	Known func(netip.Addr) bool
	// Idle is how long a connection must have transferred nothing before it may
	// be closed for another. Default: 5 s.
	Idle time.Duration

	// Refused is called with the limit that was reached (total, peer,
	// strangers) when a new connection is closed at once, Closed when an idle
	// one is closed for another, Open with the number of open ones. Each may be
	// nil.
	Refused func(limit string)
	Closed  func(limit string)
	Open    func(n int)
}

const defaultIdle = 5 * time.Second

// Slots counts what is open. Its methods are safe for concurrent use.
type Slots struct {
	limits Limits

	mu        sync.Mutex
	open      int
	strangers int
	peers     map[netip.Prefix]int
}

// NewSlots returns Slots with nothing open.
func NewSlots(l Limits) *Slots { return &Slots{limits: l, peers: map[netip.Prefix]int{}} }

// Slot is one open connection or transfer.
type Slot struct {
	peer  netip.Prefix
	known bool
}

// Known reports whether the peer is known.
func (s *Slot) Known() bool { return s.known }

// Take opens a slot for a peer, or names the limit that was reached.
func (b *Slots) Take(peer netip.Addr) (s *Slot, limit string) {
	s = b.slot(peer)
	b.mu.Lock()
	defer b.mu.Unlock()
	if limit := b.full(s); limit != "" {
		b.refuse(limit)
		return nil, limit
	}
	b.take(s)
	return s, ""
}

// Release closes a slot.
func (b *Slots) Release(s *Slot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.release(s)
}

func (b *Slots) slot(peer netip.Addr) *Slot {
	peer = peer.Unmap().WithZone("")
	known := b.limits.Known != nil && b.limits.Known(peer)
	return &Slot{peer: group(peer), known: known}
}

// group returns the prefix that counts as one address: a host can choose any
// address of its IPv6 /64.
func group(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // all peers without an address are one group
	}
	return p
}

// full names the limit that prevents s from being admitted.
func (b *Slots) full(s *Slot) string {
	l := b.limits
	switch {
	case l.PerPeer > 0 && b.peers[s.peer] >= l.PerPeer:
		return "peer"
	case l.Total > 0 && b.open >= l.Total:
		return "total"
	case l.Total > 0 && !s.known && b.strangers >= l.Total-l.Reserve:
		return "strangers"
	}
	return ""
}

func (b *Slots) take(s *Slot) {
	b.open++
	b.peers[s.peer]++
	if !s.known {
		b.strangers++
	}
	b.count()
}

func (b *Slots) release(s *Slot) {
	b.open--
	if b.peers[s.peer]--; b.peers[s.peer] == 0 {
		delete(b.peers, s.peer)
	}
	if !s.known {
		b.strangers--
	}
	b.count()
}

// trust marks the peer of s as known.
func (b *Slots) trust(s *Slot) {
	if !s.known {
		s.known = true
		b.strangers--
	}
}

func (b *Slots) count() {
	if b.limits.Open != nil {
		b.limits.Open(b.open)
	}
}

func (b *Slots) refuse(limit string) {
	if b.limits.Refused != nil {
		b.limits.Refused(limit)
	}
}
