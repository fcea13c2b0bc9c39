package zone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/hostspec"
	"github.com/rackweft/rackweft/bootd/store"
)

// Controller chooses the reflectors of Zones, and says how Zones stand.
type Controller struct {
	Store    *store.Store
	Cache    *store.Cache
	Compiler *hostspec.Compiler
	// Sessions is what a host has reported of its speaker; nil for nothing. A
	// host whose stream another bootd holds reports nothing here.
	Sessions func(host string) *api.BGPStatus
	Event    func(o api.Object, typ api.EventType, reason, message string)
	Log      *slog.Logger

	loop *control.Loop
}

const (
	// recheckMoving is how often a Zone whose reflectors change is looked at;
	// what hosts report of their sessions makes nothing due by itself.
	recheckMoving = 2 * time.Second
	recheck       = 30 * time.Second
)

// Run works until ctx ends. It runs on the elected bootd only.
func (c *Controller) Run(ctx context.Context) error {
	c.loop = control.New(c.reconcile, c.Log)
	var kinds []api.Kind
	for _, name := range []string{"Zone", "Machine", "Subnet", "Secret"} {
		k, err := api.LookupKind(name)
		if err != nil {
			return err
		}
		kinds = append(kinds, k)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Cache.Subscribe(ctx, c.changed, kinds...) })
	g.Go(func() error { c.loop.Run(ctx, 2); return ctx.Err() })
	return g.Wait()
}

// gather is how long changes of Machines are gathered: a Zone is judged by all of
// its Machines, and many may change at once.
const gather = time.Second

// changed makes due what a change may matter to.
func (c *Controller) changed(ch store.Change) {
	switch ch.Kind.Name {
	case "Zone":
		c.loop.Add(ch.Name)
	case "Machine":
		for _, o := range []api.Object{ch.Old, ch.New} {
			if m, ok := o.(*api.Machine); ok && m.Spec.Zone != "" {
				c.loop.AddSoon(m.Spec.Zone, gather)
			}
		}
		for _, o := range c.Cache.CachedReferrers("Machine", ch.Name) {
			if z, ok := o.(*api.Zone); ok {
				c.loop.AddSoon(z.Metadata.Name, gather) // it may be of another Zone
			}
		}
	default:
		for _, z := range store.CachedList[api.Zone](c.Cache) {
			c.loop.Add(z.Metadata.Name)
		}
	}
}

// reconcile brings one Zone's reflectors and conditions to what they should be.
func (c *Controller) reconcile(ctx context.Context, name string) (time.Duration, error) {
	z, ok := store.Cached[api.Zone](c.Cache, name)
	if !ok || z.Metadata.DeletionTimestamp != nil {
		return 0, nil
	}
	if store.Held(c.Cache) {
		return store.HeldRecheck, nil
	}
	now := time.Now().UTC()
	members := c.Compiler.Members(name)
	all := c.candidates(ctx, z, members, now)
	var picked choice
	wrote := false
	fresh, err := store.Mutate(ctx, c.Store, name, func(fresh *api.Zone) error {
		wrote = false
		// How hosts stand was looked up for the reflectors of the cache. The change
		// that it has not heard of yet makes the Zone due again.
		if fresh.Metadata.UID != z.Metadata.UID || !sameReflectors(fresh.Status.Reflectors, z.Status.Reflectors) {
			return store.ErrUnchanged
		}
		picked = choose(fresh.Spec.Reflectors, now, fresh.Status.Reflectors, all)
		loopbacks := chooseLoopbacks(fresh, members)
		changed := !sameReflectors(fresh.Status.Reflectors, picked.reflectors) || !slices.EqualFunc(fresh.Status.Loopbacks, loopbacks, sameLoopback)
		fresh.Status.Reflectors, fresh.Status.Loopbacks = picked.reflectors, loopbacks
		if !c.judge(ctx, fresh, members, all, picked, now) && !changed {
			return store.ErrUnchanged
		}
		wrote = true
		return nil
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("write Zone %s: %w", name, err)
	}
	if wrote {
		for _, n := range picked.news {
			c.Event(fresh, n.typ, n.reason, n.message)
		}
	}
	if moving(fresh) {
		return recheckMoving, nil
	}
	return recheck, nil
}

func moving(z *api.Zone) bool {
	return slices.ContainsFunc(z.Status.Reflectors, func(r api.ReflectorStatus) bool { return r.State != api.ReflectorServing })
}

func sameReflectors(a, b []api.ReflectorStatus) bool {
	return slices.EqualFunc(a, b, func(x, y api.ReflectorStatus) bool {
		same := x.Since.Equal(y.Since)
		x.Since, y.Since = time.Time{}, time.Time{}
		return same && x == y
	})
}

// candidates looks at every host of a Zone.
func (c *Controller) candidates(ctx context.Context, z *api.Zone, members []hostspec.Member, now time.Time) []candidate {
	patience := z.Spec.Reflectors.ReplaceAfter.Or(api.DefaultReplaceAfter)
	all := make([]candidate, len(members))
	for i, m := range members {
		all[i] = stand(m, patience, now)
		at := slices.IndexFunc(z.Status.Reflectors, func(r api.ReflectorStatus) bool { return r.UID == all[i].uid })
		if at < 0 || m.Fault != "" {
			continue
		}
		all[i].uplinks, all[i].unheard = c.carried(m.Machine)
		if s := z.Status.Reflectors[at].State; s != api.ReflectorServing && s != api.ReflectorLeaving {
			all[i].applied = c.applied(ctx, m.Machine)
			all[i].connected = all[i].applied && c.connected(m.Machine.Metadata.Name, members)
		}
	}
	return all
}

// stand says how a host stands, but for its speaker.
func stand(m hostspec.Member, patience time.Duration, now time.Time) candidate {
	machine := m.Machine
	out := candidate{name: machine.Metadata.Name, uid: machine.Metadata.UID, rack: machine.Spec.Location.Rack, fault: m.Fault}
	stream := machine.Status.Conditions.Get(api.CondConnected)
	connected := stream != nil && stream.Status == api.True
	switch {
	case machine.Spec.State != api.StateActive:
		out.retire = string(machine.Spec.State)
	case hostspec.Draining(machine):
		out.retire = "Draining"
	case machine.Status.Phase != api.PhaseActive:
		out.retire = orUnknown(machine.Status.Phase)
	case !connected && (stream == nil || now.Sub(stream.Time) >= patience):
		out.retire = "OutOfReach"
	case !connected:
		out.unfit = "NotConnected"
	default:
		out.settled = now.Sub(stream.Time) >= patience
	}
	return out
}

func orUnknown(p api.Phase) string {
	if p == "" {
		return "New"
	}
	return string(p)
}

// applied reports whether a host's speaker is what its part says.
func (c *Controller) applied(ctx context.Context, m *api.Machine) bool {
	part, err := c.Compiler.BGPPart(ctx, m)
	if err != nil || m.Status.Host == nil {
		return false
	}
	raw, err := api.EncodePart(part)
	if err != nil {
		return false
	}
	p := m.Status.Host.Parts[api.PartBGP]
	return p.State == api.PartApplied && p.Digest == api.PartDigest(raw)
}

// carried are the sessions that a host reports with uplinks, and the ways in which
// routes pass by them. A host is unheard that holds its stream and has not
// reported any session yet, as all are to a bootd that has just started.
func (c *Controller) carried(m *api.Machine) (uplinks []string, unheard bool) {
	status := c.Sessions(m.Metadata.Name)
	if status == nil {
		return nil, m.Status.Conditions.Is(api.CondConnected)
	}
	for _, s := range status.Sessions {
		if s.Role != api.BGPUplink || s.State != api.BGPEstablished {
			continue
		}
		uplinks = append(uplinks, "a session with uplink "+s.Peer)
		if s.Accepted > 0 {
			uplinks = append(uplinks, "routes of uplink "+s.Peer)
		}
		if s.Advertised > 0 {
			uplinks = append(uplinks, "routes told to uplink "+s.Peer)
		}
	}
	return uplinks, false
}

// connected reports whether every host that could be is a peer of a reflector,
// as that says.
func (c *Controller) connected(reflector string, members []hostspec.Member) bool {
	status := c.Sessions(reflector)
	if status == nil {
		return false
	}
	up := map[string]bool{}
	for _, s := range status.Sessions {
		up[s.Peer] = s.State == api.BGPEstablished
	}
	for _, m := range members {
		name := m.Machine.Metadata.Name
		if m.Fault == "" && name != reflector && m.Machine.Status.Conditions.Is(api.CondConnected) && !up[name] {
			return false
		}
	}
	return true
}
