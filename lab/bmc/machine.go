package bmc

import (
	"context"
	"errors"
	"net"
)

// Power is a server's power state, in Redfish's terms.
type Power string

const (
	On  Power = "On"
	Off Power = "Off"
)

// Target is a boot source, in Redfish's terms (ComputerSystem BootSource).
type Target string

const (
	None     Target = "None"
	Pxe      Target = "Pxe"
	Hdd      Target = "Hdd"
	UefiHTTP Target = "UefiHttp"
	Cd       Target = "Cd"
	UsbCd    Target = "UsbCd" // the same, in Supermicro's word
)

// Firmware is the boot mode, in Redfish's terms (BootSourceOverrideMode).
type Firmware string

const (
	Legacy Firmware = "Legacy"
	UEFI   Firmware = "UEFI"
)

// Override replaces the server's boot order for the next boot. The zero Target
// means None. Once is consumed by the next boot, whatever causes it.
type Override struct {
	Target Target
	Once   bool
	URI    string // with UefiHttp: what to boot; empty means from DHCP
}

// Machine is the server behind the BMC. Its methods are safe for concurrent use
// and return once the request has been passed to the hardware; the effect is
// seen in Power and reported as Events.
type Machine interface {
	Power() Power
	Override() Override
	// SetOverride takes effect at the next boot, also while the server runs.
	SetOverride(ctx context.Context, o Override) error
	// AssetTag is the tag that the firmware shows in SMBIOS from its next power-on.
	AssetTag() string
	SetAssetTag(tag string)
	PowerOn(ctx context.Context) error
	// PowerOff cuts the power at once.
	PowerOff(ctx context.Context) error
	// PressButton is the ACPI power button: the operating system may shut down, or ignore it.
	PressButton(ctx context.Context) error
	Reset(ctx context.Context) error
	NMI(ctx context.Context) error
	// DialConsole opens the serial console of a server that is on.
	DialConsole(ctx context.Context) (net.Conn, error)
}

// EventKind is what happened to the server.
type EventKind string

const (
	PoweredOn  EventKind = "PoweredOn"
	PoweredOff EventKind = "PoweredOff"
	Reset      EventKind = "Reset"
)

// Event is a change of the server's power, whatever caused it.
type Event struct {
	Kind EventKind
	// System is the Id of the ComputerSystem; empty: the BMC's first.
	System string
	// Target is what the boot that begins with it uses.
	Target Target
	// Cause is for messages: "the guest", "the BMC", "a fault".
	Cause string
}

// ErrOff is a Machine's error for a request that needs power.
var ErrOff = errors.New("the server is off")

// NIC is one network interface of the server.
type NIC struct {
	Name string // "NIC 1"
	MAC  string
}

// Inventory is what the BMC reports about its server.
type Inventory struct {
	UUID, Serial, SKU, Manufacturer, Model string
	BIOSVersion                            string
	Firmware                               Firmware
	CPUs                                   int
	CPUModel                               string
	MemoryMiB                              int
	NICs                                   []NIC
	DiskSerial                             string
	DiskBytes                              int64
}
