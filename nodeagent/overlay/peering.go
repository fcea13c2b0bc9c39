package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
	"github.com/rackweft/rackweft/internal/nft"
)

// Where guests peer, a speaker runs in the Network's namespace on every host that has
// guests of it. It receives their routes at their gateway, and advertises them to the
// Network's speakers on other hosts over the VXLAN: nothing of it leaves the Network.
// It makes the taps' filters accept what guests announce (package sources); this file
// creates those filters' sets.

// Speakers runs the speakers inside Networks, each outside of the agent.
type Speakers interface {
	// Give passes a part to a Network's speaker, which need not run yet. It reports
	// whether it runs.
	Give(uid string, part api.BGPPart) (runs bool, err error)
	// Run ensures that a Network's speaker runs in the namespace at the path, with the
	// part that was last given.
	Run(ctx context.Context, uid, network, namespace string) error
	// Stop stops a Network's speaker, if there is one; its routes stay. It reports
	// whether there was one.
	Stop(ctx context.Context, uid string) (stopped bool, err error)
}

const (
	bgpPort = 179
	// staleHold is how long a speaker without any session keeps its routes.
	staleHold = time.Second
)

// peeringRules accept BGP from guests to the speaker at their gateway, and between the
// speakers of the Network. Speakers send with the greatest TTL (GTSM, RFC 5082), which
// packets that a host forwards for a guest cannot have.
func peeringRules(n network) []nft.Rule {
	if n.peering == nil {
		return nil
	}
	bridge, vxlan := bridgeName(n.vni), vxlanName(n.vni)
	return []nft.Rule{
		{nft.IIF(bridge), nft.To(gatewayAddress()), nft.TCP(bgpPort), nft.Accept()},
		{nft.IIF(vxlan), nft.To(own(n.lease)), nft.TTL(255), nft.TCP(bgpPort), nft.Accept()},
		{nft.IIF(vxlan), nft.To(own(n.lease)), nft.TTL(255), nft.Protocol("tcp", unix.IPPROTO_TCP), nft.Answers(), nft.Accept()},
	}
}

// own returns a host's own address in its lease.
func own(lease netip.Prefix) netip.Prefix { return whole(lease.Addr().Next()) }

// peeringFault returns why guests cannot peer as the part says, or "".
func peeringFault(part api.NetworkPart) string {
	p := part.Peering
	switch {
	case p == nil:
		return ""
	case part.Direct:
		return "guests of a direct Network cannot peer: others on the underlay could send to the prefixes that they announce"
	case part.Lease.IsValid() && part.Lease.Bits() > 30:
		return fmt.Sprintf("the host has no address of its own in lease %s", part.Lease)
	}
	for _, x := range p.Prefixes {
		if x != x.Masked() || x.Bits() == 0 {
			return fmt.Sprintf("invalid prefix %s for guests", x)
		}
		if i := slices.IndexFunc(part.CIDRs, x.Overlaps); i >= 0 {
			return fmt.Sprintf("%s overlaps with %s, in which the hosts have their leases", x, part.CIDRs[i])
		}
	}
	return ""
}

// peer ensures that a speaker runs where guests of the Network are, and none
// elsewhere.
func (o *Overlay) peer(ctx context.Context, n network) error {
	if o.speakers == nil {
		return nil
	}
	ports, known := o.portsOf(n.name)
	if n.peering == nil || known && len(ports) == 0 {
		return o.silenceIn(ctx, n)
	}
	if !known {
		return nil // a running speaker continues
	}
	if _, err := o.speakers.Give(n.uid, speakerPart(n, ports)); err != nil {
		return err
	}
	return o.speakers.Run(ctx, n.uid, n.name, o.tenants.pathOf(n))
}

// peerSoon passes changed ports to the speaker. If it does not run yet, the next
// Reconcile starts it.
func (o *Overlay) peerSoon(n network) {
	ports, known := o.portsOf(n.name)
	if o.speakers == nil || n.peering == nil || !known {
		return
	}
	if len(ports) > 0 {
		runs, err := o.speakers.Give(n.uid, speakerPart(n, ports))
		if err != nil {
			o.log.Warn("overlay: the speaker does not know of all guests yet", "network", n.name, "error", err)
		}
		if runs {
			return
		}
	}
	o.ledger.wake()
}

// silence stops the speaker of a Network that is being removed.
func (o *Overlay) silence(ctx context.Context, uid string) error {
	if o.speakers == nil {
		return nil
	}
	_, err := o.speakers.Stop(ctx, uid)
	return err
}

// silenceIn stops the speaker of a Network that stays, and removes its routes.
func (o *Overlay) silenceIn(ctx context.Context, n network) error {
	stopped, err := o.speakers.Stop(ctx, n.uid)
	if err != nil || !stopped {
		return err
	}
	tenant, err := openPlace(o.tenants.pathOf(n))
	if err != nil {
		return err
	}
	defer tenant.close()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := kernel.List(func() ([]netlink.Route, error) {
			return tenant.RouteListFiltered(family, &netlink.Route{Protocol: api.BGPRouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return fmt.Errorf("list the routes of guests: %w", err)
		}
		for _, r := range routes {
			if err := tenant.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove a route of guests: %w", err)
			}
		}
	}
	return nil
}

// speakerPart returns the part of the Network's speaker on this host.
func speakerPart(n network, ports []guestPort) api.BGPPart {
	p := n.peering
	self := own(n.lease).Addr()
	out := api.BGPPart{Zone: p.Zone, Network: n.name, ASN: p.ASN, RouterID: self, Role: api.BGPNetwork, Community: p.Community,
		Listen: []netip.Addr{gatewayAddress().Addr(), self}, NextHops: []netip.Addr{self}, GracefulRestart: p.GracefulRestart,
		// The routes of a restarting neighbour are kept by GoBGP only.
		StaleHold: api.Duration(staleHold)}
	if n.lease6.IsValid() {
		out.NextHops = append(out.NextHops, n.lease6.Addr().Next())
	}
	var within []api.PrefixFilter
	for _, x := range p.Prefixes {
		within = append(within, api.PrefixFilter{Prefix: x, LE: x.Addr().BitLen()})
	}
	for _, g := range ports {
		if guest, ok := guestNeighbor(n, g); ok {
			guest.Import = within
			out.Neighbors = append(out.Neighbors, guest)
		}
	}
	for _, host := range hostNeighbors(n) {
		host.Import = within
		out.Neighbors = append(out.Neighbors, host)
	}
	return out
}

// guestNeighbor returns the neighbour for a guest with an IPv4 address, over which it
// peers.
func guestNeighbor(n network, g guestPort) (api.BGPNeighbor, bool) {
	v4, _ := byFamily(g.addresses)
	if len(v4) == 0 {
		return api.BGPNeighbor{}, false
	}
	out := api.BGPNeighbor{Name: "guest/" + g.guest, Address: v4[0], Source: gatewayAddress().Addr(), ASN: n.peering.GuestASN, Role: api.BGPGuest,
		Passive: true, Password: n.peering.Password, MaxPrefixes: n.peering.MaxPrefixes, Tap: g.tap, Families: n.families()}
	for _, a := range g.addresses {
		out.NextHops = append(out.NextHops, whole(a))
	}
	return out, true
}

// hostNeighbors returns the other hosts of the Network, with all their leases. Of two
// hosts the one with the lesser address connects. Stock flannelds, which are named by
// their addresses, run no speaker.
func hostNeighbors(n network) []api.BGPNeighbor {
	self := own(n.lease).Addr()
	by := map[string]*api.BGPNeighbor{}
	for _, p := range n.peers {
		if _, err := netip.ParseAddr(p.host); err == nil {
			continue
		}
		h := by[p.host]
		if h == nil {
			h = &api.BGPNeighbor{Name: "host/" + p.host, Source: self, ASN: n.peering.ASN, Role: api.BGPHost, Families: n.families()}
			by[p.host] = h
		}
		if p.lease.Bits() < 31 { // the others are of guests that moved there
			h.Address = own(p.lease).Addr()
			h.Passive = h.Address.Less(self)
		}
		h.NextHops = append(h.NextHops, p.lease)
		if p.lease6.IsValid() {
			h.NextHops = append(h.NextHops, p.lease6)
		}
	}
	var list []api.BGPNeighbor
	for _, h := range by {
		if h.Address.IsValid() {
			list = append(list, *h)
		}
	}
	slices.SortFunc(list, func(a, b api.BGPNeighbor) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

func (n network) families() []string {
	if n.lease6.IsValid() {
		return []string{"ipv4", "ipv6"}
	}
	return []string{"ipv4"}
}
