package api

import (
	"net/netip"
	"strings"
	"testing"
)

func TestBeacon(t *testing.T) {
	b := new(Beacon)
	b.Metadata.Name, b.Spec.Zone, b.Spec.Address = "x", "yellow", netip.MustParseAddrPort("198.18.0.9:4711")
	b.SetDefaults()
	if faults := b.Validate(); len(faults) > 0 {
		t.Error(faults)
	}
	if list := References(b); len(list) != 1 || list[0].Kind != "Zone" {
		t.Errorf("references: %+v", list)
	}
	part, err := EncodePart(BeaconPart{UID: "u", Address: b.Spec.Address, Password: "hush"})
	if err != nil {
		t.Fatal(err)
	}
	name := BeaconPartName("x")
	v, err := DecodePart(name, part)
	if p, ok := v.(*BeaconPart); err != nil || !ok || p.Password != "hush" {
		t.Errorf("%+v, %v", v, err)
	}
	shown, err := MaskPart(name, part)
	if err != nil || strings.Contains(string(shown), "hush") || !strings.Contains(string(shown), "198.18.0.9:4711") {
		t.Errorf("%s, %v", shown, err)
	}
}
