package zone

import (
	"context"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/store"
)

// Controller chooses the reflectors of Zones, and sets the Zones' conditions.
type Controller struct {
	control.Env
	Parts *Parts
	// Sessions is a host's report about its speaker; nil for none. A host whose stream another bootd holds does
	// not report to this one.
	Sessions func(host string) *api.BGPStatus
}

const (
	// recheckMoving is how often a Zone whose reflectors change is reconciled; hosts' reports about sessions do
	// not enqueue it.
	recheckMoving = 2 * time.Second
	recheck       = 30 * time.Second
)

// gather is how long changes of Machines are collected: a Zone is judged by all of its Machines, and many may
// change at once.
const gather = time.Second

// Control returns the running controller.
func (c *Controller) Control() *control.Controller[*api.Zone] {
	return &control.Controller[*api.Zone]{
		Env: c.Env, Kinds: []string{"Zone", "Machine", "Subnet", "Secret"}, Due: c.due, Workers: 2, Step: c.step,
		Gather: map[string]time.Duration{"Machine": gather},
	}
}

// due names the Zones that a change may affect.
func (c *Controller) due(ch store.Change) (zones []string) {
	switch ch.Kind.Name {
	case "Zone":
		return []string{ch.Name}
	case "Machine":
		for _, o := range []api.Object{ch.Old, ch.New} {
			if m, ok := o.(*api.Machine); ok && m.Spec.Zone != "" {
				zones = append(zones, m.Spec.Zone)
			}
		}
		for _, o := range c.Cache.CachedReferrers("Machine", ch.Name) {
			if z, ok := o.(*api.Zone); ok {
				zones = append(zones, z.Metadata.Name) // it may have left another Zone
			}
		}
		return zones
	}
	for _, z := range store.CachedList[api.Zone](c.Cache) {
		zones = append(zones, z.Metadata.Name)
	}
	return zones
}

// step reconciles one Zone's reflectors and conditions.
func (c *Controller) step(ctx context.Context, z *api.Zone) (time.Duration, error) {
	if z.Metadata.DeletionTimestamp != nil {
		return 0, nil
	}
	if store.Held(c.Cache) {
		return store.HeldRecheck, nil
	}
	now := time.Now().UTC()
	members := c.Parts.Members(z.Metadata.Name)
	all := c.candidates(ctx, z, members, now)
	picked, after := choice{}, z
	wrote := false
	err := control.Write(ctx, c.Env, z, func(fresh *api.Zone) bool {
		wrote, after = false, fresh
		// The hosts' states were looked up for the reflectors in the cache. A change that the cache does not have
		// yet enqueues the Zone again.
		if !sameReflectors(fresh.Status.Reflectors, z.Status.Reflectors) {
			return false
		}
		picked = choose(fresh.Spec.Reflectors, now, fresh.Status.Reflectors, all)
		loopbacks := chooseLoopbacks(fresh, members)
		changed := !sameReflectors(fresh.Status.Reflectors, picked.reflectors) || !slices.EqualFunc(fresh.Status.Loopbacks, loopbacks, sameLoopback)
		fresh.Status.Reflectors, fresh.Status.Loopbacks = picked.reflectors, loopbacks
		wrote = c.judge(ctx, fresh, members, all, picked, now) || changed
		return wrote
	})
	if err != nil {
		return 0, err
	}
	if wrote {
		for _, n := range picked.news {
			c.Event(after, n.typ, n.reason, n.message)
		}
	}
	if moving(after) {
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

// candidates examines every host of a Zone.
func (c *Controller) candidates(ctx context.Context, z *api.Zone, members []Member, now time.Time) []candidate {
	patience := z.Spec.Reflectors.ReplaceAfter.Or(api.DefaultReplaceAfter)
	all := make([]candidate, len(members))
	for i, m := range members {
		all[i] = assess(m, patience, now)
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

// assess determines a host's state, except its speaker's.
func assess(m Member, patience time.Duration, now time.Time) candidate {
	machine := m.Machine
	out := candidate{name: machine.Metadata.Name, uid: machine.Metadata.UID, rack: machine.Spec.Location.Rack, fault: m.Fault}
	stream := machine.Status.Conditions.Get(api.CondConnected)
	connected := stream != nil && stream.Status == api.True
	switch {
	case machine.Spec.State != api.StateActive:
		out.retire = string(machine.Spec.State)
	case ShuttingDown(machine):
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

// applied reports whether a host's speaker has applied its part.
func (c *Controller) applied(ctx context.Context, m *api.Machine) bool {
	part, err := c.Parts.Part(ctx, m)
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

// carried lists a host's sessions with uplinks, and the directions in which routes pass. A host is unheard if it
// holds its stream and has not reported any session yet, as all hosts right after a start of bootd.
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
			uplinks = append(uplinks, "routes advertised to uplink "+s.Peer)
		}
	}
	return uplinks, false
}

// connected reports whether a reflector reports a session with every host that could be its peer.
func (c *Controller) connected(reflector string, members []Member) bool {
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
