package lease

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Table holds all leases of a Site. Its methods may be called concurrently.
type Table struct {
	now        func() time.Time
	backend    Backend
	writes     group
	registered func(mac string) bool

	mu          sync.Mutex
	slots       map[netip.Addr]*slot
	byMAC       map[string][]*slot
	pools       map[string]*pool
	reserved    map[owner]Reservation
	reservedFor map[netip.Addr]Reservation
	unavailable map[netip.Addr]bool
}

type owner struct{ subnet, mac string }

// New reads all leases from the backend. The table leases no addresses before SetSubnets. registered reports
// whether a MAC belongs to a registered Machine; it is called with the table locked.
func New(ctx context.Context, b Backend, now func() time.Time, registered func(mac string) bool) (*Table, error) {
	t := &Table{
		now: now, backend: b, registered: registered,
		slots: map[netip.Addr]*slot{}, byMAC: map[string][]*slot{}, pools: map[string]*pool{},
	}
	t.writes.apply = t.apply
	leases, err := b.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the leases: %w", err)
	}
	for _, l := range leases {
		s := t.slot(l.Address)
		t.assign(s, l.MAC, l.Machine != "")
		s.lease, s.stored, s.until = l, l, l.Expires
	}
	return t, nil
}

// SetSubnets replaces the dynamic pools. Leases outside them stay until they expire, but are not renewed. On an
// error nothing changes.
func (t *Table) SetSubnets(subnets []Subnet) error {
	pools := map[string]*pool{}
	for i, s := range subnets {
		if s.ShortLease <= 0 {
			s.ShortLease = defaultShort
		}
		if s.Range != (Range{}) && (!s.Range.First.Is4() || !s.Range.Last.Is4() || s.Range.Last.Less(s.Range.First)) {
			return fmt.Errorf("subnet %s: range %s is not two IPv4 addresses in ascending order", s.Name, s.Range)
		}
		for _, other := range subnets[:i] {
			if s.Range.First.IsValid() && s.Range.First.Compare(other.Range.Last) <= 0 && other.Range.First.Compare(s.Range.Last) <= 0 {
				return fmt.Errorf("subnet %s: range %s overlaps %s of subnet %s", s.Name, s.Range, other.Range, other.Name)
			}
		}
		pools[s.Name] = newPool(s, t.kept)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pools = pools
	t.rebuild()
	return nil
}

// SetReservations replaces the reservations, and the addresses that no pool may lease because a machine uses them
// without requesting them. A lease of another MAC on a reserved address is not renewed.
func (t *Table) SetReservations(reservations []Reservation, unavailable []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reserved, t.reservedFor = map[owner]Reservation{}, map[netip.Addr]Reservation{}
	for _, r := range reservations {
		r.MAC = canonical(r.MAC)
		t.reserved[owner{r.Subnet, r.MAC}] = r
		t.reservedFor[r.Address] = r
	}
	t.unavailable = map[netip.Addr]bool{}
	for _, a := range unavailable {
		t.unavailable[a] = true
	}
	t.rebuild()
}

// rebuild sorts all slots into the pools again.
func (t *Table) rebuild() {
	for _, p := range t.pools {
		*p = *newPool(p.subnet, p.kept)
		p.blocked = t.blocked(p.subnet)
		if p.subnet.Range != (Range{}) {
			p.size = int(number(p.subnet.Range.Last)) - int(number(p.subnet.Range.First)) + 1 - len(p.blocked)
		}
	}
	all := make([]*slot, 0, len(t.slots))
	for _, s := range t.slots {
		s.pool, s.list, s.idle, s.at = nil, nil, nil, -1
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *slot) int { return a.until.Compare(b.until) })
	now := t.now()
	for _, s := range all {
		for _, p := range t.pools {
			if p.usable(s.addr) {
				s.pool = p
				p.place(s, now)
			}
		}
	}
}

// blocked returns the addresses of the subnet's range that must not be leased dynamically.
func (t *Table) blocked(s Subnet) map[netip.Addr]bool {
	blocked := map[netip.Addr]bool{}
	block := func(a netip.Addr) {
		if s.Range.Contains(a) {
			blocked[a] = true
		}
	}
	for _, p := range s.Prefixes {
		if p.Addr().Is4() && p.Bits() < 31 {
			first := number(p.Masked().Addr())
			block(address(first))
			block(address(first | (1<<(32-p.Bits()) - 1)))
		}
	}
	for _, a := range s.Exclude {
		block(a)
	}
	for a := range t.reservedFor {
		block(a)
	}
	for a := range t.unavailable {
		block(a)
	}
	return blocked
}

// Offer promises an address for a minute, in memory only: the reserved one; else the holder's current or last one;
// else wanted if it is free (it may be zero); else the one that has been free longest.
func (t *Table) Offer(h Holder, subnet string, wanted netip.Addr) (netip.Addr, error) {
	h.MAC = canonical(h.MAC)
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.pool(subnet)
	if err != nil {
		return netip.Addr{}, err
	}
	if r, ok := t.reserved[owner{subnet, h.MAC}]; ok {
		if err := t.squatted(r); err != nil {
			return netip.Addr{}, err
		}
		return r.Address, nil
	}
	s, err := t.choose(p, h, wanted)
	if err != nil {
		return netip.Addr{}, err
	}
	t.hold(s, h)
	return s.addr, nil
}

func (t *Table) choose(p *pool, h Holder, wanted netip.Addr) (*slot, error) {
	if s := t.former(h.MAC, p); s != nil && (s.at >= 0 || p.admits(h)) {
		return s, nil
	}
	if !p.admits(h) {
		return nil, p.limitError()
	}
	if p.usable(wanted) {
		if s := t.slot(wanted); s.at < 0 && !t.kept(s) {
			s.pool = p
			return s, nil
		}
	}
	for ; p.next.IsValid() && p.subnet.Range.Contains(p.next); p.next = p.next.Next() {
		if _, used := t.slots[p.next]; !used && p.usable(p.next) {
			s := t.slot(p.next)
			s.pool = p
			return s, nil
		}
	}
	if oldest := p.oldest(); oldest != nil {
		return oldest, nil
	}
	return nil, p.exhaustedError()
}

// kept reports whether an address is kept for the registered MAC that it was last leased to.
func (t *Table) kept(s *slot) bool {
	return s.mac != "" && s.lease.MAC == s.mac && t.registered(s.mac)
}

// own returns the address that p keeps for a registered MAC.
func (t *Table) own(mac string, p *pool) *slot {
	s := t.former(mac, p)
	if s == nil || !t.kept(s) {
		return nil
	}
	return s
}

// Commit grants addr for at most d, durably when it returns. Concurrent Commits are written together, and a renewal
// within the first half of the last written lease is not written. An error that wraps ErrUnavailable means that the
// client must not use addr.
func (t *Table) Commit(ctx context.Context, h Holder, subnet string, addr netip.Addr, d time.Duration) (Lease, error) {
	h.MAC = canonical(h.MAC)
	c, err := t.prepare(h, subnet, addr, d)
	if err != nil {
		return Lease{}, err
	}
	if c.slot == nil {
		return c.granted, nil
	}
	if err := t.write(ctx, c); err != nil {
		if l, ok := t.unwritten(c); ok && errors.Is(err, ErrUnwritable) {
			return l, nil
		}
		return Lease{}, fmt.Errorf("lease %s to %s: %w", addr, h.MAC, err)
	}
	if c.lost {
		return Lease{}, fmt.Errorf("%w: writing the lease of %s took longer than it is held", ErrUnavailable, addr)
	}
	return c.granted, nil
}

// unwritten returns what a holder can be granted without a write: its reserved address, or the rest of the written
// lease.
func (t *Table) unwritten(c *change) (Lease, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, l := c.slot, c.granted
	if s.mac != l.MAC {
		return Lease{}, false
	}
	if r, ok := t.reserved[owner{l.Subnet, l.MAC}]; !ok || r.Address != l.Address {
		if s.stored.MAC != l.MAC || s.stored.Expires.Sub(t.now()) < holdTime {
			return Lease{}, false
		}
		if s.stored.Expires.Before(l.Expires) {
			l.Expires = s.stored.Expires
		}
	}
	t.grant(s, l)
	return l, true
}

// prepare checks a commit and holds its address. The change has no slot if nothing needs to be written.
func (t *Table) prepare(h Holder, subnet string, addr netip.Addr, d time.Duration) (*change, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.pool(subnet)
	if err != nil {
		return nil, err
	}
	if err := t.grantable(p, h, addr); err != nil {
		return nil, err
	}
	_, reserved := t.reserved[owner{subnet, h.MAC}]
	if h.Machine == "" && !reserved {
		d = min(d, p.subnet.ShortLease)
	}
	s := t.slot(addr)
	if p.usable(addr) {
		s.pool = p
	}
	t.hold(s, h)

	now := t.now()
	granted := Lease{Subnet: subnet, Address: addr, MAC: h.MAC, Machine: h.Machine, Hostname: h.Hostname, Expires: now.Add(d)}
	if granted.Hostname == "" && s.stored.MAC == h.MAC {
		granted.Hostname = s.stored.Hostname // boot ROMs send none
	}
	var drop []*slot
	for _, other := range t.byMAC[h.MAC] {
		if other != s && other.pool == p && p.usable(addr) && len(drop) < MaxBatch-1 {
			drop = append(drop, other)
		}
	}
	want := granted
	want.Expires = s.stored.Expires
	if s.writing == 0 && s.stored == want && !granted.Expires.After(s.stored.Expires) && len(drop) == 0 {
		t.grant(s, granted)
		return &change{granted: granted}, nil
	}
	stored := granted
	stored.Expires = granted.Expires.Add(d / 2)
	s.writing++
	return &change{slot: s, lease: stored, granted: granted, drop: drop}, nil
}

// grantable returns why addr cannot be granted to h; nil if it can.
func (t *Table) grantable(p *pool, h Holder, addr netip.Addr) error {
	if r, ok := t.reserved[owner{p.subnet.Name, h.MAC}]; ok {
		if r.Address != addr {
			return fmt.Errorf("%w: %s has the reservation %s in subnet %s, not %s", ErrUnavailable, h.MAC, r.Address, r.Subnet, addr)
		}
		return t.squatted(r)
	}
	s := t.slots[addr]
	if r, ok := t.reservedFor[addr]; ok {
		if s != nil && s.mac == h.MAC {
			s.lease.Expires = t.now() // with the NAK that follows, the reservation can be used
		}
		return fmt.Errorf("%w: %s is reserved for %s", ErrUnavailable, addr, r.MAC)
	}
	if !p.usable(addr) {
		return fmt.Errorf("%w: %s is not in the range %s of subnet %s", ErrUnavailable, addr, p.subnet.Range, p.subnet.Name)
	}
	if own := t.own(h.MAC, p); own != nil && own.addr != addr {
		return fmt.Errorf("%w: %s has %s in subnet %s, not %s", ErrUnavailable, h.MAC, own.addr, p.subnet.Name, addr)
	}
	if s != nil && s.mac != h.MAC && t.kept(s) {
		return fmt.Errorf("%w: %s is kept for the registered %s", ErrUnavailable, addr, s.mac)
	}
	if s == nil || s.at < 0 {
		if !p.admits(h) {
			return p.limitError()
		}
		return nil
	}
	if s.mac == h.MAC {
		return nil
	}
	if s.mac == "" {
		return fmt.Errorf("%w: %s is in quarantine, something else uses it", ErrUnavailable, addr)
	}
	return fmt.Errorf("%w: %s is leased to %s", ErrUnavailable, addr, s.mac)
}

// squatted returns an error about another MAC that still has a reserved address from before it was reserved.
func (t *Table) squatted(r Reservation) error {
	s := t.slots[r.Address]
	if s == nil || s.mac == r.MAC || s.mac == "" || !s.lease.Expires.After(t.now()) {
		return nil
	}
	return fmt.Errorf("%w: %s is reserved for %s but leased to %s until %s: its next renewal is refused; to be quicker, restart its network",
		ErrUnavailable, r.Address, r.MAC, s.mac, s.lease.Expires.UTC().Format(time.RFC3339))
}

// Release ends a lease and reports whether it did. The MAC gets the address again if it can. A release by another
// MAC is ignored, and so is one in the name of a registered MAC: anyone can send it, and the holder of the address
// decides who may boot as the Machine.
func (t *Table) Release(ctx context.Context, mac string, addr netip.Addr) (bool, error) {
	mac = canonical(mac)
	t.mu.Lock()
	s := t.slots[addr]
	if s == nil || s.mac != mac || s.lease.MAC != mac || t.registered(mac) {
		t.mu.Unlock()
		return false, nil
	}
	l := s.lease
	l.Expires = t.now()
	s.writing++
	t.mu.Unlock()
	if err := t.write(ctx, &change{slot: s, lease: l, granted: l}); err != nil {
		return false, fmt.Errorf("release %s of %s: %w", addr, mac, err)
	}
	return true, nil
}

// Decline puts an address into quarantine for 10 minutes, because mac found it in use by another device, and
// reports whether it did. It is ignored unless mac holds the address. A reserved address and that of a registered
// MAC cannot be replaced by another: the error wraps ErrReserved and says how to find the device.
func (t *Table) Decline(ctx context.Context, mac string, addr netip.Addr) (bool, error) {
	mac = canonical(mac)
	if t.isReserved(mac, addr) {
		return false, fmt.Errorf("%w: %s is reserved for %s, which found another device using it: find that device with \"arping %s\"",
			ErrReserved, addr, mac, addr)
	}
	c := t.quarantine(mac, addr)
	if c == nil {
		return false, nil
	}
	if err := t.write(ctx, c); err != nil {
		return false, fmt.Errorf("quarantine %s: %w", addr, err)
	}
	return !c.remove, nil
}

// isReserved reports whether addr may be granted to no MAC but this one.
func (t *Table) isReserved(mac string, addr netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.reservedFor[addr]; ok && r.MAC == mac {
		return true
	}
	s := t.slots[addr]
	return s != nil && s.mac == mac && t.registered(mac)
}

func (t *Table) quarantine(mac string, addr netip.Addr) *change {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slots[addr]
	if s == nil || s.mac != mac || s.pool == nil || s.at < 0 {
		return nil
	}
	s.writing++
	if s.pool.quarantined >= max(1, s.pool.size/4) {
		return &change{slot: s, remove: true}
	}
	l := Lease{Subnet: s.pool.subnet.Name, Address: addr, Expires: t.now().Add(quarantineTime)}
	return &change{slot: s, lease: l, granted: l}
}

// Lookup returns the current lease of an address.
func (t *Table) Lookup(addr netip.Addr) (Lease, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slots[addr]
	if s == nil || !t.inForce(s) {
		return Lease{}, false
	}
	return s.lease, true
}

// ByMAC returns the current leases of a MAC.
func (t *Table) ByMAC(mac string) []Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	var leases []Lease
	for _, s := range t.byMAC[canonical(mac)] {
		if t.inForce(s) {
			leases = append(leases, s.lease)
		}
	}
	return leases
}

// Leases returns all current leases, and the addresses in quarantine, by address.
func (t *Table) Leases() []Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var leases []Lease
	for _, s := range t.slots {
		if s.lease.Expires.After(now) {
			leases = append(leases, s.lease)
		}
	}
	slices.SortFunc(leases, func(a, b Lease) int { return a.Address.Compare(b.Address) })
	return leases
}

// Usage is the usage of a pool, in addresses.
type Usage struct{ Size, Busy, Unregistered, Quarantined int }

// Usage returns the usage of a subnet's dynamic pool. Offers count as busy.
func (t *Table) Usage(subnet string) (Usage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.pool(subnet)
	if err != nil {
		return Usage{}, err
	}
	return Usage{Size: p.size, Busy: len(p.busy), Unregistered: p.unknown, Quarantined: p.quarantined}, nil
}

// Prune removes leases from the backend that have expired and no longer belong to a pool.
func (t *Table) Prune(ctx context.Context) error {
	t.mu.Lock()
	var old []*slot
	for _, s := range t.slots {
		if s.pool == nil && s.writing == 0 && s.stored.Expires.Before(t.now()) {
			s.writing++
			old = append(old, s)
		}
	}
	t.mu.Unlock()
	var errs []error
	for _, s := range old {
		errs = append(errs, t.write(ctx, &change{slot: s, remove: true}))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove old leases: %w", err)
	}
	return nil
}

// write makes a change durable. Its slot counts the change as being written.
func (t *Table) write(ctx context.Context, c *change) error {
	err := ctx.Err()
	if err == nil {
		err = t.writes.do(c)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c.slot.writing--
	return err
}

// apply writes a batch, and then makes it visible to all callers. Of several changes to one address the last
// counts.
func (t *Table) apply(batch []*change) error {
	put, del := map[netip.Addr]Lease{}, map[netip.Addr]Lease{}
	remove := func(l Lease) {
		delete(put, l.Address)
		del[l.Address] = l
	}
	t.mu.Lock()
	for _, c := range batch {
		for _, s := range c.drop {
			if s.stored.Address.IsValid() {
				remove(s.stored)
			}
		}
		if c.remove {
			remove(Lease{Subnet: c.slot.stored.Subnet, Address: c.slot.addr, MAC: c.slot.stored.MAC})
			continue
		}
		delete(del, c.lease.Address)
		put[c.lease.Address] = c.lease
	}
	t.mu.Unlock()

	// Any of the waiting callers may be the writer: the others must not fail because it gave up.
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	if err := t.backend.Apply(ctx, byAddress(put), byAddress(del)); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range batch {
		t.applied(c)
	}
	return nil
}

func (t *Table) applied(c *change) {
	for _, s := range c.drop {
		if s.mac == c.lease.MAC {
			t.forget(s)
		}
	}
	s := c.slot
	if c.remove {
		t.forget(s)
		return
	}
	s.stored = c.lease
	if c.lease.MAC != "" && c.lease.MAC != s.mac {
		c.lost = true
		return
	}
	if c.lease.MAC == "" {
		t.vacate(s)
		t.assign(s, "", false)
	}
	t.grant(s, c.granted)
}

// forget removes an address's holder.
func (t *Table) forget(s *slot) {
	t.vacate(s)
	t.assign(s, "", false)
	s.lease, s.stored, s.until = Lease{}, Lease{}, time.Time{}
	if s.pool != nil {
		s.pool.rest(s)
		return
	}
	delete(t.slots, s.addr)
}

// hold promises s to h for at least a minute.
func (t *Table) hold(s *slot, h Holder) {
	until := t.now().Add(holdTime)
	if s.mac == h.MAC && s.until.After(until) {
		until = s.until
	}
	t.vacate(s)
	if s.mac != h.MAC {
		s.lease = Lease{}
	}
	t.assign(s, h.MAC, h.Machine != "")
	s.until = until
	if s.pool != nil {
		s.pool.place(s, t.now())
	}
}

// grant makes a lease visible.
func (t *Table) grant(s *slot, l Lease) {
	t.vacate(s)
	s.lease, s.until = l, l.Expires
	if s.pool != nil {
		s.pool.place(s, t.now())
	}
}

func (t *Table) vacate(s *slot) {
	if s.pool != nil {
		s.pool.remove(s)
	}
}

// assign gives s, which must not be in a pool's lists, to a MAC.
func (t *Table) assign(s *slot, mac string, known bool) {
	s.known = known
	if s.mac == mac {
		return
	}
	if s.mac != "" {
		rest := slices.DeleteFunc(t.byMAC[s.mac], func(o *slot) bool { return o == s })
		if t.byMAC[s.mac] = rest; len(rest) == 0 {
			delete(t.byMAC, s.mac)
		}
	}
	s.mac = mac
	if mac != "" {
		t.byMAC[mac] = append(t.byMAC[mac], s)
	}
}

// slot returns the slot of an address, a new one if necessary.
func (t *Table) slot(a netip.Addr) *slot {
	s := t.slots[a]
	if s == nil {
		s = &slot{addr: a, at: -1}
		t.slots[a] = s
	}
	return s
}

// former returns the slot in p that the MAC has, or had last.
func (t *Table) former(mac string, p *pool) *slot {
	var best *slot
	for _, s := range t.byMAC[mac] {
		if s.pool == p && (best == nil || s.until.After(best.until)) {
			best = s
		}
	}
	return best
}

func (t *Table) inForce(s *slot) bool {
	return s.lease.MAC != "" && s.lease.Expires.After(t.now())
}

// pool returns a subnet's pool with up-to-date lists.
func (t *Table) pool(subnet string) (*pool, error) {
	p := t.pools[subnet]
	if p == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoSubnet, subnet)
	}
	p.settle(t.now())
	return p, nil
}

func byAddress(m map[netip.Addr]Lease) []Lease {
	leases := make([]Lease, 0, len(m))
	for _, l := range m {
		leases = append(leases, l)
	}
	slices.SortFunc(leases, func(a, b Lease) int { return a.Address.Compare(b.Address) })
	return leases
}

func canonical(mac string) string { return strings.ToLower(mac) }

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
