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

// supplies lists the power supplies that are there.
func (w *walk) supplies(ctx context.Context) error {
	for _, c := range w.shelves {
		power, err := w.powerOf(ctx, c)
		if err != nil {
			return err
		}
		for _, p := range power.Supplies {
			if !p.absent() {
				w.inv.PSUs = append(w.inv.PSUs, hardware.PSU{Name: p.name(), Model: or(p.Model, p.Part), Serial: string(p.Serial),
					Firmware: string(p.Firmware), Watts: int(p.Capacity), Health: p.health()})
			}
		}
	}
	return nil
}

// power is what a chassis is fed with, and what it consumes.
type power struct {
	Supplies []powerSupply `json:"PowerSupplies"`
	Control  []gauge       `json:"PowerControl"`
	Voltages []gauge       `json:"Voltages"`
}

// powerOf reads Power before PowerSubsystem, its successor: it is one request, where that is one for each supply.
func (w *walk) powerOf(ctx context.Context, c chassis) (p power, err error) {
	if c.Power.ID != "" {
		if _, err := w.read(ctx, string(c.Power.ID), &p); err != nil || len(p.Supplies) > 0 {
			return p, err
		}
	}
	var subsystem struct {
		Supplies link `json:"PowerSupplies"`
	}
	if c.PowerSubsystem.ID == "" {
		return p, nil
	}
	if ok, err := w.read(ctx, string(c.PowerSubsystem.ID), &subsystem); !ok {
		return p, err
	}
	p.Supplies, err = listed[powerSupply](ctx, w, subsystem.Supplies, hardware.MaxPSUs)
	return p, err
}

// name is the bay of HPE's power supplies, which all have the same name.
func (p powerSupply) name() string {
	if bay := int(p.Oem.Hpe.Bay); bay > 0 {
		return fmt.Sprintf("Bay %d", bay)
	}
	return or(p.Name, p.ID, p.Member)
}
