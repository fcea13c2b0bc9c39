package network

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// world is the input for planning leases, besides the state in etcd.
type world struct {
	machines []*api.Machine // by name
	guests   []*api.Guest   // of all Networks, by name
	vtep     func(*api.Machine) netip.Addr
	// current checks that a Guest among them is the store's version.
	current func(guest string) bool
	// deleted checks that a Machine which is not among them no longer exists.
	deleted func(hostRecord) bool
	// mayRestore reports whether a lease that another program has changed may be written again.
	mayRestore func(store.FlannelID) bool
	epoch      int64
	// behind says that current has found a Guest that the cache did not have yet.
	behind bool
}

// plan holds the writes to make, and a fault to report.
type plan struct {
	owner, config bool                   // must be written
	writes        [][]store.FlannelWrite // each group goes into one transaction
	leases        int                    // when all is done
	fault         error
}

func (p *plan) done() bool { return !p.owner && !p.config && len(p.writes) == 0 }

// planner plans one Network's leases from those that exist.
type planner struct {
	*world
	network *api.Network
	vni     uint32
	layout  *layout
	pool6   *pool6
	plan    plan
	faults  faults
}

func (w *world) planner(n *api.Network, vni uint32, l *layout) *planner {
	return &planner{world: w, network: n, vni: vni, layout: l, plan: plan{leases: len(l.subnets)}}
}

// plan compares a Network's layout with its desired state.
func (w *world) plan(n *api.Network, vni uint32, l *layout) plan {
	x := w.planner(n, vni, l)
	if x.plan.fault = errors.Join(leftover(n, l), foreignConfig(n, vni, l)); x.plan.fault != nil {
		return x.plan
	}
	want := flannelConfig(n, vni)
	if want == nil {
		x.plan.fault = problemf("NoIPv4", "spec.cidrs has no IPv4 CIDR to cut leases from, which flannel needs: add one")
		return x.plan
	}
	x.plan.owner = l.of != owner{n.Metadata.UID, vni}
	x.plan.config = l.config.Value == nil || !sameConfig(l.config.Value, want)
	fresh := x.fresh()
	x.pool6 = x.free6(len(fresh))
	x.existing()
	x.give(fresh)
	x.plan.fault = x.faults.problem(n)
	return x.plan
}

// end plans the end of a deleted Network's leases.
func (w *world) end(n *api.Network, l *layout) plan {
	x := w.planner(n, l.of.vni, l)
	x.existing()
	return x.plan
}

// existing plans the changes of existing leases.
func (x *planner) existing() {
	byUID := x.byUID()
	drops := x.follow(byUID)
	for _, h := range x.layout.records() {
		if h.Guest == "" {
			x.keep(h, byUID[h.UID], drops[h.UID])
			delete(drops, h.UID)
		}
	}
	for _, uid := range slices.Sorted(maps.Keys(drops)) {
		x.plan.writes = append(x.plan.writes, drops[uid]) // of hosts that no longer have a lease of their own
	}
}

// faults collects hosts that lack something they should have.
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
		return &problem{reason: "LeaseTaken", after: restore, message: "the leases of " + names(f.taken) + " are also written by another program, and restored every " + restore.String() + ": is a stock flanneld running on these hosts? Stop it there"}
	case len(f.reserved) > 0:
		return problemf("GuestLeaseTaken", "%s moved with addresses that another program has reserved, so they are not reached on their hosts: remove the keys %s%s/subnets/ADDRESS-31", names(f.reserved), store.FlannelPrefix, n.Metadata.Name)
	case len(f.outside) > 0:
		return problemf("OutsideCIDRs", "the leases of %s are no longer in any of spec.cidrs: put their CIDR back", names(f.outside))
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

// records are the leases that rackweft created, by prefix.
func (l *layout) records() []held {
	list := make([]held, 0, len(l.hosts))
	for _, h := range l.hosts {
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b held) int { return comparePrefix(a.key.Subnet, b.key.Subnet) })
	return list
}

// keep plans the change of a host's lease. m is nil when the cache has no such Machine; drops are the leases of
// moved Guests that the host loses.
func (x *planner) keep(h held, m *api.Machine, drops []store.FlannelWrite) {
	switch {
	case m == nil:
		if x.deleted(h.hostRecord) {
			x.plan.release(x.layout, h, drops)
		}
	case x.network.Metadata.DeletionTimestamp != nil:
		x.bury(h, m, x.network, drops)
	case !stays(x.network, m):
		x.bury(h, m, m, drops)
	default:
		x.refresh(h, m, drops)
	}
}

// bury orders a host to remove the Network, as of the revision of an object, and releases its lease when it has.
func (x *planner) bury(h held, m *api.Machine, why api.Object, drops []store.FlannelWrite) {
	revision := store.RevisionOf(why)
	switch {
	case h.Buried == 0 && revision != 0: // 0: it is not from a store
		h.Buried = revision
		x.plan.add(append(x.layout.again(h, drops), h.write()))
	case h.Buried != 0 && x.gaveUp(x.network.Metadata.Name, h, m):
		x.plan.release(x.layout, h, drops)
	default:
		x.plan.add(x.layout.again(h, drops))
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

// again is the leases that a host loses, followed by a rewrite of the one that it keeps: a stock flanneld forgets
// a VTEP with any of its leases (handleSubnetEvents in pkg/backend/vxlan/vxlan_network.go), and learns it again
// from the rewrite.
func (l *layout) again(h held, drops []store.FlannelWrite) []store.FlannelWrite {
	k, ok := l.subnets[h.key.Subnet]
	if len(drops) == 0 || !ok || k.TTL {
		return drops
	}
	return append(drops, store.FlannelWrite{FlannelID: k.FlannelID, At: k.Revision, Value: k.Value})
}

// gaveUp reports whether a host has confirmed, after the order, that nothing of a Network is left on it.
func (w *world) gaveUp(network string, h held, m *api.Machine) bool {
	s := m.Status.Host
	if s == nil || s.UID != h.UID || s.Epoch != w.epoch || s.Revision < h.Buried {
		return false
	}
	part := api.NetworkPartName(network)
	for name := range s.Parts {
		// nodeagent reports a removal by a tombstone as PART@UID.
		if name == part || strings.HasPrefix(name, part+"@") {
			return false
		}
	}
	return true
}

// release removes a host's lease, unless another host has it by now.
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

// refresh plans the update of a lease that stays.
func (x *planner) refresh(h held, m *api.Machine, drops []store.FlannelWrite) {
	cidrs, lease6 := x.network.Spec.CIDRs, h.Lease6
	if !lease6.IsValid() {
		lease6 = x.next6(m)
	}
	if !within(cidrs, h.key.Subnet) || lease6.IsValid() && !within(cidrs, lease6) {
		x.faults.outside = append(x.faults.outside, m.Metadata.Name)
	}
	record := hostRecord{Network: x.network.Metadata.UID, Machine: m.Metadata.Name, UID: m.Metadata.UID, Lease6: lease6}
	lease := x.lease(h.key.Subnet, m, false)
	if lease == nil {
		drops = x.layout.again(h, drops)
	}
	group := append(drops, lease...)
	if record != h.hostRecord {
		h.hostRecord = record
		group = append(group, h.write())
	}
	x.plan.add(group)
}

// lease writes the value under subnets/ if it differs from the desired one. moved says that the lease is moved
// from another host on purpose.
func (x *planner) lease(subnet netip.Prefix, m *api.Machine, moved bool) []store.FlannelWrite {
	id := store.FlannelID{Network: x.network.Metadata.Name, Kind: store.FlannelSubnet, Subnet: subnet}
	k := x.layout.subnets[subnet]
	mac := VTEPMAC(m.Metadata.UID, x.vni)
	switch addr := x.vtep(m); {
	case !addr.IsValid():
		x.faults.noUnderlay = append(x.faults.noUnderlay, m.Metadata.Name)
	case !k.TTL && bytes.Equal(k.Value, leaseValue(x.vni, addr, mac)):
	case !moved && !ours(k, x.vni, mac) && !x.mayRestore(id):
		x.faults.taken = append(x.faults.taken, m.Metadata.Name)
	default:
		if k.Value == nil {
			x.plan.leases++
		}
		return []store.FlannelWrite{{FlannelID: id, At: k.Revision, Value: leaseValue(x.vni, addr, mac)}}
	}
	return nil
}

// ours reports whether a lease is as rackweft wrote it, except for the address.
func ours(k store.FlannelKey, vni uint32, mac api.MAC) bool {
	_, has, ok := parseLease(k.Value, vni)
	return ok && has == mac && !k.TTL
}

// fresh lists the members that have no lease yet and can be reached.
func (x *planner) fresh() []*api.Machine {
	holders := map[string]bool{}
	for _, h := range x.layout.hosts {
		holders[h.UID] = holders[h.UID] || h.Guest == ""
	}
	var fresh []*api.Machine
	for _, m := range x.machines {
		switch {
		case holders[m.Metadata.UID] || !member(x.network, m):
		case !x.vtep(m).IsValid():
			x.faults.noUnderlay = append(x.faults.noUnderlay, m.Metadata.Name)
		default:
			fresh = append(fresh, m)
		}
	}
	return fresh
}

// give cuts a lease for every member that has none.
func (x *planner) give(fresh []*api.Machine) {
	if len(fresh) == 0 {
		return
	}
	n, l := x.network, x.layout
	left := l.strangers(n, x.vni)
	free := freeSubnets(n.Spec.CIDRs, n.Spec.HostPrefix, len(fresh), x.taken())
	for _, m := range fresh {
		addr := x.vtep(m)
		var subnet netip.Prefix
		var at int64
		// A host that ran a stock flanneld keeps its lease, as with flannel (findLeaseByIP in
		// pkg/subnet/etcd/local_manager.go).
		if k, ok := left[addr]; ok {
			subnet, at = k.Subnet, k.Revision
			delete(left, addr)
		} else if len(free) > 0 {
			subnet, free = free[0], free[1:]
			x.plan.leases++
		} else {
			x.faults.exhausted = append(x.faults.exhausted, m.Metadata.Name)
			continue
		}
		record := hostRecord{Network: n.Metadata.UID, Machine: m.Metadata.Name, UID: m.Metadata.UID, Lease6: x.next6(m)}
		x.plan.writes = append(x.plan.writes, []store.FlannelWrite{
			{FlannelID: store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelSubnet, Subnet: subnet}, At: at, Value: leaseValue(x.vni, addr, VTEPMAC(m.Metadata.UID, x.vni))},
			{FlannelID: store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelHost, Subnet: subnet}, Value: encode(record)},
		})
	}
}

// taken lists the IPv4 prefixes from which no host can get a lease.
func (x *planner) taken() []netip.Prefix {
	taken := slices.Collect(maps.Keys(x.layout.subnets))
	taken = slices.AppendSeq(taken, maps.Keys(x.layout.hosts))
	for _, a := range x.guestAddresses(x.network) {
		if a.Is4() {
			taken = append(taken, guestLease(a))
		}
	}
	return taken
}

// pool6 holds the free IPv6 leases; nil for a Network without IPv6.
type pool6 struct{ free []netip.Prefix }

// free6 finds IPv6 leases for the hosts that have none; more is the number of new hosts.
func (x *planner) free6(fresh int) *pool6 {
	cidr, ok := x.network.Spec.CIDR6()
	if !ok {
		return nil
	}
	var taken []netip.Prefix
	need := fresh
	for _, h := range x.layout.hosts {
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
	for _, a := range x.guestAddresses(x.network) {
		if a.Is6() {
			taken = append(taken, netip.PrefixFrom(a, 128))
		}
	}
	return &pool6{freeSubnets6(cidr, x.network.Spec.HostPrefix6, need, taken)}
}

// next6 takes the next free IPv6 lease; invalid when there is none, or none is needed.
func (x *planner) next6(m *api.Machine) netip.Prefix {
	if x.pool6 == nil {
		return netip.Prefix{}
	}
	free := x.pool6.free
	if len(free) == 0 {
		x.faults.exhausted6 = append(x.faults.exhausted6, m.Metadata.Name)
		return netip.Prefix{}
	}
	x.pool6.free = free[1:]
	return free[0]
}

// strangers are the leases of stock flannelds that a host could take over, by the address of their VTEP.
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

// world returns the cache's state for planning a Network.
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

// wrote records written leases, so that one that another program keeps changing is not written all the time.
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
