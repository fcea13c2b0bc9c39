package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// fakeDecider is a Decider that answers everybody alike.
type fakeDecider struct {
	address netip.Addr // none: proxy
	style   Style
	err     error
	http    string

	client   Client     // the last one seen
	asked    netip.Addr // the last address asked for
	released netip.Addr
	declined netip.Addr
}

func (d *fakeDecider) endpoints() Endpoints {
	return Endpoints{TFTP: netip.MustParseAddr("198.18.0.1"), HTTP: d.http, Script: "/boot.ipxe", Files: DefaultFiles()}
}

func (d *fakeDecider) answer(c Client) (Answer, error) {
	d.client = c
	boot := Bootfile(c, d.endpoints())
	boot.Style = d.style
	return Answer{
		Address:  d.address,
		Prefix:   netip.MustParsePrefix("198.18.0.0/24"),
		Router:   []netip.Addr{netip.MustParseAddr("198.18.0.254")},
		DNS:      []netip.Addr{netip.MustParseAddr("198.18.0.53"), netip.MustParseAddr("198.18.0.54")},
		NTP:      []netip.Addr{netip.MustParseAddr("198.18.0.123")},
		Domain:   "dc1.example",
		Hostname: "r1u07",
		MTU:      1500,
		Lease:    time.Hour,
		Boot:     boot,
	}, d.err
}

func (d *fakeDecider) Offer(_ context.Context, c Client) (Answer, error) { return d.answer(c) }
func (d *fakeDecider) Request(_ context.Context, c Client, a netip.Addr) (Answer, error) {
	d.asked = a
	return d.answer(c)
}
func (d *fakeDecider) Inform(_ context.Context, c Client) (Answer, error) { return d.answer(c) }
func (d *fakeDecider) Boot(_ context.Context, c Client) (Boot, error) {
	a, err := d.answer(c)
	return a.Boot, err
}
func (d *fakeDecider) Release(_ context.Context, _ Client, a netip.Addr) error {
	d.released = a
	return nil
}
func (d *fakeDecider) Decline(_ context.Context, _ Client, a netip.Addr) error {
	d.declined = a
	return nil
}

func testServer(t testing.TB, d Decider) (*Server, *link) {
	t.Helper()
	s, err := New(Config{Interfaces: []string{"eth1"}}, d)
	if err != nil {
		t.Fatal(err)
	}
	l := &link{name: "eth1", index: 7}
	l.addrs.Store(&[]netip.Prefix{netip.MustParsePrefix("198.18.0.1/24"), netip.MustParsePrefix("198.18.1.1/24")})
	s.links = []*link{l}
	return s, l
}

var (
	testMAC  = net.HardwareAddr{0x52, 0x54, 0, 1, 7, 0}
	testGUID = []byte{0, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}
)

// packet builds a request with raw options.
func packet(t dhcpv4.MessageType, options map[uint8]string, changes ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet,
		TransactionID: dhcpv4.TransactionID{1, 2, 3, 4}, ClientHWAddr: testMAC,
		Options: dhcpv4.Options{53: {byte(t)}},
	}
	for code, v := range options {
		p.Options[code] = []byte(v)
	}
	for _, change := range changes {
		change(p)
	}
	return p
}

func isBroadcast(p *dhcpv4.DHCPv4) { p.SetBroadcast() }
func from(a string) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.ClientIPAddr = net.ParseIP(a).To4() }
}
func relay(a string) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) { p.GatewayIPAddr = net.ParseIP(a).To4() }
}

const (
	biosVCI  = "PXEClient:Arch:00000:UNDI:002001"
	uefiVCI  = "PXEClient:Arch:00007:UNDI:003001"
	httpVCI  = "HTTPClient:Arch:00016:UNDI:003001"
	ipxeHTTP = "\x13\x01\x01\x15\x01\x01\xeb\x03\x01\x15\x01" // http, tftp, version 1.21.1
	ipxeTFTP = "\x15\x01\x01\xeb\x03\x01\x15\x01"
)

// TestFirmware holds what each kind of boot client must be told, by what boot-facts of real firmware say.
func TestFirmware(t *testing.T) {
	guid := string(testGUID)
	bios := map[uint8]string{60: biosVCI, 93: "\x00\x00", 94: "\x01\x02\x01", 97: guid}
	uefi := map[uint8]string{60: uefiVCI, 93: "\x00\x07", 94: "\x01\x03\x01", 97: guid}
	with := func(m map[uint8]string, kv map[uint8]string) map[uint8]string {
		out := map[uint8]string{}
		for k, v := range m {
			out[k] = v
		}
		for k, v := range kv {
			out[k] = v
			if v == "" {
				delete(out, k)
			}
		}
		return out
	}
	const script = "http://198.18.0.1:8080/boot.ipxe"
	pi := func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = net.HardwareAddr{0xdc, 0xa6, 0x32, 1, 2, 3} }

	tests := []struct {
		name    string
		options map[uint8]string
		change  func(*dhcpv4.DHCPv4)
		style   Style
		noHTTP  bool

		proxy         bool
		file          string // header
		o43, o60, o67 string
		o175          string
		siaddr        string
		silent        bool
	}{
		{name: "BIOS", options: bios, file: "undionly.kpxe", siaddr: "198.18.0.1",
			o43: "\x06\x01\x08\xff", o60: "PXEClient", o67: "undionly.kpxe\x00"},
		{name: "BIOS without option 97", options: with(bios, map[uint8]string{97: ""}), file: "undionly.kpxe", siaddr: "198.18.0.1",
			o43: "\x06\x01\x08\xff", o60: "PXEClient", o67: "undionly.kpxe\x00"},
		{name: "BIOS without option 93", options: map[uint8]string{60: "PXEClient"}, file: "undionly.kpxe", siaddr: "198.18.0.1",
			o43: "\x06\x01\x08\xff", o60: "PXEClient", o67: "undionly.kpxe\x00"},
		{name: "BIOS, proxy", options: bios, proxy: true, file: "undionly.kpxe", siaddr: "198.18.0.1",
			o43: "\x06\x01\x08\xff", o60: "PXEClient", o67: "undionly.kpxe\x00"},
		{name: "UEFI", options: uefi, change: isBroadcast, file: "snponly.efi", siaddr: "198.18.0.1", o67: "snponly.efi\x00"},
		{name: "UEFI, proxy", options: uefi, change: isBroadcast, proxy: true, file: "snponly.efi", siaddr: "198.18.0.1",
			o60: "PXEClient", o67: "snponly.efi\x00"},
		{name: "UEFI pinned to BootServer", options: uefi, style: BootServer, file: "snponly.efi", siaddr: "198.18.0.1",
			o60: "PXEClient", o67: "snponly.efi\x00"},
		{name: "UEFI pinned to Direct", options: uefi, style: Direct, proxy: true, file: "snponly.efi", siaddr: "198.18.0.1",
			o43: "\x06\x01\x08\xff", o60: "PXEClient", o67: "snponly.efi\x00"},
		{name: "UEFI that says EBC", options: with(uefi, map[uint8]string{93: "\x00\x09"}), file: "snponly.efi", siaddr: "198.18.0.1",
			o67: "snponly.efi\x00"},
		{name: "UEFI, architecture only in option 60", options: with(uefi, map[uint8]string{93: ""}), file: "snponly.efi",
			siaddr: "198.18.0.1", o67: "snponly.efi\x00"},
		{name: "UEFI IA32", options: with(uefi, map[uint8]string{93: "\x00\x06"}), file: "snponly-i386.efi", siaddr: "198.18.0.1",
			o67: "snponly-i386.efi\x00"},
		{name: "UEFI arm64", options: with(uefi, map[uint8]string{93: "\x00\x0b"}), file: "snponly-arm64.efi", siaddr: "198.18.0.1",
			o67: "snponly-arm64.efi\x00"},
		{name: "UEFI arm32 gets no arm64 file", options: with(uefi, map[uint8]string{93: "\x00\x0a"})},
		{name: "UEFI with several values", options: with(uefi, map[uint8]string{93: "\x00\x0a\x00\x07"}), file: "snponly.efi",
			siaddr: "198.18.0.1", o67: "snponly.efi\x00"},
		{name: "UEFI HTTP x64", options: map[uint8]string{60: httpVCI, 93: "\x00\x10", 97: guid}, change: isBroadcast,
			file: "http://198.18.0.1:8080/snponly.efi", o60: "HTTPClient", o67: "http://198.18.0.1:8080/snponly.efi\x00"},
		{name: "UEFI HTTP arm64", options: map[uint8]string{60: httpVCI, 93: "\x00\x13"},
			file: "http://198.18.0.1:8080/snponly-arm64.efi", o60: "HTTPClient", o67: "http://198.18.0.1:8080/snponly-arm64.efi\x00"},
		{name: "BIOS HTTP", options: map[uint8]string{60: httpVCI, 93: "\x00\x14"},
			file: "http://198.18.0.1:8080/undionly.kpxe", o60: "HTTPClient", o67: "http://198.18.0.1:8080/undionly.kpxe\x00"},
		{name: "UEFI HTTP without an HTTP server", noHTTP: true, options: map[uint8]string{60: httpVCI, 93: "\x00\x10"}},
		{name: "iPXE ROM", options: with(bios, map[uint8]string{77: "iPXE", 175: ipxeHTTP}), file: script, siaddr: "198.18.0.1",
			o67: script, o175: "\xb0\x01\x01"},
		{name: "iPXE, user class by RFC 3004", options: with(bios, map[uint8]string{77: "\x04iPXE", 175: ipxeHTTP}), file: script,
			siaddr: "198.18.0.1", o67: script, o175: "\xb0\x01\x01"},
		{name: "iPXE under UEFI", options: with(uefi, map[uint8]string{77: "iPXE", 175: ipxeHTTP}), file: script, siaddr: "198.18.0.1",
			o67: script, o175: "\xb0\x01\x01"},
		{name: "iPXE whose script has its own user class", options: with(uefi, map[uint8]string{77: "rackweft", 175: ipxeHTTP}),
			file: script, siaddr: "198.18.0.1", o67: script, o175: "\xb0\x01\x01"},
		{name: "iPXE, proxy", options: with(bios, map[uint8]string{77: "iPXE", 175: ipxeHTTP}), proxy: true, file: script,
			siaddr: "198.18.0.1", o60: "PXEClient", o67: script},
		{name: "iPXE without HTTP, BIOS", options: with(bios, map[uint8]string{77: "iPXE", 175: ipxeTFTP}),
			file: "tftp://198.18.0.1/undionly.kpxe", siaddr: "198.18.0.1", o67: "tftp://198.18.0.1/undionly.kpxe", o175: "\xb0\x01\x01"},
		{name: "iPXE without HTTP, UEFI", options: with(uefi, map[uint8]string{77: "iPXE", 175: ipxeTFTP}),
			file: "tftp://198.18.0.1/snponly.efi", siaddr: "198.18.0.1", o67: "tftp://198.18.0.1/snponly.efi", o175: "\xb0\x01\x01"},
		{name: "iPXE with a broken feature list", options: with(bios, map[uint8]string{77: "iPXE", 175: "\x13\xff"}),
			file: "tftp://198.18.0.1/undionly.kpxe", siaddr: "198.18.0.1", o67: "tftp://198.18.0.1/undionly.kpxe", o175: "\xb0\x01\x01"},
		{name: "gPXE is a BIOS ROM", options: with(bios, map[uint8]string{77: "gPXE", 175: ipxeHTTP}), file: "undionly.kpxe",
			siaddr: "198.18.0.1", o43: "\x06\x01\x08\xff", o60: "PXEClient", o67: "undionly.kpxe\x00"},
		{name: "Raspberry Pi", options: bios, change: pi, siaddr: "198.18.0.1", o60: "PXEClient",
			o43: "\x06\x01\x08\x09\x14\x00\x00\x11Raspberry Pi Boot\x0a\x04\x00PXE\xff"},
		{name: "UEFI on a Raspberry Pi", options: with(uefi, map[uint8]string{93: "\x00\x0b"}), change: pi, file: "snponly-arm64.efi",
			siaddr: "198.18.0.1", o67: "snponly-arm64.efi\x00"},
		{name: "operating system", options: map[uint8]string{12: "host", 60: "systemd"}},
		{name: "operating system, proxy", options: map[uint8]string{12: "host"}, proxy: true, silent: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &fakeDecider{address: netip.MustParseAddr("198.18.0.107"), style: tt.style, http: "http://198.18.0.1:8080/"}
			if tt.proxy {
				d.address = netip.Addr{}
			}
			if tt.noHTTP {
				d.http = ""
			}
			s, l := testServer(t, d)
			req := packet(dhcpv4.MessageTypeDiscover, tt.options)
			if tt.change != nil {
				tt.change(req)
			}
			out, err := s.handle(t.Context(), inbound{data: req.ToBytes(), link: l})
			if tt.silent {
				if out.data != nil || !errors.Is(err, errNoBootfile) {
					t.Fatalf("answered %d bytes, error %v", len(out.data), err)
				}
				return
			}
			r := mustParse(t, out, err)
			want := map[string]string{"file": tt.file, "43": tt.o43, "60": tt.o60, "67": tt.o67, "175": tt.o175,
				"siaddr": tt.siaddr, "97": tt.options[97], "54": "198.18.0.1", "type": "OFFER"}
			got := map[string]string{"file": r.BootFileName, "43": opt(r, 43), "60": opt(r, 60), "67": opt(r, 67), "175": opt(r, 175),
				"siaddr": addrString(r.ServerIPAddr), "97": opt(r, 97), "54": r.ServerIdentifier().String(), "type": r.MessageType().String()}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			if tt.proxy != (toAddr(r.YourIPAddr) == netip.Addr{}) || tt.proxy == r.Options.Has(dhcpv4.OptionIPAddressLeaseTime) {
				t.Errorf("yiaddr %s, lease option %v", r.YourIPAddr, r.Options.Has(dhcpv4.OptionIPAddressLeaseTime))
			}
		})
	}
}

func mustParse(t *testing.T, out outbound, err error) *dhcpv4.DHCPv4 {
	t.Helper()
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	r, err := dhcpv4.FromBytes(out.data)
	if err != nil {
		t.Fatalf("reply cannot be parsed: %v", err)
	}
	return r
}

func opt(p *dhcpv4.DHCPv4, code uint8) string { return string(p.Options[code]) }

func addrString(ip net.IP) string {
	if a := toAddr(ip); a.IsValid() {
		return a.String()
	}
	return ""
}

// TestOfferInFull compares one reply option by option.
func TestOfferInFull(t *testing.T) {
	d := &fakeDecider{address: netip.MustParseAddr("198.18.0.107")}
	s, l := testServer(t, d)
	req := packet(dhcpv4.MessageTypeDiscover, map[uint8]string{61: "\xffid", 82: "\x01\x03abc\x02\x02xy", 12: "host"}, relay("198.18.0.254"))
	out, err := s.handle(t.Context(), inbound{data: req.ToBytes(), link: l, local: netip.MustParseAddr("198.18.1.1")})
	r := mustParse(t, out, err)
	want := dhcpv4.Options{
		1: {255, 255, 255, 0}, 3: {198, 18, 0, 254}, 6: {198, 18, 0, 53, 198, 18, 0, 54}, 12: []byte("r1u07"),
		15: []byte("dc1.example"), 26: {0x05, 0xdc}, 28: {198, 18, 0, 255}, 42: {198, 18, 0, 123},
		51: {0, 0, 0x0e, 0x10}, 53: {2}, 54: {198, 18, 1, 1}, 58: {0, 0, 7, 8}, 59: {0, 0, 0x0c, 0x4e},
		61: []byte("\xffid"), 82: []byte("\x01\x03abc\x02\x02xy"),
	}
	if diff := cmp.Diff(want, r.Options); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	if i := slices.Index(out.data[240:], 82); i < 0 || out.data[240+i+2+9] != 255 {
		t.Error("option 82 is not the last one (RFC 3046 §2.1)")
	}
	wantClient := Client{MAC: testMAC, State: Renewing, Hostname: "host", Relay: netip.MustParseAddr("198.18.0.254"),
		Link: netip.MustParseAddr("198.18.0.254"), CircuitID: "abc", RemoteID: "xy", Interface: "eth1", Index: 7,
		Local: netip.MustParseAddr("198.18.1.1"), Unicast: true}
	if diff := cmp.Diff(wantClient, d.client, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("client (-want +got):\n%s", diff)
	}
}

func TestDestination(t *testing.T) {
	const ours = "\xc6\x12\x00\x01"
	req := func(options map[uint8]string, changes ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
		return packet(dhcpv4.MessageTypeRequest, options, changes...)
	}
	asked := map[uint8]string{50: "\xc6\x12\x00\x6b", 54: ours}
	refusal := &Refusal{Reason: "wrong network"}
	tests := []struct {
		name     string
		req      *dhcpv4.DHCPv4
		err      error
		boot     bool
		from     string
		to       string
		mac      bool
		mt       dhcpv4.MessageType
		noRaw    bool
		bcastBit bool
	}{
		{name: "unconfigured client", req: req(asked), to: "198.18.0.107:68", mac: true, mt: dhcpv4.MessageTypeAck},
		{name: "unconfigured client, no raw socket", req: req(asked), noRaw: true, to: "255.255.255.255:68", mt: dhcpv4.MessageTypeAck},
		{name: "broadcast flag", req: req(asked, isBroadcast), to: "255.255.255.255:68", mt: dhcpv4.MessageTypeAck, bcastBit: true},
		{name: "renewing", req: req(nil, from("198.18.0.107")), to: "198.18.0.107:68", mt: dhcpv4.MessageTypeAck},
		{name: "relay, whatever port it sends from", req: req(asked, relay("198.18.2.254")), from: "198.18.2.254:12345",
			to: "198.18.2.254:67", mt: dhcpv4.MessageTypeAck},
		{name: "NAK", req: req(asked), err: refusal, to: "255.255.255.255:68", mt: dhcpv4.MessageTypeNak},
		{name: "NAK while renewing", req: req(nil, from("198.18.0.107")), err: refusal, to: "255.255.255.255:68", mt: dhcpv4.MessageTypeNak},
		{name: "NAK by relay", req: req(asked, relay("198.18.2.254")), err: refusal, to: "198.18.2.254:67",
			mt: dhcpv4.MessageTypeNak, bcastBit: true},
		{name: "INFORM", req: packet(dhcpv4.MessageTypeInform, nil, from("198.18.0.9")), to: "198.18.0.9:68", mt: dhcpv4.MessageTypeAck},
		{name: "boot server request", boot: true, req: req(map[uint8]string{60: uefiVCI, 93: "\x00\x07"}, from("198.18.0.107")),
			from: "198.18.0.107:4011", to: "198.18.0.107:4011", mt: dhcpv4.MessageTypeAck},
		{name: "boot server request from port 68", boot: true, req: req(map[uint8]string{60: biosVCI, 93: "\x00\x00"}, from("198.18.0.107")),
			from: "198.18.0.107:68", to: "198.18.0.107:68", mt: dhcpv4.MessageTypeAck},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, l := testServer(t, &fakeDecider{address: netip.MustParseAddr("198.18.0.107"), err: tt.err})
			if tt.noRaw {
				l.raw = -1
			}
			in := inbound{data: tt.req.ToBytes(), link: l, boot: tt.boot}
			if tt.from != "" {
				in.from = netip.MustParseAddrPort(tt.from)
			}
			out, err := s.handle(t.Context(), in)
			r := mustParse(t, out, err)
			if out.to.String() != tt.to || (out.mac != nil) != tt.mac || r.MessageType() != tt.mt || r.IsBroadcast() != tt.bcastBit {
				t.Errorf("%s to %s, mac %s, broadcast %v", r.MessageType(), out.to, out.mac, r.IsBroadcast())
			}
			if out.src != netip.MustParseAddr("198.18.0.1") {
				t.Errorf("sent from %s", out.src)
			}
			if tt.mt == dhcpv4.MessageTypeNak {
				want := dhcpv4.Options{53: {6}, 54: []byte(ours), 56: []byte("wrong network")}
				if diff := cmp.Diff(want, r.Options); diff != "" {
					t.Errorf("NAK options (-want +got):\n%s", diff)
				}
			}
			if tt.boot || tt.req.MessageType() == dhcpv4.MessageTypeInform {
				if r.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || toAddr(r.YourIPAddr).IsValid() {
					t.Error("the reply gives an address")
				}
			}
		})
	}
}

func TestSilence(t *testing.T) {
	asked := map[uint8]string{50: "\xc6\x12\x00\x6b"}
	tests := []struct {
		name string
		req  *dhcpv4.DHCPv4
		err  error
		boot bool
		want error
	}{
		{name: "request to another server", req: packet(dhcpv4.MessageTypeRequest, map[uint8]string{50: "\xc6\x12\x00\x6b", 54: "\xc6\x12\x00\x02"}), want: errNotForUs},
		{name: "request for nothing", req: packet(dhcpv4.MessageTypeRequest, nil), want: errBadPacket},
		{name: "somebody else's client", req: packet(dhcpv4.MessageTypeRequest, asked), err: ErrNotMine, want: ErrNotMine},
		{name: "refused discover", req: packet(dhcpv4.MessageTypeDiscover, nil), err: &Refusal{Reason: "no"}, want: &Refusal{}},
		{name: "BOOTP", req: packet(0, nil), want: errNotForUs},
		{name: "a reply", req: packet(dhcpv4.MessageTypeOffer, nil, func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply }), want: errBadPacket},
		{name: "multicast MAC", req: packet(dhcpv4.MessageTypeDiscover, nil, func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} }), want: errBadPacket},
		{name: "zero MAC", req: packet(dhcpv4.MessageTypeDiscover, nil, func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = make(net.HardwareAddr, 6) }), want: errBadPacket},
		{name: "discover on 4011", boot: true, req: packet(dhcpv4.MessageTypeDiscover, map[uint8]string{60: uefiVCI}), want: errNotForUs},
		{name: "no boot client on 4011", boot: true, req: packet(dhcpv4.MessageTypeRequest, nil, from("198.18.0.107")), want: errNotForUs},
		{name: "release without an address", req: packet(dhcpv4.MessageTypeRelease, nil), want: errBadPacket},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, l := testServer(t, &fakeDecider{address: netip.MustParseAddr("198.18.0.107"), err: tt.err})
			out, err := s.handle(t.Context(), inbound{data: tt.req.ToBytes(), link: l, boot: tt.boot, from: netip.MustParseAddrPort("198.18.0.107:4011")})
			var refusal, wanted *Refusal
			same := errors.Is(err, tt.want) || errors.As(tt.want, &wanted) && errors.As(err, &refusal)
			if out.data != nil || !same {
				t.Errorf("%d bytes, error %v, want %v", len(out.data), err, tt.want)
			}
		})
	}
}

func TestReleaseAndDecline(t *testing.T) {
	d := &fakeDecider{}
	s, l := testServer(t, d)
	for _, req := range []*dhcpv4.DHCPv4{
		packet(dhcpv4.MessageTypeRelease, map[uint8]string{54: "\xc6\x12\x01\x01"}, from("198.18.0.107")),
		packet(dhcpv4.MessageTypeDecline, map[uint8]string{54: "\xc6\x12\x01\x01", 50: "\xc6\x12\x00\x6c"}),
	} {
		if out, err := s.handle(t.Context(), inbound{data: req.ToBytes(), link: l}); err != nil || out.data != nil {
			t.Errorf("%s: %d bytes, %v", req.MessageType(), len(out.data), err)
		}
	}
	if d.released.String() != "198.18.0.107" || d.declined.String() != "198.18.0.108" {
		t.Errorf("released %s, declined %s", d.released, d.declined)
	}
}

func TestBootItemIsEchoed(t *testing.T) {
	s, l := testServer(t, &fakeDecider{})
	for vci, want := range map[string]string{
		biosVCI: "\x06\x01\x08\x47\x04\x00\x00\x00\x00\xff",
		uefiVCI: "\x47\x04\x00\x00\x00\x00\xff",
	} {
		req := packet(dhcpv4.MessageTypeRequest, map[uint8]string{60: vci, 43: "\x47\x04\x00\x00\x00\x00\xff"}, from("198.18.0.107"))
		out, err := s.handle(t.Context(), inbound{data: req.ToBytes(), link: l, boot: true, from: netip.MustParseAddrPort("198.18.0.107:4011")})
		if got := opt(mustParse(t, out, err), 43); got != want {
			t.Errorf("%s: option 43 is %q, want %q", vci, got, want)
		}
	}
}

func TestServerIdentifier(t *testing.T) {
	d := &fakeDecider{address: netip.MustParseAddr("198.18.0.107")}
	s, l := testServer(t, d)
	relayed := packet(dhcpv4.MessageTypeRequest, map[uint8]string{
		50: "\xc6\x12\x00\x6b", 54: "\xc6\x12\x02\xfe", 82: "\x05\x04\xc6\x12\x02\x00\x0b\x04\xc6\x12\x02\xfe"}, relay("198.18.2.253"))
	out, err := s.handle(t.Context(), inbound{data: relayed.ToBytes(), link: l})
	if got := mustParse(t, out, err).ServerIdentifier().String(); got != "198.18.2.254" {
		t.Errorf("with RFC 5107 the server is %s", got)
	}
	if d.client.Link.String() != "198.18.2.0" {
		t.Errorf("link selection is %s", d.client.Link)
	}
	// Second subnet on the interface: the client must be told the address that it can reach.
	l.addrs.Store(&[]netip.Prefix{netip.MustParsePrefix("198.18.1.1/24"), netip.MustParsePrefix("198.18.0.1/24")})
	out, err = s.handle(t.Context(), inbound{data: packet(dhcpv4.MessageTypeDiscover, nil).ToBytes(), link: l})
	if got := mustParse(t, out, err).ServerIdentifier().String(); got != "198.18.0.1" {
		t.Errorf("in the second subnet the server is %s", got)
	}
}

func TestParseIsForgiving(t *testing.T) {
	req := packet(dhcpv4.MessageTypeDiscover, nil).ToBytes()
	req = req[:slices.Index(req[240:], 255)+240] // no end mark
	if _, err := parse(req); err != nil {
		t.Errorf("without end mark: %v", err)
	}
	c := newClient(packet(dhcpv4.MessageTypeDiscover, map[uint8]string{97: string(testGUID)}))
	if c.UUID != uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff") {
		t.Errorf("UUID is %s", c.UUID)
	}
	for _, short := range []string{"", "\x00\x01", "\x01" + string(testGUID[1:])} {
		if c := newClient(packet(dhcpv4.MessageTypeDiscover, map[uint8]string{97: short})); c.UUID != uuid.Nil {
			t.Errorf("%q is UUID %s", short, c.UUID)
		}
	}
}

func TestLongAnswersFit(t *testing.T) {
	a := Answer{Address: netip.MustParseAddr("198.18.0.107"), Prefix: netip.MustParsePrefix("198.18.0.0/24"), Lease: time.Hour,
		Domain: strings.Repeat("d", 120), Boot: Boot{Filename: "http://" + strings.Repeat("f", 150)}}
	for range 40 {
		a.NTP = append(a.NTP, netip.MustParseAddr("198.18.0.123"))
	}
	build := func(req *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		r := newReply(req, dhcpv4.MessageTypeOffer, netip.MustParseAddr("198.18.0.1"))
		addLease(r, a)
		addNetwork(r, a)
		addBoot(r, Client{Kind: IPXE}, a.Boot, false)
		return r
	}
	req := packet(dhcpv4.MessageTypeDiscover, nil)
	if n := len(encode(build(req), req)); n > 548 {
		t.Errorf("%d bytes to a client that takes 548", n)
	}
	req = packet(dhcpv4.MessageTypeDiscover, map[uint8]string{57: "\x05\xdc"})
	r, err := dhcpv4.FromBytes(encode(build(req), req))
	if err != nil || len(r.NTPServers()) != 40 || r.BootFileName != "" || r.BootFileNameOption() != a.Boot.Filename {
		t.Errorf("to a client that takes 1500 bytes: %v, %s", err, r.Summary())
	}
}

func FuzzParse(f *testing.F) {
	f.Add(packet(dhcpv4.MessageTypeDiscover, map[uint8]string{60: biosVCI, 77: "iPXE", 82: "\x01\x03abc", 97: string(testGUID), 175: ipxeHTTP}).ToBytes())
	f.Add(packet(dhcpv4.MessageTypeDiscover, map[uint8]string{93: "\x00\x07\x00", 77: "\xff", 175: "\x13"}).ToBytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(slices.Clone(b))
		if err != nil {
			return
		}
		c := newClient(p)
		if len(c.MAC) != 6 {
			t.Errorf("MAC %s", c.MAC)
		}
		_ = Bootfile(c, Endpoints{TFTP: netip.MustParseAddr("198.18.0.1"), HTTP: "http://198.18.0.1", Script: "/x", Files: DefaultFiles()})
	})
}

// FuzzHandle feeds raw bytes to both ports. Whatever is answered must be a well-formed reply to the same
// client that fits the wire.
func FuzzHandle(f *testing.F) {
	for _, p := range []*dhcpv4.DHCPv4{
		packet(dhcpv4.MessageTypeDiscover, map[uint8]string{60: uefiVCI, 93: "\x00\x07", 97: string(testGUID)}, isBroadcast),
		packet(dhcpv4.MessageTypeRequest, map[uint8]string{50: "\xc6\x12\x00\x6b", 82: "\x01\x03abc"}, relay("198.18.2.254")),
		packet(dhcpv4.MessageTypeRequest, map[uint8]string{60: biosVCI, 43: "\x47\x04\x00\x00\x00\x00\xff"}, from("198.18.0.107")),
		packet(dhcpv4.MessageTypeInform, nil, from("198.18.0.107")),
		packet(dhcpv4.MessageTypeRelease, nil, from("198.18.0.107")),
		packet(dhcpv4.MessageTypeDecline, map[uint8]string{50: "\xc6\x12\x00\x6b"}),
	} {
		f.Add(p.ToBytes(), false, true)
		f.Add(p.ToBytes(), true, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, boot, proxy bool) {
		if len(b) > maxPacket-1 {
			return
		}
		d := &echoDecider{proxy: proxy}
		s, l := testServer(t, d)
		out, err := s.handle(t.Context(), inbound{data: slices.Clone(b), link: l, boot: boot, from: netip.MustParseAddrPort("198.18.0.107:4011")})
		if err != nil || out.data == nil {
			return
		}
		r, err := dhcpv4.FromBytes(out.data)
		if err != nil {
			t.Fatalf("reply cannot be parsed: %v", err)
		}
		if r.OpCode != dhcpv4.OpcodeBootReply || string(r.TransactionID[:]) != string(b[4:8]) || !out.to.IsValid() {
			t.Errorf("reply %s to %s", r.Summary(), out.to)
		}
		if len(out.data) > len(b)+1200 {
			t.Errorf("%d bytes answered with %d", len(b), len(out.data))
		}
	})
}

// echoDecider grants whatever is asked for.
type echoDecider struct{ proxy bool }

func (d *echoDecider) Offer(_ context.Context, c Client) (Answer, error) {
	a := Answer{Boot: Bootfile(c, (&fakeDecider{http: "http://198.18.0.1:8080"}).endpoints()), Lease: time.Minute}
	if !d.proxy {
		a.Address = netip.MustParseAddr("198.18.0.107")
	}
	return a, nil
}
func (d *echoDecider) Request(ctx context.Context, c Client, addr netip.Addr) (Answer, error) {
	a, err := d.Offer(ctx, c)
	a.Address = addr
	return a, err
}
func (d *echoDecider) Inform(ctx context.Context, c Client) (Answer, error) { return d.Offer(ctx, c) }
func (d *echoDecider) Boot(ctx context.Context, c Client) (Boot, error) {
	a, err := d.Offer(ctx, c)
	return a.Boot, err
}
func (d *echoDecider) Release(context.Context, Client, netip.Addr) error { return nil }
func (d *echoDecider) Decline(context.Context, Client, netip.Addr) error { return nil }

// TestWhoSentIt: a Decider learns from where a packet came, and whether it was
// sent to this server alone.
func TestWhoSentIt(t *testing.T) {
	d := &fakeDecider{address: netip.MustParseAddr("198.18.3.107")}
	s, l := testServer(t, d)
	for _, local := range []netip.Addr{{}, netip.MustParseAddr("198.18.1.1")} {
		req := packet(dhcpv4.MessageTypeDiscover, map[uint8]string{82: "\x01\x09Ethernet7\x02\x05leaf1"}, relay("198.18.3.1"))
		in := inbound{data: req.ToBytes(), link: l, local: local, from: netip.MustParseAddrPort("198.18.3.2:67")}
		if _, err := s.handle(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		c := d.client
		if c.Source != netip.MustParseAddr("198.18.3.2") || c.Relay != netip.MustParseAddr("198.18.3.1") || c.Unicast != local.IsValid() || c.CircuitID != "Ethernet7" || c.RemoteID != "leaf1" {
			t.Errorf("sent to %v: %+v", local, c)
		}
	}
}
