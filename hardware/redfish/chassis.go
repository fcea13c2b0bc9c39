package redfish

import (
	"context"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// mostChassis bounds how many chassis of a system are looked into.
const mostChassis = 16

// chassis is what we read of a Chassis.
type chassis struct {
	Adapters           link `json:"NetworkAdapters"`
	Drives             link `json:"Drives"`
	PCIeDevices        link `json:"PCIeDevices"`
	Power              link `json:"Power"`
	PowerSubsystem     link `json:"PowerSubsystem"`
	Thermal            link `json:"Thermal"`
	ThermalSubsystem   link `json:"ThermalSubsystem"`
	EnvironmentMetrics link `json:"EnvironmentMetrics"`
	Links              struct {
		Drives links `json:"Drives"`
	} `json:"Links"`
}

// chassis reads those that the system says it is in.
func (w *walk) chassis(ctx context.Context) (err error) {
	w.shelves, err = linked[chassis](ctx, w, w.sys.Links.Chassis, mostChassis)
	return err
}

// card is what we read of a PCIeDevice.
type card struct {
	ID           text `json:"Id"`
	Name         text `json:"Name"`
	Manufacturer text `json:"Manufacturer"`
	Model        text `json:"Model"`
	Serial       text `json:"SerialNumber"`
	Functions    link `json:"PCIeFunctions"`
	Links        struct {
		Functions links `json:"PCIeFunctions"`
	} `json:"Links"`
	state
}

// mayCompute tells cards that may be GPUs by their names: the class of each is one more request.
func (c card) mayCompute() bool {
	names := strings.ToLower(string(c.Name + " " + c.Manufacturer + " " + c.Model))
	for _, word := range []string{"gpu", "nvidia", "tesla", "radeon", "instinct", "gaudi", "accelerator"} {
		if strings.Contains(names, word) {
			return !c.absent()
		}
	}
	return false
}

// cards looks for GPUs among the PCIe devices.
func (w *walk) cards(ctx context.Context) error {
	cards, err := linked[card](ctx, w, w.sys.PCIeDevices, mostRequests)
	if err != nil {
		return err
	}
	for i := 0; i < len(w.shelves) && len(cards) == 0; i++ {
		if cards, err = listed[card](ctx, w, w.shelves[i].PCIeDevices, mostRequests); err != nil {
			return err
		}
	}
	for _, c := range cards {
		if !c.mayCompute() {
			continue
		}
		ok, err := w.computes(ctx, c)
		if err != nil {
			return err
		}
		if ok {
			w.inv.GPUs = append(w.inv.GPUs, hardware.GPU{Name: string(c.ID), Model: or(c.Model, c.Name), Serial: string(c.Serial), Health: c.health()})
		}
	}
	return nil
}

// computes asks the card's functions for their class: display controllers have 03, processing accelerators 12 (PCI Code
// and ID Assignment §1).
func (w *walk) computes(ctx context.Context, c card) (bool, error) {
	type function struct {
		Class text `json:"ClassCode"`
	}
	functions, err := listed[function](ctx, w, c.Functions, 8)
	if len(functions) == 0 && err == nil {
		functions, err = linked[function](ctx, w, c.Links.Functions, 8)
	}
	for _, f := range functions {
		class := strings.TrimPrefix(strings.ToLower(string(f.Class)), "0x")
		if strings.HasPrefix(class, "03") || strings.HasPrefix(class, "12") {
			return true, err
		}
	}
	return false, err
}
