package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// newReply starts a reply with everything that is echoed: the header, the
// client's identifiers (RFC 6842, RFC 4578) and the relay's options (RFC 3046).
func newReply(req *dhcpv4.DHCPv4, t dhcpv4.MessageType, server netip.Addr) *dhcpv4.DHCPv4 {
	r := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        req.HWType,
		TransactionID: req.TransactionID,
		Flags:         req.Flags,
		GatewayIPAddr: req.GatewayIPAddr,
		ClientHWAddr:  req.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	for _, code := range []dhcpv4.OptionCode{
		dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation, optUUID,
	} {
		if v, ok := req.Options[code.Code()]; ok {
			r.Options[code.Code()] = v
		}
	}
	r.UpdateOption(dhcpv4.OptMessageType(t))
	setAddrs(r, dhcpv4.OptionServerIdentifier, server)
	return r
}

// newNAK returns a NAK with only the reason. Behind a relay it must be
// broadcast: the client may not have the address that it requests (RFC 2131
// §4.3.2).
func newNAK(req *dhcpv4.DHCPv4, server netip.Addr, reason string) *dhcpv4.DHCPv4 {
	r := newReply(req, dhcpv4.MessageTypeNak, server)
	r.UpdateOption(dhcpv4.OptMessage(reason))
	if toAddr(req.GatewayIPAddr).IsValid() {
		r.SetBroadcast()
	}
	return r
}

// addLease adds the address and its times.
func addLease(r *dhcpv4.DHCPv4, a Answer) {
	r.YourIPAddr = a.Address.AsSlice()
	setDuration(r, dhcpv4.OptionIPAddressLeaseTime, a.Lease)
	setDuration(r, dhcpv4.OptionRenewTimeValue, a.Lease/2)
	setDuration(r, dhcpv4.OptionRebindingTimeValue, a.Lease/8*7)
}

// addNetwork adds what a client needs to use its address.
func addNetwork(r *dhcpv4.DHCPv4, a Answer) {
	if p := a.Prefix; p.IsValid() && p.Addr().Is4() {
		mask := net.CIDRMask(p.Bits(), 32)
		r.UpdateOption(dhcpv4.OptSubnetMask(mask))
		if p.Bits() < 31 {
			setAddrs(r, dhcpv4.OptionBroadcastAddress, lastAddr(p))
		}
	}
	setAddrs(r, dhcpv4.OptionRouter, a.Router...)
	setAddrs(r, dhcpv4.OptionDomainNameServer, a.DNS...)
	setAddrs(r, dhcpv4.OptionNTPServers, a.NTP...)
	setString(r, dhcpv4.OptionDomainName, a.Domain)
	setString(r, dhcpv4.OptionHostName, a.Hostname)
	if a.MTU >= 68 && a.MTU <= 65535 { // RFC 2132 §5.1
		r.Options[dhcpv4.OptionInterfaceMTU.Code()] = binary.BigEndian.AppendUint16(nil, uint16(a.MTU))
	}
}

// addBoot adds the boot file, in the form that the client's firmware
// understands.
func addBoot(r *dhcpv4.DHCPv4, c Client, b Boot, proxy bool) {
	if c.Kind == IPXE && !proxy {
		// Without this, iPXE waits 2 s for the offer of a proxy server.
		r.Options[optEther.Code()] = []byte{etherNoProxy, 1, 1}
	}
	if b.Filename == "" && !b.NextServer.IsValid() {
		return
	}
	r.ServerIPAddr = b.NextServer.AsSlice()
	if len(b.Filename) < 128 {
		r.BootFileName = b.Filename // many ROMs, and U-Boot with a proxy, read only the header
	}
	bootfile := b.Filename
	switch c.Kind {
	case PXE:
		addStyle(r, c, b.Style, proxy)
		if b.NextServer.IsValid() {
			setString(r, dhcpv4.OptionTFTPServerName, b.NextServer.String())
		}
		bootfile += "\x00"
	case HTTPBoot:
		setString(r, dhcpv4.OptionClassIdentifier, "HTTPClient")
		bootfile += "\x00"
	case IPXE:
		if proxy {
			setString(r, dhcpv4.OptionClassIdentifier, "PXEClient")
		}
	}
	// EDK2 writes a NUL behind option 67, over the next option, unless the name
	// ends in one; Windows' DHCP server always sends one, so firmware accepts
	// it.
	if b.Filename != "" {
		setString(r, dhcpv4.OptionBootfileName, bootfile)
	}
}

func addStyle(r *dhcpv4.DHCPv4, c Client, s Style, proxy bool) {
	switch {
	case s == Auto && isBIOS(c):
		s = Direct
	case s == Auto && proxy, s == Plain && proxy:
		s = BootServer
	case s == Auto:
		s = Plain
	}
	if s == Plain {
		return
	}
	setString(r, dhcpv4.OptionClassIdentifier, "PXEClient")
	vendor := dhcpv4.Options{}
	if s == Direct {
		vendor[pxeDiscovery] = []byte{8}
	}
	if c.Pi { // the ROM searches option 43 for this text and ignores other servers
		vendor[pxeMenu] = []byte("\x00\x00\x11Raspberry Pi Boot")
		vendor[pxeMenuPrompt] = []byte("\x00PXE")
	}
	if len(vendor) > 0 {
		r.Options[dhcpv4.OptionVendorSpecificInformation.Code()] = append(vendor.ToBytes(), 0xff)
	}
}

func isBIOS(c Client) bool {
	return c.Pi || len(c.Arch) == 0 || baseArch(c.Arch[0]) == iana.INTEL_X86PC
}

// echoBootItem repeats the menu item that a request on port 4011 names, as PXE 2.1 §2.2.4 demands.
func echoBootItem(r, req *dhcpv4.DHCPv4) {
	vendor := dhcpv4.Options{}
	if err := vendor.FromBytes(req.Options[dhcpv4.OptionVendorSpecificInformation.Code()]); err != nil {
		return
	}
	item, ok := vendor[pxeBootItem]
	if !ok || len(item) != 4 {
		return
	}
	own := r.Options[dhcpv4.OptionVendorSpecificInformation.Code()]
	if n := len(own); n > 0 {
		own = own[:n-1] // its end mark
	}
	own = append(own, pxeBootItem, 4)
	own = append(own, item...)
	r.Options[dhcpv4.OptionVendorSpecificInformation.Code()] = append(own, 0xff)
}

// encode fits the reply into the client's limit (option 57; RFC 2131 §2
// guarantees 576 bytes including 28 of IP and UDP), and omits the least
// important options.
func encode(r, req *dhcpv4.DHCPv4) []byte {
	limit := 576
	if n, err := req.MaxMessageSize(); err == nil && n > 576 {
		limit = min(int(n), 1500)
	}
	limit -= 28
	b := r.ToBytes()
	for _, code := range []dhcpv4.OptionCode{
		dhcpv4.OptionNTPServers, dhcpv4.OptionDomainName, dhcpv4.OptionBroadcastAddress,
		dhcpv4.OptionHostName, dhcpv4.OptionTFTPServerName, dhcpv4.OptionDomainNameServer,
	} {
		if len(b) <= limit {
			break
		}
		r.DeleteOption(code)
		b = r.ToBytes()
	}
	return b
}

func setString(r *dhcpv4.DHCPv4, code dhcpv4.OptionCode, s string) {
	if s != "" {
		r.Options[code.Code()] = []byte(s)
	}
}

func setAddrs(r *dhcpv4.DHCPv4, code dhcpv4.OptionCode, addrs ...netip.Addr) {
	var b []byte
	for _, a := range addrs {
		if a.Is4() {
			b = append(b, a.AsSlice()...)
		}
	}
	if len(b) > 0 {
		r.Options[code.Code()] = b
	}
}

func setDuration(r *dhcpv4.DHCPv4, code dhcpv4.OptionCode, d time.Duration) {
	seconds := uint32(min(max(d/time.Second, 1), 0xffffffff))
	r.Options[code.Code()] = binary.BigEndian.AppendUint32(nil, seconds)
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
