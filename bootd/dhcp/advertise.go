package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/ipv6"
)

// iPXE configures IPv6 along with IPv4, and boots only when both have finished.
// Without an IPv6 router that takes 18 s (iPXE 1.0.0+git-20190125, measured),
// most of a BIOS machine's time to the boot script. So an iPXE that has just
// received an IPv4 answer, and then solicits a router, is sent an advertisement
// by a router that offers nothing: lifetime 0, no prefix, no DHCPv6 (RFC 4861
// §4.2). It goes to that machine only and does not affect the advertisements of
// a real router.

// advertiser answers router solicitations on one interface.
type advertiser struct {
	conn  *ipv6.PacketConn
	index int
}

const (
	routerSolicitation  = 133
	routerAdvertisement = 134
	sourceLinkLayer     = 1 // RFC 4861 §4.6.1
)

// openAdvertiser returns an error when IPv6 is disabled.
func openAdvertiser(ctx context.Context, l *link) (*advertiser, error) {
	config := net.ListenConfig{Control: bindToDevice(l.name)}
	conn, err := config.ListenPacket(ctx, "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	a := &advertiser{ipv6.NewPacketConn(conn), l.index}
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(routerSolicitation)
	allRouters := &net.IPAddr{IP: net.ParseIP("ff02::2")}
	err = errors.Join(
		a.conn.SetICMPFilter(&only),
		a.conn.SetControlMessage(ipv6.FlagHopLimit, true),
		a.conn.SetHopLimit(255), // proves to the receiver that no router forwarded it
		a.conn.JoinGroup(&net.Interface{Index: l.index, Name: l.name}, allRouters),
	)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return a, nil
}

// run answers clients in recent, until reads are stopped.
func (a *advertiser) run(recent *recentMACs) error {
	b := make([]byte, maxPacket)
	for {
		n, cm, from, err := a.conn.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read router solicitations: %w", err)
		}
		mac, ok := solicitor(b[:n])
		if !ok || cm == nil || cm.HopLimit != 255 || !recent.has(mac) {
			continue
		}
		// The client solicits again if the advertisement is lost.
		_, _ = a.conn.WriteTo(advertisement(), &ipv6.ControlMessage{IfIndex: a.index}, from)
	}
}

// solicitor returns the sender's hardware address from a router solicitation.
func solicitor(b []byte) (mac [6]byte, ok bool) {
	if len(b) < 8 || b[0] != routerSolicitation {
		return mac, false
	}
	for options := b[8:]; len(options) >= 8; {
		size := int(options[1]) * 8
		if size == 0 || size > len(options) {
			return mac, false
		}
		if options[0] == sourceLinkLayer && size == 8 {
			return [6]byte(options[2:8]), true
		}
		options = options[size:]
	}
	return mac, false
}

// advertisement is sixteen bytes, all that is not set meaning "unspecified". The kernel fills in the checksum.
func advertisement() []byte {
	b := make([]byte, 16)
	b[0] = routerAdvertisement
	return b
}

// recentMACs remembers for a minute which clients run iPXE and are on the
// segment. The zero value is empty.
type recentMACs struct {
	mu   sync.Mutex
	seen map[[6]byte]time.Time
}

func (r *recentMACs) add(c Client) {
	const limit = 4096 // forged MACs can only make others wait
	if c.Kind != IPXE || c.Relay != (netip.Addr{}) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil || len(r.seen) >= limit {
		r.seen = map[[6]byte]time.Time{}
	}
	r.seen[[6]byte(c.MAC)] = time.Now()
}

func (r *recentMACs) has(mac [6]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.seen[mac]
	return ok && time.Since(t) < time.Minute
}
