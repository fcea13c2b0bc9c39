package api

import "net/netip"

// BeaconPartName is the name of a Beacon's part.
func BeaconPartName(beacon string) string { return "beacon/" + beacon }

// beaconPart describes the parts of Beacons.
func beaconPart() PartKind {
	return PartKind{Name: "beacon", Named: true, New: func() any { return new(BeaconPart) },
		Mask: func(p Part) (Part, error) { return maskPasswords(p, (*BeaconPart).mask) }}
}

func (p *BeaconPart) mask() { p.Password = NotShown }

// BeaconPart is a Beacon as compiled for one host.
type BeaconPart struct {
	UID      string         `json:"uid"`
	Address  netip.AddrPort `json:"address"`
	Password string         `json:"password" doc:"By which this host alone proves who it is."`
}
