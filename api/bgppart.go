package api

import (
	"net/netip"
	"slices"
)

// Roles of a BGP speaker and of its neighbours.
const (
	BGPClient    = "client"
	BGPReflector = "reflector"
	BGPUplink    = "uplink" // of a neighbour only

	// BGPNetwork is a speaker inside a Network's namespace. Its neighbours are
	// the guests on its host, and the speakers of the same Network on other
	// hosts.
	BGPNetwork = "network"
	BGPGuest   = "guest"
	BGPHost    = "host"
)

// Address families of a session.
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

// BGPPart configures the host's speaker. Prefixes are masked, addresses are
// unmapped. Whatever is not listed is denied, in both directions.
type BGPPart struct {
	Zone      string     `json:"zone" doc:"Name of the host's Zone."`
	Network   string     `json:"network,omitzero" doc:"The Network of the speaker; role network only."`
	ASN       uint32     `json:"asn" doc:"Of the Zone: that of every host in it."`
	RouterID  netip.Addr `json:"routerID" doc:"IPv4, unique in the Zone; the first IPv4 address of the underlay will do."`
	Role      string     `json:"role" enum:"client,reflector,network"`
	ClusterID netip.Addr `json:"clusterID,omitzero" doc:"IPv4, of a reflector: each its own when the reflectors peer. Default: RouterID."`

	// Community is the Zone's large community (RFC 8092), such as 64601:1:7. It
	// is added to every route that enters the Zone (originated here, or
	// accepted from a client or an uplink). Routes without it are neither
	// accepted from a reflector nor advertised. All hosts of a Zone have the
	// same one; no two Zones share one.
	Community string `json:"community"`

	// Listen are the addresses of this host that neighbours may connect to. A
	// host without any passive neighbour needs none.
	Listen []netip.Addr `json:"listen,omitempty"`
	Port   int          `json:"port,omitzero" doc:"TCP port of both sides. Default: 179."`

	// NextHops are this host's next hops for the routes that it originates, at
	// most one of each family. A prefix whose family has none is not
	// originated.
	NextHops []netip.Addr `json:"nextHops"`
	// ZoneNextHops are the allowed next hops of the Zone's routes: single hosts
	// as /32 and /128, or the Zone's production Subnets as a whole, and the
	// uplinks' addresses. A client accepts no other next hop from a reflector.
	ZoneNextHops []netip.Prefix `json:"zoneNextHops"`

	Neighbors []BGPNeighbor `json:"neighbors,omitempty"`
	Salt      string        `json:"salt,omitzero" doc:"Present with an uplink's password, and as secret: it prevents that the part's digest, which viewers see, confirms a guess."`
	// Originate are the prefixes that this host itself announces.
	Originate []netip.Prefix `json:"originate,omitempty"`
	// Aggregates are announced to uplinks by a reflector as long as it has a
	// route of the Zone within them, with itself as the next hop; the
	// reflector's kernel drops packets that no longer route covers. An uplink
	// receives an aggregate only if its Export lists it.
	Aggregates []netip.Prefix `json:"aggregates,omitempty"`
	// Loopbacks are this host's own addresses, and Services those that it
	// shares with other hosts. They are on lo, and each is announced as a
	// prefix of its own, a service's while its check passes.
	Loopbacks []netip.Addr `json:"loopbacks,omitempty"`
	Services  []BGPService `json:"services,omitempty"`
	// Inside are the Networks whose guests' routes this host advertises to the
	// Zone.
	Inside []BGPInside `json:"inside,omitempty"`
	// Accept bounds each client of this reflector. A client without an entry
	// may originate nothing.
	Accept []BGPAccept `json:"accept,omitempty"`

	// AllPaths makes the Zone's hosts advertise every path to a prefix, not
	// only the best one (RFC 7911), so that a client can use several. A
	// neighbour without that capability receives the best. A change of it drops
	// every session.
	AllPaths bool `json:"allPaths,omitzero"`

	// EVPN makes the speaker support the family, and negotiate it with the
	// Zone's other hosts; with an uplink if its Families say so. A reflector
	// passes the routes on, and no host uses them. A change of it restarts the
	// speaker.
	EVPN bool `json:"evpn,omitzero"`

	// GracefulRestart is how long neighbours keep this host's routes, and this
	// host's kernel its own, while its speaker restarts (RFC 4724), at most
	// 4095 s. Default: 2 m. A change of it drops every session.
	GracefulRestart Duration `json:"gracefulRestart,omitzero"`
	// LongLived is how much longer the routes are kept, marked as stale (RFC
	// 9494). Default: 0. A change of it drops every session.
	LongLived Duration `json:"longLived,omitzero"`
	// StaleHold is how long this host's kernel keeps its routes after the last
	// session with a reflector is lost. Negative means without limit. Default:
	// 10 m.
	StaleHold Duration `json:"staleHold,omitzero"`

	// Table is the kernel's routing table. Default: 254 (main).
	Table int `json:"table,omitzero"`
	// Metric is the metric of the routes in the kernel. It must be higher than
	// that of connected routes, which is 0, or 1024 with DHCP. Default: 4096.
	Metric int `json:"metric,omitzero"`

	// Drain asks neighbours to prefer any other path than through this host
	// (GRACEFUL_SHUTDOWN, RFC 8326). No session drops.
	Drain bool `json:"drain,omitzero"`
	// BMP are the monitoring stations (RFC 7854) to which every route is
	// reported.
	BMP []netip.AddrPort `json:"bmp,omitempty"`
}

// BGPNeighbor is one session. A change of any field other than Import, Export,
// MaxPrefixes, HoldTime and KeepAlive drops this session only.
type BGPNeighbor struct {
	Name    string     `json:"name" doc:"The other host's, or the uplink's; unique in the part."`
	Address netip.Addr `json:"address" doc:"Unique in the part."`
	Source  netip.Addr `json:"source,omitzero" doc:"This host's end. Default: the kernel's choice."`
	ASN     uint32     `json:"asn"`
	// Role is the neighbour's role. A reflector has clients, uplinks and other
	// reflectors; a client has reflectors; a speaker inside a Network has
	// guests and hosts.
	Role     string `json:"role" enum:"reflector,client,uplink,guest,host"`
	Passive  bool   `json:"passive,omitzero" doc:"The neighbour connects to this host, as a reflector's clients do."`
	Password string `json:"password,omitzero" doc:"TCP MD5 key (RFC 2385), at most 80 bytes."`

	// Import lists what is accepted: exactly Prefix, or down to LE if that is
	// set. Default: nothing. For a client, Accept applies instead.
	Import []PrefixFilter `json:"import,omitempty"`
	// Export lists what is advertised to an uplink. Default: nothing. To a
	// reflector, a host advertises what it originates, and a reflector all of
	// the Zone's routes; to a client, all of the Zone's routes and those of
	// uplinks.
	Export []PrefixFilter `json:"export,omitempty"`
	// NextHops are the allowed next hops of a guest's or a host's routes: the
	// guest's own addresses, or the host's own leases.
	NextHops []netip.Prefix `json:"nextHops,omitempty"`
	// Tap is a guest's interface: its filter passes packets from the prefixes
	// for which the guest is a best path.
	Tap string `json:"tap,omitzero"`
	// KeepNextHop advertises hosts' routes to an uplink with the hosts as next
	// hops, for an uplink on the hosts' own segment; otherwise the reflector is
	// the next hop and forwards.
	KeepNextHop bool `json:"keepNextHop,omitzero"`
	// PrivateASNs are allowed in the path of an uplink's routes, in addition to
	// its own ASN. A route with another private ASN (RFC 6996) is refused.
	PrivateASNs []uint32 `json:"privateASNs,omitempty"`

	HoldTime  Duration `json:"holdTime,omitzero" doc:"Whole seconds, 3 s at least. Default: 90 s, 9 s with an uplink."`
	KeepAlive Duration `json:"keepAlive,omitzero" doc:"Whole seconds. Default: a third of HoldTime."`
	// MaxPrefixes, per family, ends the session when exceeded, with a warning
	// at three quarters; the session is retried after a minute. Default: 10000;
	// for a reflector with AllPaths 100000; for a client 512 or the power of
	// two that is at least twice what Accept lists and 10 more. EVPN routes are
	// limited to the same number or 10000 for hosts, and to 100000 for other
	// reflectors.
	MaxPrefixes int `json:"maxPrefixes,omitzero"`
	// Hops is the distance of the neighbour. 1 means the same segment: packets
	// that came through a router are dropped (GTSM, RFC 5082), which the
	// neighbour must enable, too. 2 to 255 is a TTL, and drops nothing.
	// Default: 1.
	Hops int `json:"hops,omitzero"`
	// Families are "ipv4", "ipv6" and "evpn". Default: the first two, and also
	// the third between hosts of a Zone with EVPN.
	Families []string `json:"families,omitempty"`
}

// BGPService is a Service of the Zone on one host.
type BGPService struct {
	Name      string        `json:"name"`
	Addresses []netip.Addr  `json:"addresses"`
	Check     *ServiceCheck `json:"check,omitempty" doc:"Of each address by itself; always announced without one."`
	// LastResort announces an address whose check fails as less preferred than
	// any other host's (GRACEFUL_SHUTDOWN, RFC 8326), instead of withdrawing
	// it.
	LastResort bool `json:"lastResort,omitzero"`
}

// BGPInside is a Network whose guests' prefixes this host advertises to the
// Zone as its own.
type BGPInside struct {
	UID         string         `json:"uid" doc:"Of the Network."`
	Prefixes    []netip.Prefix `json:"prefixes" doc:"IPv4. Only prefixes within one of them are advertised."`
	MaxPrefixes int            `json:"maxPrefixes,omitzero" doc:"Of more, the first by address are advertised. Default: 128."`
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
	// Within are the prefixes of Networks whose guests' routes the client
	// advertises, and MaxWithin is their maximum number.
	Within    []netip.Prefix `json:"within,omitempty"`
	MaxWithin int            `json:"maxWithin,omitzero"`
}

// Allows reports whether the client may originate a prefix.
func (a BGPAccept) Allows(p netip.Prefix) bool {
	return slices.Contains(a.Prefixes, p) || BGPInside{Prefixes: a.Within}.Covers(p)
}
