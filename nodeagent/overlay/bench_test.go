package overlay

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

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

// BenchmarkPorts is a pass over a Network with a hundred guests on this host
// that finds nothing to do, and the attaching of one more.
func BenchmarkPorts(b *testing.B) {
	f := newFabric(b, 1, false)
	h := f.hosts[0]
	part := f.part(red(), 1)
	h.reconcile(part)
	port := func(i int) nodeagent.Port {
		return nodeagent.Port{Network: "red", Guest: fmt.Sprint("g", i), UID: fmt.Sprint("many-", i), MAC: api.MAC(fmt.Sprintf("02:00:00:01:00:%02x", i)),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 5, 1, byte(2 * i)})}}
	}
	const guests = 100
	for i := range guests {
		at, err := h.overlay.Attach(b.Context(), port(i+1))
		must(b, err)
		b.Cleanup(func() { _ = at.Tap.Close() })
		h.ports = append(h.ports, port(i+1))
	}
	h.overlay.SetPorts(h.ports)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			h.reconcile(part)
		}
	})
	b.Run("attach", func(b *testing.B) {
		for b.Loop() {
			at, err := h.overlay.Attach(b.Context(), port(guests+1))
			must(b, err)
			must(b, at.Tap.Close())
		}
	})
}

// BenchmarkTapFilter is TCP from a guest to its gateway, through a veth pair
// that bears a tap's name, without a filter and with one.
func BenchmarkTapFilter(b *testing.B) {
	for _, filtered := range []bool{false, true} {
		b.Run(fmt.Sprint("filtered=", filtered), func(b *testing.B) {
			f := newFabric(b, 1, false)
			h := f.hosts[0]
			f.reconcile(red())
			g, addr := f.guest(red(), 1, 8)
			nic, err := g.LinkByName("eth0")
			must(b, err)
			p := h.tenant(red())
			if filtered {
				port := nodeagent.Port{Network: "red", Guest: "g", UID: "g", MAC: api.MAC(nic.Attrs().HardwareAddr.String()), Addresses: []netip.Addr{addr}}
				end, err := p.LinkByName("tap8")
				must(b, err)
				must(b, p.LinkSetName(end, tapName("g")))
				h.overlay.SetPorts([]nodeagent.Port{port})
				f.reconcile(red())
			}
			gateway := netip.AddrPortFrom(first(red().lease(1)), 80).String()
			sink(b, p, gateway)
			var c net.Conn
			must(b, within(g.ns, func() (err error) {
				c, err = net.Dial("tcp4", gateway)
				return err
			}))
			defer func() { _ = c.Close() }()
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				_, err := c.Write(buf)
				must(b, err)
			}
		})
	}
}

// sink takes what one TCP connection brings.
func sink(b *testing.B, p place, address string) {
	b.Helper()
	var listener net.Listener
	must(b, within(p.ns, func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	}))
	var taker sync.WaitGroup
	taker.Go(func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = io.Copy(io.Discard, c)
	})
	b.Cleanup(func() { _ = listener.Close(); taker.Wait() })
}
