package zone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Views shows a Zone's BGP to people. It is read-only.
type Views struct {
	Cache *store.Cache
	Parts *Parts
	// Sessions is as in Controller.
	Sessions func(host string) *api.BGPStatus
}

// reflector is a reflector with its part.
type reflector struct {
	name string
	part *api.BGPPart
}

// reflectors compiles the parts of a Zone's reflectors; faults names those without one.
func reflectors(ctx context.Context, c *Parts, z *api.Zone) (list []reflector, faults map[string]string, err error) {
	faults = map[string]string{}
	for _, r := range z.Status.Reflectors {
		m, ok := store.Cached[api.Machine](c.Cache, r.Machine)
		if !ok {
			continue
		}
		part, err := c.Part(ctx, m)
		var none *NoPart
		switch {
		case errors.As(err, &none):
			faults[r.Machine] = none.Reason
		case err != nil:
			return nil, nil, fmt.Errorf("compile the bgp part of %s: %w", r.Machine, err)
		default:
			list = append(list, reflector{r.Machine, part})
		}
	}
	return list, faults, nil
}

// zone finds a Zone; a *store.NotFoundError when there is none.
func (v *Views) zone(name string) (*api.Zone, error) {
	z, ok := store.Cached[api.Zone](v.Cache, name)
	if !ok {
		return nil, &store.NotFoundError{Kind: "Zone", Name: name}
	}
	return z, nil
}

// ZoneSessions lists every session of a Zone once, with the reports of its ends.
func (v *Views) ZoneSessions(ctx context.Context, zone string) (*api.ZoneSessions, error) {
	z, err := v.zone(zone)
	if err != nil {
		return nil, err
	}
	all, _, err := reflectors(ctx, v.Parts, z)
	if err != nil {
		return nil, err
	}
	out := &api.ZoneSessions{Zone: zone, Sessions: []api.ZoneSession{}}
	for _, r := range all {
		here := v.reported(r.name)
		for _, n := range r.part.Neighbors {
			if n.Role == api.BGPReflector && r.name > n.Name {
				continue // the other lists it
			}
			s := api.ZoneSession{Host: r.name, Session: api.BGPSession{Peer: n.Name, Address: n.Address, Role: n.Role}}
			own, ok := here[n.Name]
			if ok {
				s.Session = own
			} else if len(here) == 0 {
				s.Message = r.name + " has reported no session to this bootd"
			} else {
				s.Message = r.name + " does not have this neighbour yet"
			}
			if other, ok := v.reported(n.Name)[r.name]; ok {
				s.Other = &other
			}
			out.Sessions = append(out.Sessions, s)
		}
	}
	out.Inside = v.inside(zone)
	return out, nil
}

// inside lists the sessions inside Networks that the hosts of a Zone report. For a session between two hosts the
// first host by name counts.
func (v *Views) inside(zone string) []api.NetworkSession {
	var list []api.NetworkSession
	for _, m := range v.Parts.Members(zone) {
		host := m.Machine.Metadata.Name
		status := v.Sessions(host)
		if status == nil {
			continue
		}
		for _, n := range status.Networks {
			for _, s := range n.Sessions {
				if s.Role == api.BGPGuest || host < s.Peer {
					list = append(list, api.NetworkSession{Network: n.Network, Host: host, Session: s})
				}
			}
		}
	}
	slices.SortStableFunc(list, func(a, b api.NetworkSession) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Host, b.Host))
	})
	return list
}

// reported are a host's sessions, by peer.
func (v *Views) reported(host string) map[string]api.BGPSession {
	status := v.Sessions(host)
	if status == nil {
		return nil
	}
	by := make(map[string]api.BGPSession, len(status.Sessions))
	for _, s := range status.Sessions {
		by[s.Peer] = s
	}
	return by
}

// ZoneRoutes lists the routes that hosts should originate, and those that the reflectors report to have.
func (v *Views) ZoneRoutes(ctx context.Context, zone string) (*api.ZoneRoutes, error) {
	z, err := v.zone(zone)
	if err != nil {
		return nil, err
	}
	type key struct {
		prefix netip.Prefix
		origin string
	}
	found := map[key]*api.ZoneRoute{}
	for _, m := range v.Parts.Members(zone) {
		if m.Fault != "" {
			continue
		}
		states := v.services(m.Machine.Metadata.Name)
		for prefix, origin := range v.Parts.Originates(z, m.Machine) {
			hop := m.V4()
			if !prefix.Addr().Is4() {
				hop = netip.Addr{}
				if len(m.Addresses) > 1 {
					hop = m.Addresses[1]
				}
			}
			state := states[prefix.Addr()]
			found[key{prefix, m.Machine.Metadata.Name}] = &api.ZoneRoute{Prefix: prefix, NextHop: hop, Origin: m.Machine.Metadata.Name, Wanted: true,
				Network: origin.Network, Service: origin.Service, Loopback: origin == Origin{}, State: state.State, Reason: state.LastError}
		}
	}
	out := &api.ZoneRoutes{Zone: zone, Routes: []api.ZoneRoute{}}
	hops := v.byAddress(zone)
	for _, r := range z.Status.Reflectors {
		status := v.Sessions(r.Machine)
		if status == nil {
			continue
		}
		out.Omitted += status.Omitted
		for _, x := range status.Routes {
			k := key{x.Prefix, cmp.Or(hops[x.NextHop], x.From, r.Machine)}
			if found[k] == nil {
				found[k] = &api.ZoneRoute{Prefix: x.Prefix, NextHop: x.NextHop, Origin: k.origin}
			}
			if !slices.Contains(found[k].At, r.Machine) {
				found[k].At = append(found[k].At, r.Machine)
			}
			found[k].Stale = found[k].Stale || x.Stale
		}
	}
	for _, r := range found {
		out.Routes = append(out.Routes, *r)
	}
	slices.SortFunc(out.Routes, func(a, b api.ZoneRoute) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), strings.Compare(a.Origin, b.Origin))
	})
	return out, nil
}

// services lists the states of the addresses of a host's services.
func (v *Views) services(host string) map[netip.Addr]api.BGPServiceStatus {
	by := map[netip.Addr]api.BGPServiceStatus{}
	if status := v.Sessions(host); status != nil {
		for _, s := range status.Services {
			by[s.Address] = s
		}
	}
	return by
}

// byAddress maps the next hops that hosts of a Zone may have to the hosts.
func (v *Views) byAddress(zone string) map[netip.Addr]string {
	by := map[netip.Addr]string{}
	for _, m := range v.Parts.Members(zone) {
		for _, a := range m.Addresses {
			by[a] = m.Machine.Metadata.Name
		}
	}
	return by
}
