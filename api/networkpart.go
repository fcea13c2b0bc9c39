package api

import "net/netip"

// PartNetwork is the first word of the names of Networks' parts.
const PartNetwork = "network"

// NetworkPartName is the name of a Network's part.
func NetworkPartName(network string) string { return PartNetwork + "/" + network }

// networkPart describes the parts of Networks.
func networkPart() PartKind {
	return PartKind{Name: PartNetwork, Named: true, New: func() any { return new(NetworkPart) },
		Mask: func(p Part) (Part, error) { return maskPasswords(p, (*NetworkPart).mask) }}
}

func (p *NetworkPart) mask() {
	if p.Peering != nil && p.Peering.Password != "" {
		p.Peering.Password, p.Peering.Salt = NotShown, ""
	}
}

// NetworkPart is a Network as compiled for one host.
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
	// Allow lists the Networks whose guests may open connections to this one's.
	// None of their CIDRs overlaps with another's or with this Network's.
	Allow  []NetworkAllow `json:"allow,omitempty"`
	Direct bool           `json:"direct,omitzero" doc:"Peers on the underlay's own link are reached by a route, without VXLAN."`
	Limits Rates          `json:"limits,omitzero" doc:"Of all guests on the host together."`
	// GuestLimits apply to each guest whose port has none of its own.
	GuestLimits Rates        `json:"guestLimits,omitzero"`
	DNS         []netip.Addr `json:"dns,omitempty" doc:"Servers that guests' questions are forwarded to."`
	Domain      string       `json:"domain,omitzero" doc:"DNS domain of the guests."`
	// Peering is set if guests may speak BGP to their host.
	Peering *PeeringPart `json:"peering,omitempty"`
}

// PeeringPart configures how the guests of a Network peer with their host.
type PeeringPart struct {
	Zone        string         `json:"zone" doc:"Name of the host's Zone."`
	ASN         uint32         `json:"asn" doc:"Of the hosts: the Zone's."`
	Community   string         `json:"community" doc:"The Zone's."`
	GuestASN    uint32         `json:"guestASN"`
	Prefixes    []netip.Prefix `json:"prefixes" doc:"These, and what lies within them, guests may announce."`
	MaxPrefixes int            `json:"maxPrefixes,omitzero" doc:"Of one guest and family."`
	Password    string         `json:"password,omitzero" doc:"TCP MD5 key (RFC 2385) of every guest's session."`
	Salt        string         `json:"salt,omitzero" doc:"There with a password, and as secret: it keeps the part's digest, which viewers see, from confirming a guess."`
	Advertise   bool           `json:"advertise,omitzero" doc:"The IPv4 prefixes that guests announce are advertised to the Zone."`
	// GracefulRestart is as in BGPPart.
	GracefulRestart Duration `json:"gracefulRestart,omitzero"`
}

// NetworkPeer is another host of the same Network.
type NetworkPeer struct {
	Host   string       `json:"host"`
	Lease  netip.Prefix `json:"lease"`
	Lease6 netip.Prefix `json:"lease6,omitzero"`
	VTEP   netip.Addr   `json:"vtep"`
	MAC    MAC          `json:"mac"`
}

// NetworkAllow is another Network of the same host whose guests may open
// connections.
type NetworkAllow struct {
	Network string         `json:"network"`
	UID     string         `json:"uid"`
	VNI     uint32         `json:"vni"`
	CIDRs   []netip.Prefix `json:"cidrs"`
}
