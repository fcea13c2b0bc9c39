package boot

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/control"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/lease"
	"github.com/rackweft/rackweft/bootd/store"
)

// subnets updates the lease table and the Subnets' conditions from the objects.
type subnets struct {
	store  *store.Store
	cache  *store.Cache
	leases *lease.Table
	own    *endpoints

	applying sync.Mutex       // one ApplySubnets at a time
	faults   map[string]error // of Subnets whose pool cannot be used; under applying
	applied  map[string]int64 // generation of each Subnet, by uid; under applying
}

// ApplySubnets applies the current Subnets and Machines to the lease table. It is called when any of them, or an
// address of bootd's, has changed. A Subnet that cannot be served is omitted and does not affect the others;
// JudgeSubnet returns why.
func (ss *subnets) ApplySubnets(ctx context.Context) error {
	ss.applying.Lock()
	defer ss.applying.Unlock()
	var pools []lease.Subnet
	applied := map[string]int64{}
	for _, s := range store.CachedList[api.Subnet](ss.cache) {
		applied[s.Metadata.UID] = s.Metadata.Generation
		if s.Spec.Purpose != api.Provisioning || s.Spec.Mode == api.Proxy {
			continue
		}
		pools = append(pools, lease.Subnet{
			Name:     s.Metadata.Name,
			Prefixes: s.Spec.Prefixes,
			Range:    lease.Range{First: s.Spec.Range.First, Last: s.Spec.Range.Last},
			Exclude:  ss.excluded(s),
		})
	}
	good, faults, err := usable(ctx, pools)
	if err != nil {
		return fmt.Errorf("check the Subnets: %w", err)
	}
	ss.faults = faults
	ss.leases.SetReservations(ss.reservations(), nil)
	if err := ss.leases.SetSubnets(good); err != nil {
		return fmt.Errorf("apply the Subnets: %w", err)
	}
	ss.applied = applied
	return nil
}

// usable returns the pools that a lease table accepts, and the faults of the others. It tests them on a table of
// its own, to leave the real one unchanged.
func usable(ctx context.Context, pools []lease.Subnet) (good []lease.Subnet, faults map[string]error, err error) {
	scratch, err := lease.New(ctx, noLeases{}, time.Now, func(string) bool { return false })
	if err != nil {
		return nil, nil, err
	}
	faults = map[string]error{}
	if scratch.SetSubnets(pools) == nil {
		return pools, faults, nil
	}
	for _, p := range pools {
		if err := scratch.SetSubnets(append(slices.Clone(good), p)); err != nil {
			faults[p.Name] = err
			continue
		}
		good = append(good, p)
	}
	return good, faults, nil
}

type noLeases struct{}

func (noLeases) List(context.Context) ([]lease.Lease, error)               { return nil, nil }
func (noLeases) Apply(context.Context, []lease.Lease, []lease.Lease) error { return nil }

// JudgeSubnet says whether a Subnet is served, and if not, why; not ok when its
// spec has not been applied. listening returns why DHCP does not answer on an
// interface; nil when it does.
func (ss *subnets) JudgeSubnet(s *api.Subnet, listening func(iface string) error) (found control.Finding, ok bool) {
	ss.applying.Lock()
	fault, ok := ss.faults[s.Metadata.Name], ss.applied[s.Metadata.UID] == s.Metadata.Generation
	ss.applying.Unlock()
	if !ok {
		return found, false
	}
	found.Status, found.Reason, found.Message = ss.judge(s, fault, listening)
	return found, true
}

// judge returns how a Subnet is served.
func (ss *subnets) judge(s *api.Subnet, fault error, listening func(string) error) (ready api.ConditionStatus, reason, message string) {
	iface, here := s.Spec.Interface, ss.own.interfaces()
	_, has := here[iface]
	switch {
	case s.Spec.Purpose != api.Provisioning:
		return api.True, "NotServed", fmt.Sprintf("bootd serves no DHCP on a %s Subnet: addresses are pinned", s.Spec.Purpose)
	case fault != nil:
		return api.False, "Invalid", fault.Error()
	case iface == "" && s.Spec.Mode == api.Proxy:
		return api.False, "ProxyNeedsInterface", "in proxy mode bootd knows machines by the MACs that it sees on the wire, so it needs an interface there: set spec.interface"
	case iface == "":
		return api.True, "Relayed", "DHCP answers relays" + dynamic(s)
	case !has:
		return api.False, "NoInterface", fmt.Sprintf("this bootd has no interface %s (it has %s): name one of them in spec.interface, or none when requests come through a relay",
			iface, strings.Join(slices.Sorted(maps.Keys(here)), ", "))
	case !ss.own.inside(s).IsValid():
		return api.False, "NoAddress", fmt.Sprintf("bootd has no address inside %s on interface %s, so clients could not reach it: ip address add … dev %s", prefixText(s.Spec.Prefixes), iface, iface)
	}
	if err := listening(iface); err != nil {
		return api.False, "NotListening", err.Error()
	}
	if s.Spec.Mode == api.Proxy {
		return api.True, "Serving", "DHCP on " + iface + " adds the boot file to another server's answers"
	}
	return api.True, "Serving", "DHCP answers on " + iface + dynamic(s)
}

func dynamic(s *api.Subnet) string {
	if s.Spec.Range.IsZero() {
		return "; it has no range, so only Machines that pin an address get one"
	}
	return ""
}

func prefixText(prefixes []netip.Prefix) string {
	words := make([]string, len(prefixes))
	for i, p := range prefixes {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

// excluded lists the addresses that must never be leased.
func (ss *subnets) excluded(s *api.Subnet) []netip.Addr {
	taken := slices.Concat(s.Spec.DNS, s.Spec.NTP, s.Spec.Relays)
	if s.Spec.Gateway.IsValid() {
		taken = append(taken, s.Spec.Gateway)
	}
	for _, prefixes := range ss.own.interfaces() {
		for _, p := range prefixes {
			taken = append(taken, p.Addr())
		}
	}
	return slices.DeleteFunc(taken, func(a netip.Addr) bool { _, ok := s.Prefix(a); return !ok })
}

// reservations are the IPv4 addresses that Machines pin on provisioning Subnets. A bond's is reserved for its first
// member; if it boots through another one, that gets a dynamic address.
func (ss *subnets) reservations() []lease.Reservation {
	var all []lease.Reservation
	for _, m := range store.CachedList[api.Machine](ss.cache) {
		for _, r := range reservationsOf(m) {
			if s, ok := store.Cached[api.Subnet](ss.cache, r.Subnet); ok && s.Spec.Purpose == api.Provisioning {
				all = append(all, r)
			}
		}
	}
	return all
}

// reservationsOf returns a Machine's reservations, if their Subnets are provisioning ones.
func reservationsOf(m *api.Machine) []lease.Reservation {
	var list []lease.Reservation
	for _, l := range m.Spec.Links {
		mac := l.MAC
		if l.Bond != nil && len(l.Bond.Members) > 0 {
			mac = l.Bond.Members[0]
		}
		at := slices.IndexFunc(l.Addresses, netip.Addr.Is4)
		if mac == "" || at < 0 {
			continue
		}
		list = append(list, lease.Reservation{Subnet: l.Subnet, MAC: string(mac), Address: l.Addresses[at], Machine: m.Metadata.Name})
	}
	return list
}

// ReservesOther reports whether a Machine that was changed, created or deleted pins other addresses than before.
func ReservesOther(old, now api.Object) bool {
	of := func(o api.Object) []lease.Reservation {
		if m, ok := o.(*api.Machine); ok {
			return reservationsOf(m)
		}
		return nil
	}
	return !slices.Equal(of(old), of(now))
}

// subnetOf finds the provisioning Subnet that a DHCP client is on: by its relay when there is one, else by the
// receiving interface.
func (d *dhcpDecider) subnetOf(c dhcp.Client) (*api.Subnet, error) {
	for _, s := range store.CachedList[api.Subnet](d.cache) {
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
