package redfish

import (
	"strings"

	"github.com/rackweft/rackweft/hardware/sshconsole"
)

// modeRule says what a boot override carries about the firmware mode.
type modeRule int

const (
	modeAsked  modeRule = iota // sent when asked for
	modeAlways                 // sent each time, the current one unless asked for: the BMC resets it otherwise
	modeNever                  // the BMC refuses it, or has none
)

// quirk is what one family of BMCs does differently. Empty matchers match everything; the first row that
// matches counts.
type quirk struct {
	name string

	vendor   string // in the system's or the service's vendor, lower case
	model    string // prefix of the system's model, lower case
	manager  string // in the manager's model, lower case
	firmware string // prefix of the manager's firmware version, lower case
	bootless string // a boot target that this family's system does not list: tells generations apart

	mode             modeRule
	diskUEFI         string                          // boot target for disk in UEFI mode, where it is not Hdd
	bootURL          func(url string) map[string]any // attributes of the BIOS that the URL of HTTP boot goes into
	mediaIsUSB       bool                            // virtual media boots as a USB drive
	futureState      string                          // where a refused boot PATCH goes (relative to the system) when the BMC says so
	closeConnections bool                            // drops kept-alive connections in mid-request
	consolePath      string                          // WebSocket console that its tree does not tell
	ssh              sshconsole.Way                  // to the serial console, where the tree says that there is one by SSH
}

// The ways to the serial console over SSH. Sources: the vendors' manuals of each command line. iDRAC ends logins with
// closessn, which would end those over Redfish as well.
func viaILO() sshconsole.Way {
	return sshconsole.Way{Commands: []string{"vsp"}, Leave: []string{"\x1b("}, Free: []string{"stop /system1/oemhp_vsp1"}}
}
func viaIDRAC() sshconsole.Way {
	return sshconsole.Way{Commands: []string{"console com2"}, Leave: []string{"\x1c"}}
}
func viaXCC() sshconsole.Way {
	// The later firmware of an SR650 takes no number: "The command line contains extraneous arguments".
	return sshconsole.Way{Commands: []string{"console 1"}, Instead: "console start", Leave: []string{"\x1b("}, Free: []string{"console kill 1", "console kill"}}
}
func viaSMASH() sshconsole.Way {
	return sshconsole.Way{Commands: []string{"cd system1/sol1", "start"}, Leave: []string{"\x1bT", "\x1bt"}}
}
func viaOpenBMC() sshconsole.Way { return sshconsole.Way{Port: 2200} }

// quirks is searched from the top. Sources: OpenStack sushy and ironic, bmclib, Sidero omni, vendors' manuals
// and captured trees.
func quirks() []quirk {
	return []quirk{
		// bmclib boot_device.go: a PATCH with more than Target and Enabled is refused.
		{name: "HPE DL160 Gen10", vendor: "hpe", model: "proliant dl160 gen10", mode: modeNever, ssh: viaILO()},
		{name: "HPE iLO 5/6", vendor: "hpe", mode: modeAsked, bootURL: urlOfHPE, ssh: viaILO()},
		{name: "HP iLO 4", vendor: "hp", manager: "ilo 4", mode: modeNever, ssh: viaILO()}, // Gen9: no readable boot mode (ironic)

		// iDRAC 10 has its boot targets only in the settings object: bootResource looks there, whoever it is.
		{name: "Dell iDRAC 8", vendor: "dell", firmware: "2.", mode: modeNever, ssh: viaIDRAC()}, // mode is a BIOS job
		{name: "Dell iDRAC 9/10", vendor: "dell", mode: modeAsked, bootURL: urlOfDell, ssh: viaIDRAC()},

		// X10 has neither UefiHttp nor a mode, but targets of its own for UEFI.
		{name: "Supermicro X10", vendor: "supermicro", bootless: "UefiHttp", mode: modeNever, diskUEFI: "UefiHdd", mediaIsUSB: true, closeConnections: true, ssh: viaSMASH()},
		// sushy: without the mode in the same PATCH it falls back to Legacy.
		{name: "Supermicro ARS-111GL-NHR", vendor: "supermicro", model: "ars-111gl-nhr", mode: modeAlways, ssh: viaSMASH()},
		{name: "Supermicro X11 and later", vendor: "supermicro", mode: modeAlways, mediaIsUSB: true, ssh: viaSMASH()},

		{name: "Lenovo XCC", vendor: "lenovo", manager: "xclarity", mode: modeAsked, ssh: viaXCC()}, // Enabled: only Once and Disabled
		// omni redfish.go: all three each time; OperationSupportedInFutureStateURI sends us to /SD.
		{name: "Lenovo TSM", vendor: "lenovo", manager: "tsm", mode: modeAlways, futureState: "SD", closeConnections: true},
		{name: "Lenovo XCC", vendor: "lenovo", mode: modeAsked, ssh: viaXCC()},
		{name: "AMI MegaRAC", vendor: "ami", mode: modeAlways, futureState: "SD", closeConnections: true},
		{name: "ASRock Rack", vendor: "asrock", mode: modeAlways, futureState: "SD", closeConnections: true},

		{name: "OpenBMC", manager: "openbmc", mode: modeAlways, consolePath: "/console0", ssh: viaOpenBMC()},
		{name: "OpenBMC", vendor: "openbmc", mode: modeAlways, consolePath: "/console0", ssh: viaOpenBMC()},
		{name: "standard", mode: modeAsked},
	}
}

// identity is what a BMC and its system say about themselves.
type identity struct {
	vendor      string // all of: manufacturer, service vendor, OEM keys
	model       string
	manager     string
	firmware    string
	bootTargets []string
}

func (q quirk) matches(id identity) bool {
	if q.vendor != "" && !hasWord(id.vendor, q.vendor) {
		return false
	}
	for _, target := range id.bootTargets {
		if q.bootless != "" && target == q.bootless {
			return false
		}
	}
	return strings.HasPrefix(strings.ToLower(id.model), q.model) &&
		strings.Contains(strings.ToLower(id.manager), q.manager) &&
		strings.HasPrefix(strings.ToLower(id.firmware), q.firmware)
}

// hasWord: "ami" must not be found in "Miami Servers".
func hasWord(s, word string) bool {
	for _, field := range strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return !('a' <= r && r <= 'z') }) {
		if field == word {
			return true
		}
	}
	return false
}

func quirkOf(id identity) quirk {
	for _, q := range quirks() {
		if q.matches(id) {
			return q
		}
	}
	return quirk{name: "standard"}
}
