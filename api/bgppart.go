package api

import (
	"net/netip"
	"slices"
)

// What a BGP speaker is, and what a neighbour is to it.
const (
	BGPClient    = "client"
	BGPReflector = "reflector"
	BGPUplink    = "uplink" // of a neighbour only

	// BGPNetwork is a speaker inside a Network's namespace. Its neighbours are
	// the guests on its host, and the speakers of the same Network on other hosts.
	BGPNetwork = "network"
	BGPGuest   = "guest"
	BGPHost    = "host"
)

// The families that a session may have.
const (
	FamilyIPv4 = "ipv4"
	FamilyIPv6 = "ipv6"
	FamilyEVPN = "evpn"
)

// PartBGP is the name of the bgp part.
const PartBGP = "bgp"

// bgpPart describes the parts that are called bgp.
func bgpPart() PartKind {
	return PartKind{Name: PartBGP, New: func() any { return new(BGPPart) },
		Mask: func(p Part) (Part, error) { return maskPasswords(p, (*BGPPart).mask) }}
}

func (p *BGPPart) mask() {
	for i := range p.Neighbors {
		if p.Neighbors[i].Password != "" {
			p.Neighbors[i].Password = NotShown
		}
	}
	p.Salt = ""
}

// BGPPart is what the host's speaker is. Prefixes are masked, addresses are
// unmapped. Whatever is not listed is denied, in both directions.
type BGPPart struct {
	Zone      string     `json:"zone" doc:"Name of the host's Zone."`
	Network   string     `json:"network,omitzero" doc:"The Network that the speaker is inside of; role network only."`
	ASN       uint32     `json:"asn" doc:"Of the Zone: that of every host in it."`
	RouterID  netip.Addr `json:"routerID" doc:"IPv4, unique in the Zone; the first IPv4 address of the underlay will do."`
	Role      string     `json:"role" enum:"client,reflector,network"`
	ClusterID netip.Addr `json:"clusterID,omitzero" doc:"IPv4, of a reflector: each its own when the reflectors peer; RouterID unless set."`

	// Community is the Zone's large community (RFC 8092), as 64601:1:7. It is
	// put on everything that enters the Zone (originated here, taken from a
	// client or an uplink), and nothing without it is taken from a reflector or
	// told to anybody. One Zone has one, on all its hosts; no two Zones share it.
	Community string `json:"community"`

	// Listen are the addresses of this host that neighbours may connect to. A
	// host without any passive neighbour needs none.
	Listen []netip.Addr `json:"listen,omitempty"`
	Port   int          `json:"port,omitzero" doc:"TCP port, of both sides; 179 unless set."`

	// NextHops are this host's own: the next hop of what it originates, at
	// most one of each family. A prefix whose family has none is not originated.
	NextHops []netip.Addr `json:"nextHops"`
	// ZoneNextHops is where the next hops of the Zone's routes may lie: single
	// hosts as /32 and /128, or the Zone's production Subnets whole, and the
	// uplinks' addresses. A client takes nothing else from a reflector.
	ZoneNextHops []netip.Prefix `json:"zoneNextHops"`

	Neighbors []BGPNeighbor `json:"neighbors,omitempty"`
	Salt      string        `json:"salt,omitzero" doc:"There with an uplink's password, and as secret: it keeps the part's digest, which viewers see, from confirming a guess."`
	// Originate are the prefixes that this host itself announces.
	Originate []netip.Prefix `json:"originate,omitempty"`
	// Aggregates are announced to uplinks by a reflector for as long as it has
	// a route of the Zone within them, with itself as the next hop; the kernel
	// of the reflector throws away what no longer route covers. An uplink is
	// told of one only where its Export lists it.
	Aggregates []netip.Prefix `json:"aggregates,omitempty"`
	// Loopbacks are this host's own addresses, and Services those that it has
	// with other hosts. They stand on lo, and each is announced as a prefix of
	// its own, a service's while its check passes.
	Loopbacks []netip.Addr `json:"loopbacks,omitempty"`
	Services  []BGPService `json:"services,omitempty"`
	// Inside are the Networks whose guests' routes this host tells the Zone of.
	Inside []BGPInside `json:"inside,omitempty"`
	// Accept bounds each client of this reflector. A client without an entry
	// may originate nothing.
	Accept []BGPAccept `json:"accept,omitempty"`

	// AllPaths has the Zone's hosts tell each other every path that they have to
	// a prefix, not the best alone (RFC 7911), so that a client can use several.
	// A neighbour that does not know of it is told the best. A change of it drops
	// every session.
	AllPaths bool `json:"allPaths,omitzero"`

	// EVPN has the speaker know the family, and speak it with the Zone's other
	// hosts; with an uplink where its Families say so. A reflector passes the routes
	// on, and no host makes anything of them. A change of it starts the speaker anew.
	EVPN bool `json:"evpn,omitzero"`

	// GracefulRestart is for how long neighbours keep this host's routes, and
	// the kernel of this host its own, while its speaker restarts (RFC 4724);
	// 2 m unless set, 4095 s at most. A change of it drops every session.
	GracefulRestart Duration `json:"gracefulRestart,omitzero"`
	// LongLived is for how much longer, with the routes marked stale (RFC
	// 9494); none unless set. A change of it drops every session.
	LongLived Duration `json:"longLived,omitzero"`
	// StaleHold is for how long this host's kernel keeps its routes after the
	// last of its reflectors is lost; 10 m unless set. Negative is for ever.
	StaleHold Duration `json:"staleHold,omitzero"`

	// Table is the kernel's table that routes go into; 254 (main) unless set.
	Table int `json:"table,omitzero"`
	// Metric is that of the routes in the kernel; 4096 unless set. It must
	// lose against connected routes, whose metric is 0 or DHCP's 1024.
	Metric int `json:"metric,omitzero"`

	// Drain asks neighbours to prefer any other path than through this host
	// (GRACEFUL_SHUTDOWN, RFC 8326). No session drops.
	Drain bool `json:"drain,omitzero"`
	// BMP are the monitoring stations (RFC 7854) that are told of every route.
	BMP []netip.AddrPort `json:"bmp,omitempty"`
}

// BGPNeighbor is one session. What else than Import, Export, MaxPrefixes,
// HoldTime and KeepAlive changes drops this one session, and no other.
type BGPNeighbor struct {
	Name    string     `json:"name" doc:"The other host's, or the uplink's; unique in the part."`
	Address netip.Addr `json:"address" doc:"Unique in the part."`
	Source  netip.Addr `json:"source,omitzero" doc:"This host's end; the kernel's choice unless set."`
	ASN     uint32     `json:"asn"`
	// Role is what the neighbour is. A reflector has clients, uplinks and other
	// reflectors; a client has reflectors; a speaker inside a Network has guests
	// and hosts.
	Role     string `json:"role" enum:"reflector,client,uplink,guest,host"`
	Passive  bool   `json:"passive,omitzero" doc:"It connects, this host waits: so are a reflector's clients."`
	Password string `json:"password,omitzero" doc:"TCP MD5 key (RFC 2385), at most 80 bytes."`

	// Import is what is taken: exactly Prefix, or down to LE where that is set;
	// nothing unless listed. Of a client, Accept says it instead.
	Import []PrefixFilter `json:"import,omitempty"`
	// Export is what an uplink is told; nothing unless listed. A reflector is
	// told what this host originates, and by a reflector all of the Zone's
	// routes; a client is told all of the Zone's routes and those of uplinks.
	Export []PrefixFilter `json:"export,omitempty"`
	// NextHops is where the next hops of a guest's or a host's routes may lie:
	// nowhere else than the guest's own addresses, or the host's own leases.
	NextHops []netip.Prefix `json:"nextHops,omitempty"`
	// Tap is a guest's interface: its filter lets through what comes from the
	// prefixes that the guest is a best way to.
	Tap string `json:"tap,omitzero"`
	// KeepNextHop tells an uplink of hosts' routes with the hosts as next hops,
	// for an uplink on the hosts' own segment; else the reflector is the next
	// hop and forwards.
	KeepNextHop bool `json:"keepNextHop,omitzero"`
	// PrivateASNs may be in the path of an uplink's routes; its own may always.
	// A route that names another private ASN (RFC 6996) is not taken.
	PrivateASNs []uint32 `json:"privateASNs,omitempty"`

	HoldTime  Duration `json:"holdTime,omitzero" doc:"90 s unless set, 9 s with an uplink; whole seconds, 3 s at least."`
	KeepAlive Duration `json:"keepAlive,omitzero" doc:"A third of HoldTime unless set; whole seconds."`
	// MaxPrefixes of each family end the session when they are passed, with a
	// warning at three quarters; it is tried again after a minute. Unless set,
	// 10000, for a reflector with AllPaths 100000, and for a client 512 or the
	// power of two from twice what Accept lists and 10 more on. Of EVPN, hosts may
	// tell as many as that or 10000, other reflectors 100000.
	MaxPrefixes int `json:"maxPrefixes,omitzero"`
	// Hops is how far the neighbour may be. 1, unless set, is the same segment:
	// packets that came through a router are dropped (GTSM, RFC 5082), which
	// the neighbour has to have, too. 2 to 255 lets packets travel so far and
	// drops none.
	Hops int `json:"hops,omitzero"`
	// Families are "ipv4", "ipv6" and "evpn"; the first two unless set, and the third
	// too between hosts of a Zone that speaks it.
	Families []string `json:"families,omitempty"`
}

// BGPService is a Service of the Zone as one host has it.
type BGPService struct {
	Name      string        `json:"name"`
	Addresses []netip.Addr  `json:"addresses"`
	Check     *ServiceCheck `json:"check,omitempty" doc:"Of each address by itself; always announced without one."`
	// LastResort has an address whose check fails announced as worse than any
	// other host's (GRACEFUL_SHUTDOWN, RFC 8326), and not withdrawn.
	LastResort bool `json:"lastResort,omitzero"`
}

// BGPInside is a Network whose guests tell this host of prefixes that it tells
// the Zone of, as its own.
type BGPInside struct {
	UID         string         `json:"uid" doc:"Of the Network."`
	Prefixes    []netip.Prefix `json:"prefixes" doc:"IPv4. Only what lies within one of them is told of."`
	MaxPrefixes int            `json:"maxPrefixes,omitzero" doc:"Of more, the first by address are told of; 128 unless set."`
}

// Covers reports whether a prefix lies within one of the Network's.
func (n BGPInside) Covers(p netip.Prefix) bool {
	return slices.ContainsFunc(n.Prefixes, func(w netip.Prefix) bool { return w.Bits() <= p.Bits() && w.Contains(p.Addr()) })
}

// BGPAccept bounds what one client may originate: exactly these prefixes, and
// what lies Within others, with one of these next hops.
type BGPAccept struct {
	Client   string         `json:"client" doc:"Name of the neighbour."`
	Prefixes []netip.Prefix `json:"prefixes"`
	NextHops []netip.Addr   `json:"nextHops"`
	// Within are the prefixes of Networks whose guests' routes the client tells
	// of, and MaxWithin how many those are at most.
	Within    []netip.Prefix `json:"within,omitempty"`
	MaxWithin int            `json:"maxWithin,omitzero"`
}

// Allows reports whether the client may originate a prefix.
func (a BGPAccept) Allows(p netip.Prefix) bool {
	return slices.Contains(a.Prefixes, p) || BGPInside{Prefixes: a.Within}.Covers(p)
}
