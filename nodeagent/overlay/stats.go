package overlay

import (
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/kernel"
)

// Stats describes one Network on this host, as of the last Reconcile.
type Stats struct {
	Network   string
	VNI       uint32
	Namespace string
	Peers     int
	Entries   int         // FDB, neighbours, nexthops and routes in the kernel
	Offload   bool        // checksums inside VXLAN are left to the underlay, which is the normal case
	Repairs   int64       // changes without a change of the desired state, since the agent's start
	Traffic   Traffic     // with other hosts: of the VXLAN device, since it was created
	Drops     Drops       // beyond the limits of all guests together; without the drops of ports
	Ports     []PortStats // of the guests that are plugged in, sorted by interface
}

// Traffic holds the kernel's counters. In is towards the guests.
type Traffic struct {
	InBytes, InPackets, InDropped    uint64
	OutBytes, OutPackets, OutDropped uint64
}

// PortStats describes one Guest's tap; all counters start with its attachment.
type PortStats struct {
	Guest, UID, Interface string
	// Traffic is the tap's. Packets from the guest count before its filter, packets to
	// it after.
	Traffic Traffic
	Drops   Drops
}

// Drops counts packets that a filter has dropped.
type Drops struct {
	Spoofed    uint64 // sent by a guest, with a foreign source or of a kind that no guest may send
	LimitedOut uint64 // sent by guests, beyond a limit
	LimitedIn  uint64 // sent to guests, beyond a limit
}

// Stats lists the Networks that the last Reconcile saw, by name.
func (o *Overlay) Stats() []Stats { return o.ledger.list() }

// countPorts reads the taps' counters again: one list of links for each Network with
// taps. Counters that cannot be read keep their value.
func (o *Overlay) countPorts(list []Stats) {
	for i := range list {
		if len(list[i].Ports) == 0 {
			continue
		}
		tenant, err := openPlace(filepath.Join(o.tenants.dir, list[i].Namespace))
		if err != nil {
			continue
		}
		links, err := kernel.List(tenant.LinkList)
		tenant.close()
		if err != nil {
			continue
		}
		counted := map[string]Traffic{}
		for _, l := range links {
			if s := l.Attrs().Statistics; s != nil {
				counted[l.Attrs().Name] = trafficOf(*s).reversed()
			}
		}
		for j, p := range list[i].Ports {
			if t, there := counted[p.Interface]; there {
				list[i].Ports[j].Traffic = t
			}
		}
	}
}

// Traffic returns the traffic of the Guests' taps, by the Guests' uids.
func (o *Overlay) Traffic() map[string]api.LinkUsage {
	list := o.Stats()
	o.countPorts(list)
	out := map[string]api.LinkUsage{}
	for _, s := range list {
		for _, p := range s.Ports {
			out[p.UID] = api.LinkUsage{ReceivedBytes: p.Traffic.InBytes, SentBytes: p.Traffic.OutBytes,
				Dropped: p.Traffic.InDropped + p.Traffic.OutDropped + p.Drops.Spoofed + p.Drops.LimitedIn + p.Drops.LimitedOut}
		}
	}
	return out
}

// trafficOf counts what an interface receives as inbound.
func trafficOf(s netlink.LinkStatistics) Traffic {
	return Traffic{InBytes: s.RxBytes, InPackets: s.RxPackets, InDropped: s.RxDropped,
		OutBytes: s.TxBytes, OutPackets: s.TxPackets, OutDropped: s.TxDropped}
}

// reversed returns the traffic as seen from the other end: a tap receives what its
// guest sends.
func (t Traffic) reversed() Traffic {
	return Traffic{InBytes: t.OutBytes, InPackets: t.OutPackets, InDropped: t.OutDropped,
		OutBytes: t.InBytes, OutPackets: t.InPackets, OutDropped: t.InDropped}
}
