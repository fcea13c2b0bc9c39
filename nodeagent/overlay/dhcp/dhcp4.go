package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// A guest keeps its address for life. Leases are long, so that guests keep them while
// the agent is down, and renewed early, so that changed options reach the guests.
const (
	leaseTime  = 7 * 24 * time.Hour
	renewTime  = 12 * time.Hour
	rebindTime = 6 * 24 * time.Hour
)

// maxReply is the size that every client accepts: 576 bytes (RFC 2131 §2) with IP and
// UDP headers.
const maxReply = 576 - ipv4Header - udpHeader

// reply4 is an answer to a DHCPv4 client.
type reply4 struct {
	data []byte
	to   netip.Addr // of IP
	mac  MAC
}

var errNotServed = errors.New("no guest of this Network on this host has this MAC")

// answer4 answers a DHCPv4 message from a MAC. It returns nil if no answer is due, and
// an error if the request is refused.
func (t *table) answer4(from MAC, b []byte) (*reply4, error) {
	g, known := t.byMAC[from]
	if !known {
		return nil, errNotServed
	}
	req, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("cannot parse it: %w", err)
	}
	addr := g.address()
	switch {
	case req.OpCode != dhcpv4.OpcodeBootRequest || req.HWType != iana.HWTypeEthernet:
		return nil, errors.New("not a request of an Ethernet client")
	case string(req.ClientHWAddr) != string(from[:]):
		return nil, fmt.Errorf("it requests an address for %s", req.ClientHWAddr)
	case isSet(req.GatewayIPAddr):
		return nil, errors.New("it was relayed: guests must be on the link")
	case !addr.IsValid():
		return nil, errors.New("the guest has no IPv4 address")
	case isSet(req.ServerIdentifier()) && !req.ServerIdentifier().Equal(Gateway4().AsSlice()):
		return nil, nil // it chose another server
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return t.lease(req, g, dhcpv4.MessageTypeOffer)
	case dhcpv4.MessageTypeRequest:
		return t.request(req, g)
	case dhcpv4.MessageTypeInform:
		if !isAddr(req.ClientIPAddr, addr) {
			return nil, fmt.Errorf("its INFORM is for %s, not for its address %s", req.ClientIPAddr, addr)
		}
		return t.lease(req, g, dhcpv4.MessageTypeAck)
	case dhcpv4.MessageTypeDecline:
		return nil, fmt.Errorf("it declines %s: something else answers ARP for it", addr)
	}
	return nil, nil // a released address stays the guest's
}

// request acknowledges the guest's own address and refuses others (RFC 2131 §4.3.2).
func (t *table) request(req *dhcpv4.DHCPv4, g *Guest) (*reply4, error) {
	asked := req.RequestedIPAddress()
	if !isSet(asked) {
		asked = req.ClientIPAddr
	}
	if isAddr(asked, g.address()) {
		return t.lease(req, g, dhcpv4.MessageTypeAck)
	}
	r, err := newReply(req, dhcpv4.MessageTypeNak)
	if err != nil {
		return nil, err
	}
	r.ClientIPAddr = net.IPv4zero
	r.UpdateOption(dhcpv4.OptMessage(fmt.Sprintf("the address of this guest is %s", g.address())))
	return send4(r, g.MAC, netip.AddrFrom4([4]byte{255, 255, 255, 255})), nil
}

// lease answers with a guest's address and options.
func (t *table) lease(req *dhcpv4.DHCPv4, g *Guest, kind dhcpv4.MessageType) (*reply4, error) {
	r, err := newReply(req, kind)
	if err != nil {
		return nil, err
	}
	addr := g.address()
	to := addr
	switch {
	case req.MessageType() == dhcpv4.MessageTypeInform: // no lease (RFC 2131 §4.3.5)
	default:
		r.YourIPAddr = addr.AsSlice()
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(leaseTime))
		r.UpdateOption(dhcpv4.OptRenewTimeValue(renewTime))
		r.UpdateOption(dhcpv4.OptRebindingTimeValue(rebindTime))
		if req.IsBroadcast() && !isSet(req.ClientIPAddr) {
			to = netip.AddrFrom4([4]byte{255, 255, 255, 255})
		}
	}
	t.tell4(r, g)
	return send4(r, g.MAC, to), nil
}

// tell4 adds the options of every answer. The gateway is outside of the /32, so it gets
// a route of its own (RFC 3442). Clients that support option 121 ignore option 3;
// others reach a router outside of their prefix if the prefix is a /32.
func (t *table) tell4(r *dhcpv4.DHCPv4, g *Guest) {
	gateway := net.IP(Gateway4().AsSlice())
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(32, 32)))
	r.UpdateOption(dhcpv4.OptRouter(gateway))
	r.UpdateOption(dhcpv4.OptClasslessStaticRoute(
		&dhcpv4.Route{Dest: &net.IPNet{IP: gateway, Mask: net.CIDRMask(32, 32)}, Router: net.IPv4zero},
		&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: gateway},
	))
	r.UpdateOption(dhcpv4.OptDNS(gateway))
	r.UpdateOption(dhcpv4.OptHostName(g.Name))
	if t.MTU >= 68 && t.MTU <= 65535 { // RFC 2132 §5.1
		r.Options[dhcpv4.OptionInterfaceMTU.Code()] = binary.BigEndian.AppendUint16(nil, uint16(t.MTU))
	}
	if t.Domain != "" {
		r.UpdateOption(dhcpv4.OptDomainName(t.Domain))
	}
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionDomainName, dhcpv4.OptionHostName} {
		if len(r.ToBytes()) > maxReply { // of a long client identifier
			r.DeleteOption(code)
		}
	}
}

func newReply(req *dhcpv4.DHCPv4, kind dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	r, err := dhcpv4.NewReplyFromRequest(req,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithServerIP(net.IPv4zero),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(Gateway4().AsSlice())))
	if err != nil {
		return nil, fmt.Errorf("reply to DHCP: %w", err)
	}
	r.ClientIPAddr = req.ClientIPAddr
	if id, ok := req.Options[dhcpv4.OptionClientIdentifier.Code()]; ok { // RFC 6842
		r.Options[dhcpv4.OptionClientIdentifier.Code()] = id
	}
	return r, nil
}

// send4 sends to the guest alone, unless it requested a broadcast.
func send4(r *dhcpv4.DHCPv4, mac MAC, to netip.Addr) *reply4 {
	if r.IsBroadcast() && to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		mac = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	return &reply4{r.ToBytes(), to, mac}
}

func isSet(ip net.IP) bool { return len(ip) > 0 && !ip.IsUnspecified() }

func isAddr(ip net.IP, a netip.Addr) bool {
	got, ok := netip.AddrFromSlice(ip)
	return ok && got.Unmap() == a
}
