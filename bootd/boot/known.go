package boot

import (
	"net/netip"

	"github.com/rackweft/rackweft/bootd/store"
)

// Registered reports whether a registered Machine has an address now.
func (d *Decider) Registered(peer netip.Addr) bool {
	h, err := d.holder(peer)
	if err != nil {
		return false
	}
	_, ok := store.RegisteredByMAC(d.Cache, h.mac)
	return ok
}
