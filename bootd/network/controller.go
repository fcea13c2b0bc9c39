package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
)

// Finalizer keeps a deleted Network until every host has removed it.
const Finalizer = "rackweft/leases"

// Controller allocates the VNIs of Networks and the leases of hosts.
type Controller struct {
	control.Env
	Index *Index
	// Epoch is the store's: reports from another epoch are ignored.
	Epoch int64

	mu       sync.Mutex
	restored map[store.FlannelID]time.Time // when each lease was last written
}

const (
	// recheck is how often a Network that is not ready is reconciled again.
	recheck = 10 * time.Second
	// recheckReady is how often a ready one is compared with etcd.
	recheckReady = 5 * time.Minute
	// restore is the pause before a lease is written again that another program keeps changing, such as a stock
	// flanneld on a host of rackweft's.
	restore = 30 * time.Second
)

// Control returns the running controller.
func (c *Controller) Control() *control.Controller[*api.Network] {
	return &control.Controller[*api.Network]{
		Env: c.Env, Kinds: []string{"Network", "Machine", "Guest", "Subnet", "Zone", "Site"}, Due: c.due, Workers: 4, Step: c.step,
		Sources: []control.Source{func(ctx context.Context, due func(...string)) error {
			return c.Index.Subscribe(ctx, func(ch Change) { due(slices.Collect(maps.Keys(ch.Networks))...) })
		}},
	}
}

// due names the Networks that a change may affect.
func (c *Controller) due(ch store.Change) []string {
	switch {
	case ch.Kind.Name == "Network":
		return append(c.allowing(ch), ch.Name)
	case ch.Kind.Name == "Guest":
		return guestNetworks(ch)
	case ch.Kind.Name == "Machine":
		return c.machineNetworks(ch)
	case ch.Old == nil || ch.New == nil || ch.Old.Meta().Generation != ch.New.Meta().Generation:
		return c.all(func(*api.Network) bool { return true })
	}
	return nil
}

// allowing lists the Networks that allow one that has changed.
func (c *Controller) allowing(ch store.Change) []string {
	old, _ := ch.Old.(*api.Network)
	now, _ := ch.New.(*api.Network)
	if SameToAllow(old, now) {
		return nil
	}
	return c.all(func(n *api.Network) bool { return slices.Contains(n.Spec.Allow, ch.Name) })
}

// machineNetworks lists those in which a Machine has leases, or may have.
func (c *Controller) machineNetworks(ch store.Change) (networks []string) {
	old, _ := ch.Old.(*api.Machine)
	now, _ := ch.New.(*api.Machine)
	was, is := standingOf(old), standingOf(now)
	changed := was != is || !slices.Equal(c.claims(old), c.claims(now))
	if changed && (was.active || is.active) { // only those get leases
		networks = c.all(func(n *api.Network) bool { return n.Spec.Zone == was.zone || n.Spec.Zone == is.zone })
	}
	for _, m := range []*api.Machine{old, now} {
		if m == nil {
			continue
		}
		// Leases of Networks of other Zones, and reports on those being removed.
		for _, l := range c.Index.Memberships(m.Metadata.UID) {
			if changed || l.Buried > 0 {
				networks = append(networks, l.Network)
			}
		}
	}
	return networks
}

// standing holds the fields of a Machine that its leases depend on, besides its addresses.
type standing struct {
	uid, zone string
	active    bool
}

func standingOf(m *api.Machine) standing {
	if m == nil {
		return standing{}
	}
	return standing{m.Metadata.UID, m.Spec.Zone, m.Status.Phase == api.PhaseActive}
}

// claims are the addresses that a Machine may have in its underlay: one that it reports may be another's, whose
// VTEP is then in doubt.
func (c *Controller) claims(m *api.Machine) []netip.Addr {
	if m == nil {
		return nil
	}
	addrs, _ := site.Claims(c.Cache, m)
	return addrs
}

func (c *Controller) all(which func(*api.Network) bool) (networks []string) {
	for _, n := range store.CachedList[api.Network](c.Cache) {
		if which(n) {
			networks = append(networks, n.Metadata.Name)
		}
	}
	return networks
}

// step reconciles one Network's VNI and leases. A Network that is not in the cache is ignored: only its deletion,
// which its finalizer makes visible, removes anything.
func (c *Controller) step(ctx context.Context, n *api.Network) (time.Duration, error) {
	if store.Held(c.Cache) {
		return store.HeldRecheck, nil
	}
	if n.Metadata.DeletionTimestamp == nil && !control.HasFinalizer(n, Finalizer) { // before anything is allocated
		return 0, control.Write(ctx, c.Env, n, func(n *api.Network) bool { return control.AddFinalizer(n, Finalizer) })
	}
	w := c.world(ctx)
	again, err := c.bring(ctx, w, n)
	switch {
	case errors.Is(err, store.ErrConflict), err == nil && w.behind:
		return control.AtOnce, nil // another writer was faster: retry from the stored state
	case err != nil:
		return 0, err
	}
	return again, nil
}

func (c *Controller) bring(ctx context.Context, w *world, n *api.Network) (time.Duration, error) {
	if n.Metadata.DeletionTimestamp != nil {
		return c.remove(ctx, w, n)
	}
	vni, leases, err := c.allocate(ctx, w, n)
	var p *problem
	switch {
	case err == nil:
		return recheckReady, c.report(ctx, n, vni, leases, control.Finding{Status: api.True, Reason: "Allocated", Message: fmt.Sprintf("VNI %d, %d leases", vni, leases)})
	case errors.As(err, &p):
		again := recheck
		if p.after > 0 {
			again = p.after
		}
		return again, c.report(ctx, n, vni, leases, control.Finding{Status: api.False, Reason: p.reason, Message: p.message})
	}
	return 0, err
}

// problem is a fault to report in a condition.
type problem struct {
	reason, message string
	after           time.Duration // when to reconcile again
}

func (p *problem) Error() string { return p.message }

func problemf(reason, format string, args ...any) error {
	return &problem{reason: reason, message: fmt.Sprintf(format, args...)}
}

func (c *Controller) report(ctx context.Context, n *api.Network, vni uint32, leases int, found control.Finding) error {
	return control.Report(ctx, c.Env, n, found, func(n *api.Network) bool {
		changed := c.reportAllowed(n)
		if vni != 0 && n.Status.VNI != vni {
			n.Status.VNI, changed = vni, true
		}
		if n.Status.Leases != leases {
			n.Status.Leases, changed = leases, true
		}
		return changed
	})
}

// allocate ensures the VNI and the leases; it returns the current layout.
func (c *Controller) allocate(ctx context.Context, w *world, n *api.Network) (vni uint32, leases int, err error) {
	if vni, err = c.vni(ctx, n); err != nil {
		return 0, n.Status.Leases, err
	}
	// The Index tells cheaply whether there is nothing to do, which is nearly always. Writes are decided on
	// etcd's state.
	todo := w.plan(n, vni, c.Index.layout(n.Metadata.Name))
	if todo.done() {
		return vni, todo.leases, todo.fault
	}
	for range maxRounds {
		s, err := c.read(ctx, n.Metadata.Name)
		if err != nil {
			return vni, n.Status.Leases, err
		}
		todo = w.plan(n, vni, s)
		if todo.done() {
			break
		}
		if err := c.write(ctx, n, vni, s, todo); err != nil {
			return vni, todo.leases, err
		}
	}
	return vni, todo.leases, todo.fault
}

// maxRounds limits the transactions of one pass.
const maxRounds = 100

// vni is the Network's VNI: the one that it has, or one that is claimed for it now.
func (c *Controller) vni(ctx context.Context, n *api.Network) (uint32, error) {
	want := n.Spec.VNI
	if have := n.Status.VNI; have != 0 {
		if want != 0 && want != have {
			return have, problemf("VNIFixed", "its VNI is %d and cannot change: set spec.vni back, or delete the Network and create it again for VNI %d", have, want)
		}
		return have, nil
	}
	claims, err := c.Store.VNIs.List(ctx)
	if err != nil {
		return 0, err
	}
	// A claim that was made before bootd was killed.
	for vni, claim := range claims {
		if claim.UID == n.Metadata.UID && claim.Freed.IsZero() && (want == 0 || want == vni) {
			return vni, nil
		}
	}
	if want == 0 {
		site, ok := store.Cached[api.Site](c.Cache, api.SiteName)
		if !ok {
			return 0, problemf("NoSite", "there is no Site yet, whose spec.vniRange defines the VNIs to choose from")
		}
		if want, ok = freeVNI(site.Spec.VNIRange, claims, time.Now()); !ok {
			return 0, problemf("VNIsExhausted", "no VNI of Site.spec.vniRange (%d-%d) is free: widen it, delete Networks (a VNI is free again %s later), or pin one with spec.vni",
				site.Spec.VNIRange.Low, site.Spec.VNIRange.High, cooling)
		}
	}
	if other := claims[want]; other.UID != "" && other.UID != n.Metadata.UID && other.Freed.IsZero() {
		return 0, problemf("VNITaken", "VNI %d belongs to Network %s: pin another with spec.vni, or none", want, other.Network)
	}
	claim := store.VNIClaim{VNI: want, Network: n.Metadata.Name, UID: n.Metadata.UID}
	if err := c.Store.VNIs.Put(ctx, claims[want], claim); err != nil {
		return 0, err
	}
	return want, nil
}

// freeVNIs frees the VNIs of a deleted Network.
func (c *Controller) freeVNIs(ctx context.Context, n *api.Network) error {
	claims, err := c.Store.VNIs.List(ctx)
	if err != nil {
		return err
	}
	for _, old := range claims {
		switch {
		case old.UID == n.Metadata.UID && old.Freed.IsZero():
			freed := old
			freed.Freed = time.Now().UTC()
			if err := c.Store.VNIs.Put(ctx, old, freed); err != nil {
				return err
			}
		case !old.Freed.IsZero() && time.Since(old.Freed) > cooling:
			if err := c.Store.VNIs.Drop(ctx, old); err != nil {
				return err
			}
		}
	}
	return nil
}

// read returns a Network's current layout in etcd.
func (c *Controller) read(ctx context.Context, name string) (*layout, error) {
	return readLayout(ctx, c.Store, name)
}

// write makes one transaction from a plan. It always changes the owner's record, so that of two Controllers only
// one succeeds.
func (c *Controller) write(ctx context.Context, n *api.Network, vni uint32, s *layout, todo plan) error {
	name := n.Metadata.Name
	config := flannelConfig(n, vni)
	writes := []store.FlannelWrite{{
		FlannelID: store.FlannelID{Network: name, Kind: store.FlannelOwner}, At: s.owner.Revision,
		Value: encode(ownerRecord{UID: n.Metadata.UID, VNI: vni, Config: config}),
	}}
	if todo.config {
		writes = append(writes, store.FlannelWrite{FlannelID: store.FlannelID{Network: name, Kind: store.FlannelConfig}, At: s.config.Revision, Value: config})
	}
	for _, group := range todo.writes {
		if len(writes)+len(group) > maxWrites {
			break
		}
		writes = append(writes, group...)
	}
	if err := c.Store.Flannel.Write(ctx, writes...); err != nil {
		return err
	}
	for _, w := range writes {
		c.wrote(w)
	}
	return nil
}

// maxWrites keeps a transaction small enough for etcd.
const maxWrites = 100

// leftover says that the layout belongs to another Network of the same name.
func leftover(n *api.Network, l *layout) error {
	o := l.of
	if o.uid == "" || o.uid == n.Metadata.UID {
		return nil
	}
	return problemf("Leftover", "etcd still holds leases under %s%s/ of an earlier Network of this name (uid %s) that was not deleted properly; hosts may still run it: restore that Network and delete it, or remove these keys by hand",
		store.FlannelPrefix, n.Metadata.Name, o.uid)
}

// foreignConfig says that the flannel configuration there is not rackweft's.
func foreignConfig(n *api.Network, vni uint32, l *layout) error {
	if l.config.Value == nil || l.of.uid != "" || sameConfig(l.config.Value, flannelConfig(n, vni)) {
		return nil
	}
	return problemf("ForeignConfig", "%s%s/config holds a configuration that is not rackweft's, %.200s: to take over that network, set spec.cidrs, spec.hostPrefix and spec.vni to its values; else remove the key",
		store.FlannelPrefix, n.Metadata.Name, l.config.Value)
}

func names(list []string) string {
	const most = 8
	slices.Sort(list)
	list = slices.Compact(list)
	if len(list) > most {
		return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", len(list)-most)
	}
	return strings.Join(list, ", ")
}
