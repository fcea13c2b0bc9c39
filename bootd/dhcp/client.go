package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Kind is a client's boot protocol.
type Kind int

const (
	None     Kind = iota // not booting from the network: an operating system
	PXE                  // firmware that loads a file by TFTP
	HTTPBoot             // UEFI firmware that loads a URL
	IPXE                 // iPXE, as a boot ROM or already chain-loaded
)

func (k Kind) String() string {
	return [...]string{"none", "pxe", "httpboot", "ipxe"}[k]
}

// State is the state of a client that sends a REQUEST (RFC 2131 §4.3.2).
type State int

const (
	Selecting  State = iota // accepts an offer of this server
	InitReboot              // requests an address that it remembers
	Renewing                // has the address in use (renewing or rebinding)
)

// Client describes the sender of one packet. All of it can be forged.
type Client struct {
	MAC         net.HardwareAddr
	UUID        uuid.UUID   // as SMBIOS and Redfish print it; uuid.Nil if the client sent none
	Arch        []iana.Arch // in the client's order
	Kind        Kind
	State       State
	UserClass   string // the first, if there are several
	VendorClass string
	HTTP        bool // iPXE that can load http:// URLs
	Pi          bool // the boot ROM of a Raspberry Pi, which claims to be a PXE client but is not
	Hostname    string

	Requested  netip.Addr // option 50
	ClientAddr netip.Addr // ciaddr: an address that the client has in use

	Relay     netip.Addr // giaddr; zero if the client is on the segment of Interface
	Link      netip.Addr // an address in the client's subnet as reported by the relay (RFC 3527), or Relay
	CircuitID string     // option 82, raw bytes
	RemoteID  string     // option 82, raw bytes

	Interface string     // on which the packet was received
	Index     int        // of Interface
	Source    netip.Addr // source address of the packet: the relay's for relayed packets
	Unicast   bool       // the packet was sent to an address of Interface, not broadcast
	Local     netip.Addr // the server's own address that the packet was sent to, or that Interface has
}

// Options and sub-options that dhcpv4 has no names for.
const (
	optUUID  = dhcpv4.GenericOptionCode(97)  // RFC 4578
	optEther = dhcpv4.GenericOptionCode(175) // Etherboot's encapsulated options, iPXE's own

	etherHTTP     = 0x13 // iPXE's features.h: DHCP_EB_FEATURE_HTTP
	etherNoProxy  = 0xb0 // iPXE's dhcp.h: DHCP_EB_NO_PXEDHCP
	etherVersion  = 0xeb // iPXE's dhcp.h: DHCP_EB_VERSION
	archPi        = iana.Arch(0x29)
	pxeBootItem   = 71 // PXE 2.1 §2.2: the item of a boot menu that the client chose
	pxeDiscovery  = 6  // PXE 2.1 §2.2: discovery control
	pxeMenu       = 9
	pxeMenuPrompt = 10
)

// newClient parses everything that describes the client; the caller adds what
// the socket knows.
func newClient(p *dhcpv4.DHCPv4) Client {
	c := Client{
		MAC:         p.ClientHWAddr,
		UUID:        clientUUID(p.Options[optUUID.Code()]),
		UserClass:   userClass(p),
		VendorClass: p.ClassIdentifier(),
		Hostname:    p.HostName(),
		Requested:   toAddr(p.Options[dhcpv4.OptionRequestedIPAddress.Code()]),
		ClientAddr:  toAddr(p.ClientIPAddr),
		Relay:       toAddr(p.GatewayIPAddr),
	}
	c.State = requestState(p, c)
	c.Arch = archs(p, c.VendorClass)
	c.Kind, c.HTTP = kind(p, c)
	c.Pi = c.Kind == PXE && isPi(c)
	c.Link = c.Relay
	if info := p.RelayAgentInfo(); info != nil {
		c.CircuitID = string(info.Get(dhcpv4.AgentCircuitIDSubOption))
		c.RemoteID = string(info.Get(dhcpv4.AgentRemoteIDSubOption))
		if link := toAddr(info.Get(dhcpv4.LinkSelectionSubOption)); link.IsValid() {
			c.Link = link
		}
	}
	return c
}

// requestState distinguishes the states as RFC 2131 §4.3.2 does.
func requestState(p *dhcpv4.DHCPv4, c Client) State {
	switch {
	case p.Options.Has(dhcpv4.OptionServerIdentifier):
		return Selecting
	case c.Requested.IsValid():
		return InitReboot
	default:
		return Renewing
	}
}

func kind(p *dhcpv4.DHCPv4, c Client) (k Kind, http bool) {
	ether := dhcpv4.Options{}
	if err := ether.FromBytes(p.Options[optEther.Code()]); err != nil {
		ether = nil // an invalid feature list promises nothing
	}
	_, version := ether[etherVersion]
	feature := ether[etherHTTP]
	http = len(feature) > 0 && feature[0] != 0

	switch {
	// Scripts may set a user class of their own, but the version stays. gPXE
	// sends it too, but cannot run #!ipxe.
	case c.UserClass == "iPXE", version && c.UserClass != "gPXE":
		return IPXE, http
	case strings.HasPrefix(c.VendorClass, "HTTPClient"):
		return HTTPBoot, true
	case strings.HasPrefix(c.VendorClass, "PXEClient"):
		return PXE, false
	default:
		return None, false
	}
}

// userClass accepts RFC 3004's length-prefixed form and the raw string that iPXE sends.
func userClass(p *dhcpv4.DHCPv4) string {
	classes := p.UserClass()
	if slices.Contains(classes, "iPXE") {
		return "iPXE"
	}
	if len(classes) == 0 {
		return ""
	}
	return strings.TrimRight(classes[0], "\x00")
}

// archs parses option 93, or "PXEClient:Arch:00007:…" of ROMs that lack the
// option.
func archs(p *dhcpv4.DHCPv4, vendorClass string) []iana.Arch {
	if a := p.ClientArch(); len(a) > 0 {
		return a
	}
	_, rest, found := strings.Cut(vendorClass, ":Arch:")
	if !found {
		return nil
	}
	digits, _, _ := strings.Cut(rest, ":")
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return nil
	}
	return []iana.Arch{iana.Arch(n)}
}

// clientUUID parses option 97 of 17 bytes, type 0, and takes anything else as
// absent, because some ROMs omit it. On the wire it is a GUID with its first
// three fields little-endian.
func clientUUID(b []byte) uuid.UUID {
	if len(b) != 17 || b[0] != 0 {
		return uuid.Nil
	}
	u := uuid.UUID(b[1:])
	slices.Reverse(u[0:4])
	slices.Reverse(u[4:6])
	slices.Reverse(u[6:8])
	return u
}

// isPi recognises a Raspberry Pi's boot ROM by its vendor prefix: it claims to
// be a BIOS (the Pi 5 still does). UEFI on a Pi reports its true architecture.
func isPi(c Client) bool {
	if slices.Contains(c.Arch, archPi) {
		return true
	}
	if len(c.Arch) > 0 && c.Arch[0] != iana.INTEL_X86PC {
		return false
	}
	prefixes := [...][]byte{
		{0x28, 0xcd, 0xc1}, {0x2c, 0xcf, 0x67}, {0x88, 0xa2, 0x9e}, {0xb8, 0x27, 0xeb},
		{0xd8, 0x3a, 0xdd}, {0xdc, 0xa6, 0x32}, {0xe4, 0x5f, 0x01},
	}
	return slices.ContainsFunc(prefixes[:], func(p []byte) bool { return bytes.HasPrefix(c.MAC, p) })
}

// toAddr returns the zero Addr for anything but an IPv4 address, and for
// 0.0.0.0.
func toAddr(b []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(b)
	a = a.Unmap()
	if !ok || !a.Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
