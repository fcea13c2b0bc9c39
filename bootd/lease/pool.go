package lease

import (
	"container/heap"
	"container/list"
	"fmt"
	"net/netip"
	"time"
)

// slot is an address that is or was in use.
type slot struct {
	addr  netip.Addr
	mac   string // its holder, or the last one; empty in quarantine
	known bool   // mac belongs to a registered Machine
	until time.Time
	// lease is what was granted, stored what the Backend has. Both are zero for an address that was only ever
	// offered.
	lease, stored Lease

	writing int // changes that are being written

	pool *pool         // nil outside of every dynamic range
	at   int           // index in pool.busy, or -1
	list *list.List    // pool.idle or pool.spared, or nil
	idle *list.Element // in list, or nil
}

// pool chooses among the dynamic addresses of one subnet. Addresses that were never used come first, then those
// that have been idle longest, so that machines can get their old address back as long as possible.
type pool struct {
	subnet  Subnet
	blocked map[netip.Addr]bool // addresses of the range that the pool must not lease
	size    int                 // usable addresses
	next    netip.Addr          // all before it have a slot or are blocked
	busy    busyHeap            // slots that are held, leased or in quarantine
	idle    *list.List          // of *slot, those idle longest first
	spared  *list.List          // of *slot: idle too, but kept for the MAC that they were leased to
	kept    func(*slot) bool    // by Table.kept

	unknown     int // busy slots of unregistered MACs
	quarantined int // busy slots in quarantine
}

func newPool(s Subnet, kept func(*slot) bool) *pool {
	return &pool{subnet: s, next: s.Range.First, idle: list.New(), spared: list.New(), kept: kept}
}

// usable reports whether the pool may lease an address.
func (p *pool) usable(a netip.Addr) bool {
	return a.IsValid() && p.subnet.Range.Contains(a) && !p.blocked[a]
}

// admits reports whether h may get one more address. Quarantined addresses count as held by unregistered MACs: a
// client that declines every offer must not exceed the limit.
func (p *pool) admits(h Holder) bool {
	return h.Machine != "" || p.unknown+p.quarantined < p.limit()
}

func (p *pool) limit() int {
	if p.subnet.Limit > 0 {
		return p.subnet.Limit
	}
	return max(1, p.size*3/4)
}

func (p *pool) limitError() error {
	return fmt.Errorf("subnet %s: %w for an unregistered machine: %d hold one and %d are in quarantine, the limit is %d of %d: register the machine or raise the limit",
		p.subnet.Name, ErrExhausted, p.unknown, p.quarantined, p.limit(), p.size)
}

func (p *pool) exhaustedError() error {
	if p.subnet.Range == (Range{}) {
		return fmt.Errorf("subnet %s: %w: it has no range, so only machines with a reservation get an address", p.subnet.Name, ErrExhausted)
	}
	return fmt.Errorf("subnet %s: %w: all %d of %s are taken, %d of them by unregistered machines, %d in quarantine and %d kept for registered machines that are off: widen its range",
		p.subnet.Name, ErrExhausted, p.size, p.subnet.Range, p.unknown, p.quarantined, p.spared.Len())
}

// settle moves expired slots from busy to idle.
func (p *pool) settle(now time.Time) {
	for len(p.busy) > 0 && !p.busy[0].until.After(now) {
		s := p.busy[0]
		p.remove(s)
		p.rest(s)
	}
}

// place puts s among the busy or the idle, according to its until.
func (p *pool) place(s *slot, now time.Time) {
	if !s.until.After(now) {
		p.rest(s)
		return
	}
	heap.Push(&p.busy, s)
	switch {
	case s.mac == "":
		p.quarantined++
	case !s.known:
		p.unknown++
	}
}

// rest makes s the most recent of the idle, or of the kept ones.
func (p *pool) rest(s *slot) {
	s.list = p.idle
	if p.kept(s) {
		s.list = p.spared
	}
	s.idle = s.list.PushBack(s)
}

// oldest returns the slot that has been idle longest and is not kept. Slots were sorted when they became idle, and
// MACs may be registered and deleted later: spared slots are checked again only when no others are left.
func (p *pool) oldest() *slot {
	for e := p.idle.Front(); e != nil; e = p.idle.Front() {
		s := e.Value.(*slot)
		if !p.kept(s) {
			return s
		}
		p.remove(s)
		p.rest(s)
	}
	for e := p.spared.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*slot); !p.kept(s) {
			return s
		}
	}
	return nil
}

// remove removes s from busy and idle. It must be called before its holder changes.
func (p *pool) remove(s *slot) {
	if s.idle != nil {
		s.list.Remove(s.idle)
		s.list, s.idle = nil, nil
		return
	}
	if s.at < 0 {
		return
	}
	heap.Remove(&p.busy, s.at)
	switch {
	case s.mac == "":
		p.quarantined--
	case !s.known:
		p.unknown--
	}
}

// busyHeap is a heap of slots by until.
type busyHeap []*slot

func (h busyHeap) Len() int           { return len(h) }
func (h busyHeap) Less(i, j int) bool { return h[i].until.Before(h[j].until) }
func (h busyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *busyHeap) Push(x any) {
	s := x.(*slot)
	s.at = len(*h)
	*h = append(*h, s)
}
func (h *busyHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	s.at = -1
	return s
}
