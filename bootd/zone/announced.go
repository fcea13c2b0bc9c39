package zone

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// chooseLoopbacks gives each host of a Zone that pins none an address from each of spec.loopbacks. A host keeps
// its address as long as it lies in there.
func chooseLoopbacks(z *api.Zone, members []Member) []api.LoopbackStatus {
	taken := map[netip.Addr]bool{}
	for _, m := range members {
		for _, a := range m.Machine.Spec.Loopbacks {
			taken[a] = true
		}
	}
	chosen := keepLoopbacks(z, members, taken)
	for i, pool := range z.Spec.Loopbacks {
		fillLoopbacks(pool, i, chosen, taken)
	}
	var list []api.LoopbackStatus
	for _, c := range chosen {
		c.Addresses = slices.DeleteFunc(c.Addresses, func(a netip.Addr) bool { return !a.IsValid() })
		if len(c.Addresses) > 0 {
			list = append(list, c)
		}
	}
	return list
}

// keepLoopbacks lists the hosts that need addresses, each with one per pool in the pools' order: its current one,
// or an invalid one. Current ones are marked as taken.
func keepLoopbacks(z *api.Zone, members []Member, taken map[netip.Addr]bool) []api.LoopbackStatus {
	has := map[string][]netip.Addr{}
	for _, l := range z.Status.Loopbacks {
		has[l.UID] = l.Addresses
	}
	var list []api.LoopbackStatus
	for _, m := range members {
		if len(m.Machine.Spec.Loopbacks) > 0 {
			continue
		}
		l := api.LoopbackStatus{Machine: m.Machine.Metadata.Name, UID: m.Machine.Metadata.UID, Addresses: make([]netip.Addr, len(z.Spec.Loopbacks))}
		for _, a := range has[l.UID] {
			i := slices.IndexFunc(z.Spec.Loopbacks, func(p netip.Prefix) bool { return p.Contains(a) })
			if i >= 0 && !taken[a] {
				l.Addresses[i], taken[a] = a, true
			}
		}
		list = append(list, l)
	}
	return list
}

// fillLoopbacks gives hosts without one the pool's lowest free addresses. It skips the first address, which some
// programs take for the subnet's own. The condition reports an exhausted pool.
func fillLoopbacks(pool netip.Prefix, i int, hosts []api.LoopbackStatus, taken map[netip.Addr]bool) {
	next := pool.Addr().Next()
	for _, h := range hosts {
		if h.Addresses[i].IsValid() {
			continue
		}
		for taken[next] {
			next = next.Next()
		}
		if !pool.Contains(next) {
			return
		}
		h.Addresses[i], taken[next] = next, true
	}
}

func sameLoopback(a, b api.LoopbackStatus) bool {
	return a.Machine == b.Machine && a.UID == b.UID && slices.Equal(a.Addresses, b.Addresses)
}

// services says whether every address of every service is announced, and every
// host has its own.
func (c *Controller) services(z *api.Zone, members []Member) verdict {
	if len(z.Spec.Services) == 0 && len(z.Spec.Loopbacks) == 0 {
		return verdict{}
	}
	if short := withoutLoopback(z, members); short != "" {
		return no("LoopbacksExhausted", "%s has no free address for %s: make it larger", listed(z.Spec.Loopbacks), short)
	}
	var unserved, silent, degraded []string
	for i := range z.Spec.Services {
		how, what := c.serviceStands(&z.Spec.Services[i], members)
		switch how {
		case "Unserved":
			unserved = append(unserved, what)
		case "NotReported":
			silent = append(silent, what)
		case "Degraded":
			degraded = append(degraded, what)
		}
	}
	switch {
	case len(unserved) > 0:
		return no("Unserved", "%s", strings.Join(unserved, "; "))
	case len(silent) > 0:
		return verdict{api.Unknown, "NotReported", strings.Join(silent, "; ")}
	case len(degraded) > 0:
		return no("Degraded", "%s", strings.Join(degraded, "; "))
	}
	return yes("Announced", "%d services, %d loopbacks", len(z.Spec.Services), len(z.Status.Loopbacks))
}

// withoutLoopback names a host that lacks an address of its own from a pool.
func withoutLoopback(z *api.Zone, members []Member) string {
	for _, m := range members {
		if len(m.Machine.Spec.Loopbacks) == 0 && len(Loopbacks(z, m.Machine)) < len(z.Spec.Loopbacks) {
			return m.Machine.Metadata.Name
		}
	}
	return ""
}

// serviceStands says whether each of a service's addresses is announced: by all of its hosts, by some, or by
// none. This bootd has no reports of hosts whose streams another bootd holds.
func (c *Controller) serviceStands(s *api.Service, members []Member) (reason, message string) {
	hosts, reported, announced, wrong := 0, 0, map[netip.Addr]int{}, map[string]string{}
	for _, m := range members {
		if m.Fault != "" || ShuttingDown(m.Machine) || !s.Selects(m.Machine) {
			continue
		}
		hosts++
		status := c.Sessions(m.Machine.Metadata.Name)
		if status == nil {
			continue
		}
		reported++
		for _, x := range status.Services {
			switch {
			case x.Service != s.Name:
			case x.State == api.ServiceAnnounced:
				announced[x.Address]++
			default:
				wrong[m.Machine.Metadata.Name] = firstOf(x.LastError, x.State)
			}
		}
	}
	lacks := slices.IndexFunc(s.Addresses, func(a netip.Addr) bool { return announced[a] == 0 })
	switch {
	case hosts == 0:
		return "Unserved", fmt.Sprintf("service %s has no host: no Machine in use in the Zone has the labels %s", s.Name, labelsText(s.Hosts))
	case lacks >= 0 && reported < hosts:
		return "NotReported", fmt.Sprintf("%d of the %d hosts of service %s have not reported", hosts-reported, hosts, s.Name)
	case lacks >= 0:
		return "Unserved", fmt.Sprintf("%s of service %s is announced by none of its %d hosts%s", s.Addresses[lacks], s.Name, hosts, firstWrong(wrong))
	case len(wrong) > 0:
		return "Degraded", fmt.Sprintf("service %s is not announced by %d of its %d hosts%s", s.Name, len(wrong), hosts, firstWrong(wrong))
	}
	return "", ""
}

func labelsText(labels map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, k+"="+labels[k])
	}
	return strings.Join(list, ",")
}

// firstWrong returns the reason of the first host by name.
func firstWrong(wrong map[string]string) string {
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		return fmt.Sprintf(" (%s: %s)", name, wrong[name])
	}
	return ""
}
