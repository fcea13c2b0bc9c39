package tftp

import (
	"net/netip"
	"sync"
)

// limiter bounds how many requests are in hand, in total and of one peer.
type limiter struct {
	total, perPeer int

	mu   sync.Mutex
	held int
	of   map[netip.Addr]int
}

func newLimiter(total, perPeer int) *limiter {
	return &limiter{total: total, perPeer: perPeer, of: make(map[netip.Addr]int)}
}

func (l *limiter) take(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held >= l.total || l.of[peer] >= l.perPeer {
		return false
	}
	l.held++
	l.of[peer]++
	return true
}

func (l *limiter) release(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held--
	if l.of[peer]--; l.of[peer] == 0 {
		delete(l.of, peer)
	}
}
