package dhcp

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Gateway4 and Gateway6 are where every guest finds its gateway, and on it
// all that is served here: the same on every host, for guests that move.
func Gateway4() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// Gateway6 is link-local (RFC 4861 §4.2 wants routers to be).
func Gateway6() netip.Addr { return netip.MustParseAddr("fe80::1") }

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Network is what the guests of one Network are told.
type Network struct {
	MTU       int          // 0: they are told none
	Domain    string       // of the guests; may be empty
	Resolvers []netip.Addr // that questions are forwarded to; none: those of the host
	Guests    []Guest      // on this host; nobody else is served
}

// IPv6 says whether any guest has an IPv6 address.
func (n Network) IPv6() bool {
	return slices.ContainsFunc(n.Guests, func(g Guest) bool { return len(g.addresses6()) > 0 })
}

// Guest is one who is served.
type Guest struct {
	Name      string // its host name
	MAC       MAC
	Addresses []netip.Addr // IPv4 first
}

// table is a Network with its guests by all that tells them apart. It is never
// changed: a Server gets another.
type table struct {
	Network
	byMAC  map[MAC]*Guest
	byAddr map[netip.Addr]*Guest
	byName map[string]*Guest // in lower case
}

func newTable(n Network) *table {
	t := &table{Network: n, byMAC: map[MAC]*Guest{}, byAddr: map[netip.Addr]*Guest{}, byName: map[string]*Guest{}}
	t.Domain = strings.ToLower(strings.Trim(n.Domain, "."))
	for i := range n.Guests {
		g := &n.Guests[i]
		t.byMAC[g.MAC] = g
		t.byName[strings.ToLower(g.Name)] = g
		for _, a := range g.Addresses {
			t.byAddr[a] = g
		}
	}
	return t
}

// address is the guest's IPv4 address, or none.
func (g *Guest) address() netip.Addr {
	for _, a := range g.Addresses {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// addresses6 are its IPv6 addresses.
func (g *Guest) addresses6() []netip.Addr {
	var list []netip.Addr
	for _, a := range g.Addresses {
		if a.Is6() {
			list = append(list, a)
		}
	}
	return list
}
