package api

import "net/netip"

// NetworkPart is a Network as one host needs it.
type NetworkPart struct {
	UID       string         `json:"uid"`
	VNI       uint32         `json:"vni"`
	MTU       int            `json:"mtu"`
	CIDRs     []netip.Prefix `json:"cidrs,omitempty"`
	Lease     netip.Prefix   `json:"lease"`
	Lease6    netip.Prefix   `json:"lease6,omitzero" doc:"This host's IPv6 lease."`
	Moved     []netip.Prefix `json:"moved,omitempty" doc:"/31 leases outside of Lease, of Guests that moved here with their address."`
	MAC       MAC            `json:"mac" doc:"Of this host's VTEP."`
	Peers     []NetworkPeer  `json:"peers,omitempty"`
	Egress    string         `json:"egress,omitzero"`
	Advertise bool           `json:"advertise,omitzero"`
	// Allow names the Networks whose guests may open connections to this one's.
	// None of their CIDRs overlaps with another's or with this Network's.
	Allow  []NetworkAllow `json:"allow,omitempty"`
	Direct bool           `json:"direct,omitzero" doc:"Peers on the underlay's own link are reached by a route, without VXLAN."`
	Limits Rates          `json:"limits,omitzero" doc:"Of all guests on the host together."`
	// GuestLimits are for each guest whose port has none of its own.
	GuestLimits Rates        `json:"guestLimits,omitzero"`
	DNS         []netip.Addr `json:"dns,omitempty" doc:"Servers that guests' questions are forwarded to."`
	Domain      string       `json:"domain,omitzero" doc:"DNS domain of the guests."`
}

// NetworkPeer is another host of the same Network.
type NetworkPeer struct {
	Host   string       `json:"host"`
	Lease  netip.Prefix `json:"lease"`
	Lease6 netip.Prefix `json:"lease6,omitzero"`
	VTEP   netip.Addr   `json:"vtep"`
	MAC    MAC          `json:"mac"`
}

// NetworkAllow is another Network of the same host whose guests may come in.
type NetworkAllow struct {
	Network string         `json:"network"`
	UID     string         `json:"uid"`
	VNI     uint32         `json:"vni"`
	CIDRs   []netip.Prefix `json:"cidrs"`
}
