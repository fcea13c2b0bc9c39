package boot

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/ignition"
)

// kernelFiles adapt the limits of the host's kernel to Networks, and name them in its tools.
func kernelFiles() []ignition.File {
	return []ignition.File{
		// Peers are permanent entries, which do not count; guests and gateways
		// are learned ones, and those of all namespaces share one table. With the
		// kernel's limit of 1,024 a few busy Networks fill it, and the rest loses
		// packets ("neighbour: arp_cache: neighbor table overflow!"). Below the
		// first limit nothing is collected, above the last nothing is added; an
		// entry takes about half a KiB.
		{Path: "/etc/sysctl.d/60-rackweft.conf", Contents: []byte(`# rackweft: neighbours of all Networks' guests are in one table
net.ipv4.neigh.default.gc_thresh1 = 8192
net.ipv4.neigh.default.gc_thresh2 = 32768
net.ipv4.neigh.default.gc_thresh3 = 65536
net.ipv6.neigh.default.gc_thresh1 = 8192
net.ipv6.neigh.default.gc_thresh2 = 32768
net.ipv6.neigh.default.gc_thresh3 = 65536
`)},
		// So that ip(8) says `proto rackweft`.
		{Path: "/etc/iproute2/rt_protos.d/rackweft.conf", Contents: fmt.Appendf(nil, "%d\trackweft\n%d\trackweft-bgp\n", api.RouteProtocol, api.BGPRouteProtocol)},
		// networkd would remove foreign routes and rules whenever it configures a link or is restarted.
		{Path: "/etc/systemd/networkd.conf.d/10-rackweft.conf", Contents: []byte("[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n")},
	}
}
