package overlay

import (
	"maps"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Stats tell of one Network on this host, as of the last Reconcile.
type Stats struct {
	Network   string
	VNI       uint32
	Namespace string
	Peers     int
	Entries   int         // FDB, neighbours, nexthops and routes in the kernel
	Offload   bool        // checksums inside VXLAN are left to the underlay, as usual
	Repairs   int64       // changes made although nothing else had been asked for, since the agent's start
	Traffic   Traffic     // with other hosts: of the VXLAN device, which counts from when it was made
	Drops     Drops       // beyond the limits of all guests together; the ports' come on top
	Ports     []PortStats // of the guests that are plugged in, sorted by interface
}

// Traffic is what the kernel has counted. In is towards the guests.
type Traffic struct {
	InBytes, InPackets, InDropped    uint64
	OutBytes, OutPackets, OutDropped uint64
}

// PortStats tell of one Guest's tap; all counts begin with its attachment.
type PortStats struct {
	Guest, UID, Interface string
	// Traffic is what went through the tap. What the guest sent counts before
	// its filter, what it was sent after.
	Traffic Traffic
	Drops   Drops
}

// Drops count packets that a filter has dropped.
type Drops struct {
	Spoofed    uint64 // sent by a guest, with a source that is not its own or of a kind that no guest may send
	LimitedOut uint64 // sent by guests, beyond a limit
	LimitedIn  uint64 // sent to guests, beyond a limit
}

// Stats lists the Networks that the last Reconcile saw, by name.
func (o *Overlay) Stats() []Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := slices.SortedFunc(maps.Values(o.stats), func(a, b Stats) int { return strings.Compare(a.Network, b.Network) })
	for i := range list {
		list[i].Ports = slices.Clone(list[i].Ports)
	}
	return list
}

// trafficOf takes what an interface receives for inbound.
func trafficOf(s netlink.LinkStatistics) Traffic {
	return Traffic{InBytes: s.RxBytes, InPackets: s.RxPackets, InDropped: s.RxDropped,
		OutBytes: s.TxBytes, OutPackets: s.TxPackets, OutDropped: s.TxDropped}
}

// reversed is the traffic as the one at the other end sees it: a tap receives
// what its guest sends.
func (t Traffic) reversed() Traffic {
	return Traffic{InBytes: t.OutBytes, InPackets: t.OutPackets, InDropped: t.OutDropped,
		OutBytes: t.InBytes, OutPackets: t.InPackets, OutDropped: t.InDropped}
}
