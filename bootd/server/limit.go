package server

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxPeers limits how many addresses a limiter remembers: a caller can use very many.
const maxPeers = 8192

// limiter limits how often each address may do something.
type limiter struct {
	perSecond rate.Limit
	burst     int

	mu    sync.Mutex
	peers map[netip.Prefix]*rate.Limiter
	// crowd is shared by all new addresses while peers is full.
	crowd *rate.Limiter
}

func newLimiter(perSecond float64, burst int) *limiter {
	l := &limiter{perSecond: rate.Limit(perSecond), burst: burst, peers: map[netip.Prefix]*rate.Limiter{}}
	l.crowd = rate.NewLimiter(l.perSecond, burst)
	return l
}

// allow takes one token of the address.
func (l *limiter) allow(a netip.Addr) bool { return l.of(a).Allow() }

// exhausted reports whether the address has no token left, and takes none.
func (l *limiter) exhausted(a netip.Addr) bool { return l.of(a).Tokens() < 1 }

func (l *limiter) of(a netip.Addr) *rate.Limiter {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64 // a host can choose any address of its /64
	}
	peer, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return l.crowd
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.peers[peer]; p != nil {
		return p
	}
	if len(l.peers) >= maxPeers {
		l.prune()
	}
	if len(l.peers) >= maxPeers {
		return l.crowd
	}
	p := rate.NewLimiter(l.perSecond, l.burst)
	l.peers[peer] = p
	return p
}

// prune removes addresses that have been idle long enough to be full again.
func (l *limiter) prune() {
	now := time.Now()
	for peer, p := range l.peers {
		if p.TokensAt(now) >= float64(l.burst) {
			delete(l.peers, peer)
		}
	}
}
