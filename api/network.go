package api

import (
	"net/netip"
	"slices"
	"strconv"
)

// Network is a tenant's overlay: one VXLAN VNI, and CIDRs divided into one
// lease per host, as flannel does.
type Network struct {
	Base
	Spec   NetworkSpec   `json:"spec" doc:"The desired state, written by people."`
	Status NetworkStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// networkKind describes the kind.
func networkKind() Kind {
	return Kind{Name: "Network", Doc: "A tenant's overlay: one VXLAN VNI, with a lease of its CIDRs on every host of its Zone.",
		Plural: "networks", Short: []string{"net"}, Writer: RoleOperator,
		Columns: networkColumns, New: func() Object { return new(Network) }, is: is[*Network], Part: networkPart(),
		Conditions: func(o Object) *Conditions { return &o.(*Network).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Network).references() }}
}

func networkColumns() []Column {
	return []Column{
		of("ZONE", func(n *Network) string { return n.Spec.Zone }),
		of("CIDRS", func(n *Network) string { return join(n.Spec.CIDRs) }),
		of("VNI", func(n *Network) string { return number(int64(n.Status.VNI)) }),
		of("LEASES", func(n *Network) string { return strconv.Itoa(n.Status.Leases) }),
		of("EGRESS", func(n *Network) string { return n.Spec.Egress }),
	}
}

func (n *Network) references() (l references) {
	l.add("Zone", n.Spec.Zone, "spec", "zone")
	for i, name := range n.Spec.Allow {
		l.add("Network", name, "spec", "allow", i)
	}
	if p := n.Spec.Peering; p != nil {
		l.add("Secret", p.Secret, "spec", "peering", "secret")
	}
	return l
}

// NetworkSpec is the desired Network.
type NetworkSpec struct {
	Zone       string         `json:"zone" doc:"Zone whose hosts have the Network."`
	CIDRs      []netip.Prefix `json:"cidrs" doc:"One prefix of each family at most; each host gets a lease out of it."`
	HostPrefix int            `json:"hostPrefix,omitzero" doc:"Prefix length of each host's IPv4 lease. Default: 24."`
	// HostPrefix6 applies to an IPv6 CIDR only.
	HostPrefix6 int      `json:"hostPrefix6,omitzero" doc:"Prefix length of each host's IPv6 lease. Default: 64, or 8 more than the IPv6 CIDR's where that is longer than /62."`
	VNI         uint32   `json:"vni,omitzero" doc:"Pins the VXLAN network identifier. Default: chosen out of the Site's vniRange."`
	Egress      string   `json:"egress,omitzero" enum:"none,masquerade" doc:"How guests reach destinations outside the Network. Default: none."`
	Advertise   bool     `json:"advertise,omitzero" doc:"Advertises each host's lease in the Zone by BGP. Default: false."`
	Allow       []string `json:"allow,omitempty" doc:"Networks of the same Zone whose guests may open connections to this one's. Default: none."`
	Direct      bool     `json:"direct,omitzero" doc:"Hosts on one underlay link route to each other without VXLAN; for CIDRs that nothing else in the Zone uses. Default: false."`
	Limits      Rates    `json:"limits,omitzero" doc:"What the guests on one host may receive and send together. Default: no limit."`
	GuestLimits Rates    `json:"guestLimits,omitzero" doc:"What each guest without a limit of its own may receive and send. Default: no limit."`
	// Peering lets guests speak BGP to their hosts.
	Peering *Peering `json:"peering,omitempty" doc:"Guests may speak BGP to their hosts, at 169.254.1.1."`
}

// Peering restricts what guests may advertise to their hosts by BGP.
type Peering struct {
	ASN         uint32         `json:"asn" doc:"Of the guests. The hosts have the Zone's."`
	Prefixes    []netip.Prefix `json:"prefixes" doc:"Prefixes that guests may advertise, or parts of them, and send from."`
	MaxPrefixes int            `json:"maxPrefixes,omitzero" minimum:"0" doc:"Prefixes of one guest and family beyond which its session ends. Default: 128."`
	Secret      string         `json:"secret,omitzero" doc:"Secret with the sessions' MD5 key under password. Default: no key."`
	Advertise   bool           `json:"advertise,omitzero" doc:"Advertises the guests' IPv4 prefixes in the Zone; needs spec.advertise. Default: false."`
}

// Rates are limits in bytes per second; zero means unlimited.
type Rates struct {
	Inbound  Quantity `json:"inbound,omitzero" doc:"Bytes per second, such as 100M. Default: no limit."`
	Outbound Quantity `json:"outbound,omitzero" doc:"Bytes per second, such as 100M. Default: no limit."`
}

// IsZero reports whether there is no limit.
func (r Rates) IsZero() bool { return r.Inbound.IsZero() && r.Outbound.IsZero() }

// NetworkStatus is observed and chosen by rackweft.
type NetworkStatus struct {
	VNI        uint32     `json:"vni,omitzero" doc:"VXLAN network identifier chosen for it."`
	Leases     int        `json:"leases,omitzero" doc:"Number of leases."`
	Conditions Conditions `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// SetDefaults implements Object.
func (n *Network) SetDefaults() {
	n.defaultType("Network")
	if n.Spec.HostPrefix == 0 {
		n.Spec.HostPrefix = 24
	}
	if n.Spec.Egress == "" {
		n.Spec.Egress = "none"
	}
	if c, ok := n.Spec.CIDR6(); ok && n.Spec.HostPrefix6 == 0 {
		n.Spec.HostPrefix6 = 64
		if c.Bits() > 62 {
			n.Spec.HostPrefix6 = min(c.Bits()+8, maxHostPrefix6)
		}
	}
}

// Routed returns the prefixes that may be advertised to the hosts of the Zone:
// the leases' with Advertise, and those announced by guests with
// Peering.Advertise.
func (s NetworkSpec) Routed() []netip.Prefix {
	if !s.Advertise {
		return nil
	}
	return slices.Concat(s.CIDRs, s.AdvertisedPeering())
}

// AdvertisedPeering returns the prefixes within which hosts advertise guests'
// routes to the Zone. IPv6 is not routed out of a Network.
func (s NetworkSpec) AdvertisedPeering() []netip.Prefix {
	if !s.Advertise || s.Peering == nil || !s.Peering.Advertise {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.Peering.Prefixes), func(p netip.Prefix) bool { return !p.Addr().Is4() })
}

// maxHostPrefix6 leaves a host four addresses, as the longest IPv4 lease does.
const maxHostPrefix6 = 126

// CIDR6 returns the IPv6 CIDR; false when there is none.
func (s NetworkSpec) CIDR6() (netip.Prefix, bool) {
	i := slices.IndexFunc(s.CIDRs, func(c netip.Prefix) bool { return c.Addr().Is6() })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return s.CIDRs[i], true
}

// Validate implements Object.
func (n *Network) Validate() FieldErrors {
	e := n.common("Network")
	e.name(at("spec", "zone"), n.Spec.Zone)
	if len(n.Spec.CIDRs) == 0 {
		e.add(at("spec", "cidrs"), "at least one CIDR is required")
	}
	e.prefixes(at("spec", "cidrs"), n.Spec.CIDRs)
	for i, c := range n.Spec.CIDRs {
		if c.Addr().Is4() && (n.Spec.HostPrefix <= c.Bits() || n.Spec.HostPrefix > 30) {
			e.add(at("spec", "hostPrefix"), "/%d does not cut %s (cidrs entry %d) into host leases: choose a length between /%d and /30", n.Spec.HostPrefix, c, i, c.Bits()+1)
		}
	}
	n.validate6(&e)
	if n.Spec.VNI != 0 {
		e.between(at("spec", "vni"), int(n.Spec.VNI), 1, 1<<24-1)
	}
	e.oneOf(at("spec", "egress"), n.Spec.Egress, "none", "masquerade")
	n.validatePeering(&e)
	e.rates("limits", n.Spec.Limits)
	e.rates("guestLimits", n.Spec.GuestLimits)
	for i, a := range n.Spec.Allow {
		e.name(at("spec", "allow", i), a)
		if a == n.Metadata.Name {
			e.add(at("spec", "allow", i), "a Network's own guests always reach each other: remove %s", a)
		}
		if slices.Contains(n.Spec.Allow[:i], a) {
			e.add(at("spec", "allow", i), "%s is already in the list", a)
		}
	}
	return e
}

// DefaultPeerPrefixes is the default of Peering.MaxPrefixes.
const DefaultPeerPrefixes = 128

// maxPeerPrefixes bounds Peering.MaxPrefixes: each is a route on every host.
const maxPeerPrefixes = 10000

func (n *Network) validatePeering(e *FieldErrors) {
	p := n.Spec.Peering
	if p == nil {
		return
	}
	here := func(parts ...any) []any { return append(at("spec", "peering"), parts...) }
	if reservedASN(p.ASN) {
		e.add(here("asn"), "%d is reserved (RFC 7607, 6793, 7300): use a private ASN other than the Zone's, such as Calico's 64512", p.ASN)
	}
	if n.Spec.Direct {
		e.add(here(), "guests of a Network with spec.direct cannot peer, because the underlay would be routed to what they advertise; remove one of the two")
	}
	if p.Advertise && !n.Spec.Advertise {
		e.add(here("advertise"), "guests' prefixes are advertised to the Zone together with the hosts' leases: set spec.advertise too")
	}
	if len(p.Prefixes) == 0 {
		e.add(here("prefixes"), "at least one prefix is required, such as the guests' pod CIDR")
	}
	e.prefixes(here("prefixes"), p.Prefixes)
	for i, x := range p.Prefixes {
		if m, bad := martian(x); bad {
			e.add(here("prefixes", i), "invalid prefix %s: it contains addresses of %s, which are not unicast", x, m)
		}
		if j := slices.IndexFunc(n.Spec.CIDRs, x.Overlaps); j >= 0 {
			e.add(here("prefixes", i), "%s overlaps %s (cidrs entry %d), from which the hosts' leases are cut: choose a prefix outside of it", x, n.Spec.CIDRs[j], j)
		}
		if _, v6 := n.Spec.CIDR6(); x.IsValid() && x.Addr().Is6() && !v6 {
			e.add(here("prefixes", i), "%s is IPv6, and spec.cidrs has no IPv6 CIDR: guests have no next hop for it", x)
		}
	}
	e.between(here("maxPrefixes"), p.MaxPrefixes, 0, maxPeerPrefixes)
	e.optionalName(here("secret"), p.Secret)
}

// Bounds of a limit, in bytes per second.
const (
	leastLimit = 1000 // one frame of a small MTU
	mostLimit  = 1_000_000_000_000
)

func (e *FieldErrors) rates(field string, r Rates) {
	check := func(name string, q Quantity) {
		if v := q.Value(); !q.IsZero() && v < leastLimit {
			e.add(at("spec", field, name), "%d bytes per second are too few for any connection: choose at least %d, such as 10M, or omit the limit", v, leastLimit)
		} else if v > mostLimit {
			e.add(at("spec", field, name), "%s bytes per second are more than 1T: omit the limit", q)
		}
	}
	check("inbound", r.Inbound)
	check("outbound", r.Outbound)
}

// validate6 allows one IPv6 CIDR, divided into leases.
func (n *Network) validate6(e *FieldErrors) {
	first, ok := n.Spec.CIDR6()
	if !ok {
		if n.Spec.HostPrefix6 != 0 {
			e.add(at("spec", "hostPrefix6"), "spec.cidrs has no IPv6 CIDR to cut: add one, or remove hostPrefix6")
		}
		return
	}
	for i, c := range n.Spec.CIDRs {
		if c.Addr().Is6() && c != first {
			e.add(at("spec", "cidrs", i), "a Network has at most one IPv6 CIDR, and %s is the first: widen that instead", first)
		}
	}
	if l := n.Spec.HostPrefix6; l < first.Bits()+2 || l > maxHostPrefix6 {
		e.add(at("spec", "hostPrefix6"), "/%d does not cut %s into four or more host leases, of which the first is never given to a host: choose /%d or longer, at most /%d, or a larger CIDR", l, first, first.Bits()+2, maxHostPrefix6)
	}
}

// NetworkPeers lists the leases of a Network, and the state of their hosts.
type NetworkPeers struct {
	Network string          `json:"network"`
	UID     string          `json:"uid"`
	VNI     uint32          `json:"vni,omitzero"`
	Peers   []NetworkMember `json:"peers" doc:"By lease."`
}

// MemberKind is the kind of a lease's owner.
type MemberKind string

// Kinds of owners.
const (
	MemberHost        MemberKind = "host"        // a host's own
	MemberGuest       MemberKind = "guest"       // of a Guest that moved to the host with its address
	MemberFlanneld    MemberKind = "flanneld"    // a stock flanneld's, which renews it
	MemberReservation MemberKind = "reservation" // written by an operator or another program; it never expires
)

// NetworkMember is one lease of a Network.
type NetworkMember struct {
	Kind      MemberKind   `json:"kind" enum:"host,guest,flanneld,reservation"`
	Host      string       `json:"host" doc:"The Machine; of others the address of their VTEP, or empty when no VXLAN of this Network is behind the lease."`
	Guest     string       `json:"guest,omitzero" doc:"The Guest that moved."`
	Lease     netip.Prefix `json:"lease"`
	Lease6    netip.Prefix `json:"lease6,omitzero"`
	VTEP      netip.Addr   `json:"vtep,omitzero"`
	MAC       MAC          `json:"mac,omitzero"`
	State     PartState    `json:"state,omitzero" doc:"What the host last said of the Network; empty when it has said nothing of it."`
	Message   string       `json:"message,omitzero"`
	Connected bool         `json:"connected,omitzero" doc:"Whether the host holds its stream to this bootd."`
}
