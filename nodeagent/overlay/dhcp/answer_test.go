package dhcp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

func testTable() *table {
	return newTable(Network{MTU: 1410, Domain: "Tenant.example.", Guests: []Guest{one(), two()}})
}

func TestAnswer4(t *testing.T) {
	other := net.IPv4(10, 5, 3, 4)
	own := net.IPv4(10, 5, 3, 2)
	asks := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)) }
	server := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip)) }
	gateway := net.IP(Gateway4().AsSlice())
	for _, c := range []struct {
		name  string
		kind  dhcpv4.MessageType
		mods  []dhcpv4.Modifier
		want  dhcpv4.MessageType // None: silence
		fault bool
	}{
		{name: "discover", kind: dhcpv4.MessageTypeDiscover, want: dhcpv4.MessageTypeOffer},
		{name: "discover with a wish", kind: dhcpv4.MessageTypeDiscover, mods: []dhcpv4.Modifier{asks(other)}, want: dhcpv4.MessageTypeOffer},
		{name: "select", kind: dhcpv4.MessageTypeRequest, mods: []dhcpv4.Modifier{asks(own), server(gateway)}, want: dhcpv4.MessageTypeAck},
		{name: "select another server", kind: dhcpv4.MessageTypeRequest, mods: []dhcpv4.Modifier{asks(other), server(net.IPv4(10, 5, 3, 9))}},
		{name: "reboot", kind: dhcpv4.MessageTypeRequest, mods: []dhcpv4.Modifier{asks(own)}, want: dhcpv4.MessageTypeAck},
		{name: "reboot with another's", kind: dhcpv4.MessageTypeRequest, mods: []dhcpv4.Modifier{asks(other)}, want: dhcpv4.MessageTypeNak},
		{name: "renew", kind: dhcpv4.MessageTypeRequest, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(own)}, want: dhcpv4.MessageTypeAck},
		{name: "renew another's", kind: dhcpv4.MessageTypeRequest, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(other)}, want: dhcpv4.MessageTypeNak},
		{name: "request of nothing", kind: dhcpv4.MessageTypeRequest, want: dhcpv4.MessageTypeNak},
		{name: "inform", kind: dhcpv4.MessageTypeInform, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(own)}, want: dhcpv4.MessageTypeAck},
		{name: "inform for another", kind: dhcpv4.MessageTypeInform, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(other)}, fault: true},
		{name: "decline", kind: dhcpv4.MessageTypeDecline, mods: []dhcpv4.Modifier{asks(own)}, fault: true},
		{name: "release", kind: dhcpv4.MessageTypeRelease, mods: []dhcpv4.Modifier{dhcpv4.WithClientIP(own)}},
		{name: "relayed", kind: dhcpv4.MessageTypeDiscover, mods: []dhcpv4.Modifier{dhcpv4.WithGatewayIP(other)}, fault: true},
	} {
		m := message(t, one().MAC, c.kind, append(c.mods, dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte{1, 2, 3})))...)
		r, err := testTable().answer4(one().MAC, m.ToBytes())
		if (err != nil) != c.fault {
			t.Errorf("%s: error %v", c.name, err)
		}
		if r == nil {
			if c.want != dhcpv4.MessageTypeNone {
				t.Errorf("%s: no answer", c.name)
			}
			continue
		}
		got, err := dhcpv4.FromBytes(r.data)
		must(t, err)
		if got.MessageType() != c.want {
			t.Errorf("%s: answered %s, not %s", c.name, got.MessageType(), c.want)
		}
		if !got.ServerIdentifier().Equal(gateway) || string(got.Options.Get(dhcpv4.OptionClientIdentifier)) != "\x01\x02\x03" || r.mac != one().MAC {
			t.Errorf("%s: answered %s to %s", c.name, got.Summary(), r.mac)
		}
		checkTold(t, c.name, c.kind, got)
	}
}

func checkTold(t *testing.T, name string, asked dhcpv4.MessageType, got *dhcpv4.DHCPv4) {
	t.Helper()
	leased := got.IPAddressLeaseTime(0) == 7*24*time.Hour && got.YourIPAddr.Equal(net.IPv4(10, 5, 3, 2))
	switch {
	case got.MessageType() == dhcpv4.MessageTypeNak:
		if !got.YourIPAddr.IsUnspecified() || got.Message() == "" {
			t.Errorf("%s: NAK is %s", name, got.Summary())
		}
		return
	case asked == dhcpv4.MessageTypeInform:
		if got.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || !got.YourIPAddr.IsUnspecified() {
			t.Errorf("%s: a lease is given: %s", name, got.Summary())
		}
	case !leased:
		t.Errorf("%s: no lease: %s", name, got.Summary())
	}
	routes := got.ClasslessStaticRoute()
	if len(routes) != 2 || routes[0].String() != "route to 169.254.1.1/32 via 0.0.0.0" || routes[1].String() != "route to 0.0.0.0/0 via 169.254.1.1" {
		t.Errorf("%s: routes are %s", name, routes)
	}
	if ones, _ := got.SubnetMask().Size(); ones != 32 || got.HostName() != "one" || got.DomainName() != "tenant.example" ||
		len(got.Router()) != 1 || len(got.DNS()) != 1 || string(got.Options.Get(dhcpv4.OptionInterfaceMTU)) != "\x05\x82" {
		t.Errorf("%s: told %s", name, got.Summary())
	}
}

func TestLongDomainFits(t *testing.T) {
	label := "sixty-three-characters-are-the-most-that-a-label-of-dns-may-have"[:63]
	g := one()
	g.Name = label
	n := Network{MTU: 1410, Domain: label + "." + label + "." + label, Guests: []Guest{g}}
	m := message(t, g.MAC, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptClientIdentifier(make([]byte, 200))))
	r, err := newTable(n).answer4(g.MAC, m.ToBytes())
	must(t, err)
	if len(r.data) > maxReply {
		t.Errorf("the answer has %d bytes", len(r.data))
	}
}

func solicit6(kind dhcpv6.MessageType, server bool, addrs ...netip.Addr) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDOpaque{Type: 4, Data: make([]byte, 16)}))
	if server {
		m.AddOption(dhcpv6.OptServerID(serverDUID()))
	}
	ia := &dhcpv6.OptIANA{IaId: [4]byte{9}}
	for _, a := range addrs {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), ValidLifetime: time.Hour})
	}
	m.AddOption(ia)
	return m
}

func TestAnswer6(t *testing.T) {
	own, other := one().Addresses[1], two().Addresses[1]
	rapid := solicit6(dhcpv6.MessageTypeSolicit, false)
	rapid.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	for _, c := range []struct {
		name   string
		asked  *dhcpv6.Message
		want   dhcpv6.MessageType // 0: silence
		lease  bool
		status iana.StatusCode
	}{
		{"solicit", solicit6(dhcpv6.MessageTypeSolicit, false, other), dhcpv6.MessageTypeAdvertise, true, 0},
		{"solicit, rapid", rapid, dhcpv6.MessageTypeReply, true, 0},
		{"solicit with a server", solicit6(dhcpv6.MessageTypeSolicit, true), 0, false, 0},
		{"request", solicit6(dhcpv6.MessageTypeRequest, true, own), dhcpv6.MessageTypeReply, true, 0},
		{"request without a server", solicit6(dhcpv6.MessageTypeRequest, false, own), 0, false, 0},
		{"renew", solicit6(dhcpv6.MessageTypeRenew, true, own), dhcpv6.MessageTypeReply, true, 0},
		{"rebind another's", solicit6(dhcpv6.MessageTypeRebind, false, other), dhcpv6.MessageTypeReply, true, 0},
		{"confirm", solicit6(dhcpv6.MessageTypeConfirm, false, own), dhcpv6.MessageTypeReply, false, iana.StatusSuccess},
		{"confirm another's", solicit6(dhcpv6.MessageTypeConfirm, false, other), dhcpv6.MessageTypeReply, false, iana.StatusNotOnLink},
		{"confirm nothing", solicit6(dhcpv6.MessageTypeConfirm, false), 0, false, 0},
		{"release", solicit6(dhcpv6.MessageTypeRelease, true, own), dhcpv6.MessageTypeReply, false, iana.StatusSuccess},
		{"inform", &dhcpv6.Message{MessageType: dhcpv6.MessageTypeInformationRequest}, dhcpv6.MessageTypeReply, false, 0},
		{"reply", solicit6(dhcpv6.MessageTypeReply, true), 0, false, 0},
	} {
		b, err := testTable().answer6(one().MAC, c.asked.ToBytes())
		must(t, err)
		if b == nil {
			if c.want != 0 {
				t.Errorf("%s: no answer", c.name)
			}
			continue
		}
		got, err := dhcpv6.MessageFromBytes(b)
		must(t, err)
		ia := got.Options.OneIANA()
		leased := ia != nil && len(ia.Options.Addresses()) > 0 && isAddr(ia.Options.Addresses()[0].IPv6Addr, own)
		if got.MessageType != c.want || leased != c.lease || got.TransactionID != c.asked.TransactionID {
			t.Errorf("%s: answered %s", c.name, got.Summary())
		}
		if s := got.Options.Status(); s != nil && s.StatusCode != c.status {
			t.Errorf("%s: status %s", c.name, s)
		}
		if c.name == "rebind another's" {
			if old := ia.Options.Addresses(); len(old) != 2 || old[1].ValidLifetime != 0 || !isAddr(old[1].IPv6Addr, other) {
				t.Errorf("%s: another's address is not taken back: %s", c.name, old)
			}
		}
	}
	if _, err := testTable().answer6(one().MAC, solicit6(dhcpv6.MessageTypeDecline, true, own).ToBytes()); err == nil {
		t.Error("nobody hears of a declined address")
	}
	if b, err := testTable().answer6(MAC{2, 9}, rapid.ToBytes()); b != nil || err == nil {
		t.Error("a stranger is answered")
	}
}

func FuzzPacket4(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform} {
		mac := one().MAC
		m, err := dhcpv4.New(dhcpv4.WithHwAddr(mac[:]), dhcpv4.WithMessageType(kind), dhcpv4.WithClientIP(net.IPv4(10, 5, 3, 2)))
		must(f, err)
		f.Add(udpPacket4(Gateway4(), m.ToBytes()))
	}
	table := testTable()
	f.Fuzz(func(t *testing.T, b []byte) {
		payload, ok := payload4(b)
		if !ok {
			return
		}
		r, _ := table.answer4(one().MAC, payload)
		if r == nil {
			return
		}
		if got, err := dhcpv4.FromBytes(r.data); err != nil || got.OpCode != dhcpv4.OpcodeBootReply || isSet(got.YourIPAddr) && !isAddr(got.YourIPAddr, one().Addresses[0]) {
			t.Errorf("answered %v, %v", got, err)
		}
	})
}

func FuzzPacket6(f *testing.F) {
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm} {
		f.Add(udpPacket6(Gateway6(), solicit6(kind, kind == dhcpv6.MessageTypeRequest, one().Addresses[1]).ToBytes()))
	}
	table := testTable()
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, rest, ok := next6(b)
		if !ok {
			return
		}
		payload, ok := udpPayload(rest)
		if !ok {
			return
		}
		answer, _ := table.answer6(one().MAC, payload)
		if answer == nil {
			return
		}
		got, err := dhcpv6.MessageFromBytes(answer)
		if err != nil {
			t.Fatalf("the answer is no message: %v", err)
		}
		for _, ia := range got.Options.IANA() {
			for _, a := range ia.Options.Addresses() {
				if a.ValidLifetime > 0 && !isAddr(a.IPv6Addr, one().Addresses[1]) {
					t.Errorf("another's address is given: %s", a)
				}
			}
		}
	})
}
