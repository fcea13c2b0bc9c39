package boot

import (
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/trust"
)

// portOf is where a relay says that a client's request came in; nil when none
// says that whom bootd believes. It is believed of a relay that the Subnet names
// and that has sent the packet itself, to bootd's own address. Anyone can write
// option 82 and a relay's address into a packet on a segment that bootd serves
// itself, so what comes in there is never believed.
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
