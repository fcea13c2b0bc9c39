package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"
)

const (
	routerSolicitation = 133
	// routerLifetime is the longest that the field holds (RFC 8319 §4): guests must keep
	// their router while the agent is down.
	routerLifetime = 65535 * time.Second
	// advertiseEvery is the interval of unsolicited advertisements.
	advertiseEvery = 10 * time.Minute
)

func allNodes() netip.Addr { return netip.MustParseAddr("ff02::1") }

// allNodesMAC is the group's (RFC 2464 §7).
func allNodesMAC() MAC { return MAC{0x33, 0x33, 0, 0, 0, 1} }

// advertisement announces the router, addresses by DHCPv6, and no prefix on the link
// (RFC 4861 §4.2, RFC 8106 §5).
func (t *table) advertisement(router net.HardwareAddr) ([]byte, error) {
	ra := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, OtherConfiguration: true, RouterLifetime: routerLifetime,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: router},
			&ndp.RecursiveDNSServer{Lifetime: leaseTime, Servers: []netip.Addr{Gateway6()}},
		},
	}
	if t.MTU >= 1280 { // no IPv6 below (RFC 8200 §5)
		ra.Options = append(ra.Options, ndp.NewMTU(uint32(t.MTU)))
	}
	if t.Domain != "" {
		ra.Options = append(ra.Options, &ndp.DNSSearchList{Lifetime: leaseTime, DomainNames: []string{t.Domain}})
	}
	b, err := ndp.MarshalMessage(ra)
	if err != nil {
		return nil, fmt.Errorf("make a router advertisement: %w", err)
	}
	return b, nil
}
