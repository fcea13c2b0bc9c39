// Package guest owns the placement of Guests: their host, MAC and addresses, their moves between hosts, and their
// deletion. Hosts do the rest.
package guest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/site"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/index"
)

// Finalizer keeps a deleted Guest until its host has removed it.
const Finalizer = "rackweft/guest"

// Controller places Guests.
type Controller struct {
	control.Env
	// Lease is a host's lease of a Network, by its Machine's uid; false when it has none.
	Lease func(uid, network string) (lease, lease6 netip.Prefix, ok bool)
	// Leases calls fn with the names of Networks whose leases have changed, until ctx ends.
	Leases func(ctx context.Context, fn func(networks map[string]bool)) error
	// Epoch is the store's: reports from another epoch are ignored.
	Epoch int64

	there index.Keyed[string, string] // host → Guests; used by due alone
	// placing is held from reading all Guests until the cache contains the choice.
	placing sync.Mutex
}

const (
	// recheck is how often a Guest that waits for something is reconciled again.
	recheck = 10 * time.Second
	// recheckReady is how often one that waits for nothing is.
	recheckReady = 5 * time.Minute
)

// Control returns the running controller.
func (c *Controller) Control() *control.Controller[*api.Guest] {
	c.there = index.Keyed[string, string]{}
	return &control.Controller[*api.Guest]{
		Env: c.Env, Kinds: []string{"Guest", "Machine", "Network", "Site", "Image", "Secret"}, Due: c.due, Workers: 4, Step: c.step,
		Sources: []control.Source{c.membersChanged},
	}
}

// membersChanged enqueues the Guests that wait for a host to become a member of a Network.
func (c *Controller) membersChanged(ctx context.Context, due func(...string)) error {
	return c.Leases(ctx, func(networks map[string]bool) {
		due(c.all(func(g *api.Guest) bool { return waits(g) && networks[g.Spec.Network] })...)
	})
}

// due names the Guests that a change may affect.
func (c *Controller) due(ch store.Change) []string {
	switch ch.Kind.Name {
	case "Guest":
		c.placed(ch)
		due := []string{ch.Name}
		if old, ok := ch.Old.(*api.Guest); ok && (ch.New == nil || ch.New.(*api.Guest).Status.Host != old.Status.Host) {
			due = append(due, c.all(waits)...) // it has freed room
		}
		return due
	case "Machine":
		due := c.on(ch.Name)
		if offer(ch.Old) != offer(ch.New) {
			due = append(due, c.all(waits)...)
		}
		return due
	case "Image":
		return c.all(func(g *api.Guest) bool { return g.Spec.Image == ch.Name })
	case "Secret":
		return c.all(func(g *api.Guest) bool {
			return slices.ContainsFunc(g.Spec.Shares, func(s api.Share) bool { return s.Secret == ch.Name })
		})
	}
	return c.all(waits)
}

// waits reports whether a Guest would move to another host if there were one.
func waits(g *api.Guest) bool {
	placed := g.Status.Conditions.Get(api.CondPlaced)
	choosing := g.Status.Move != nil && g.Status.Move.Step == api.MoveChoosing
	return g.Status.Host == "" || choosing || placed != nil && placed.Reason == nowhereToGo
}

const nowhereToGo = "NowhereToGo"

// offered holds the fields of a Machine that matter to Guests that are not on it.
type offered struct {
	uid, zone, labels string
	active, draining  bool
	cpus              int
	memory            int64
}

func offer(o api.Object) offered {
	m, ok := o.(*api.Machine)
	if !ok {
		return offered{}
	}
	if m.Status.Phase != api.PhaseActive {
		return offered{} // whatever else changes, it takes no Guests
	}
	cpus, memory := capacity(m)
	return offered{m.Metadata.UID, m.Spec.Zone, fmt.Sprint(m.Metadata.Labels), m.Status.Phase == api.PhaseActive, m.Draining(), cpus, memory}
}

// places lists the hosts that a Guest is on, was on, or moves to.
func places(o api.Object) []string {
	g, ok := o.(*api.Guest)
	if !ok {
		return nil
	}
	list := []string{g.Status.Host}
	if move := g.Status.Move; move != nil && move.Target != nil {
		list = append(list, move.Target.Host)
	}
	for _, p := range g.Status.Left {
		list = append(list, p.Host)
	}
	return list
}

// placed keeps there current. Only due may call it.
func (c *Controller) placed(ch store.Change) {
	for _, host := range places(ch.Old) {
		c.there.Remove(host, ch.Name)
	}
	for _, host := range places(ch.New) {
		c.there.Add(host, ch.Name)
	}
}

// on lists the Guests of a host.
func (c *Controller) on(host string) []string {
	found := map[string]struct{}{}
	c.there.Collect(host, found)
	return slices.Collect(maps.Keys(found))
}

func (c *Controller) all(which func(*api.Guest) bool) (guests []string) {
	for _, g := range store.CachedList[api.Guest](c.Cache) {
		if which(g) {
			guests = append(guests, g.Metadata.Name)
		}
	}
	return guests
}

// step takes one step for one Guest. A Guest that is not in the cache is ignored: only its deletion, which its
// finalizer makes visible, removes it.
func (c *Controller) step(ctx context.Context, g *api.Guest) (time.Duration, error) {
	if store.Held(c.Cache) {
		return store.HeldRecheck, nil
	}
	if again, err := c.forget(ctx, g); err != nil || again {
		return recheck, err
	}
	switch {
	case g.Metadata.DeletionTimestamp != nil:
		return recheck, c.end(ctx, g)
	case !control.HasFinalizer(g, Finalizer):
		return 0, c.write(ctx, g, func(g *api.Guest) bool { return control.AddFinalizer(g, Finalizer) }) // the change enqueues it again
	case g.Status.Host == "":
		return recheck, c.place(ctx, g, "")
	}
	return c.follow(ctx, g)
}

// write changes a Guest if it still exists with the same uid.
func (c *Controller) write(ctx context.Context, g *api.Guest, change func(*api.Guest) bool) error {
	return control.Write(ctx, c.Env, g, change)
}

// placement says whether the Guest has a host, with an event when that changes.
func (c *Controller) placement(ctx context.Context, g *api.Guest, status api.ConditionStatus, reason, message string) error {
	return control.Report(ctx, c.Env, g, control.Finding{Condition: api.CondPlaced, Status: status, Reason: reason, Message: message}, nil)
}

// notReady says why the Guest is not Ready, with an event when that changes.
func (c *Controller) notReady(ctx context.Context, g *api.Guest, reason, message string) error {
	return control.Report(ctx, c.Env, g, control.Finding{Condition: api.CondReady, Status: api.False, Reason: reason, Message: message}, nil)
}

// end removes a deleted Guest from its host; its finalizer goes when no host has it.
func (c *Controller) end(ctx context.Context, g *api.Guest) error {
	if g.Status.Host != "" {
		return c.write(ctx, g, leave)
	}
	if len(g.Status.Left) > 0 {
		return nil // forget handles them
	}
	return c.write(ctx, g, func(g *api.Guest) bool { return control.DropFinalizer(g, Finalizer) })
}

// leave makes the Guest's host remove what it has of it.
func leave(g *api.Guest) bool {
	if g.Status.Host == "" {
		return false
	}
	g.Status.Left = append(g.Status.Left, api.GuestPlace{Host: g.Status.Host, HostUID: g.Status.HostUID})
	giveUp(g)
	g.Status.Host, g.Status.HostUID, g.Status.Move, g.Status.State = "", "", nil, ""
	// Requests to the old host are not repeated at the next, and snapshots stay behind.
	g.Status.Request, g.Status.Result, g.Status.Snapshots = nil, nil, nil
	return true
}

// forget drops hosts that have nothing left of the Guest. It reports whether it wrote the Guest.
func (c *Controller) forget(ctx context.Context, g *api.Guest) (bool, error) {
	if len(g.Status.Left) == 0 {
		return false, nil
	}
	written := false
	err := c.write(ctx, g, func(fresh *api.Guest) bool {
		version := store.RevisionOf(fresh)
		written = false
		fresh.Status.Left = slices.DeleteFunc(fresh.Status.Left, func(p api.GuestPlace) bool {
			gone := c.nothingLeft(ctx, fresh, p)
			written = written || gone
			return gone
		})
		for i := range fresh.Status.Left {
			p := &fresh.Status.Left[i]
			if p.Held != "" && c.mayGo(fresh, *p) {
				p.Held, written = "", true
			}
			if p.Since == 0 && p.Held == "" {
				p.Since, written = version, true
			}
		}
		return written
	})
	return written, err
}

// nothingLeft reports whether a host has confirmed that it removed the Guest, after it received the order, or
// whether the host no longer exists.
func (c *Controller) nothingLeft(ctx context.Context, g *api.Guest, p api.GuestPlace) bool {
	m, ok := store.Cached[api.Machine](c.Cache, p.Host)
	if !ok || m.Metadata.UID != p.HostUID {
		return c.deleted(ctx, p.Host, p.HostUID)
	}
	h := m.Status.Host
	if h == nil || p.Held != "" || p.Since == 0 || h.UID != p.HostUID || h.Epoch != c.Epoch || h.Revision < p.Since {
		return false
	}
	// nodeagent reports a removal by a tombstone as PART@UID.
	_, leaving := h.Parts[api.GuestPartName(g.Metadata.Name)+"@"+g.Metadata.UID]
	return !leaving
}

// deleted checks in the store that a Machine no longer exists: the cache may lag behind.
func (c *Controller) deleted(ctx context.Context, name, uid string) bool {
	m, err := store.Get[api.Machine](ctx, c.Store, name)
	return errors.Is(err, store.ErrNotFound) || err == nil && m.Metadata.UID != uid
}

// place assigns a Guest a host, and for its lifetime a MAC and addresses.
func (c *Controller) place(ctx context.Context, g *api.Guest, to string) error {
	c.placing.Lock()
	defer c.placing.Unlock()
	n, ok := store.Cached[api.Network](c.Cache, g.Spec.Network)
	if !ok || n.Metadata.DeletionTimestamp != nil {
		return c.placement(ctx, g, api.False, "NoNetwork", fmt.Sprintf("there is no Network %s: apply it", g.Spec.Network))
	}
	m, refused := choose(g, c.hosting(), c.candidates(g, n, to))
	if m == nil {
		message := fmt.Sprintf("no host of Zone %s can run it: %s", n.Spec.Zone, refused)
		if len(refused.order) == 0 {
			message = fmt.Sprintf("Zone %s has no Machines", n.Spec.Zone)
		}
		return c.placement(ctx, g, api.False, "NoHost", message)
	}
	addrs, err := c.addresses(g, m)
	if err != nil {
		return c.placement(ctx, g, api.False, "NoAddress", err.Error())
	}
	err = c.write(ctx, g, func(g *api.Guest) bool {
		g.Status.Host, g.Status.HostUID, g.Status.Addresses, g.Status.MAC = m.Metadata.Name, m.Metadata.UID, addrs, MAC(g.Metadata.UID)
		g.Status.Move = nil
		g.Status.Conditions.Set(time.Now(), api.CondPlaced, api.True, "Placed", on(m, addrs))
		return true
	})
	if err == nil {
		c.Event(g, api.Normal, "Placed", on(m, addrs))
	}
	return err
}

func (c *Controller) hosting() api.GuestHosting { return site.Spec(c.Cache).Guests }

// candidates are the Machines of the Network's Zone, or only the target that a person named. A host that still
// has something of the Guest is not a candidate.
func (c *Controller) candidates(g *api.Guest, n *api.Network, to string) []candidate {
	on := map[string][]*api.Guest{}
	for _, other := range store.CachedList[api.Guest](c.Cache) {
		if other.Metadata.UID == g.Metadata.UID {
			continue
		}
		on[other.Status.HostUID] = append(on[other.Status.HostUID], other)
		if move := other.Status.Move; move != nil && move.Target != nil {
			on[move.Target.HostUID] = append(on[move.Target.HostUID], other)
		}
	}
	var list []candidate
	for _, m := range store.CachedList[api.Machine](c.Cache) {
		left := slices.ContainsFunc(g.Status.Left, func(p api.GuestPlace) bool { return p.HostUID == m.Metadata.UID })
		if m.Spec.Zone != n.Spec.Zone || left || to != "" && m.Metadata.Name != to {
			continue
		}
		_, _, member := c.Lease(m.Metadata.UID, g.Spec.Network)
		list = append(list, candidate{machine: m, member: member, guests: on[m.Metadata.UID]})
	}
	return list
}

// addresses are a Guest's addresses, or new ones from its host's leases.
func (c *Controller) addresses(g *api.Guest, m *api.Machine) ([]netip.Addr, error) {
	if len(g.Status.Addresses) > 0 {
		return g.Status.Addresses, nil
	}
	taken := map[netip.Addr]bool{}
	for _, other := range append(store.CachedList[api.Guest](c.Cache), store.UnknownGuests(c.Cache)...) {
		if other.Spec.Network == g.Spec.Network {
			for _, a := range other.Status.Addresses {
				taken[a] = true
			}
		}
	}
	lease, lease6, _ := c.Lease(m.Metadata.UID, g.Spec.Network)
	v4, ok := address(lease, taken)
	if !ok {
		return nil, fmt.Errorf("every address of the lease %s that %s has in Network %s is in use by Guests: set a smaller spec.hostPrefix in a Network of its own, or add hosts", lease, m.Metadata.Name, g.Spec.Network)
	}
	list := []netip.Addr{v4}
	if v6, ok := address6(lease6, lease, v4); ok && !taken[v6] {
		list = append(list, v6)
	}
	return list, nil
}

// follow reconciles a Guest that has a host.
func (c *Controller) follow(ctx context.Context, g *api.Guest) (time.Duration, error) {
	m, ok := store.Cached[api.Machine](c.Cache, g.Status.Host)
	if !ok || m.Metadata.UID != g.Status.HostUID {
		return recheck, c.hostGone(ctx, g)
	}
	if down(m) {
		return recheck, c.abandon(ctx, g, m)
	}
	seen := observed(m, g)
	if g.Status.Move != nil {
		return recheck, c.move(ctx, g, m, seen)
	}
	if err := c.stay(ctx, g, m); err != nil {
		return recheck, err
	}
	return recheckReady, c.report(ctx, g, m, seen)
}

// hostGone handles a Guest whose Machine was deleted, and its disks with it.
func (c *Controller) hostGone(ctx context.Context, g *api.Guest) error {
	if !c.deleted(ctx, g.Status.Host, g.Status.HostUID) {
		return nil // the cache lags behind
	}
	if c.received(g) {
		return c.arrive(ctx, g) // the target has all of it
	}
	if d := retained(g); d != "" && !losing(g) {
		return c.placement(ctx, g, api.False, "HostDeleted",
			fmt.Sprintf("its host %s was deleted, which had its disk %s (retain): to continue without it, weftctl guest move %s --lose-disks", g.Status.Host, d, g.Metadata.Name))
	}
	c.Event(g, api.Warning, "HostDeleted", fmt.Sprintf("its host %s was deleted: it is placed again", g.Status.Host))
	return c.write(ctx, g, func(g *api.Guest) bool {
		giveUp(g)
		g.Status.Host, g.Status.HostUID, g.Status.State = "", "", ""
		g.Status.Request, g.Status.Result, g.Status.Snapshots = nil, nil, nil
		return true
	})
}

// down reports whether a host certainly runs nothing: its BMC has reported that it is powered off.
func down(m *api.Machine) bool {
	return m.Status.Conditions.Is(api.CondFenced) || m.Status.Phase == api.PhaseAvailable && m.Status.Power == "Off"
}

// abandon starts a Guest elsewhere whose host has no power. When that host returns, it removes what it has of the
// Guest before it starts anything: nodeagent does not apply a HostSpec from before its boot.
func (c *Controller) abandon(ctx context.Context, g *api.Guest, m *api.Machine) error {
	if c.received(g) {
		return c.arrive(ctx, g)
	}
	to := ""
	if move := g.Status.Move; move != nil {
		to = move.To
	}
	if d := retained(g); d != "" && !losing(g) {
		if move := g.Status.Move; move != nil && move.Step == api.MoveTransfer {
			return c.callBack(ctx, g, fmt.Sprintf("its host %s has no power", m.Metadata.Name), false)
		}
		return c.notReady(ctx, g, "HostDown",
			fmt.Sprintf("its host %s has no power, and has its disk %s (retain): to continue without it, weftctl guest move %s --lose-disks", m.Metadata.Name, d, g.Metadata.Name))
	}
	c.Event(g, api.Warning, "HostDown", fmt.Sprintf("its host %s has no power: it starts elsewhere", m.Metadata.Name))
	return c.relocate(ctx, g, to)
}

// relocate leaves a host on which the Guest no longer runs.
func (c *Controller) relocate(ctx context.Context, g *api.Guest, to string) error {
	if err := c.write(ctx, g, leave); err != nil {
		return err
	}
	fresh, ok := store.Cached[api.Guest](c.Cache, g.Metadata.Name)
	if !ok || fresh.Metadata.UID != g.Metadata.UID {
		return nil
	}
	return c.place(ctx, fresh, to)
}

// retained names a disk that binds a Guest to its host, or "".
func retained(g *api.Guest) string {
	i := slices.IndexFunc(g.Spec.Disks, func(d api.Disk) bool { return d.Retain })
	if i < 0 {
		return ""
	}
	return g.Spec.Disks[i].Name
}

// stay keeps a Guest where it is, unless it should leave its host.
func (c *Controller) stay(ctx context.Context, g *api.Guest, m *api.Machine) error {
	if m.Draining() {
		return c.depart(ctx, g, m)
	}
	if placed := g.Status.Conditions.Get(api.CondPlaced); placed != nil && placed.Reason == "Placed" {
		return nil
	}
	return c.placement(ctx, g, api.True, "Placed", on(m, g.Status.Addresses))
}

func on(m *api.Machine, addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "on " + m.Metadata.Name
	}
	return fmt.Sprintf("on %s, as %s", m.Metadata.Name, addrs[0])
}

// observed is the host's last report about a Guest.
func observed(m *api.Machine, g *api.Guest) api.PartStatus {
	h := m.Status.Host
	if h == nil || h.UID != m.Metadata.UID {
		return api.PartStatus{}
	}
	return h.Parts[api.GuestPartName(g.Metadata.Name)]
}

func saying(seen api.PartStatus) string {
	switch {
	case seen.Message != "":
		return seen.Message
	case seen.State == "":
		return "the host has not reported on it"
	case seen.Guest != nil:
		return "it is " + string(seen.Guest.State)
	}
	return string(seen.State)
}

// report stores what the host reports.
func (c *Controller) report(ctx context.Context, g *api.Guest, m *api.Machine, seen api.PartStatus) error {
	state := api.GuestUnknown
	if seen.Guest != nil {
		state = seen.Guest.State
	}
	found := control.Finding{Status: api.True, Reason: string(state), Message: fmt.Sprintf("%s on %s", state, m.Metadata.Name)}
	if _, err := Part(c.Cache, g); err != nil {
		found = control.Finding{Status: api.False, Reason: "Incomplete", Message: err.Error()}
	} else if seen.State != api.PartApplied || state != g.Spec.State {
		found = control.Finding{Status: api.False, Reason: "NotApplied", Message: fmt.Sprintf("%s has not applied it yet: %s", m.Metadata.Name, saying(seen)), Silent: true}
		if seen.State == api.PartFailed {
			found.Reason, found.Silent = "Failed", false
		}
	}
	return control.Report(ctx, c.Env, g, found, func(g *api.Guest) bool {
		changed := false
		if g.Status.State != state {
			g.Status.State, changed = state, true
		}
		if seen.Guest == nil {
			return changed
		}
		changed = takeOver(g, seen.Guest) || changed
		for _, cond := range seen.Guest.Conditions { // their times are of the host's clock, which may be off
			if cond.Type != api.CondReady && cond.Type != api.CondPlaced {
				changed = g.Status.Conditions.Set(time.Now(), cond.Type, cond.Status, cond.Reason, cond.Message) || changed
			}
		}
		return changed
	})
}

// takeOver stores the results of requests, and the snapshots that exist.
func takeOver(g *api.Guest, seen *api.GuestObserved) bool {
	if reflect.DeepEqual(g.Status.Result, seen.Result) && reflect.DeepEqual(g.Status.Snapshots, seen.Snapshots) {
		return false
	}
	g.Status.Result, g.Status.Snapshots = seen.Result, seen.Snapshots
	return true
}
