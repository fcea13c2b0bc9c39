package zone

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// Drops says in sentences which BGP sessions would drop if an object were stored. Reflectors that the change
// would replace count as replaced.
func (v *Views) Drops(ctx context.Context, next api.Object) ([]string, error) {
	cache := v.Cache.With(next)
	var all []drop
	for _, name := range affected(v.Cache, next) {
		before, err := v.outcome(ctx, v.Cache, name)
		if err != nil {
			return nil, err
		}
		after, err := v.outcome(ctx, cache, name)
		if err != nil {
			return nil, err
		}
		all = append(all, drops(before, after)...)
	}
	if s, ok := next.(*api.Secret); ok {
		return rekeyed(v.Cache, s), nil
	}
	return sentences(all), nil
}

// affected lists the Zones whose parts depend on an object, before or after the change.
func affected(cache *store.Cache, next api.Object) []string {
	names := map[string]bool{}
	name := next.Meta().Name
	switch o := next.(type) {
	case *api.Zone:
		names[name] = true
	case *api.Machine:
		names[o.Spec.Zone] = true
		if old, ok := store.Cached[api.Machine](cache, name); ok {
			names[old.Spec.Zone] = true
		}
	case *api.Subnet:
		names[o.Spec.Zone] = true
		if old, ok := store.Cached[api.Subnet](cache, name); ok {
			names[old.Spec.Zone] = true
		}
	}
	delete(names, "")
	return slices.Sorted(maps.Keys(names))
}

// outcome is every host's part once a Zone's reflectors no longer change.
func (v *Views) outcome(ctx context.Context, cache *store.Cache, zone string) (map[string]*api.BGPPart, error) {
	z, ok := store.Cached[api.Zone](cache, zone)
	if !ok {
		return nil, nil
	}
	compiler := v.Parts.With(cache)
	rested := *z
	rested.Status.Reflectors = atRest(z, compiler.Members(zone))
	compiler = compiler.With(cache.With(&rested))
	parts := map[string]*api.BGPPart{}
	for _, m := range compiler.Members(zone) {
		part, err := compiler.Part(ctx, m.Machine)
		var none *NoPart
		if errors.As(err, &none) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parts[m.Machine.Metadata.Name] = part
	}
	return parts, nil
}

// atRest are a Zone's reflectors once all chosen ones serve.
func atRest(z *api.Zone, members []Member) []api.ReflectorStatus {
	now := time.Now().UTC()
	all := make([]candidate, len(members))
	for i, m := range members {
		all[i] = assess(m, z.Spec.Reflectors.ReplaceAfter.Or(api.DefaultReplaceAfter), now)
		all[i].applied, all[i].connected = true, true
	}
	list := z.Status.Reflectors
	for range 3 * (len(list) + z.Spec.Reflectors.Count + 1) { // each round makes one step for each, until nothing changes
		next := choose(z.Spec.Reflectors, now, list, all)
		if sameReflectors(next.reflectors, list) {
			return list
		}
		list = next.reflectors
		now = now.Add(time.Minute) // it does not wait for time to pass
	}
	return list
}

// drop is a session that a change drops.
type drop struct{ a, b, why string }

// drops compares the parts of a Zone's hosts, and lists each session once. A host that no longer gets a part
// keeps its last one, but is no longer in its peers' parts.
func drops(before, after map[string]*api.BGPPart) []drop {
	found := map[[2]string]string{}
	note := func(host, peer, why string) {
		pair := [2]string{min(host, peer), max(host, peer)}
		if why != "" && found[pair] == "" {
			found[pair] = why
		}
	}
	hosts := slices.Sorted(maps.Keys(before))
	hosts = slices.DeleteFunc(hosts, func(host string) bool { return after[host] == nil })
	for _, host := range hosts { // what is behind the rest comes first
		why := everySession(host, before[host], after[host])
		for _, n := range before[host].Neighbors {
			note(host, n.Name, why)
		}
	}
	for _, host := range hosts {
		for _, n := range before[host].Neighbors {
			at := slices.IndexFunc(after[host].Neighbors, func(x api.BGPNeighbor) bool { return x.Name == n.Name })
			if at < 0 {
				note(host, n.Name, "they will no longer be peers")
			} else {
				note(host, n.Name, oneSession(n, after[host].Neighbors[at]))
			}
		}
	}
	var list []drop
	for pair, why := range found {
		list = append(list, drop{pair[0], pair[1], why})
	}
	return list
}

// everySession says what drops all sessions of a host; "" for nothing. The speaker changes everything not listed
// here and in oneSession without dropping sessions (package bgp).
func everySession(host string, a, b *api.BGPPart) string {
	switch {
	case a.Zone != b.Zone:
		return host + " comes into Zone " + b.Zone
	case a.ASN != b.ASN:
		return fmt.Sprintf("the Zone's ASN becomes %d", b.ASN)
	case a.RouterID != b.RouterID || !slices.Equal(a.Listen, b.Listen) || a.Port != b.Port:
		return "the address of " + host + " becomes " + b.RouterID.String()
	case clusterID(a) != clusterID(b):
		return "the cluster id of " + host + " changes"
	case a.GracefulRestart != b.GracefulRestart:
		return "gracefulRestart changes"
	case a.AllPaths != b.AllPaths:
		return "paths changes"
	case a.EVPN != b.EVPN:
		return "evpn changes"
	case a.LongLived != b.LongLived:
		return "longLived changes"
	case a.Table != b.Table || a.Metric != b.Metric:
		return "the kernel's table for routes changes"
	}
	return ""
}

// clusterID is the part's, or its default.
func clusterID(p *api.BGPPart) netip.Addr {
	if p.ClusterID.IsValid() {
		return p.ClusterID
	}
	return p.RouterID
}

// oneSession says what drops one session of a host.
func oneSession(a, b api.BGPNeighbor) string {
	switch {
	case a.ASN != b.ASN:
		return fmt.Sprintf("the neighbour's ASN becomes %d", b.ASN)
	case a.Address != b.Address || a.Source != b.Source:
		return "its address changes"
	case a.Password != b.Password:
		return "its MD5 key changes"
	case a.Hops != b.Hops:
		return "the neighbour's distance changes"
	case !slices.Equal(a.Families, b.Families):
		return "its address families change"
	}
	return ""
}

// sentences groups the sessions by what drops them.
func sentences(all []drop) []string {
	const most = 8
	by := map[string][]string{}
	for _, d := range all {
		by[d.why] = append(by[d.why], d.a+" and "+d.b)
	}
	var list []string
	for _, why := range slices.Sorted(maps.Keys(by)) {
		pairs := by[why]
		slices.Sort(pairs)
		n := len(pairs)
		if n > most {
			pairs = append(pairs[:most], fmt.Sprintf("%d more", n-most))
		}
		what := "this BGP session drops"
		if n > 1 {
			what = fmt.Sprintf("these %d BGP sessions drop", n)
		}
		list = append(list, fmt.Sprintf("%s: %s (%s)", what, strings.Join(pairs, ", "), why))
	}
	return list
}

// rekeyed names the uplinks that use a Secret as their key. Only the stored digest could tell whether the key
// changes.
func rekeyed(cache *store.Cache, s *api.Secret) []string {
	old, ok := store.Cached[api.Secret](cache, s.Metadata.Name)
	if !ok || s.Spec.Data[api.SessionPassword] == "" || old.Status.Digests[api.SessionPassword] == "" {
		return nil
	}
	var list []string
	for _, z := range store.CachedList[api.Zone](cache) {
		for _, u := range z.Spec.Uplinks {
			if u.Secret == s.Metadata.Name {
				list = append(list, fmt.Sprintf("every reflector of Zone %s drops its BGP session with uplink %s if its password has changed", z.Metadata.Name, u.Address))
			}
		}
	}
	return list
}
