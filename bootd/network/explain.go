package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// Paths traces packets of Networks, from objects and leases.
type Paths struct {
	Networks []*api.Network
	Guests   []*api.Guest
	// Members are a Network's leases, and the hosts' last reports about it.
	Members func(network string) []api.NetworkMember
	// Closed are the prefixes that no tenant may reach.
	Closed []netip.Prefix
}

// Explain traces a packet from one end to another. An end is a Guest of the Network, NETWORK/GUEST, or an
// address. The error names an end that does not exist.
func (p *Paths) Explain(network, from, to string) (api.NetworkPath, error) {
	path := api.NetworkPath{Network: network}
	n := p.network(network)
	if n == nil {
		return path, fmt.Errorf("there is no Network %s", network)
	}
	var err error
	if path.From, err = p.end(n, from); err != nil {
		return path, err
	}
	if path.From.Network != network {
		return path, fmt.Errorf("%s is not on Network %s: name the Network that it comes from", from, network)
	}
	if path.To, err = p.end(n, to); err != nil {
		return path, err
	}
	if path.From.Address.Is4() != path.To.Address.Is4() {
		return path, fmt.Errorf("%s and %s are of different families", path.From.Address, path.To.Address)
	}
	w := walk{paths: p, path: &path}
	path.Delivered = w.send(n) == ""
	return path, nil
}

func (p *Paths) network(name string) *api.Network {
	i := slices.IndexFunc(p.Networks, func(n *api.Network) bool { return n.Metadata.Name == name })
	if i < 0 {
		return nil
	}
	return p.Networks[i]
}

// end resolves a word, as seen from n.
func (p *Paths) end(n *api.Network, word string) (api.PathEnd, error) {
	if addr, err := netip.ParseAddr(word); err == nil {
		return p.address(n, addr.Unmap()), nil
	}
	network, guest, qualified := strings.Cut(word, "/")
	if !qualified {
		network, guest = n.Metadata.Name, word
	}
	i := slices.IndexFunc(p.Guests, func(g *api.Guest) bool {
		return g.Metadata.Name == guest && g.Spec.Network == network
	})
	switch {
	case i < 0:
		return api.PathEnd{}, fmt.Errorf("%q is neither an address nor a Guest on Network %s (write NETWORK/GUEST for one elsewhere)", word, network)
	case len(p.Guests[i].Status.Addresses) == 0:
		return api.PathEnd{}, fmt.Errorf("guest %s has no address yet: see weftctl describe guest %s", guest, guest)
	}
	return endOf(p.Guests[i], p.Guests[i].Status.Addresses[0]), nil
}

func endOf(g *api.Guest, addr netip.Addr) api.PathEnd {
	return api.PathEnd{Address: addr, Network: g.Spec.Network, Guest: g.Metadata.Name, Host: g.Status.Host}
}

// address finds the Network that an address is on, n's own first: CIDRs of
// others may overlap with it, but are not seen from there.
func (p *Paths) address(n *api.Network, addr netip.Addr) api.PathEnd {
	for _, candidate := range append([]*api.Network{n}, p.Networks...) {
		if !containsAddr(candidate.Spec.CIDRs, addr) {
			continue
		}
		for _, g := range p.Guests {
			if g.Spec.Network == candidate.Metadata.Name && slices.Contains(g.Status.Addresses, addr) {
				return endOf(g, addr)
			}
		}
		return api.PathEnd{Address: addr, Network: candidate.Metadata.Name}
	}
	return api.PathEnd{Address: addr}
}

func containsAddr(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// walk traces one packet. Its methods add steps and return why the packet goes no further, or "".
type walk struct {
	paths *Paths
	path  *api.NetworkPath
}

func (w *walk) step(host, what, entry string) {
	w.path.Steps = append(w.path.Steps, api.PathStep{Host: host, What: what, Entry: entry})
}

func (w *walk) stop(host, what, problem string) string {
	w.path.Steps = append(w.path.Steps, api.PathStep{Host: host, What: what, Problem: problem})
	return problem
}

func (w *walk) send(n *api.Network) string {
	from, to := &w.path.From, &w.path.To
	here, problem := w.place(n, from, "is sent from")
	if problem != "" {
		return problem
	}
	w.step(here.Host, fmt.Sprintf("%s sends it through its tap, which accepts no other source address or MAC", endName(*from)), "")
	switch {
	case to.Address == gateway() || to.Address == metadata():
		w.step(here.Host, fmt.Sprintf("%s is every guest's gateway: it serves DHCP, DNS, the guest's config and ping, and drops everything else", to.Address), "")
		return ""
	case to.Network == n.Metadata.Name:
		return w.carry(n, here)
	case to.Network != "":
		if other := w.paths.network(to.Network); other != nil && slices.Contains(other.Spec.Allow, n.Metadata.Name) {
			return w.cross(n, other, here)
		}
	}
	return w.leave(n, here)
}

func gateway() netip.Addr  { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }
func metadata() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 169, 254}) }

func endName(e api.PathEnd) string {
	if e.Guest == "" {
		return e.Address.String()
	}
	return fmt.Sprintf("guest %s (%s)", e.Guest, e.Address)
}

// place finds the host of an end, and checks the Network there.
func (w *walk) place(n *api.Network, e *api.PathEnd, does string) (api.NetworkMember, string) {
	m, ok := holder(w.paths.Members(n.Metadata.Name), e.Address)
	if !ok {
		return m, w.stop("", fmt.Sprintf("%s %s an address of Network %s that no host has a lease for", e.Address, does, n.Metadata.Name),
			"no host forwards it: see weftctl network peers "+n.Metadata.Name)
	}
	placed := e.Host
	e.Host = m.Host
	g := w.guest(e.Guest)
	switch {
	case m.Kind == api.MemberReservation:
		return m, w.stop("", fmt.Sprintf("%s is in lease %s, which is reserved and has no VTEP", e.Address, m.Lease), "the reservation keeps the lease from all hosts: its owner must remove it")
	case g == nil && m.Kind != api.MemberFlanneld:
		w.step(m.Host, fmt.Sprintf("%s is in the lease %s of %s; bootd knows no Guest that has it", e.Address, m.Lease, m.Host), "")
	case g != nil && placed != "" && placed != m.Host:
		return m, w.stop(m.Host, fmt.Sprintf("%s is on %s, but its address is in the lease %s of %s", endName(*e), placed, m.Lease, m.Host),
			"the Guest has moved, and its own lease has not followed yet: see weftctl describe network "+n.Metadata.Name)
	case g != nil && g.Status.State != api.GuestRunning:
		return m, w.stop(m.Host, fmt.Sprintf("%s is not running", endName(*e)), fmt.Sprintf("its state is %q: see weftctl describe guest %s", g.Status.State, g.Metadata.Name))
	}
	return m, w.healthy(n, m)
}

func (w *walk) guest(name string) *api.Guest {
	i := slices.IndexFunc(w.paths.Guests, func(g *api.Guest) bool { return g.Metadata.Name == name })
	if i < 0 {
		return nil
	}
	return w.paths.Guests[i]
}

// healthy judges a host by its last report about the Network.
func (w *walk) healthy(n *api.Network, m api.NetworkMember) string {
	if m.Kind == api.MemberFlanneld || m.State == api.PartApplied {
		return ""
	}
	what := fmt.Sprintf("the Network is %s on %s", m.State, m.Host)
	switch m.State {
	case api.PartOrphaned:
		return "" // it runs on
	case "":
		what = fmt.Sprintf("%s has not reported on Network %s", m.Host, n.Metadata.Name)
	}
	problem := m.Message
	if problem == "" {
		problem = "nodeagent has not applied it yet, or is not running: see weftctl describe machine " + m.Host
	}
	return w.stop(m.Host, what, problem)
}

// holder is the lease that contains an address, the longest if more than one.
func holder(members []api.NetworkMember, addr netip.Addr) (api.NetworkMember, bool) {
	var best api.NetworkMember
	found := -1
	for _, m := range members {
		for _, lease := range []netip.Prefix{m.Lease, m.Lease6} {
			if lease.IsValid() && lease.Contains(addr) && lease.Bits() > found {
				best, found = m, lease.Bits()
			}
		}
	}
	return best, found >= 0
}

// carry takes the packet to its destination within one Network.
func (w *walk) carry(n *api.Network, here api.NetworkMember) string {
	to := &w.path.To
	there, problem := w.place(n, to, "is sent to")
	if problem != "" {
		return problem
	}
	if there.Host != here.Host {
		w.tunnel(n, here, there)
	}
	w.step(there.Host, fmt.Sprintf("it is delivered to %s on %s", endName(*to), bridge(n)), "")
	return ""
}

// tunnel describes the entries on one host for a lease of another.
func (w *walk) tunnel(n *api.Network, here, there api.NetworkMember) {
	lease := there.Lease
	if w.path.To.Address.Is6() {
		lease = there.Lease6
	}
	vxlan := fmt.Sprintf("flannel.%d", n.Status.VNI)
	w.step(here.Host, fmt.Sprintf("it is routed to %s and sent to its VTEP %s over UDP %d, VNI %d", there.Host, there.VTEP, Port, n.Status.VNI),
		fmt.Sprintf("%s via %s dev %s onlink; neighbour %s lladdr %s; fdb %s dst %s", lease, lease.Addr(), vxlan, lease.Addr(), there.MAC, there.MAC, there.VTEP))
	w.step(there.Host, fmt.Sprintf("it accepts VNI %d from VTEP %s, which is a member's", n.Status.VNI, here.VTEP), "")
}

func bridge(n *api.Network) string { return fmt.Sprintf("br-%d", n.Status.VNI) }

// cross takes the packet into a Network that admits this one, on the host that it starts from.
func (w *walk) cross(n, other *api.Network, here api.NetworkMember) string {
	members := w.paths.Members(other.Metadata.Name)
	i := slices.IndexFunc(members, func(m api.NetworkMember) bool { return m.Kind == api.MemberHost && m.Host == here.Host })
	if i < 0 {
		return w.stop(here.Host, fmt.Sprintf("%s is on Network %s, which %s has no lease of", endName(w.path.To), other.Metadata.Name, here.Host),
			"a packet crosses on its first host, which must be a member of both Networks")
	}
	if problem := w.healthy(other, members[i]); problem != "" {
		return problem
	}
	w.step(here.Host, fmt.Sprintf("it crosses into Network %s, whose spec.allow names %s; answers return, connections from there are not admitted", other.Metadata.Name, n.Metadata.Name), "")
	return w.carry(other, members[i])
}

// leave handles a destination on no Network that the packet may enter.
func (w *walk) leave(n *api.Network, here api.NetworkMember) string {
	to := w.path.To
	where := fmt.Sprintf("%s is outside of Network %s", endName(to), n.Metadata.Name)
	if to.Network != "" {
		where = fmt.Sprintf("%s is on Network %s, which does not admit %s", endName(to), to.Network, n.Metadata.Name)
	}
	closed := slices.IndexFunc(w.paths.Closed, func(p netip.Prefix) bool { return p.Contains(to.Address) })
	letIn := fmt.Sprintf("to admit it, add %s to spec.allow of Network %s", n.Metadata.Name, to.Network)
	switch {
	case to.Network != "" && n.Spec.Egress != "masquerade":
		return w.stop(here.Host, where, "it is dropped: "+letIn)
	case to.Network != "":
		return w.stop(here.Host, where, "it leaves by the host's default route, to that address outside: "+letIn)
	case n.Spec.Egress != "masquerade" && !n.Spec.Advertise:
		return w.stop(here.Host, where, fmt.Sprintf("it is dropped: spec.egress of Network %s is %s; masquerade lets guests out", n.Metadata.Name, n.Spec.Egress))
	case closed >= 0:
		return w.stop(here.Host, where, fmt.Sprintf("it is dropped: %s is a Subnet of the Site, which no tenant may reach", w.paths.Closed[closed]))
	case n.Spec.Egress == "masquerade":
		w.step(here.Host, where+": it leaves by the host's default route, from the host's address", fmt.Sprintf("weft%d, nftables table rackweft", n.Status.VNI))
	default:
		w.step(here.Host, where+": it is routed by the host, with its own address", "")
	}
	return ""
}
