package overlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/inet"
)

// The words that probes carry: a frame that a guest hears with the first of
// them was sent by another of its Network; the others are to be heard nowhere.
const (
	wordOwn     = "own"
	wordSpoofed = "spoofed"
	wordTunnel  = "tunnelled"
	wordForeign = "stranger"
)

func (g *testGuest) word(word string) []byte {
	return []byte(fmt.Sprintf("<%s %s %s>", word, g.port.Network, g.addr))
}

// Guests of twenty Networks with the same CIDR and the same leases, on three
// hosts, hear their own Network and nothing of the others, whatever is sent:
// to one, to all, by ARP, with the MAC or the address of somebody else, or
// inside a VXLAN of their own making.
func TestNoLeaks(t *testing.T) {
	count := 20
	if testing.Short() {
		count = 3
	}
	f := newFabric(t, 3, false)
	var networks []tenant
	for i := range count {
		networks = append(networks, tenant{name: fmt.Sprint("t", i), uid: fmt.Sprint("uid-", i), vni: uint32(2000 + i), second: 5, third: byte(i % 3)})
	}
	f.reconcile(networks...)
	var guests []*testGuest
	for _, n := range networks {
		for i := range f.hosts {
			b := n.lease(i + 1).Addr().As4()
			b[3] = 8
			guests = append(guests, f.plugInSoon(n, i+1, netip.AddrFrom4(b)))
		}
	}
	var addresses []netip.Addr
	for _, g := range guests {
		f.awaitGateway(g.place, g.addr)
		if !slices.Contains(addresses, g.addr) {
			addresses = append(addresses, g.addr)
		}
	}
	stranger := f.stranger()
	for _, n := range networks {
		for i, h := range f.hosts {
			vtep, ok := parseMAC(n.mac(i + 1))
			if !ok {
				t.Fatal(n.mac(i + 1))
			}
			sendTo(t, stranger, netip.AddrPortFrom(h.underlay, Port), vxlanPacket(n.vni, vtep, netip.AddrFrom4([4]byte{10, 5, 1, 9}), addresses[i], "<"+wordForeign+">"))
		}
	}
	for i, g := range guests {
		for _, frame := range g.attacks(guests[(i+1)%len(guests)], f.hosts, networks, addresses) {
			must(t, g.send(frame))
		}
		send(t, g.place, string(g.word(wordOwn)), addresses)
	}
	for _, to := range guests {
		to.hearsItsOwn(guests)
	}
	for _, to := range guests {
		to.heardOnlyItsOwn()
	}
}

// attacks are frames of which none is to be heard by any guest. victim is of
// another Network, or on another host.
func (g *testGuest) attacks(victim *testGuest, hosts []*testHost, networks []tenant, addresses []netip.Addr) (frames [][]byte) {
	gateway := gatewayMAC()
	all := mac{255, 255, 255, 255, 255, 255}
	ip := func(to, from mac, source, target netip.Addr, word string) []byte {
		return ethernet(to, from, etherIPv4, checksummed(ipv4Packet(source, target, unix.IPPROTO_UDP, udpDatagram(probePort, probePort, g.word(word)))))
	}
	for _, target := range []string{"255.255.255.255", "224.0.0.251", "10.5.255.255"} {
		frames = append(frames, ip(all, g.mac, g.addr, netip.MustParseAddr(target), wordSpoofed),
			ip(mac{1, 0, 0x5e, 0, 0, 0xfb}, g.mac, g.addr, netip.MustParseAddr(target), wordSpoofed))
	}
	for _, target := range addresses {
		frames = append(frames,
			ethernet(all, g.mac, unix.ETH_P_ARP, arpPacket(1, g.mac, g.addr, target)),
			ethernet(all, g.mac, unix.ETH_P_ARP, arpPacket(2, g.mac, target, target)),
			ip(gateway, victim.mac, g.addr, target, wordSpoofed), // the MAC of another
			ip(victim.mac, g.mac, g.addr, target, wordSpoofed))   // past the gateway
		if g.addr != victim.addr {
			frames = append(frames, ip(gateway, g.mac, victim.addr, target, wordSpoofed)) // the address of another
		}
	}
	for i, h := range hosts {
		for _, n := range networks {
			vtep, _ := parseMAC(n.mac(i + 1))
			packet := vxlanPacket(n.vni, vtep, g.addr, addresses[i], string(g.word(wordTunnel)))
			frames = append(frames, ethernet(gateway, g.mac, etherIPv4,
				checksummed(ipv4Packet(g.addr, h.underlay, unix.IPPROTO_UDP, udpDatagram(Port, Port, packet)))))
		}
	}
	return frames
}

// stranger is a machine on the underlay that is no VTEP.
func (f *fabric) stranger() place {
	p := f.namespace("stranger")
	f.plug(p, "eth0", f.bridge, "stranger", "br0")
	h := &testHost{place: p, fabric: f}
	h.address("eth0", netip.MustParsePrefix("198.18.0.200/24"))
	return p
}

func (g *testGuest) hearsItsOwn(guests []*testGuest) {
	t := g.host.fabric.t
	t.Helper()
	for _, from := range guests {
		if from.port.Network != g.port.Network || from == g {
			continue
		}
		heard := func() bool {
			return slices.ContainsFunc(g.heard(), func(frame []byte) bool { return bytes.Contains(frame, from.word(wordOwn)) })
		}
		for deadline := time.Now().Add(patience); !heard(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("%s in %s never heard %s", g.addr, g.port.Network, from.addr)
				break
			}
		}
	}
}

func (g *testGuest) heardOnlyItsOwn() {
	t := g.host.fabric.t
	t.Helper()
	gateway := gatewayMAC()
	own := []byte("<" + wordOwn + " " + g.port.Network + " ")
	for _, frame := range g.heard() {
		arp := binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_ARP
		if at := bytes.LastIndexByte(frame, '<'); at > 0 && bytes.HasSuffix(frame, []byte(">")) && !bytes.HasPrefix(frame[at:], own) {
			t.Errorf("%s in %s heard %q: a leak", g.addr, g.port.Network, frame[at:])
		}
		if !bytes.Equal(frame[6:12], gateway[:]) || arp && !bytes.Equal(frame[22:28], gateway[:]) {
			t.Errorf("%s in %s heard %x from another than its gateway", g.addr, g.port.Network, frame)
		}
	}
}

// checksummed is an IPv4 packet with the checksum of its header (RFC 791
// §3.1), without which it would be dropped for that reason.
func checksummed(packet []byte) []byte {
	binary.BigEndian.PutUint16(packet[10:], inet.Checksum(0, packet[:20]))
	return packet
}
