package overlay

import (
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nft"
)

// An advertised Network is routed: guests leave by the veth pair of egress with
// their own addresses, unless they are masqueraded, too, and every host that
// receives this host's leases by BGP reaches the guests. As with direct Networks,
// its CIDRs are then part of the zone, and no other such Network of this host may
// have any of them. IPv6 is not routed out: the pair has none. If guests' prefixes
// are advertised to the zone, all prefixes within which guests may announce lead
// into the namespace, which has the routes to the guests; routes that other hosts
// advertise come first.

// settleAdvertised determines which Networks are routed.
func settleAdvertised(jobs []job, u underlay) {
	var taken []network
	for _, j := range jobs {
		if j.network.direct && !j.network.advertise {
			taken = append(taken, j.network)
		}
	}
	for i := range jobs { // by VNI, see joinNetworks
		n := &jobs[i].network
		if !n.advertise {
			continue
		}
		if fault := directFault(*n, taken, u); fault != "" {
			n.advertise = false
			jobs[i].note(api.PartFailed, "it is not routed to and from the zone: "+fault)
			continue
		}
		taken = append(taken, *n)
	}
}

// advertisedHostRules accept routed packets in and out. Rules before them drop
// other tenants'; closed prefixes stay closed for connections that guests open.
func advertisedHostRules(networks []network) (answering, entering []nft.Rule) {
	for _, n := range networks {
		if !n.advertise {
			continue
		}
		end := egressName(n.vni)
		answering = append(answering, nft.Rule{nft.IIF(end), nft.Answers(), nft.TowardsOpener(), nft.Accept()})
		for _, at := range append(n.leases(), n.announceable()...) {
			entering = append(entering, nft.Rule{nft.OIF(end), nft.To(at), nft.Accept()})
		}
	}
	return answering, entering
}

// advertisedTenantRules accept packets of guests with their own addresses, and
// packets to them.
func advertisedTenantRules(n network) []nft.Rule {
	bridge := bridgeName(n.vni)
	var rules []nft.Rule
	for _, at := range append(n.leases(), n.announceable()...) {
		rules = append(rules, nft.Rule{nft.IIF(egressInside), nft.OIF(bridge), nft.To(at), nft.Accept()})
	}
	return rules
}

// routed reports whether the host's own table has routes to the Network.
func (n network) routed() bool { return n.direct || n.advertise }

func anyRouted(networks []network) bool { return slices.ContainsFunc(networks, network.routed) }
