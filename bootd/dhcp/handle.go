package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// inbound is one received packet. Its buffer has room for one more byte.
type inbound struct {
	data  []byte
	from  netip.AddrPort
	local netip.Addr // the destination address, if it is one of ours
	link  *link
	boot  bool // on port 4011
}

// outbound is one reply. With mac set, it is sent to that hardware address
// without ARP.
type outbound struct {
	data []byte
	to   netip.AddrPort
	src  netip.Addr
	mac  net.HardwareAddr
}

var (
	errBadPacket  = errors.New("malformed")
	errNotForUs   = errors.New("for another server")
	errNoBootfile = errors.New("nothing to boot")
)

func broadcast() netip.Addr { return netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

// handle answers one packet. A reply without data means no answer; the error,
// if any, says why.
func (s *Server) handle(ctx context.Context, in inbound) (outbound, error) {
	req, err := parse(in.data)
	if err != nil {
		s.metrics.packet("malformed")
		return outbound{}, errBadPacket
	}
	s.metrics.packet(typeName(req.MessageType()))
	c := newClient(req)
	c.Interface, c.Index = in.link.name, in.link.index
	c.Source, c.Unicast = in.from.Addr(), in.local.IsValid()
	c.Local = in.local
	if !c.Local.IsValid() {
		c.Local = in.link.primary()
	}
	if id := toAddr(req.Options[dhcpv4.OptionServerIdentifier.Code()]); id.IsValid() && !s.isOurs(id, req) {
		return outbound{}, errNotForUs
	}

	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	if in.boot {
		return s.bootRequest(ctx, in, req, c)
	}
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(ctx, in, req, c)
	case dhcpv4.MessageTypeRequest:
		return s.request(ctx, in, req, c)
	case dhcpv4.MessageTypeInform:
		return s.inform(ctx, in, req, c)
	case dhcpv4.MessageTypeRelease:
		if !c.ClientAddr.IsValid() {
			return outbound{}, errBadPacket
		}
		return outbound{}, s.decider.Release(ctx, c, c.ClientAddr)
	case dhcpv4.MessageTypeDecline:
		if !c.Requested.IsValid() {
			return outbound{}, errBadPacket
		}
		return outbound{}, s.decider.Decline(ctx, c, c.Requested)
	default: // also plain BOOTP, which has no message type
		return outbound{}, errNotForUs
	}
}

// parse accepts requests of Ethernet clients, also without an end mark, which
// some ROMs omit.
func parse(data []byte) (*dhcpv4.DHCPv4, error) {
	p, err := dhcpv4.FromBytes(append(data, dhcpv4.OptionEnd.Code()))
	if err != nil {
		return nil, err
	}
	mac := p.ClientHWAddr
	if p.OpCode != dhcpv4.OpcodeBootRequest || p.HWType != iana.HWTypeEthernet || len(mac) != 6 {
		return nil, errBadPacket
	}
	if mac[0]&1 != 0 || slices.Equal(mac, make([]byte, 6)) { // not a unicast address
		return nil, errBadPacket
	}
	return p, nil
}

func (s *Server) discover(ctx context.Context, in inbound, req *dhcpv4.DHCPv4, c Client) (outbound, error) {
	a, err := s.decider.Offer(ctx, c)
	if err != nil {
		return outbound{}, err
	}
	s.ipxe.add(c)
	server := serverID(in, req, c, a)
	r := newReply(req, dhcpv4.MessageTypeOffer, server)
	if a.Address.IsValid() {
		addLease(r, a)
		addNetwork(r, a)
		addBoot(r, c, a.Boot, false)
		return s.send(in, req, r, server), nil
	}
	if c.Kind == None || a.Boot.Filename == "" && !c.Pi {
		return outbound{}, errNoBootfile
	}
	addBoot(r, c, a.Boot, true)
	return s.send(in, req, r, server), nil
}

func (s *Server) request(ctx context.Context, in inbound, req *dhcpv4.DHCPv4, c Client) (outbound, error) {
	addr := c.Requested
	if !addr.IsValid() {
		addr = c.ClientAddr
	}
	if !addr.IsValid() {
		return outbound{}, errBadPacket
	}
	a, err := s.decider.Request(ctx, c, addr)
	var refusal *Refusal
	if errors.As(err, &refusal) {
		server := serverID(in, req, c, Answer{})
		return s.send(in, req, newNAK(req, server, refusal.Reason), server), nil
	}
	if err != nil {
		return outbound{}, err
	}
	if a.Address != addr {
		return outbound{}, errors.New("the decider granted " + a.Address.String() + " instead of " + addr.String())
	}
	server := serverID(in, req, c, a)
	r := newReply(req, dhcpv4.MessageTypeAck, server)
	r.ClientIPAddr = req.ClientIPAddr
	addLease(r, a)
	addNetwork(r, a)
	addBoot(r, c, a.Boot, false)
	return s.send(in, req, r, server), nil
}

// inform answers with everything but an address and its times (RFC 2131 §4.3.5).
func (s *Server) inform(ctx context.Context, in inbound, req *dhcpv4.DHCPv4, c Client) (outbound, error) {
	if !c.ClientAddr.IsValid() {
		return outbound{}, errBadPacket
	}
	a, err := s.decider.Inform(ctx, c)
	if err != nil {
		return outbound{}, err
	}
	server := serverID(in, req, c, a)
	r := newReply(req, dhcpv4.MessageTypeAck, server)
	r.ClientIPAddr = req.ClientIPAddr
	addNetwork(r, a)
	addBoot(r, c, a.Boot, false)
	return s.send(in, req, r, server), nil
}

// bootRequest answers on port 4011. The client has an address, so the reply
// goes to the request's source: port 4011 for UEFI, 68 for some BIOS ROMs.
func (s *Server) bootRequest(ctx context.Context, in inbound, req *dhcpv4.DHCPv4, c Client) (outbound, error) {
	t := req.MessageType()
	if t != dhcpv4.MessageTypeRequest && t != dhcpv4.MessageTypeInform || c.Kind == None {
		return outbound{}, errNotForUs
	}
	if a := in.from.Addr(); !a.Is4() || a.IsUnspecified() || a == broadcast() {
		return outbound{}, errBadPacket
	}
	b, err := s.decider.Boot(ctx, c)
	if err != nil {
		return outbound{}, err
	}
	if b.Filename == "" && !c.Pi {
		return outbound{}, errNoBootfile
	}
	server := serverID(in, req, c, Answer{})
	r := newReply(req, dhcpv4.MessageTypeAck, server)
	r.ClientIPAddr = req.ClientIPAddr
	addBoot(r, c, b, true)
	echoBootItem(r, req)
	s.metrics.reply(typeName(dhcpv4.MessageTypeAck))
	return outbound{data: encode(r, req), to: in.from, src: server}, nil
}

// send addresses a reply by RFC 2131 §4.1.
func (s *Server) send(in inbound, req, r *dhcpv4.DHCPv4, server netip.Addr) outbound {
	s.metrics.reply(typeName(r.MessageType()))
	out := outbound{data: encode(r, req), src: in.link.source(server, in.local)}
	relay, client, yours := toAddr(req.GatewayIPAddr), toAddr(req.ClientIPAddr), toAddr(r.YourIPAddr)
	switch {
	case relay.IsValid():
		out.to = netip.AddrPortFrom(relay, serverPort)
	case r.MessageType() == dhcpv4.MessageTypeNak:
		out.to = netip.AddrPortFrom(broadcast(), clientPort)
	case client.IsValid():
		out.to = netip.AddrPortFrom(client, clientPort)
	case req.IsBroadcast() || !yours.IsValid() || !in.link.canUnicast():
		out.to = netip.AddrPortFrom(broadcast(), clientPort)
	default:
		out.to = netip.AddrPortFrom(yours, clientPort)
		out.mac = r.ClientHWAddr
	}
	return out
}

// serverID returns the server identifier of the reply. A relay may ask to be
// named instead (RFC 5107), so that renewals pass through it too.
func serverID(in inbound, req *dhcpv4.DHCPv4, c Client, a Answer) netip.Addr {
	if id := override(req); id.IsValid() && c.Relay.IsValid() {
		return id
	}
	if a.Server.IsValid() {
		return a.Server
	}
	if !c.Relay.IsValid() && !in.local.IsValid() && a.Prefix.IsValid() {
		if own := in.link.inside(a.Prefix); own.IsValid() {
			return own
		}
	}
	return c.Local
}

func override(req *dhcpv4.DHCPv4) netip.Addr {
	info := req.RelayAgentInfo()
	if info == nil {
		return netip.Addr{}
	}
	return toAddr(info.Get(dhcpv4.ServerIdentifierOverrideSubOption))
}

// isOurs reports whether a client that names a server means this one.
func (s *Server) isOurs(id netip.Addr, req *dhcpv4.DHCPv4) bool {
	if slices.Contains(s.cfg.ServerIDs, id) {
		return true
	}
	for _, l := range s.links {
		if l.has(id) {
			return true
		}
	}
	return id == override(req)
}

// typeName is the message type as a metric label: one of a few.
func typeName(t dhcpv4.MessageType) string {
	switch t {
	case dhcpv4.MessageTypeNone:
		return "bootp"
	case dhcpv4.MessageTypeDiscover:
		return "discover"
	case dhcpv4.MessageTypeOffer:
		return "offer"
	case dhcpv4.MessageTypeRequest:
		return "request"
	case dhcpv4.MessageTypeDecline:
		return "decline"
	case dhcpv4.MessageTypeAck:
		return "ack"
	case dhcpv4.MessageTypeNak:
		return "nak"
	case dhcpv4.MessageTypeRelease:
		return "release"
	case dhcpv4.MessageTypeInform:
		return "inform"
	default:
		return "other"
	}
}

// dropReason is an error as a metric label: one of a few.
func dropReason(err error) string {
	var refusal *Refusal
	switch {
	case errors.Is(err, errBadPacket):
		return "malformed"
	case errors.Is(err, errNotForUs):
		return "other_server"
	case errors.Is(err, ErrNotMine):
		return "not_mine"
	case errors.Is(err, errNoBootfile):
		return "no_boot_file"
	case errors.As(err, &refusal):
		return "refused"
	default:
		return "error"
	}
}

// work answers packets until the queue is closed.
func (s *Server) work(ctx context.Context) {
	for in := range s.queue {
		start := time.Now()
		out, err := s.handle(ctx, in)
		if err != nil {
			s.dropped(in, err)
		} else if out.data != nil {
			err = in.link.send(out, in.boot)
			s.sent(out, err)
		}
		s.metrics.latency.Observe(time.Since(start).Seconds())
		s.buffers.Put(&in.data)
	}
}

// dropped counts every packet without an answer, and logs those that point at a fault here.
func (s *Server) dropped(in inbound, err error) {
	reason := dropReason(err)
	s.metrics.drop(reason)
	if reason == "error" && s.complaints.Allow() {
		s.cfg.Log.Warn("dhcp: no answer", "interface", in.link.name, "from", in.from, "error", err)
	}
}

func (s *Server) sent(out outbound, err error) {
	if err == nil {
		return
	}
	s.metrics.drop("send_failed")
	if s.complaints.Allow() {
		s.cfg.Log.Warn("dhcp: sending a reply failed", "to", out.to, "error", err)
	}
}
