// Package budget bounds how many connections or transfers a server has open: in total, of one address,
// and of strangers together, so that a share stays for those that the server knows. When a share is used
// up, what has been idle for longest makes room for what is new.
package budget

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of a server. A limit that is 0 bounds nothing.
type Limits struct {
	// Total is how many may be open, PerPeer how many of one address (of IPv6: of one /64).
	Total, PerPeer int
	// Reserve is the part of Total that strangers cannot have.
	Reserve int
	// Known reports whether an address is no stranger's, and is asked once for each connection. It must
	// return quickly. nil: all are strangers.
	Known func(netip.Addr) bool
	// Idle is for how long nothing must have moved on a connection before it makes room. Default: 5 s.
	Idle time.Duration

	// Refused is called with the limit that was reached (total, peer, strangers) when one is closed at
	// once, Closed when an idle one is closed for another, Open with the number of those that are open. Each may be nil.
	Refused func(limit string)
	Closed  func(limit string)
	Open    func(n int)
}

const defaultIdle = 5 * time.Second

// Slots counts what is open. Its methods may be called concurrently.
type Slots struct {
	limits Limits

	mu        sync.Mutex
	open      int
	strangers int
	peers     map[netip.Prefix]int
}

// NewSlots makes a Slots with nothing open.
func NewSlots(l Limits) *Slots { return &Slots{limits: l, peers: map[netip.Prefix]int{}} }

// Slot is one that is open.
type Slot struct {
	peer  netip.Prefix
	known bool
}

// Known reports whether the peer is no stranger.
func (s *Slot) Known() bool { return s.known }

// Take opens one for a peer, or names the limit that is reached.
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

// Release closes one.
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

// group is what counts as one address: a host has a whole IPv6 /64 to choose from.
func group(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // of those without an address, all are one
	}
	return p
}

// full names the limit that keeps s out.
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

// trust makes s one of somebody known.
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
