package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// network is one Network as this host should have it: checked, and in the
// kernel's terms.
type network struct {
	name, uid  string
	digest     string // of the part
	vni        uint32
	mtu        int
	mac        mac
	lease      netip.Prefix
	underlay   int // index of the interface
	source     netip.Addr
	peers      []peer
	cidrs      []netip.Prefix
	masquerade bool
	allow      []netip.Prefix
}

type peer struct {
	host  string
	lease netip.Prefix
	vtep  netip.Addr
	mac   mac
}

// underlay is the interface that carries the Networks.
type underlay struct {
	name      string
	index     int
	mtu       int
	addresses []netip.Addr
}

// The outer headers of VXLAN: Ethernet, IP, UDP, VXLAN (RFC 7348 §5), less the
// outer Ethernet header, plus the inner one.
const (
	overheadIPv4 = 20 + 8 + 8 + 14
	overheadIPv6 = 40 + 8 + 8 + 14
)

// minMTU is what every IPv4 host must take (RFC 791).
const minMTU = 576

// compile checks a part against the underlay. The notes name what was left out
// or made smaller; an error means that nothing can be made of it.
func compile(name string, part api.NetworkPart, u underlay) (n network, notes []string, err error) {
	n = network{name: name, uid: part.UID, vni: part.VNI, lease: part.Lease, underlay: u.index,
		cidrs: part.CIDRs, masquerade: part.Egress == "masquerade", allow: part.AllowCIDRs}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if n.uid == "" {
		fault("it has no uid")
	}
	if n.vni == 0 || n.vni >= 1<<24 {
		fault("VNI %d is outside of 1-16777215", n.vni)
	}
	if fit := leaseFault(n.lease); fit != "" {
		fault("lease %s: %s", n.lease, fit)
	}
	var ok bool
	if n.mac, ok = parseMAC(part.MAC); !ok {
		fault("%q is no unicast MAC address for a VTEP", part.MAC)
	}
	n.source, err = sourceOf(part.Peers, u)
	if err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return n, nil, errors.Join(faults...)
	}
	n.mtu, notes, err = fitMTU(part.MTU, n.source, u)
	if err != nil {
		return n, nil, err
	}
	peers, left := checkPeers(part.Peers, n, u)
	n.peers = peers
	return n, append(notes, left...), nil
}

func leaseFault(lease netip.Prefix) string {
	switch {
	case !lease.IsValid():
		return "it is missing"
	case !lease.Addr().Is4():
		return "only IPv4 leases are carried yet"
	case lease != lease.Masked():
		return fmt.Sprintf("it has bits beyond its length; meant is %s", lease.Masked())
	case lease.Bits() < 8 || lease.Bits() > 31:
		return "its length is outside of 8-31" // flannel reads no /32
	}
	return ""
}

// parseMAC takes unicast addresses only.
func parseMAC(s api.MAC) (m mac, ok bool) {
	parsed, err := api.ParseMAC(string(s))
	if err != nil {
		return m, false
	}
	hw := parsed.HardwareAddr()
	copy(m[:], hw)
	return m, m != mac{} && m[0]&1 == 0
}

// sourceOf chooses the underlay's address that Networks are carried from: the
// first of the peers' family.
func sourceOf(peers []api.NetworkPeer, u underlay) (netip.Addr, error) {
	if len(u.addresses) == 0 {
		return netip.Addr{}, fmt.Errorf("underlay %s has none of its addresses", u.name)
	}
	if len(peers) == 0 {
		return u.addresses[0], nil
	}
	for _, a := range u.addresses {
		if a.Is4() == peers[0].VTEP.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("underlay %s has no address of the family of its peers (%s is at %s): give the host one in the zone's production Subnet",
		u.name, peers[0].Host, peers[0].VTEP)
}

// fitMTU never exceeds what the underlay carries.
func fitMTU(asked int, source netip.Addr, u underlay) (int, []string, error) {
	overhead := overheadIPv4
	if !source.Is4() {
		overhead = overheadIPv6
	}
	most := u.mtu - overhead
	if most < minMTU {
		return 0, nil, fmt.Errorf("underlay %s has MTU %d, which leaves %d to a Network: it needs at least %d", u.name, u.mtu, most, minMTU)
	}
	switch {
	case asked == 0:
		return most, nil, nil
	case asked < minMTU:
		return 0, nil, fmt.Errorf("MTU %d is less than %d", asked, minMTU)
	case asked > most:
		return most, []string{fmt.Sprintf("MTU %d does not fit underlay %s (%d less %d of VXLAN): using %d", asked, u.name, u.mtu, overhead, most)}, nil
	}
	return asked, nil, nil
}

// checkPeers leaves out what would harm the others, and says so.
func checkPeers(list []api.NetworkPeer, n network, u underlay) (peers []peer, notes []string) {
	gateways := map[netip.Addr]string{n.lease.Addr(): "this host"}
	vteps := map[mac]peer{n.mac: {host: "this host"}}
	for _, p := range list {
		got := peer{host: p.Host, lease: p.Lease, vtep: p.VTEP}
		m, ok := parseMAC(p.MAC)
		got.mac = m
		fault := leaseFault(p.Lease)
		switch other, taken := vteps[m]; {
		case fault != "":
			fault = fmt.Sprintf("lease %s: %s", p.Lease, fault)
		case !ok:
			fault = fmt.Sprintf("%q is no unicast MAC address", p.MAC)
		case gateways[p.Lease.Addr()] != "":
			fault = fmt.Sprintf("its lease %s begins where that of %s does", p.Lease, gateways[p.Lease.Addr()])
		case taken && other.vtep != p.VTEP:
			fault = fmt.Sprintf("its MAC %s is that of %s", m, other.host)
		case slices.Contains(u.addresses, p.VTEP):
			fault = fmt.Sprintf("its VTEP %s is this host's", p.VTEP)
		case !p.VTEP.IsValid() || p.VTEP.Is4() != n.source.Is4():
			fault = fmt.Sprintf("its VTEP %s is not of the family of %s, this host's", p.VTEP, n.source)
		}
		if fault != "" {
			notes = append(notes, fmt.Sprintf("peer %s is left out: %s", p.Host, fault))
			continue
		}
		gateways[p.Lease.Addr()], vteps[m] = p.Host, got
		peers = append(peers, got)
	}
	return peers, notes
}

// summary keeps a status short.
func summary(notes []string) string {
	const most = 3
	if more := len(notes) - most; more > 0 {
		notes = append(slices.Clone(notes[:most]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(notes, "; ")
}
