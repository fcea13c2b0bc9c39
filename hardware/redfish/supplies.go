package redfish

import (
	"context"
	"fmt"

	"github.com/rackweft/rackweft/hardware"
)

// powerSupply is one in Power, or a PowerSupply.
type powerSupply struct {
	ID       text   `json:"Id"`
	Name     text   `json:"Name"`
	Member   text   `json:"MemberId"`
	Model    text   `json:"Model"`
	Part     text   `json:"PartNumber"`
	Serial   text   `json:"SerialNumber"`
	Firmware text   `json:"FirmwareVersion"`
	Capacity number `json:"PowerCapacityWatts"`
	Oem      struct {
		Hpe struct {
			Bay number `json:"BayNumber"`
		} `json:"Hpe"`
	} `json:"Oem"`
	state
}

// supplies reads Power before PowerSubsystem, its successor: it is one request, where that is one for each supply.
func (w *walk) supplies(ctx context.Context) error {
	for _, c := range w.shelves {
		supplies, err := w.suppliesOf(ctx, c)
		if err != nil {
			return err
		}
		for _, p := range supplies {
			if !p.absent() {
				w.inv.PSUs = append(w.inv.PSUs, hardware.PSU{Name: p.name(), Model: or(p.Model, p.Part), Serial: string(p.Serial),
					Firmware: string(p.Firmware), Watts: int(p.Capacity), Health: p.health()})
			}
		}
	}
	return nil
}

func (w *walk) suppliesOf(ctx context.Context, c chassis) ([]powerSupply, error) {
	var power struct {
		Supplies []powerSupply `json:"PowerSupplies"`
	}
	if c.Power.ID != "" {
		if _, err := w.read(ctx, string(c.Power.ID), &power); err != nil || len(power.Supplies) > 0 {
			return power.Supplies, err
		}
	}
	var subsystem struct {
		Supplies link `json:"PowerSupplies"`
	}
	if c.PowerSubsystem.ID == "" {
		return nil, nil
	}
	if ok, err := w.read(ctx, string(c.PowerSubsystem.ID), &subsystem); !ok {
		return nil, err
	}
	return listed[powerSupply](ctx, w, subsystem.Supplies, hardware.MaxPSUs)
}

// name tells HPE's apart, which are all called the same.
func (p powerSupply) name() string {
	if bay := int(p.Oem.Hpe.Bay); bay > 0 {
		return fmt.Sprintf("Bay %d", bay)
	}
	return or(p.Name, p.ID, p.Member)
}
