package network

import (
	"bytes"
	"context"
	"errors"
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
	vtep     func(*api.Machine) netip.Addr
	// deleted makes sure that a Machine which is not among them is no more.
	deleted func(hostRecord) bool
	// mayRestore reports whether a lease may be written again that somebody else
	// has changed.
	mayRestore func(store.FlannelID) bool
	epoch      int64
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

	holders := map[string]bool{}
	var faults faults
	byUID := w.byUID()
	for _, h := range l.records() {
		holders[h.UID] = holders[h.UID] || h.Guest == ""
		w.keep(n, vni, l, h, byUID[h.UID], &p, &faults)
	}
	w.give(n, vni, l, holders, &p, &faults)
	p.fault = faults.problem(n)
	return p
}

// faults gathers hosts that lack what they should have.
type faults struct {
	exhausted, noUnderlay, taken, outside []string
}

func (f *faults) problem(n *api.Network) error {
	switch {
	case len(f.exhausted) > 0:
		return problemf("Exhausted", "no /%d of spec.cidrs is free for %s: add a CIDR to spec.cidrs", n.Spec.HostPrefix, names(f.exhausted))
	case len(f.noUnderlay) > 0:
		return problemf("NoUnderlay", "%s have no address on a production Subnet, so no other host can reach them: give a link of each a production Subnet of Zone %s and an address", names(f.noUnderlay), n.Spec.Zone)
	case len(f.taken) > 0:
		return &problem{reason: "LeaseTaken", after: restore, message: "the leases of " + names(f.taken) + " are written by somebody else too, and put back every " + restore.String() + ": is a stock flanneld running on these hosts? Stop it there"}
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
// such Machine.
func (w *world) keep(n *api.Network, vni uint32, l *layout, h held, m *api.Machine, p *plan, f *faults) {
	switch {
	case m == nil:
		if w.deleted(h.hostRecord) {
			p.release(l, h)
		}
	case n.Metadata.DeletionTimestamp != nil:
		w.bury(n.Metadata.Name, l, h, m, n.Metadata.ResourceVersion, p)
	case !stays(n, m):
		w.bury(n.Metadata.Name, l, h, m, m.Metadata.ResourceVersion, p)
	default:
		w.refresh(n, vni, l, h, m, p, f)
	}
}

// bury tells a host to give the Network up, and releases its lease when it has.
func (w *world) bury(network string, l *layout, h held, m *api.Machine, version string, p *plan) {
	if h.Buried == 0 {
		revision, err := strconv.ParseInt(version, 10, 64)
		if err != nil || revision == 0 {
			return // it came from no store
		}
		h.Buried = revision
		p.writes = append(p.writes, []store.FlannelWrite{h.write()})
		return
	}
	if w.gaveUp(network, h, m) {
		p.release(l, h)
	}
}

func (h held) write() store.FlannelWrite {
	return store.FlannelWrite{FlannelID: h.key.FlannelID, At: h.key.Revision, Value: encode(h.hostRecord)}
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
func (p *plan) release(l *layout, h held) {
	group := []store.FlannelWrite{{FlannelID: h.key.FlannelID, At: h.key.Revision}}
	if k, ok := l.subnets[h.key.Subnet]; ok && !k.TTL {
		group = append(group, store.FlannelWrite{FlannelID: k.FlannelID, At: k.Revision})
		p.leases--
	}
	p.writes = append(p.writes, group)
}

// refresh makes a lease that stays what it should be.
func (w *world) refresh(n *api.Network, vni uint32, l *layout, h held, m *api.Machine, p *plan, f *faults) {
	var group []store.FlannelWrite
	if record := (hostRecord{Network: n.Metadata.UID, Machine: m.Metadata.Name, UID: m.Metadata.UID, Guest: h.Guest}); record != h.hostRecord {
		h.hostRecord = record
		group = append(group, h.write())
	}
	if !within(n.Spec.CIDRs, h.key.Subnet) {
		f.outside = append(f.outside, m.Metadata.Name)
	}
	id := store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelSubnet, Subnet: h.key.Subnet}
	k := l.subnets[h.key.Subnet]
	mac := VTEPMAC(m.Metadata.UID, vni)
	switch addr := w.vtep(m); {
	case !addr.IsValid():
		f.noUnderlay = append(f.noUnderlay, m.Metadata.Name)
	case !k.TTL && bytes.Equal(k.Value, leaseValue(vni, addr, mac)):
	case !ours(k, vni, mac) && !w.mayRestore(id):
		f.taken = append(f.taken, m.Metadata.Name)
	default:
		if k.Value == nil {
			p.leases++
		}
		group = append(group, store.FlannelWrite{FlannelID: id, At: k.Revision, Value: leaseValue(vni, addr, mac)})
	}
	if len(group) > 0 {
		p.writes = append(p.writes, group)
	}
}

// ours reports whether a lease is as rackweft wrote it, but for the address.
func ours(k store.FlannelKey, vni uint32, mac api.MAC) bool {
	_, has, ok := parseLease(k.Value, vni)
	return ok && has == mac && !k.TTL
}

// give cuts a lease for every member that has none.
func (w *world) give(n *api.Network, vni uint32, l *layout, holders map[string]bool, p *plan, f *faults) {
	if n.Metadata.DeletionTimestamp != nil {
		return
	}
	var fresh []*api.Machine
	for _, m := range w.machines {
		if holders[m.Metadata.UID] || !member(n, m) {
			continue
		}
		if !w.vtep(m).IsValid() {
			f.noUnderlay = append(f.noUnderlay, m.Metadata.Name)
			continue
		}
		fresh = append(fresh, m)
	}
	if len(fresh) == 0 {
		return
	}
	left := l.strangers(n, vni)
	taken := make([]netip.Prefix, 0, len(l.subnets)+len(l.hosts))
	for subnet := range l.subnets {
		taken = append(taken, subnet)
	}
	for subnet := range l.hosts {
		taken = append(taken, subnet)
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
		record := hostRecord{Network: n.Metadata.UID, Machine: m.Metadata.Name, UID: m.Metadata.UID}
		p.writes = append(p.writes, []store.FlannelWrite{
			{FlannelID: store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelSubnet, Subnet: subnet}, At: at, Value: leaseValue(vni, addr, VTEPMAC(m.Metadata.UID, vni))},
			{FlannelID: store.FlannelID{Network: n.Metadata.Name, Kind: store.FlannelHost, Subnet: subnet}, Value: encode(record)},
		})
	}
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

// world is what stands in the cache.
func (c *Controller) world(ctx context.Context) *world {
	return &world{
		machines: store.CachedList[api.Machine](c.Cache),
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
