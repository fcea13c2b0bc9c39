package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	dnsPort      = 53
	maxQuestion  = 1500 // resolver libraries never send longer ones
	ownTTL       = 30   // seconds; of guests' names
	tcpIdle      = 10 * time.Second
	questionTime = 5 * time.Second
)

// listenDNS opens both sockets at a gateway's address, in the calling thread's
// namespace. The address may come later than the sockets.
func (s *Server) listenDNS(a netip.Addr) error {
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = bindAhead(int(fd), s.bridge.Name, a) }), err)
	}}
	config.SetMultipathTCP(false)
	family := "4"
	if a.Is6() {
		family = "6"
	}
	// The scope of a link-local address is the device that the socket is bound
	// to: net's names of scopes are of one namespace only.
	at := netip.AddrPortFrom(a, dnsPort).String()
	udp, err := config.ListenPacket(context.Background(), "udp"+family, at)
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	s.udp = append(s.udp, udp.(*net.UDPConn))
	tcp, err := config.Listen(context.Background(), "tcp"+family, at)
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	s.tcp = append(s.tcp, tcp.(*net.TCPListener))
	return nil
}

func bindAhead(fd int, device string, a netip.Addr) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if a.Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	return errors.Join(unix.BindToDevice(fd, device), unix.SetsockoptInt(fd, level, option, 1))
}

// serveUDP answers questions until ctx is done, and waits for those that are
// being forwarded.
func (s *Server) serveUDP(ctx context.Context, c *net.UDPConn) error {
	var forwarding sync.WaitGroup
	defer forwarding.Wait()
	b := make([]byte, maxQuestion)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read questions on %s: %w", s.bridge.Name, err)
		}
		s.receive(ctx, c, from, b[:n], &forwarding)
	}
}

// receive answers a question at once if possible.
func (s *Server) receive(ctx context.Context, c *net.UDPConn, from netip.AddrPort, b []byte, forwarding *sync.WaitGroup) {
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	q, known := s.question(from.Addr(), b)
	if q == nil {
		return
	}
	reply := func(m *dns.Msg) {
		if packed, err := packUDP(q, m); err == nil {
			_, _ = c.WriteToUDPAddrPort(packed, from) // the client repeats the question
		}
	}
	if !known {
		reply(refuse(q, dns.RcodeRefused))
		return
	}
	guest := s.guest(from.Addr())
	if guest == nil {
		return // gone in between
	}
	if m := s.table.Load().answer(q); m != nil {
		reply(m)
		return
	}
	done, ok := s.share.forward(guest.MAC)
	if !ok {
		return
	}
	forwarding.Go(func() {
		defer done()
		reply(s.forwarded(ctx, guest, q, "udp"))
	})
}

// question parses a question. It returns nil if no answer is due; known reports whether
// the sender is a guest.
func (s *Server) question(from netip.Addr, b []byte) (q *dns.Msg, known bool) {
	guest := s.guest(from)
	if guest != nil && !s.share.question(guest.MAC) {
		return nil, true
	}
	if guest == nil && !s.complaints.Allow() {
		return nil, false // of an unknown sender: refused, at a limited rate
	}
	q = new(dns.Msg)
	if err := q.Unpack(b); err != nil || q.Response {
		return nil, guest != nil
	}
	if guest == nil {
		s.log.Warn("guests: DNS question refused: no guest of this Network on this host has this address", "bridge", s.bridge.Name, "from", from)
	}
	return q, guest != nil
}

// guest finds the guest with an address.
func (s *Server) guest(a netip.Addr) *Guest {
	t := s.table.Load()
	if !a.IsLinkLocalUnicast() || a.Is4() {
		return t.byAddr[a]
	}
	mac, err := s.seen.find(a, func() (mac MAC, err error) {
		err = s.within(func() (err error) {
			mac, err = neighbourMAC(s.bridge.Index, a)
			return err
		})
		return mac, err
	})
	if err != nil {
		return nil
	}
	return t.byMAC[mac]
}

// forwarded forwards a question to the resolvers.
func (s *Server) forwarded(ctx context.Context, g *Guest, q *dns.Msg, network string) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, questionTime)
	defer cancel()
	m, err := s.forward.ask(ctx, q, s.table.Load().Resolvers, network)
	if err != nil {
		s.complain("DNS", g.MAC, err)
		return refuse(q, dns.RcodeServerFailure)
	}
	m.Id, m.RecursionAvailable = q.Id, true
	return m
}

// serveTCP takes connections until ctx is done.
func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	for {
		c, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return fmt.Errorf("accept connections on %s: %w", s.bridge.Name, err)
		}
		if !s.take(ctx, c, &connections) {
			_ = c.Close()
		}
	}
}

// take serves a guest's connection in a goroutine of its own.
func (s *Server) take(ctx context.Context, c *net.TCPConn, connections *sync.WaitGroup) bool {
	from, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	guest := s.guest(from.AddrPort().Addr().Unmap().WithZone(""))
	if guest == nil {
		return false
	}
	done, ok := s.share.connect(guest.MAC)
	if !ok {
		return false
	}
	connections.Go(func() {
		defer done()
		defer context.AfterFunc(ctx, func() { _ = c.Close() })()
		defer func() { _ = c.Close() }()
		for s.converse(ctx, c, guest) == nil {
		}
	})
	return true
}

// converse answers one question of a connection (RFC 1035 §4.2.2).
func (s *Server) converse(ctx context.Context, c *net.TCPConn, guest *Guest) error {
	if err := c.SetDeadline(time.Now().Add(tcpIdle)); err != nil {
		return err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxQuestion {
		return errors.New("the question is too long")
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	q := new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		return err
	}
	if q.Response || !s.share.question(guest.MAC) {
		return errors.New("no answer is due")
	}
	m := s.table.Load().answer(q)
	if m == nil {
		done, ok := s.share.forward(guest.MAC)
		if !ok {
			return errBusy
		}
		m = s.forwarded(ctx, guest, q, "tcp")
		done()
	}
	packed, err := pack(q, m, dns.MaxMsgSize)
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	return err
}

// answer answers questions that are not forwarded: malformed ones, and those for guests'
// names and addresses.
func (t *table) answer(q *dns.Msg) *dns.Msg {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return refuse(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return refuse(q, dns.RcodeFormatError)
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		m := refuse(q, dns.RcodeBadVers)
		m.SetEdns0(udpSize, false)
		return m
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		return refuse(q, dns.RcodeRefused)
	}
	if question.Qtype == dns.TypePTR {
		return t.pointer(q)
	}
	g := t.named(question.Name)
	if g == nil {
		return nil
	}
	m := refuse(q, dns.RcodeSuccess)
	m.Authoritative = true
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ownTTL}
	for _, a := range g.Addresses {
		switch {
		case a.Is4() && question.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case a.Is6() && question.Qtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	return m
}

// named finds a guest by its name, alone or in the domain.
func (t *table) named(name string) *Guest {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if t.Domain != "" {
		name = strings.TrimSuffix(name, "."+t.Domain)
	}
	return t.byName[name]
}

// pointer answers with the name of the guest that has an address.
func (t *table) pointer(q *dns.Msg) *dns.Msg {
	g := t.byAddr[reversed(q.Question[0].Name)]
	if g == nil {
		return nil
	}
	name := g.Name
	if t.Domain != "" {
		name += "." + t.Domain
	}
	m := refuse(q, dns.RcodeSuccess)
	m.Authoritative = true
	header := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ownTTL}
	m.Answer = append(m.Answer, &dns.PTR{Hdr: header, Ptr: dns.Fqdn(name)})
	return m
}

// reversed reads a name under in-addr.arpa (RFC 1035 §3.5) or ip6.arpa (RFC
// 3596 §2.5); other names have no address.
func reversed(name string) netip.Addr {
	name = strings.ToLower(name)
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(v4, ".")
		if len(labels) != 4 {
			return netip.Addr{}
		}
		a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		if err != nil {
			return netip.Addr{}
		}
		return a
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if labels := strings.Split(v6, "."); ok && len(labels) == 32 {
		var text strings.Builder
		for i := range labels {
			if i > 0 && i%4 == 0 {
				text.WriteByte(':')
			}
			text.WriteString(labels[31-i])
		}
		if a, err := netip.ParseAddr(text.String()); err == nil && len(text.String()) == 39 {
			return a
		}
	}
	return netip.Addr{}
}

// refuse returns an answer with only a code.
func refuse(q *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	m.RecursionAvailable = true
	return m
}

// packUDP fits an answer into the size that the guest accepts; the guest repeats the
// question by TCP if the answer was truncated.
func packUDP(q, m *dns.Msg) ([]byte, error) {
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), udpSize)
	}
	return pack(q, m, size)
}

// pack removes the resolver's EDNS if the question had none (RFC 6891 §6.1.1).
func pack(q, m *dns.Msg, size int) ([]byte, error) {
	if q.IsEdns0() == nil {
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	}
	m.Truncate(size)
	return m.Pack()
}
