package overlay

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// manyPeers is a Network with as many hosts besides this one.
func manyPeers(n tenant, count int) nodeagent.Part {
	value := &api.NetworkPart{UID: n.uid, VNI: n.vni, MTU: 1450, MAC: n.mac(1), Lease: netip.MustParsePrefix("10.200.0.0/24")}
	for i := range count {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		value.Peers = append(value.Peers, api.NetworkPeer{Host: fmt.Sprintf("p%d", i), Lease: netip.PrefixFrom(a, 24),
			VTEP: netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}), MAC: api.MAC(fmt.Sprintf("02:00:00:01:%02x:%02x", byte(i>>8), byte(i)))})
	}
	return nodeagent.Part{Name: api.NetworkPartName(n.name), UID: n.uid, Digest: fmt.Sprint(count), Value: value}
}

var peerCounts = []int{1000, 5000, 10000}

// BenchmarkProgram is the time from a part with so many new peers to a kernel
// that has them.
func BenchmarkProgram(b *testing.B) {
	for _, count := range peerCounts {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			h := newFabric(b, 1, false).hosts[0]
			none, many := manyPeers(red(), 0), manyPeers(red(), count)
			for b.Loop() {
				b.StopTimer()
				h.reconcile(none)
				b.StartTimer()
				h.reconcile(many)
			}
		})
	}
}

// BenchmarkUnchanged is a full list and diff that finds nothing to do.
func BenchmarkUnchanged(b *testing.B) {
	for _, count := range peerCounts {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			h := newFabric(b, 1, false).hosts[0]
			many := manyPeers(red(), count)
			h.reconcile(many)
			for b.Loop() {
				h.reconcile(many)
			}
		})
	}
}

// BenchmarkFlannelModel programs the same peers as flannel's backend does: a
// socket per call, and a gateway in every route.
func BenchmarkFlannelModel(b *testing.B) {
	for _, count := range peerCounts {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			h := newFabric(b, 1, false).hosts[0]
			part := manyPeers(red(), count).Value.(*api.NetworkPart)
			for b.Loop() {
				b.StopTimer()
				h.reconcile(manyPeers(red(), 0))
				p := h.tenant(red())
				l, err := p.LinkByName(vxlanName(101))
				must(b, err)
				b.StartTimer()
				must(b, within(p.ns, func() error { return flannelPeers(l.Attrs().Index, part.Peers) }))
				b.StopTimer()
				must(b, p.LinkDel(l))
				b.StartTimer()
			}
		})
	}
}

// flannelPeers is pkg/backend/vxlan/{device,vxlan_network}.go of flannel v0.26.
func flannelPeers(index int, peers []api.NetworkPeer) error {
	for _, p := range peers {
		gateway, hw := p.Lease.Addr().AsSlice(), p.MAC.HardwareAddr()
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: gateway, HardwareAddr: hw}); err != nil {
			return err
		}
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: p.VTEP.AsSlice(), HardwareAddr: hw}); err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_UNIVERSE, Dst: ipNet(p.Lease), Gw: gateway}
		r.SetFlag(unix.RTNH_F_ONLINK)
		if err := netlink.RouteReplace(r); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkNetworks is a pass over 500 Networks of three hosts: the first,
// which makes them, and those after it, which find nothing to do.
func BenchmarkNetworks(b *testing.B) {
	const count = 500
	f := newFabric(b, 3, false)
	var parts []nodeagent.Part
	var tombstones []nodeagent.Part
	for i := range count {
		n := tenant{name: fmt.Sprint("t", i), uid: fmt.Sprint("uid-", i), vni: uint32(2000 + i), second: 5}
		parts, tombstones = append(parts, f.part(n, 1)), append(tombstones, removed(n))
	}
	b.Run("made", func(b *testing.B) {
		for b.Loop() {
			f.hosts[0].reconcile(parts...)
			b.StopTimer()
			f.hosts[0].reconcile(tombstones...)
			b.StartTimer()
		}
	})
	f.hosts[0].reconcile(parts...)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			f.hosts[0].reconcile(parts...)
		}
	})
}
