package dhcp

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Gateway4 and Gateway6 are the addresses of every guest's gateway, and of the services
// on it. They are the same on every host, for guests that move.
func Gateway4() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// Gateway6 is link-local (RFC 4861 §4.2 wants routers to be).
func Gateway6() netip.Addr { return netip.MustParseAddr("fe80::1") }

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Network is the configuration that the guests of one Network receive.
type Network struct {
	MTU       int          // 0: not sent
	Domain    string       // of the guests; may be empty
	Resolvers []netip.Addr // to which questions are forwarded. Default: those of the host
	Guests    []Guest      // on this host; only these are served
}

// IPv6 reports whether any guest has an IPv6 address.
func (n Network) IPv6() bool {
	return slices.ContainsFunc(n.Guests, func(g Guest) bool { return len(g.addresses6()) > 0 })
}

// Guest is a guest that is served.
type Guest struct {
	Name      string // its host name
	MAC       MAC
	Addresses []netip.Addr // IPv4 first
}

// table indexes a Network's guests by MAC, address and name. It is immutable: a Server
// gets a new one.
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

// address returns the guest's IPv4 address, which may be invalid.
func (g *Guest) address() netip.Addr {
	for _, a := range g.Addresses {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// addresses6 returns the guest's IPv6 addresses.
func (g *Guest) addresses6() []netip.Addr {
	var list []netip.Addr
	for _, a := range g.Addresses {
		if a.Is6() {
			list = append(list, a)
		}
	}
	return list
}
