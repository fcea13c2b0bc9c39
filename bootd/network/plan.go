package network

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// world is what leases are planned by, beside what stands in etcd.
type world struct {
	machines []*api.Machine // by name
	guests   []*api.Guest   // of all Networks, by name
	vtep     func(*api.Machine) netip.Addr
	// current makes sure that a Guest stands in the store as it does among them.
	current func(guest string) bool
	// deleted makes sure that a Machine which is not among them is no more.
	deleted func(hostRecord) bool
	// mayRestore reports whether a lease may be written again that somebody else
	// has changed.
	mayRestore func(store.FlannelID) bool
	epoch      int64
	// behind says that current has found a Guest that the cache did not have yet.
	behind bool
}

// plan is what is to be written, and what a person should know.
type plan struct {
	owner, config bool                   // are to be written
	writes        [][]store.FlannelWrite // each group goes into one transaction
	leases        int                    // when all is done
	fault         error
}

func (p *plan) done() bool { return !p.owner && !p.config && len(p.writes) == 0 }

// plan compares a Network's layout with what it should be.
func (w *world) plan(n *api.Network, vni uint32, l *layout) plan {
	p := plan{leases: len(l.subnets)}
	if p.fault = errors.Join(leftover(n, l), foreignConfig(n, vni, l)); p.fault != nil {
		return p
	}
	want := flannelConfig(n, vni)
	if want == nil {
		p.fault = problemf("NoIPv4", "spec.cidrs has no IPv4 CIDR to cut leases from, which flannel needs: add one")
		return p
	}
	p.owner = l.of != owner{n.Metadata.UID, vni}
	p.config = l.config.Value == nil || !sameConfig(l.config.Value, want)

	var f faults
	fresh := w.fresh(n, l, &f)
	v6 := w.free6(n, l, len(fresh))
	w.stand(n, vni, l, v6, &p, &f)
	w.give(n, vni, l, fresh, v6, &p, &f)
	p.fault = f.problem(n)
	return p
}

// stand brings the leases that there are to what they should be.
func (w *world) stand(n *api.Network, vni uint32, l *layout, v6 *pool6, p *plan, f *faults) {
	byUID := w.byUID()
	drops := w.follow(n, vni, l, byUID, p, f)
	for _, h := range l.records() {
		if h.Guest == "" {
			w.keep(n, vni, l, h, byUID[h.UID], drops[h.UID], v6, p, f)
			delete(drops, h.UID)
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(drops)) {
		p.writes = append(p.writes, drops[uid]) // of hosts that have no lease of their own any more
	}
}

// faults gathers hosts that lack what they should have.
type faults struct {
	exhausted, exhausted6, noUnderlay, taken, outside, reserved []string
}

func (f *faults) problem(n *api.Network) error {
	switch {
	case len(f.exhausted) > 0:
		return problemf("Exhausted", "no /%d of spec.cidrs is free for %s: add a CIDR to spec.cidrs", n.Spec.HostPrefix, names(f.exhausted))
	case len(f.exhausted6) > 0:
		return problemf("Exhausted", "no /%d of the IPv6 CIDR in spec.cidrs is free for %s: widen that CIDR", n.Spec.HostPrefix6, names(f.exhausted6))
	case len(f.noUnderlay) > 0:
		return problemf("NoUnderlay", "%s have no address on a production Subnet, so no other host can reach them: give a link of each a production Subnet of Zone %s and an address", names(f.noUnderlay), n.Spec.Zone)
	case len(f.taken) > 0:
		return &problem{reason: "LeaseTaken", after: restore, message: "the leases of " + names(f.taken) + " are written by somebody else too, and put back every " + restore.String() + ": is a stock flanneld running on these hosts? Stop it there"}
	case len(f.reserved) > 0:
		return problemf("GuestLeaseTaken", "%s moved with addresses that somebody else has reserved, so they are not reached on their hosts: remove the keys %s%s/subnets/ADDRESS-31", names(f.reserved), store.FlannelPrefix, n.Metadata.Name)
	case len(f.outside) > 0:
		return problemf("OutsideCIDRs", "the leases of %s are in none of spec.cidrs any more: put their CIDR back", names(f.outside))
	}
	return nil
}

func (w *world) byUID() map[string]*api.Machine {
	m := make(map[string]*api.Machine, len(w.machines))
	for _, machine := range w.machines {
		m[machine.Metadata.UID] = machine
	}
	return m
}

// records are the leases that rackweft made, by prefix.
func (l *layout) records() []held {
	list := make([]held, 0, len(l.hosts))
	for _, h := range l.hosts {
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b held) int { return comparePrefix(a.key.Subnet, b.key.Subnet) })
	return list
}

// keep looks after a lease that a host has. m is nil when the cache knows no
// such Machine; drops are the leases of moved Guests that the host loses.
func (w *world) keep(n *api.Network, vni uint32, l *layout, h held, m *api.Machine, drops []store.FlannelWrite, v6 *pool6, p *plan, f *faults) {
	switch {
	case m == nil:
		if w.deleted(h.hostRecord) {
			p.release(l, h, drops)
		}
	case n.Metadata.DeletionTimestamp != nil:
		w.bury(n.Metadata.Name, l, h, m, n.Metadata.ResourceVersion, drops, p)
	case !stays(n, m):
		w.bury(n.Metadata.Name, l, h, m, m.Metadata.ResourceVersion, drops, p)
	default:
		w.refresh(n, vni, l, h, m, drops, v6, p, f)
	}
}

// bury tells a host to give the Network up, and releases its lease when it has.
func (w *world) bury(network string, l *layout, h held, m *api.Machine, version string, drops []store.FlannelWrite, p *plan) {
	revision, err := strconv.ParseInt(version, 10, 64)
	switch {
	case h.Buried == 0 && err == nil && revision != 0: // else it came from no store
		h.Buried = revision
		p.add(append(l.again(h, drops), h.write()))
	case h.Buried != 0 && w.gaveUp(network, h, m):
		p.release(l, h, drops)
	default:
		p.add(l.again(h, drops))
	}
}

func (p *plan) add(group []store.FlannelWrite) {
	if len(group) > 0 {
		p.writes = append(p.writes, group)
	}
}

func (h held) write() store.FlannelWrite {
	return store.FlannelWrite{FlannelID: h.key.FlannelID, At: h.key.Revision, Value: encode(h.hostRecord)}
}

// again is what a host loses, and behind it the lease that it keeps once more: a
// stock flanneld forgets a VTEP with any of its leases (handleSubnetEvents in
// pkg/backend/vxlan/vxlan_network.go), and learns it again by this.
func (l *layout) again(h held, drops []store.FlannelWrite) []store.FlannelWrite {
	k, ok := l.subnets[h.key.Subnet]
	if len(drops) == 0 || !ok || k.TTL {
		return drops
	}
	return append(drops, store.FlannelWrite{FlannelID: k.FlannelID, At: k.Revision, Value: k.Value})
}

// gaveUp reports whether a host has said, after it was told to, that nothing of
// a Network is left on it.
func (w *world) gaveUp(network string, h held, m *api.Machine) bool {
	s := m.Status.Host
	if s == nil || s.UID != h.UID || s.Epoch != w.epoch || s.Revision < h.Buried {
		return false
	}
	part := api.NetworkPartName(network)
	for name := range s.Parts {
		// nodeagent reports what a tombstone is taking away as PART@UID.
		if name == part || strings.HasPrefix(name, part+"@") {
			return false
		}
	}
	return true
}

// release takes a host's lease away, unless somebody else has it by now.
func (p *plan) release(l *layout, h held, drops []store.FlannelWrite) {
	p.writes = append(p.writes, append(drops, p.end(l, h)...))
}

// end is the end of one lease.
func (p *plan) end(l *layout, h held) []store.FlannelWrite {
	group := []store.FlannelWrite{{FlannelID: h.key.FlannelID, At: h.key.Revision}}
	if k, ok := l.subnets[h.key.Subnet]; ok && !k.TTL {
		group = append(group, store.FlannelWrite{FlannelID: k.FlannelID, At: k.Revision})
		p.leases--
	}
	return group
}

// refresh makes a lease that stays what it should be.
func (w *world) refresh(n *api.Network, vni uint32, l *layout, h held, m *api.Machine, drops []store.FlannelWrite, v6 *pool6, p *plan, f *faults) {
	lease6 := h.Lease6
	if !lease6.IsValid() {
		lease6 = v6.next(m, f)
	}
	if !within(n.Spec.CIDRs, h.key.Subnet) || lease6.IsValid() && !within(n.Spec.CIDRs, lease6) {
		f.outside = append(f.outside, m.Metadata.Name)
	}
	record := hostRecord{Network: n.Metadata.UID, Machine: m.Metadata.Name, UID: m.Metadata.UID, Lease6: lease6}
	lease := w.lease(n, vni, l, h.key.Subnet, m, false, p, f)
	if lease == nil {
		drops = l.again(h, drops)
	}
	group := append(drops, lease...)
	if record != h.hostRecord {
		h.hostRecord = record
		group = append(group, h.write())
	}
	p.add(group)
}

// lease writes what stands under subnets/, if it is not what it should be. moved
// says that it was another host's on purpose.
func (w *world) lease(n *api.Network, vni uint32, l *layout, subnet netip.Prefix, m *api.Machine, moved bool, p *plan, f *faults) []store.FlannelWrite {
	id := store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelSubnet, Subnet: subnet}
	k := l.subnets[subnet]
	mac := VTEPMAC(m.Metadata.UID, vni)
	switch addr := w.vtep(m); {
	case !addr.IsValid():
		f.noUnderlay = append(f.noUnderlay, m.Metadata.Name)
	case !k.TTL && bytes.Equal(k.Value, leaseValue(vni, addr, mac)):
	case !moved && !ours(k, vni, mac) && !w.mayRestore(id):
		f.taken = append(f.taken, m.Metadata.Name)
	default:
		if k.Value == nil {
			p.leases++
		}
		return []store.FlannelWrite{{FlannelID: id, At: k.Revision, Value: leaseValue(vni, addr, mac)}}
	}
	return nil
}

// ours reports whether a lease is as rackweft wrote it, but for the address.
func ours(k store.FlannelKey, vni uint32, mac api.MAC) bool {
	_, has, ok := parseLease(k.Value, vni)
	return ok && has == mac && !k.TTL
}

// fresh are the members that have no lease yet and can be reached.
func (w *world) fresh(n *api.Network, l *layout, f *faults) []*api.Machine {
	holders := map[string]bool{}
	for _, h := range l.hosts {
		holders[h.UID] = holders[h.UID] || h.Guest == ""
	}
	var fresh []*api.Machine
	for _, m := range w.machines {
		switch {
		case holders[m.Metadata.UID] || !member(n, m):
		case !w.vtep(m).IsValid():
			f.noUnderlay = append(f.noUnderlay, m.Metadata.Name)
		default:
			fresh = append(fresh, m)
		}
	}
	return fresh
}

// give cuts a lease for every member that has none.
func (w *world) give(n *api.Network, vni uint32, l *layout, fresh []*api.Machine, v6 *pool6, p *plan, f *faults) {
	if len(fresh) == 0 {
		return
	}
	left := l.strangers(n, vni)
	taken := slices.Collect(maps.Keys(l.subnets))
	taken = slices.AppendSeq(taken, maps.Keys(l.hosts))
	for _, a := range w.guestAddresses(n) {
		if a.Is4() {
			taken = append(taken, guestLease(a))
		}
	}
	free := freeSubnets(n.Spec.CIDRs, n.Spec.HostPrefix, len(fresh), taken)
	for _, m := range fresh {
		addr := w.vtep(m)
		var subnet netip.Prefix
		var at int64
		// A host that ran a stock flanneld keeps what that had, as flannel does
		// (findLeaseByIP in pkg/subnet/etcd/local_manager.go).
		if k, ok := left[addr]; ok {
			subnet, at = k.Subnet, k.Revision
			delete(left, addr)
		} else if len(free) > 0 {
			subnet, free = free[0], free[1:]
			p.leases++
		} else {
			f.exhausted = append(f.exhausted, m.Metadata.Name)
			continue
		}
		record := hostRecord{Network: n.Metadata.UID, Machine: m.Metadata.Name, UID: m.Metadata.UID, Lease6: v6.next(m, f)}
		p.writes = append(p.writes, []store.FlannelWrite{
			{FlannelID: store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelSubnet, Subnet: subnet}, At: at, Value: leaseValue(vni, addr, VTEPMAC(m.Metadata.UID, vni))},
			{FlannelID: store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelHost, Subnet: subnet}, Value: encode(record)},
		})
	}
}

// pool6 is the IPv6 leases that are free; nil for a Network without IPv6.
type pool6 struct{ free []netip.Prefix }

// free6 finds IPv6 leases for the hosts that have none, more of which are fresh.
func (w *world) free6(n *api.Network, l *layout, fresh int) *pool6 {
	cidr, ok := n.Spec.CIDR6()
	if !ok {
		return nil
	}
	var taken []netip.Prefix
	need := fresh
	for _, h := range l.hosts {
		switch {
		case h.Lease6.IsValid():
			taken = append(taken, h.Lease6)
		case h.Guest == "":
			need++
		}
	}
	if need == 0 {
		return new(pool6)
	}
	for _, a := range w.guestAddresses(n) {
		if a.Is6() {
			taken = append(taken, netip.PrefixFrom(a, 128))
		}
	}
	return &pool6{freeSubnets6(cidr, n.Spec.HostPrefix6, need, taken)}
}

func (x *pool6) next(m *api.Machine, f *faults) netip.Prefix {
	if x == nil {
		return netip.Prefix{}
	}
	if len(x.free) == 0 {
		f.exhausted6 = append(f.exhausted6, m.Metadata.Name)
		return netip.Prefix{}
	}
	lease := x.free[0]
	x.free = x.free[1:]
	return lease
}

// strangers are the leases of stock flannelds that a host could take over, by
// the address of their VTEP.
func (l *layout) strangers(n *api.Network, vni uint32) map[netip.Addr]store.FlannelKey {
	left := map[netip.Addr]store.FlannelKey{}
	for subnet, k := range l.subnets {
		addr, _, ok := parseLease(k.Value, vni)
		if _, owned := l.hosts[subnet]; ok && !owned && subnet.Bits() == n.Spec.HostPrefix && within(n.Spec.CIDRs, subnet) {
			left[addr] = k
		}
	}
	return left
}

// world is what stands in the cache, to plan a Network by.
func (c *Controller) world(ctx context.Context) *world {
	w := &world{
		machines: store.CachedList[api.Machine](c.Cache),
		guests:   append(store.CachedList[api.Guest](c.Cache), store.UnknownGuests(c.Cache)...),
		vtep:     func(m *api.Machine) netip.Addr { return VTEP(c.Cache, m) },
		epoch:    c.Epoch,
		deleted: func(h hostRecord) bool {
			m, err := store.Get[api.Machine](ctx, c.Store, h.Machine)
			return errors.Is(err, store.ErrNotFound) || err == nil && m.Metadata.UID != h.UID
		},
		mayRestore: func(id store.FlannelID) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return time.Since(c.restored[id]) >= restore
		},
	}
	w.current = func(guest string) bool {
		current, behind := c.currentGuest(ctx, guest)
		w.behind = w.behind || behind
		return current
	}
	return w
}

// wrote notes leases that were written, so that one that is fought over is not
// written all the time.
func (c *Controller) wrote(w store.FlannelWrite) {
	if w.Kind != store.FlannelSubnet {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.Value == nil {
		delete(c.restored, w.FlannelID)
		return
	}
	if c.restored == nil {
		c.restored = map[store.FlannelID]time.Time{}
	}
	c.restored[w.FlannelID] = time.Now()
}
