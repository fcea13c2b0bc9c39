package zone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Conditions of a Zone, in addition to Ready, which says that enough reflectors serve.
const (
	Spread  = "Spread"  // no two reflectors share a rack
	Members = "Members" // every Machine of the Zone can take part in BGP
	Uplinks = "Uplinks" // the sessions out of the Zone have their keys, and are up

	Services = "Services" // each address of each service is announced by a host
)

// verdict is one condition.
type verdict struct {
	status          api.ConditionStatus
	reason, message string
}

func yes(reason, format string, args ...any) verdict {
	return verdict{api.True, reason, fmt.Sprintf(format, args...)}
}

func no(reason, format string, args ...any) verdict {
	return verdict{api.False, reason, fmt.Sprintf(format, args...)}
}

// judge sets a Zone's conditions, and reports whether any changed.
func (c *Controller) judge(ctx context.Context, z *api.Zone, members []Member, all []candidate, picked choice, now time.Time) bool {
	changed := false
	for _, x := range []struct {
		typ string
		verdict
	}{
		{api.CondReady, c.ready(z, all, picked)},
		{Spread, spread(z, picked)},
		{Members, membership(z, members)},
		{Uplinks, c.uplinks(ctx, z, members)},
		{Services, c.services(z, members)},
	} {
		if x.status == "" {
			if z.Status.Conditions.Get(x.typ) != nil {
				z.Status.Conditions.Remove(x.typ)
				changed = true
			}
			continue
		}
		changed = z.Status.Conditions.Set(now, x.typ, x.status, x.reason, x.message) || changed
	}
	return changed
}

func (c *Controller) ready(z *api.Zone, all []candidate, picked choice) verdict {
	if len(picked.missing) > 0 {
		name := picked.missing[0]
		if m, ok := store.Cached[api.Machine](c.Cache, name); ok && m.Spec.Zone != z.Metadata.Name {
			return no("NamedElsewhere", "spec.reflectors.machines names %s, which is in %s: name a Machine of this Zone", name, zoneText(m.Spec.Zone))
		}
		return no("NamedMissing", "spec.reflectors.machines names %s, which does not exist: create it with spec.zone %s, or name another", name, z.Metadata.Name)
	}
	for _, m := range all {
		if m.fault != "" && slices.Contains(z.Spec.Reflectors.Machines, m.name) {
			return no("NoUnderlay", "%s cannot reflect: %s", m.name, m.fault)
		}
	}
	if picked.lacking > 0 {
		return no("NotEnoughHosts", "%d of %d reflectors: %s", len(picked.reflectors), z.Spec.Reflectors.Count, lack(z, all, picked))
	}
	var serving, waiting []string
	for _, r := range picked.reflectors {
		switch r.State {
		case api.ReflectorServing:
			serving = append(serving, r.Machine)
		case api.ReflectorStarting:
			waiting = append(waiting, r.Machine+" has not applied its part yet")
		case api.ReflectorJoining:
			waiting = append(waiting, r.Machine+" waits for the other hosts' sessions, and for the uplinks'")
		case api.ReflectorLeaving:
			waiting = append(waiting, fmt.Sprintf("%s leaves (%s)", r.Machine, r.Reason)+picked.held[r.Machine])
		case api.ReflectorWithdrawn:
			waiting = append(waiting, fmt.Sprintf("%s is withdrawn from the uplinks and forwards what they still send through it (%s)", r.Machine, r.Reason))
		}
	}
	if len(waiting) > 0 {
		return no("Changing", "%s; %d serve", strings.Join(waiting, ", "), len(serving))
	}
	return yes("Serving", "%s reflect the Zone's routes", strings.Join(serving, ", "))
}

// lack says why no further host can be a reflector.
func lack(z *api.Zone, all []candidate, picked choice) string {
	const most = 5
	var why []string
	for _, m := range all {
		reflects := slices.ContainsFunc(picked.reflectors, func(r api.ReflectorStatus) bool { return r.Machine == m.name && !r.State.Goes() })
		if !reflects && len(why) <= most {
			why = append(why, fmt.Sprintf("%s (%s)", m.name, firstOf(m.fault, m.retire, m.unfit, "it leaves")))
		}
	}
	switch {
	case len(why) == 0:
		return fmt.Sprintf("Zone %s has no other Machine: set spec.zone of more Machines, or spec.reflectors.count to %d", z.Metadata.Name, max(len(all), 1))
	case len(why) > most:
		why[most] = "and others"
	}
	return "a reflector must be an Active host that holds its stream and has a pinned IPv4 address on a production Subnet; these are not: " + strings.Join(why, ", ")
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func spread(z *api.Zone, picked choice) verdict {
	if len(picked.crowded) == 0 {
		return yes("Spread", "no two reflectors are known to share a rack")
	}
	what := "one is replaced automatically once a host of another rack has been connected for " + z.Spec.Reflectors.ReplaceAfter.Or(api.DefaultReplaceAfter).String()
	if len(z.Spec.Reflectors.Machines) > 0 {
		what = "name Machines of different racks"
	}
	return no("SameRack", "%s share a rack, and would fail together: %s", strings.Join(picked.crowded, ", "), what)
}

func membership(z *api.Zone, members []Member) verdict {
	const most = 5
	var faulty []string
	for _, m := range members {
		if m.Fault != "" {
			faulty = append(faulty, m.Machine.Metadata.Name+": "+m.Fault)
		}
	}
	if len(faulty) == 0 {
		return yes("Complete", "%d Machines", len(members))
	}
	n := len(faulty)
	if n > most {
		faulty = append(faulty[:most], fmt.Sprintf("and %d more", n-most))
	}
	return no("NoUnderlay", "%d of %d Machines of Zone %s do not take part in BGP: %s", n, len(members), z.Metadata.Name, strings.Join(faulty, "; "))
}

// uplinks judges the sessions out of the Zone.
func (c *Controller) uplinks(ctx context.Context, z *api.Zone, members []Member) verdict {
	if len(z.Spec.Uplinks) == 0 {
		return verdict{}
	}
	for _, u := range z.Spec.Uplinks {
		if u.Secret == "" {
			continue
		}
		s, ok := store.Cached[api.Secret](c.Cache, u.Secret)
		switch {
		case !ok:
			return no("SecretMissing", "Secret %s, whose password is the MD5 key of uplink %s, does not exist: create it; until then there is no session", u.Secret, u.Address)
		case s.Status.Digests[api.SessionPassword] == "":
			return no("SecretMissing", "Secret %s has no password, which is the MD5 key of uplink %s: add it; until then there is no session", u.Secret, u.Address)
		}
		if err := s.Permits(api.UseUplink(z.Metadata.Name)); err != nil {
			return no("SecretNotPermitted", "%s; until then there is no session with uplink %s", err, u.Address)
		}
	}
	up, reported := map[string]int{}, 0
	wrong := map[string]string{}
	for _, m := range members {
		name := m.Machine.Metadata.Name
		if !slices.ContainsFunc(z.Status.Reflectors, func(r api.ReflectorStatus) bool { return r.UID == m.Machine.Metadata.UID }) {
			continue
		}
		var none *NoPart
		if _, err := c.Parts.Part(ctx, m.Machine); m.Fault == "" && errors.As(err, &none) {
			return no("SecretUnreadable", "%s; %s keeps the part that it has: apply the Secret again", none.Reason, name)
		}
		status := c.Sessions(name)
		if status == nil {
			continue
		}
		reported++
		for _, s := range status.Sessions {
			if s.Role != api.BGPUplink {
				continue
			}
			if s.State == api.BGPEstablished {
				up[s.Peer]++
			} else {
				wrong[s.Peer] = fmt.Sprintf("%s has none with %s: %s", name, s.Peer, firstOf(s.LastError, s.State))
			}
		}
	}
	if reported == 0 {
		return verdict{api.Unknown, "NotReported", "no reflector has reported its sessions"}
	}
	for _, u := range z.Spec.Uplinks {
		if name := u.Address.String(); up[name] == 0 {
			return no("Down", "no reflector has a session with uplink %s: %s", name, firstOf(wrong[name], "none has reported one"))
		} else if wrong[name] != "" {
			return no("Degraded", "a session is missing: %s", wrong[name])
		}
	}
	return yes("Established", "every reflector has its sessions with all %d uplinks", len(z.Spec.Uplinks))
}

func zoneText(name string) string {
	if name == "" {
		return "no Zone"
	}
	return "Zone " + name
}
