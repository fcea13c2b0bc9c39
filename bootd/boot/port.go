package boot

import (
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// portOf returns the port at which a client's request arrived, as reported by a trusted relay; nil without one. A
// relay is trusted if the Subnet names it and it has sent the packet itself, to bootd's own address. Anyone can
// write option 82 and a relay's address into a packet on a segment that bootd serves itself, so packets from there
// are never trusted.
func (d *dhcpDecider) portOf(who asker, address netip.Addr) *api.BootPort {
	c, s := who.client, who.subnet
	named := slices.Contains(s.Spec.Relays, c.Relay) && slices.Contains(s.Spec.Relays, c.Source)
	if !named || !c.Unicast || d.serves(c.Interface) {
		return nil
	}
	return &api.BootPort{Address: address, Relay: c.Relay, CircuitID: trust.ID(c.CircuitID), RemoteID: trust.ID(c.RemoteID), Time: time.Now().UTC()}
}

// serves reports whether bootd answers the DHCP clients on one of its own
// interfaces.
func (d *dhcpDecider) serves(iface string) bool {
	return slices.ContainsFunc(store.CachedList[api.Subnet](d.cache), func(s *api.Subnet) bool {
		return s.Spec.Purpose == api.Provisioning && s.Spec.Interface == iface
	})
}
