package boot

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// serverFor is the address at which a peer reaches bootd.
func (d *Decider) serverFor(peer netip.Addr) (netip.Addr, error) {
	h, err := d.holder(peer)
	if err != nil {
		return netip.Addr{}, err
	}
	return d.address(h.subnet, netip.Addr{}, peer)
}

// address is bootd's own address that a client on the Subnet is told: one
// inside the Subnet, first of all the one that the packet was sent to (local,
// if it is valid); else local as it is; else the one that the kernel would use
// towards the client or its relay.
func (d *Decider) address(s *api.Subnet, local, towards netip.Addr) (netip.Addr, error) {
	if _, inside := s.Prefix(local); inside {
		return local, nil
	}
	if own := d.inside(s); own.IsValid() {
		return own, nil
	}
	if local.IsValid() {
		return local, nil
	}
	if !towards.IsValid() {
		return netip.Addr{}, fmt.Errorf("bootd has no address on Subnet %s", s.Metadata.Name)
	}
	return d.Source(towards)
}

// inside is bootd's own address inside a Subnet, first of all on the Subnet's
// interface; always the same one while the addresses stay.
func (d *Decider) inside(s *api.Subnet) netip.Addr {
	here := d.Interfaces()
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

func (d *Decider) httpURL(server netip.Addr) string {
	return "http://" + net.JoinHostPort(server.String(), strconv.Itoa(d.HTTPPort))
}

func (d *Decider) apiURL(server netip.Addr) string {
	return "https://" + net.JoinHostPort(server.String(), strconv.Itoa(d.APIPort))
}

// apiURLs are where a host finds bootd: what the operator advertises, then the
// address that it boots from.
func (d *Decider) apiURLs(server netip.Addr) []string {
	return append(slices.Clone(d.Advertise), d.apiURL(server))
}

// APIFor lists the URLs of bootd that a Machine's host is to know: what the
// operator advertises, then bootd's address on each Subnet of the Machine. It
// follows from the objects and bootd's own addresses alone: leases come and go,
// and a HostSpec must not change with them.
func (d *Decider) APIFor(m *api.Machine) []string {
	urls := slices.Clone(d.Advertise)
	add := func(server netip.Addr) {
		if u := d.apiURL(server); server.IsValid() && !slices.Contains(urls, u) {
			urls = append(urls, u)
		}
	}
	for _, l := range m.Spec.Links {
		if s, ok := store.Cached[api.Subnet](d.Cache, l.Subnet); ok {
			add(d.inside(s))
		}
	}
	for _, a := range m.Status.Addresses { // links need not name their Subnet, and bootd may be behind a relay
		server, err := d.towards(a)
		if err == nil {
			add(server)
		}
	}
	return urls
}

// towards is bootd's address for a machine that once booted from a.
func (d *Decider) towards(a netip.Addr) (netip.Addr, error) {
	for _, s := range store.CachedList[api.Subnet](d.Cache) {
		if _, ok := s.Prefix(a); ok {
			return d.address(s, netip.Addr{}, a)
		}
	}
	return netip.Addr{}, fmt.Errorf("no Subnet contains %s", a)
}
