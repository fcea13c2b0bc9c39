package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/internal/inet"
)

// network is the desired state of one Network on this host, checked and in the
// kernel's terms.
type network struct {
	name, uid  string
	digest     string // of the part
	vni        uint32
	mtu        int
	mac        mac
	lease      netip.Prefix
	lease6     netip.Prefix   // may be invalid
	moved      []netip.Prefix // leases of guests that moved here
	underlay   int            // index of the interface
	source     netip.Addr
	peers      []peer
	cidrs      []netip.Prefix
	masquerade bool
	direct     bool
	advertise  bool
	allowed    []api.NetworkAllow // as the part has it
	passages   []passage
	dns        []netip.Addr
	domain     string
	// limits apply to all guests here together, guestLimits to each.
	limits, guestLimits limits
	peering             *api.PeeringPart // nil where guests do not peer
}

type peer struct {
	host   string
	lease  netip.Prefix
	lease6 netip.Prefix // may be invalid
	vtep   netip.Addr
	mac    mac
	direct bool // reached by a route of the host
}

// sources returns the prefixes that guests may send from.
func (n network) sources() []netip.Prefix {
	if n.peering == nil {
		return n.cidrs
	}
	return slices.Concat(n.cidrs, n.peering.Prefixes)
}

// announceable returns the prefixes within which guests' announcements are advertised to the
// zone. IPv6 is not routed out.
func (n network) announceable() []netip.Prefix {
	if !n.advertise || n.peering == nil || !n.peering.Advertise {
		return nil
	}
	return only4(n.peering.Prefixes)
}

// leaves reports whether the Network has routes into the host's namespace.
func (n network) leaves() bool { return n.masquerade || n.routed() }

func (n network) directPeers() (count int) {
	for _, p := range n.peers {
		if p.direct {
			count++
		}
	}
	return count
}

// limits are in bytes per second; 0 is without limit.
type limits struct{ in, out int64 }

func limitsOf(r api.Rates) limits { return limits{r.Inbound.Value(), r.Outbound.Value()} }

// underlay is the interface that carries the Networks.
type underlay struct {
	name      string
	index     int
	mtu       int
	addresses []netip.Addr
	connected []netip.Prefix // of its link
	closed    []netip.Prefix // to tenants
	transit   []netip.Prefix // forwarded to for others
	encrypted bool           // VXLAN goes through package wireguard's device only
	sealed    bool           // and that device exists
}

// minMTU is the size that every IPv4 host must accept (RFC 791).
const minMTU = 576

// minMTU6 is the same for IPv6 (RFC 8200 §5): Linux disables IPv6 on interfaces with
// less.
const minMTU6 = 1280

// compile checks a part against the underlay. The notes name what was left out or
// reduced; an error means that the part cannot be applied at all.
func compile(name string, part api.NetworkPart, u underlay) (n network, notes []string, err error) {
	n = network{name: name, uid: part.UID, vni: part.VNI, lease: part.Lease, lease6: part.Lease6, underlay: u.index,
		limits: limitsOf(part.Limits), guestLimits: limitsOf(part.GuestLimits),
		cidrs: part.CIDRs, masquerade: part.Egress == "masquerade", direct: part.Direct, advertise: part.Advertise, allowed: part.Allow,
		dns: part.DNS, domain: part.Domain, peering: part.Peering}
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
	if fit := lease6Fault(n.lease6, 126); fit != "" { // one address is the gateway's
		fault("lease6 %s: %s", n.lease6, fit)
	}
	var ok bool
	if n.mac, ok = parseMAC(part.MAC); !ok {
		fault("%q is no unicast MAC address for a VTEP", part.MAC)
	}
	n.source, err = sourceOf(part.Peers, u)
	if err != nil {
		faults = append(faults, err)
	}
	if fit := peeringFault(part); fit != "" {
		fault("peering: %s", fit)
	}
	if len(faults) > 0 {
		return n, nil, errors.Join(faults...)
	}
	n.mtu, notes, err = fitMTU(part.MTU, n.source, u)
	if err != nil {
		return n, nil, err
	}
	for _, p := range part.Moved {
		if fault := leaseFault(p); fault != "" {
			notes = append(notes, fmt.Sprintf("moved lease %s is left out: %s", p, fault))
			continue
		}
		n.moved = append(n.moved, p)
	}
	if n.lease6.IsValid() && n.mtu < minMTU6 {
		n.lease6 = netip.Prefix{}
		notes = append(notes, fmt.Sprintf("no IPv6: it needs an MTU of %d, and %d is what there is", minMTU6, n.mtu))
	}
	if n.masquerade && n.lease6.IsValid() {
		notes = append(notes, "egress is IPv4 only: a host cannot forward IPv6 for tenants alone")
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
		return "it is not IPv4; an IPv6 lease belongs in lease6"
	case lease != lease.Masked():
		return fmt.Sprintf("it has bits beyond its length; meant is %s", lease.Masked())
	case lease.Bits() < 8 || lease.Bits() > 31:
		return "its length is outside of 8-31" // flannel reads no /32
	}
	return ""
}

// lease6Fault is leaseFault for an IPv6 lease, which may be missing.
func lease6Fault(lease netip.Prefix, longest int) string {
	switch {
	case lease == netip.Prefix{}:
		return ""
	case !lease.IsValid() || !lease.Addr().Is6() || lease.Addr().Is4In6():
		return "it is not IPv6"
	case lease != lease.Masked():
		return fmt.Sprintf("it has bits beyond its length; meant is %s", lease.Masked())
	case lease.Bits() < 8 || lease.Bits() > longest:
		return fmt.Sprintf("its length is outside of 8-%d", longest)
	case lease.Addr().IsMulticast() || lease.Addr().IsLinkLocalUnicast():
		return "it is not routed"
	}
	return ""
}

// parseMAC accepts only unicast addresses.
func parseMAC(s api.MAC) (m mac, ok bool) {
	parsed, err := api.ParseMAC(string(s))
	if err != nil {
		return m, false
	}
	hw := parsed.HardwareAddr()
	copy(m[:], hw)
	return m, m != mac{} && m[0]&1 == 0
}

// sourceOf chooses the source address of VXLAN packets: the underlay's first one of
// the peers' family.
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
	overhead := inet.VXLANOverhead(source)
	if u.encrypted {
		overhead += inet.WireGuardOverhead(source)
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
		return most, []string{fmt.Sprintf("MTU %d does not fit underlay %s (%d less %d of headers): using %d", asked, u.name, u.mtu, overhead, most)}, nil
	}
	return asked, nil, nil
}

// checkPeers leaves out peers that conflict with others, with a note for each.
func checkPeers(list []api.NetworkPeer, n network, u underlay) (peers []peer, notes []string) {
	gateways := map[netip.Addr]string{n.lease.Addr(): "this host"}
	vteps := map[mac]peer{n.mac: {host: "this host"}}
	if n.lease6.IsValid() {
		gateways[n.lease6.Addr()] = "this host"
	}
	for _, p := range list {
		got := peer{host: p.Host, lease: p.Lease, lease6: p.Lease6, vtep: p.VTEP}
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
		case lease6Fault(p.Lease6, 128) != "": // a moved Guest's is its address
			fault = fmt.Sprintf("lease6 %s: %s", p.Lease6, lease6Fault(p.Lease6, 128))
		case p.Lease6.IsValid() && gateways[p.Lease6.Addr()] != "":
			fault = fmt.Sprintf("its lease6 %s begins where that of %s does", p.Lease6, gateways[p.Lease6.Addr()])
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
		if !n.lease6.IsValid() {
			got.lease6 = netip.Prefix{} // the namespace has no IPv6
		}
		gateways[p.Lease.Addr()], vteps[m] = p.Host, got
		if p.Lease6.IsValid() {
			gateways[p.Lease6.Addr()] = p.Host
		}
		peers = append(peers, got)
	}
	return peers, notes
}

// summary joins notes to a short message.
func summary(notes []string) string {
	const most = 3
	if more := len(notes) - most; more > 0 {
		notes = append(slices.Clone(notes[:most]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(notes, "; ")
}
