package nodeagent

import (
	"net/netip"
	"os"

	"github.com/rackweft/rackweft/api"
)

// Port is one Guest's port on its Network. The guest handler requests it and the
// overlay creates it.
type Port struct {
	Network   string // name of the Network's part, without "network/"
	Guest     string
	UID       string // the Guest's
	MAC       api.MAC
	Addresses []netip.Addr // IPv4 first
	// Inbound and Outbound limit what the Guest may receive and send, in bytes per
	// second; 0 is without limit.
	Inbound, Outbound int64
	Config            bool // the Guest has a config to fetch
	// Silent is set, in Attach, for a Guest that still runs elsewhere: its tap is not
	// connected until SetPorts names the port.
	Silent bool
}

// Attachment is the tap that a Guest is connected to.
type Attachment struct {
	// Tap is an open queue of the tap device, with IFF_VNET_HDR, whose owner
	// closes it. The device goes when its last queue is closed.
	Tap       *os.File
	Interface string // name of the tap, inside Namespace
	Namespace string // path of the Network's network namespace
	MTU       int
}
