package machine

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// inspected compares what the BMC says with what the spec says.
func inspected(m *api.Machine, inv hardware.Inventory) (reason, message string) {
	known := map[api.MAC]bool{}
	for _, n := range inv.NICs {
		if mac, err := api.ParseMAC(n.MAC); err == nil {
			known[mac] = true
		}
	}
	for _, mac := range m.MACs() {
		if len(known) > 0 && !known[mac] {
			return "MACUnknown", fmt.Sprintf("the BMC lists no NIC with MAC %s: check spec.links (an add-in card that the BMC does not see is fine)", mac)
		}
	}
	return "Read", fmt.Sprintf("%s %s, serial %s, %d CPUs, %d MiB", inv.Manufacturer, inv.Model, inv.Serial, inv.CPUs.Count, inv.MemoryMiB)
}

func inventory(inv hardware.Inventory) *api.Inventory {
	out := &api.Inventory{
		Manufacturer: inv.Manufacturer, Model: inv.Model, SKU: inv.SKU, Serial: inv.Serial, UUID: inv.UUID,
		BIOSVersion: inv.BIOSVersion, BMCFirmware: inv.BMCFirmware, CPUs: api.InventoryCPUs(inv.CPUs), MemoryMiB: inv.MemoryMiB,
		Incomplete: inv.Incomplete,
	}
	for _, n := range inv.NICs {
		mac, _ := api.ParseMAC(n.MAC) // a port without one is listed without one
		out.NICs = append(out.NICs, api.InventoryNIC{Name: n.Name, MAC: mac, SpeedMbps: n.SpeedMbps, Link: n.Link})
	}
	for _, d := range inv.Disks {
		out.Disks = append(out.Disks, api.InventoryDisk{Name: d.Name, Serial: d.Serial, Type: d.Type, Bytes: d.Bytes})
	}
	return out
}
