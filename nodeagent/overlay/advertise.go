package overlay

import (
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/nft"
)

// An advertised Network is routed: guests leave by the veth pair of egress with
// their own addresses, unless they are masqueraded too, and whoever is told of
// this host's leases by BGP reaches the guests. As with direct ones its CIDRs are
// the zone's then, and no other such Network of this host may have any of them.
// IPv6 is not routed out: the pair has none. Where the zone is told of what
// guests announce, all of the prefixes that they may announce within lead into
// the namespace, which knows the guests; routes that other hosts tell of come first.

// settleAdvertised finds out which Networks are routed.
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

// advertisedHostRules let what is routed in and out. Other tenants were turned
// away before; what is closed stays so for connections that guests open.
func advertisedHostRules(networks []network) (answering, entering []nft.Rule) {
	for _, n := range networks {
		if !n.advertise {
			continue
		}
		end := egressName(n.vni)
		answering = append(answering, nft.Rule{nft.IIF(end), nft.Answers(), nft.TowardsOpener(), nft.Accept()})
		for _, at := range append(n.leases(), n.told()...) {
			entering = append(entering, nft.Rule{nft.OIF(end), nft.To(at), nft.Accept()})
		}
	}
	return answering, entering
}

// advertisedTenantRules let guests out with their own addresses, and what comes
// for them in.
func advertisedTenantRules(n network) []nft.Rule {
	bridge := bridgeName(n.vni)
	var rules []nft.Rule
	for _, at := range append(n.leases(), n.told()...) {
		rules = append(rules, nft.Rule{nft.IIF(egressInside), nft.OIF(bridge), nft.To(at), nft.Accept()})
	}
	return rules
}

// routed reports whether the host's own table leads to the Network.
func (n network) routed() bool { return n.direct || n.advertise }

func anyRouted(networks []network) bool { return slices.ContainsFunc(networks, network.routed) }
