package boot

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/store"
)

// holder is the client that has an address.
type holder struct {
	mac    api.MAC
	subnet *api.Subnet
}

// peers identifies the client behind an address.
type peers struct {
	cache     *store.Cache
	leases    *lease.Table
	neighbour func(iface string, addr netip.Addr) (api.MAC, bool)
}

// holder returns the client that has an address: by its lease, and on a Subnet in proxy mode, where another server
// has the leases, by the kernel's neighbour table.
func (p *peers) holder(peer netip.Addr) (holder, error) {
	if l, ok := p.leases.Lookup(peer); ok {
		s, ok := store.Cached[api.Subnet](p.cache, l.Subnet)
		if !ok {
			return holder{}, fmt.Errorf("address %s is leased on Subnet %s, which no longer exists", peer, l.Subnet)
		}
		return holder{api.MAC(l.MAC), s}, nil
	}
	s := p.proxied(peer)
	if s == nil {
		return holder{}, fmt.Errorf("address %s is not leased by this bootd", peer)
	}
	if s.Spec.Interface == "" {
		return holder{}, fmt.Errorf("the Subnet %s is in proxy mode and has no interface of bootd, so bootd cannot identify the client with address %s: set its spec.interface", s.Metadata.Name, peer)
	}
	mac, ok := p.neighbour(s.Spec.Interface, peer)
	if !ok {
		return holder{}, fmt.Errorf("the kernel knows no neighbour %s on interface %s of Subnet %s", peer, s.Spec.Interface, s.Metadata.Name)
	}
	return holder{mac, s}, nil
}

// proxied returns the provisioning Subnet in proxy mode that contains an address.
func (p *peers) proxied(a netip.Addr) *api.Subnet {
	for _, s := range store.CachedList[api.Subnet](p.cache) {
		if _, inside := s.Prefix(a); inside && s.Spec.Purpose == api.Provisioning && s.Spec.Mode == api.Proxy {
			return s
		}
	}
	return nil
}

// query returns a question from an address, with the Machine that has it.
func (p *peers) query(question string, peer netip.Addr) query {
	q := query{question: question, peer: peer}
	if h, err := p.holder(peer); err == nil {
		q.mac = h.mac
		q.machine, _ = store.CachedMachineByMAC(p.cache, h.mac)
	}
	return q
}

// belongs returns why an address is not the Machine's; nil when it is.
func (p *peers) belongs(peer netip.Addr, m *api.Machine) error {
	h, err := p.holder(peer)
	if err != nil {
		return err
	}
	if !slices.Contains(m.MACs(), h.mac) {
		return fmt.Errorf("address %s belongs to MAC %s, which is not one of Machine %s", peer, h.mac, m.Metadata.Name)
	}
	return nil
}

// registered reports whether a registered Machine has an address now.
func (p *peers) registered(peer netip.Addr) bool {
	h, err := p.holder(peer)
	if err != nil {
		return false
	}
	_, ok := store.RegisteredByMAC(p.cache, h.mac)
	return ok
}

// taker describes the client that requests something.
func (p *peers) taker(what string, peer netip.Addr) api.Taker {
	t := api.Taker{What: what, Address: peer, Time: time.Now().UTC()}
	if h, err := p.holder(peer); err == nil {
		t.MAC = h.mac
	}
	return t
}

// pins reports whether the Machine's spec pins that address.
func pins(m *api.Machine, a netip.Addr) bool {
	return slices.ContainsFunc(m.Spec.Links, func(l api.Link) bool { return slices.Contains(l.Addresses, a) })
}
