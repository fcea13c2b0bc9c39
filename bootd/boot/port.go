package boot

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// portOf is where a relay says that a client's request came in; nil when nobody
// says that whom bootd believes. It is believed of a relay that the Subnet names
// and that has sent the packet itself, to bootd's own address. Anyone can write
// option 82 and a relay's address into a packet on a segment that bootd serves
// itself, so what comes in there is never believed.
func (d *Decider) portOf(c dhcp.Client, s *api.Subnet, address netip.Addr) *api.BootPort {
	named := slices.Contains(s.Spec.Relays, c.Relay) && slices.Contains(s.Spec.Relays, c.Source)
	if !named || !c.Unicast || d.serves(c.Interface) {
		return nil
	}
	return &api.BootPort{Address: address, Relay: c.Relay, CircuitID: trust.ID(c.CircuitID), RemoteID: trust.ID(c.RemoteID), Time: time.Now().UTC()}
}

// serves reports whether bootd answers the DHCP clients on one of its own
// interfaces.
func (d *Decider) serves(iface string) bool {
	return slices.ContainsFunc(store.CachedList[api.Subnet](d.Cache), func(s *api.Subnet) bool {
		return s.Spec.Purpose == api.Provisioning && s.Spec.Interface == iface
	})
}

// seenAt records where an address of the Machine was leased in its open attempt.
func (d *Decider) seenAt(ctx context.Context, m *api.Machine, address netip.Addr, p *api.BootPort) {
	if !m.Status.Attempt.Open() || !movesPort(m, address, p) {
		return
	}
	attempt := m.Status.Attempt.ID
	_, err := store.Mutate(ctx, d.Store, m.Metadata.Name, func(fresh *api.Machine) error {
		if a := fresh.Status.Attempt; !a.Open() || a.ID != attempt || !movesPort(fresh, address, p) {
			return store.ErrUnchanged
		}
		fresh.Status.Attempt.Port = p
		return nil
	})
	if err != nil {
		d.Log.Warn("record at which port an address was leased", "machine", m.Metadata.Name, "error", err)
	}
}

// movesPort reports whether a lease changes what is known of the port. Who asks
// in the Machine's name elsewhere, for another address, does not take away what
// was said of the one that was leased at the planned port.
func movesPort(m *api.Machine, address netip.Addr, p *api.BootPort) bool {
	old := m.Status.Attempt.Port
	switch {
	case old == nil:
		return p != nil
	case old.Address == address:
		return p == nil || p.Relay != old.Relay || p.CircuitID != old.CircuitID || p.RemoteID != old.RemoteID
	case p == nil:
		return false
	}
	was, _ := trust.AtPort(m, m.Status.Attempt, old.Address)
	is, _ := trust.AtPort(m, &api.BootAttempt{Port: p}, address)
	return is || !was
}
