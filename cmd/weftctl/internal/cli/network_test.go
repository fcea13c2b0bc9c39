package cli

import (
	"net/netip"
	"testing"

	"github.com/rackweft/rackweft/api"
)

func TestNetworkPeers(t *testing.T) {
	b := newBootd(t)
	b.peers = &api.NetworkPeers{Network: "blue", VNI: 10017, Peers: []api.NetworkMember{
		{Kind: api.MemberHost, Host: "r1u07", Lease: netip.MustParsePrefix("10.5.7.0/24"), Lease6: netip.MustParsePrefix("fd00:5:7::/64"),
			VTEP: netip.MustParseAddr("198.18.8.17"), MAC: "02:00:00:00:00:17", State: api.PartApplied, Connected: true},
		{Kind: api.MemberHost, Host: "r1u08", Lease: netip.MustParsePrefix("10.5.8.0/24"), VTEP: netip.MustParseAddr("198.18.8.18"),
			MAC: "02:00:00:00:00:18", State: api.PartFailed, Message: "the underlay is down\x1b[2J"},
		{Kind: api.MemberGuest, Host: "r1u07", Guest: "web", Lease: netip.MustParsePrefix("10.5.8.8/31"), VTEP: netip.MustParseAddr("198.18.8.17"), State: api.PartApplied},
		{Kind: api.MemberReservation, Lease: netip.MustParsePrefix("10.5.200.0/24")},
	}}
	b.run(t, "", "network", "peers", "blue").want(t, 0, `HOST                LEASE           VTEP          STATE     MESSAGE
r1u07               10.5.7.0/24     198.18.8.17   Applied   
r1u08               10.5.8.0/24     198.18.8.18   Failed    the underlay is down�[2J
r1u07 (guest web)   10.5.8.8/31     198.18.8.17   Applied   
(reservation)       10.5.200.0/24   -             -         
`)
	b.run(t, "", "network", "peers", "blue", "-o", "wide").want(t, 0, `HOST    KIND          LEASE           IPV6 LEASE      VTEP          MAC                 AGENT       STATE     MESSAGE
r1u07   host          10.5.7.0/24     fd00:5:7::/64   198.18.8.17   02:00:00:00:00:17   connected   Applied   
r1u08   host          10.5.8.0/24     -               198.18.8.18   02:00:00:00:00:18   away        Failed    the underlay is down�[2J
r1u07   guest web     10.5.8.8/31     -               198.18.8.17   -                   -           Applied   
-       reservation   10.5.200.0/24   -               -             -                   -           -         
`)
	b.run(t, "", "network", "peers", "blue", "-o", "xml").want(t, 2, "", "table, wide or json")
	b.run(t, "", "network", "peers").want(t, 2, "", "want a Network")
	b.run(t, "", "network", "peer", "blue").want(t, 2, "", "unknown command")
}

func TestNetworkExplain(t *testing.T) {
	b := newBootd(t)
	b.path = func(from, to string) *api.NetworkPath {
		p := &api.NetworkPath{Network: "blue", Steps: []api.PathStep{{Host: "r1u07", What: "it comes from " + from, Entry: "an entry"}}}
		if p.Delivered = to == "far"; !p.Delivered {
			p.Steps = append(p.Steps, api.PathStep{What: "it goes to " + to, Problem: "it is dropped"})
		}
		return p
	}
	b.run(t, "", "network", "explain", "blue", "--from", "web", "--to", "far").want(t, 0, `HOST    WHAT HAPPENS
r1u07   it comes from web
          an entry
`)
	b.run(t, "", "network", "explain", "blue", "--from", "red/web", "--to", "203.0.113.9").want(t, 1, `HOST    WHAT HAPPENS
r1u07   it comes from red/web
          an entry
        it goes to 203.0.113.9
        it is dropped
`)
	b.run(t, "", "network", "explain", "blue", "--from", "web").want(t, 2, "", "--from and --to are both required")
	b.run(t, "", "network", "explain", "blue", "--from", "web", "--to", "far", "-o", "xml").want(t, 2, "", "text or json")
}
