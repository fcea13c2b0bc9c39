package dhcp

import (
	"sync"

	"golang.org/x/time/rate"
)

// Limits of DNS for one guest, and for all guests of one Network on this host. Questions
// beyond them are dropped, and repeated by the guests.
const (
	perSecond      = 500 // questions of one guest
	perGuest       = 16  // forwarded questions of one guest
	perNetwork     = 64
	tcpPerGuest    = 8 // connections
	forwardedAtAll = 256
)

// share divides DNS fairly among the guests of one Network.
type share struct {
	mu        sync.Mutex
	of        map[MAC]*portion
	forwarded int
}

type portion struct {
	rate        *rate.Limiter
	forwarded   int
	connections int
}

func newShare() *share { return &share{of: map[MAC]*portion{}} }

// keep forgets guests that are gone.
func (s *share) keep(guests map[MAC]*Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for mac := range s.of {
		if _, there := guests[mac]; !there {
			delete(s.of, mac)
		}
	}
}

func (s *share) portion(mac MAC) *portion {
	p := s.of[mac]
	if p == nil {
		p = &portion{rate: rate.NewLimiter(perSecond, perSecond)}
		s.of[mac] = p
	}
	return p
}

// question reports whether a guest may ask another question now.
func (s *share) question(mac MAC) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.portion(mac).rate.Allow()
}

// forward reserves a place for a forwarded question; done releases it.
func (s *share) forward(mac MAC) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.portion(mac)
	if p.forwarded >= perGuest || s.forwarded >= perNetwork {
		return nil, false
	}
	p.forwarded++
	s.forwarded++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.forwarded--
		s.forwarded--
	}, true
}

// connect reserves a place for a connection; done releases it.
func (s *share) connect(mac MAC) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.portion(mac)
	if p.connections >= tcpPerGuest {
		return nil, false
	}
	p.connections++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.connections--
	}, true
}
