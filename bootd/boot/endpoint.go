package boot

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// endpoints finds bootd's addresses and URLs for a client.
type endpoints struct {
	cache      *store.Cache
	peers      *peers
	interfaces func() map[string][]netip.Prefix
	source     func(peer netip.Addr) (netip.Addr, error)
	httpPort   int
	apiPort    int
	advertise  []string
}

// serverFor returns the address at which a peer reaches bootd.
func (e *endpoints) serverFor(peer netip.Addr) (netip.Addr, error) {
	h, err := e.peers.holder(peer)
	if err != nil {
		return netip.Addr{}, err
	}
	return e.address(h.subnet, netip.Addr{}, peer)
}

// address returns bootd's own address for a client on the Subnet: one inside the Subnet, preferably the one that
// the packet was sent to (local, if it is valid); else local; else the one that the kernel would use towards the
// client or its relay.
func (e *endpoints) address(s *api.Subnet, local, towards netip.Addr) (netip.Addr, error) {
	if _, inside := s.Prefix(local); inside {
		return local, nil
	}
	if own := e.inside(s); own.IsValid() {
		return own, nil
	}
	if local.IsValid() {
		return local, nil
	}
	if !towards.IsValid() {
		return netip.Addr{}, fmt.Errorf("bootd has no address on Subnet %s", s.Metadata.Name)
	}
	return e.source(towards)
}

// inside returns bootd's own address inside a Subnet, preferably on the Subnet's interface; always the same one
// while the addresses do not change.
func (e *endpoints) inside(s *api.Subnet) netip.Addr {
	here := e.interfaces()
	names := slices.Sorted(maps.Keys(here))
	if s.Spec.Interface != "" {
		names = slices.Insert(names, 0, s.Spec.Interface)
	}
	for _, name := range names {
		for _, p := range here[name] {
			if _, ok := s.Prefix(p.Addr()); ok {
				return p.Addr()
			}
		}
	}
	return netip.Addr{}
}

func (e *endpoints) httpURL(server netip.Addr) string {
	return "http://" + net.JoinHostPort(server.String(), strconv.Itoa(e.httpPort))
}

func (e *endpoints) apiURL(server netip.Addr) string {
	return "https://" + net.JoinHostPort(server.String(), strconv.Itoa(e.apiPort))
}

// apiURLs lists the URLs of bootd for a host: the advertised ones, then the address that it boots from.
func (e *endpoints) apiURLs(server netip.Addr) []string {
	return append(slices.Clone(e.advertise), e.apiURL(server))
}

// apiFor lists the URLs of bootd for a Machine's host: the advertised ones, then bootd's address on each Subnet of
// the Machine. It depends only on the objects and bootd's own addresses: leases change all the time, and a HostSpec
// must not change with them.
func (e *endpoints) apiFor(m *api.Machine) []string {
	urls := slices.Clone(e.advertise)
	for _, server := range e.servers(m) {
		if u := e.apiURL(server); !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	return urls
}

// servers lists bootd's addresses on the Subnets of a Machine.
func (e *endpoints) servers(m *api.Machine) (all []netip.Addr) {
	add := func(server netip.Addr) {
		if server.IsValid() && !slices.Contains(all, server) {
			all = append(all, server)
		}
	}
	for _, l := range m.Spec.Links {
		if s, ok := store.Cached[api.Subnet](e.cache, l.Subnet); ok {
			add(e.inside(s))
		}
	}
	for _, a := range m.Status.Addresses { // links need not name their Subnet, and bootd may be behind a relay
		server, err := e.towards(a)
		if err == nil {
			add(server)
		}
	}
	return all
}

// towardsBMC is the API's URL for the Machine's BMC: at the address from which bootd reaches it, or else an advertised one.
func (e *endpoints) towardsBMC(m *api.Machine) (string, error) {
	if m.Spec.BMC == nil {
		return "", fmt.Errorf("the Machine %s has no BMC", m.Metadata.Name)
	}
	u, err := url.Parse(m.Spec.BMC.Address)
	if err != nil {
		return "", fmt.Errorf("its BMC's address: %w", err)
	}
	bmc, err := netip.ParseAddr(u.Hostname())
	if err == nil {
		server, err := e.source(bmc)
		if err != nil {
			return "", err
		}
		return e.apiURL(server), nil
	}
	if len(e.advertise) == 0 {
		return "", fmt.Errorf("bootd does not know at which of its addresses the BMC %s reaches it: give the BMC's IP address, or advertise a URL", u.Hostname())
	}
	return e.advertise[0], nil
}

// towards returns bootd's address for a machine that has booted from a.
func (e *endpoints) towards(a netip.Addr) (netip.Addr, error) {
	for _, s := range store.CachedList[api.Subnet](e.cache) {
		if _, ok := s.Prefix(a); ok {
			return e.address(s, netip.Addr{}, a)
		}
	}
	return netip.Addr{}, fmt.Errorf("no Subnet contains %s", a)
}
