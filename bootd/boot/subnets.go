package boot

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/store"
)

// ApplySubnets tells the lease table what the Subnets and Machines say now. It
// is called when any of them, or an address of bootd's, has changed.
func (d *Decider) ApplySubnets() error {
	var pools []lease.Subnet
	for _, s := range store.CachedList[api.Subnet](d.Cache) {
		if s.Spec.Purpose != api.Provisioning || s.Spec.Mode == api.Proxy {
			continue
		}
		pools = append(pools, lease.Subnet{
			Name:     s.Metadata.Name,
			Prefixes: s.Spec.Prefixes,
			Range:    lease.Range{First: s.Spec.Range.First, Last: s.Spec.Range.Last},
			Exclude:  d.excluded(s),
		})
	}
	if err := d.Leases.SetSubnets(pools); err != nil {
		return fmt.Errorf("apply Subnets: %w", err)
	}
	d.Leases.SetReservations(d.reservations(), nil)
	return nil
}

// excluded lists the addresses that may never be leased.
func (d *Decider) excluded(s *api.Subnet) []netip.Addr {
	taken := slices.Concat(s.Spec.DNS, s.Spec.NTP, s.Spec.Relays)
	if s.Spec.Gateway.IsValid() {
		taken = append(taken, s.Spec.Gateway)
	}
	for _, prefixes := range d.Interfaces() {
		for _, p := range prefixes {
			taken = append(taken, p.Addr())
		}
	}
	return slices.DeleteFunc(taken, func(a netip.Addr) bool { _, ok := s.Prefix(a); return !ok })
}

// reservations are the addresses that Machines pin on provisioning Subnets. A
// bond boots through any of its members, so each may ask for its address.
func (d *Decider) reservations() []lease.Reservation {
	var all []lease.Reservation
	for _, m := range store.CachedList[api.Machine](d.Cache) {
		for _, l := range m.Spec.Links {
			s, ok := store.Cached[api.Subnet](d.Cache, l.Subnet)
			if !ok || s.Spec.Purpose != api.Provisioning || len(l.Addresses) == 0 || l.MAC == "" {
				continue
			}
			all = append(all, lease.Reservation{Subnet: l.Subnet, MAC: string(l.MAC), Address: l.Addresses[0], Machine: m.Metadata.Name})
		}
	}
	return all
}

// subnetOf finds the provisioning Subnet that a DHCP client is on: by its relay
// when there is one, else by the interface that heard it.
func (d *Decider) subnetOf(c dhcp.Client) (*api.Subnet, error) {
	for _, s := range store.CachedList[api.Subnet](d.Cache) {
		if s.Spec.Purpose != api.Provisioning {
			continue
		}
		if !c.Relay.IsValid() {
			if s.Spec.Interface == c.Interface {
				return s, nil
			}
			continue
		}
		if _, ok := s.Prefix(c.Link); !ok {
			continue
		}
		if len(s.Spec.Relays) > 0 && !slices.Contains(s.Spec.Relays, c.Relay) {
			return nil, fmt.Errorf("relay %s is not among the relays of Subnet %s", c.Relay, s.Metadata.Name)
		}
		return s, nil
	}
	if c.Relay.IsValid() {
		return nil, fmt.Errorf("no provisioning Subnet contains the relay's address %s", c.Link)
	}
	return nil, fmt.Errorf("no provisioning Subnet has interface %s", c.Interface)
}

// address is bootd's own address that clients of the Subnet reach it by: the
// one inside the Subnet, else the one that the packet was sent to.
func (d *Decider) address(s *api.Subnet, local netip.Addr) netip.Addr {
	for _, prefixes := range d.Interfaces() {
		for _, p := range prefixes {
			if _, ok := s.Prefix(p.Addr()); ok {
				return p.Addr()
			}
		}
	}
	return local
}
