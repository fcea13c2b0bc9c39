package trust

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/rackweft/rackweft/api"
)

// ID formats the bytes of a circuit ID or remote ID unambiguously: printable ASCII unchanged, everything else as
// 0x and hexadecimal digits.
func ID(raw string) string {
	printable := strings.IndexFunc(raw, func(r rune) bool { return r < ' ' || r > '~' }) < 0
	if printable && !strings.HasPrefix(raw, "0x") {
		return raw
	}
	return "0x" + hex.EncodeToString([]byte(raw))
}

// AtPort reports whether an address was leased at the planned switch port of the Machine's spec, or says why not.
func AtPort(m *api.Machine, a *api.BootAttempt, peer netip.Addr) (ok bool, why string) {
	where := m.Spec.Location
	switch {
	case where.Switch == "" || where.Port == "":
		return false, "the Machine's spec.location names no switch and port"
	case a == nil || a.Port == nil:
		return false, "no relay that the Subnet names has reported the port at which its address was leased"
	case a.Port.Address != peer:
		return false, fmt.Sprintf("the relay %s reported address %s, not %s", a.Port.Relay, a.Port.Address, peer)
	case !matchesSwitch(where.Switch, a.Port):
		return false, fmt.Sprintf("the request came through relay %s, remote ID %q, and spec.location.switch is %q", a.Port.Relay, a.Port.RemoteID, where.Switch)
	case !matchesPort(where.Port, a.Port.CircuitID):
		return false, fmt.Sprintf("the request came in at circuit ID %q, and spec.location.port is %q", a.Port.CircuitID, where.Port)
	}
	return true, ""
}

// matchesPort compares a circuit ID with a planned port. Switches append the
// VLAN after a colon ("Ethernet7:Vlan100"); a slash or a dot names another port
// ("Ethernet7/1").
func matchesPort(planned, circuit string) bool {
	if strings.HasPrefix(planned, "0x") {
		return strings.EqualFold(planned, circuit)
	}
	port, vlan, _ := strings.Cut(circuit, ":")
	return planned != "" && (planned == circuit || port == planned && vlan != "")
}

// matchesSwitch compares a relay and its remote ID with a planned switch.
func matchesSwitch(planned string, p *api.BootPort) bool {
	if a, err := netip.ParseAddr(planned); err == nil {
		return a == p.Relay
	}
	if p.RemoteID == "" {
		return false
	}
	if strings.HasPrefix(planned, "0x") {
		return strings.EqualFold(planned, p.RemoteID)
	}
	if planned == p.RemoteID {
		return true
	}
	mac, err := net.ParseMAC(planned)
	if err != nil || len(mac) != 6 {
		return false
	}
	// Bare, or preceded by type 0 and its length, as Cisco's switches send it.
	return p.RemoteID == ID(string(mac)) || p.RemoteID == ID("\x00\x06"+string(mac))
}
