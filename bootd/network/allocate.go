package network

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/bootd/store"
)

// cooling is how long a VNI is not chosen again after its Network was removed: longer than a stock flanneld keeps
// a lease (24 h), so that a disconnected one never ends up in another tenant's Network.
const cooling = 48 * time.Hour

// freeVNI chooses the lowest VNI of the range that no Network has or has had recently; false when there is none.
func freeVNI(r api.VNIRange, claims map[uint32]store.VNIClaim, now time.Time) (uint32, bool) {
	for vni := r.Low; vni <= r.High && vni != 0; vni++ {
		c, taken := claims[vni]
		if !taken || !c.Freed.IsZero() && now.Sub(c.Freed) >= cooling {
			return vni, true
		}
	}
	return 0, false
}

// freeSubnets chooses up to n host subnets that overlap none of the taken ones, the lowest first. Like flannel
// (CheckNetworkConfig and allocateSubnet) it skips the first subnet of each CIDR, whose first address is the
// CIDR's own.
func freeSubnets(cidrs []netip.Prefix, bits, n int, taken []netip.Prefix) []netip.Prefix {
	var free []netip.Prefix
	used := spans(taken)
	size := uint64(1) << (32 - bits)
	for _, c := range ipv4(cidrs) {
		all := spanOf(c)
		for at := all.first + size; at+size <= all.end && len(free) < n; {
			// The first used span that ends after at.
			i, _ := slices.BinarySearchFunc(used, at, func(s span, at uint64) int { return cmp.Compare(s.end, at+1) })
			if i < len(used) && used[i].first < at+size {
				at = (used[i].end + size - 1) / size * size
				continue
			}
			p := span{at, at + size}
			free = append(free, p.prefix(bits))
			at = p.end
		}
	}
	return free
}

// freeSubnets6 chooses up to n IPv6 host subnets that overlap none of the taken
// ones, the lowest first, and skips the first of the CIDR as with IPv4.
func freeSubnets6(cidr netip.Prefix, bits, n int, taken []netip.Prefix) []netip.Prefix {
	used := map[netip.Prefix]bool{}
	var larger []netip.Prefix // of another length than they would get now: rare
	for _, t := range taken {
		if t.Bits() < bits {
			larger = append(larger, t)
		} else {
			used[netip.PrefixFrom(t.Addr(), bits).Masked()] = true
		}
	}
	var free []netip.Prefix
	for p := following(netip.PrefixFrom(cidr.Addr(), bits)); cidr.Contains(p.Addr()) && len(free) < n; p = following(p) {
		if i := slices.IndexFunc(larger, p.Overlaps); i >= 0 {
			p = netip.PrefixFrom(lastOf(larger[i]), bits).Masked()
		} else if !used[p] {
			free = append(free, p)
		}
	}
	return free
}

// following is the next prefix of the same length after p; invalid after the last.
func following(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(lastOf(p).Next(), p.Bits()) }

// lastOf is the last address of an IPv6 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Addr().As16()
	for i := p.Bits(); i < 128; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom16(a)
}

// span is the addresses from first to before end.
type span struct{ first, end uint64 }

func spanOf(p netip.Prefix) span {
	a := p.Masked().Addr().As4()
	first := uint64(binary.BigEndian.Uint32(a[:]))
	return span{first, first + 1<<(32-p.Bits())}
}

func (s span) prefix(bits int) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(s.first))
	return netip.PrefixFrom(netip.AddrFrom4(a), bits)
}

// spans are prefixes in order, without those inside others.
func spans(prefixes []netip.Prefix) []span {
	var all []span
	for _, p := range prefixes {
		all = append(all, spanOf(p))
	}
	slices.SortFunc(all, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.end, a.end))
	})
	outer := all[:0]
	for _, s := range all {
		if len(outer) == 0 || s.first >= outer[len(outer)-1].end {
			outer = append(outer, s)
		}
	}
	return outer
}

// overlaps reports whether a prefix has addresses of any span.
func overlaps(sorted []span, p netip.Prefix) bool {
	s := spanOf(p)
	i, _ := slices.BinarySearchFunc(sorted, s.first, func(x span, at uint64) int { return cmp.Compare(x.end, at+1) })
	return i < len(sorted) && sorted[i].first < s.end
}

// Overlap reports whether two lists of CIDRs have an address in common.
func Overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool { return slices.ContainsFunc(b, p.Overlaps) })
}

// within reports whether a lease was cut from the CIDRs.
func within(cidrs []netip.Prefix, lease netip.Prefix) bool {
	return slices.ContainsFunc(cidrs, func(c netip.Prefix) bool {
		return c.Bits() <= lease.Bits() && c.Contains(lease.Addr())
	})
}

// comparePrefix is the order of peers in a HostSpec part: both ends of a delta
// must come to the same bytes.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
