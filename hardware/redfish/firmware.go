package redfish

import (
	"context"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// firmware lists what is installed. Dell lists what was installed before, and what could be, in addition.
func (w *walk) firmware(ctx context.Context) error {
	var service struct {
		Inventory link `json:"FirmwareInventory"`
	}
	if w.root.UpdateService.ID == "" {
		return nil
	}
	if ok, err := w.read(ctx, string(w.root.UpdateService.ID), &service); !ok {
		return err
	}
	type image struct {
		ID      text `json:"Id"`
		Name    text `json:"Name"`
		Version text `json:"Version"`
	}
	images, err := listed[image](ctx, w, service.Inventory, 2*hardware.MaxFirmware)
	seen := map[hardware.Firmware]bool{}
	for _, i := range images {
		f := hardware.Firmware{Name: or(i.Name, i.ID), Version: string(i.Version)}
		if f.Version == "" || strings.HasPrefix(string(i.ID), "Previous-") || strings.HasPrefix(string(i.ID), "Available-") || seen[f] {
			continue
		}
		seen[f] = true
		w.inv.Firmware = append(w.inv.Firmware, f)
	}
	return err
}
