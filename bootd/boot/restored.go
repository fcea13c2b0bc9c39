package boot

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/store"
)

// notYet returns why an address may not be leased after a restore: since the backup it may have been leased to a
// client that this bootd does not know. A client that uses an address renews it within the lease time, and is known
// by then. Pinned addresses belong to their Machines, and a client with a lease, or that uses the address, keeps
// it.
func (d *dhcpDecider) notYet(who asker, addr netip.Addr) error {
	r := store.Recovery(d.cache)
	if r == nil {
		return nil
	}
	quiet := r.Restored.Add(time.Duration(who.subnet.Spec.LeaseTime))
	if !r.Held && time.Now().After(quiet) || who.pinned() {
		return nil
	}
	for _, l := range d.leases.ByMAC(string(who.mac)) {
		if l.Subnet == who.subnet.Metadata.Name && (l.Address == addr || !addr.IsValid()) {
			return nil
		}
	}
	if addr.IsValid() && who.client.ClientAddr == addr {
		return nil // a renewal, by a client that has had it since before the restore
	}
	until := "until every Machine is accounted for (weftctl restore status)"
	if !r.Held {
		until = "until " + quiet.UTC().Format(time.RFC3339) + ", when every lease from before has been renewed or has ended (weftctl restore finish ends this sooner)"
	}
	return fmt.Errorf("%w: bootd was restored, and leases no address that it does not know to be free %s", dhcp.ErrNotMine, until)
}

// pinned reports whether the Machine's spec gives the client an address on its Subnet.
func (a asker) pinned() bool {
	return a.registered() && slices.ContainsFunc(a.machine.Spec.Links, func(l api.Link) bool {
		mac := l.MAC
		if l.Bond != nil && len(l.Bond.Members) > 0 {
			mac = l.Bond.Members[0]
		}
		return l.Subnet == a.subnet.Metadata.Name && mac == a.mac && slices.ContainsFunc(l.Addresses, netip.Addr.Is4)
	})
}
