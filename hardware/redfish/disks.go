package redfish

import (
	"context"

	"github.com/rackweft/rackweft/hardware"
)

// disk is what we read of a Drive, and of HPE's own disk drives.
type disk struct {
	ID       text   `json:"Id"`
	Model    text   `json:"Model"`
	Bytes    number `json:"CapacityBytes"`
	MiB      number `json:"CapacityMiB"` // HPE's
	Serial   text   `json:"SerialNumber"`
	Media    text   `json:"MediaType"`
	Protocol text   `json:"Protocol"`
	Location text   `json:"Location"` // HPE's; an object with others
	state
}

func (d disk) kind() string {
	if d.Protocol == "NVMe" || d.Protocol == "PCIe" && d.Media == "SSD" { // iDRAC 9 says PCIe
		return "NVMe"
	}
	return string(d.Media)
}

// disks takes the first of the trees that has any: a drive is listed in several.
func (w *walk) disks(ctx context.Context) error {
	for _, tree := range []func(context.Context) error{w.storage, w.simpleStorage, w.smartStorage, w.chassisDrives} {
		if err := tree(ctx); err != nil {
			return err
		}
		if len(w.inv.Disks) > 0 {
			return nil
		}
	}
	return nil
}

func (w *walk) drives(all []disk) {
	for _, d := range all {
		if d.absent() {
			continue
		}
		bytes := int64(d.Bytes)
		if bytes == 0 {
			bytes = int64(d.MiB) << 20
		}
		w.inv.Disks = append(w.inv.Disks, hardware.Disk{Name: or(d.Location, d.ID), Model: string(d.Model), Bytes: bytes, Serial: string(d.Serial), Type: d.kind(), Health: d.health()})
	}
}

func (w *walk) storage(ctx context.Context) error {
	type controller struct {
		Drives links `json:"Drives"`
	}
	controllers, err := listed[controller](ctx, w, w.sys.Storage, hardware.MaxDisks)
	if err != nil {
		return err
	}
	var at links
	for _, c := range controllers {
		at = append(at, c.Drives...)
	}
	drives, err := linked[disk](ctx, w, at, hardware.MaxDisks)
	w.drives(drives)
	return err
}

// simpleStorage reads what BMCs of the first generation have instead of Storage.
func (w *walk) simpleStorage(ctx context.Context) error {
	type controller struct {
		Devices []struct {
			Name  text   `json:"Name"`
			Model text   `json:"Model"`
			Bytes number `json:"CapacityBytes"`
			state
		} `json:"Devices"`
	}
	controllers, err := listed[controller](ctx, w, w.sys.SimpleStorage, hardware.MaxDisks)
	for _, c := range controllers {
		for _, d := range c.Devices {
			if !d.absent() && d.Bytes > 0 {
				w.inv.Disks = append(w.inv.Disks, hardware.Disk{Name: string(d.Name), Model: string(d.Model), Bytes: int64(d.Bytes), Health: d.health()})
			}
		}
	}
	return err
}

// smartStorage reads the tree in which HPE lists the drives of its own controllers: iLO 4, and iLO 5 with old ones.
func (w *walk) smartStorage(ctx context.Context) error {
	type family struct {
		Links struct {
			Controllers link `json:"ArrayControllers"`
			Adapters    link `json:"HostBusAdapters"`
		} `json:"Links"`
	}
	type controller struct {
		Links struct {
			Drives link `json:"PhysicalDrives"`
		} `json:"Links"`
	}
	var top family
	at := w.sys.smartStorage()
	if at == "" {
		return nil
	}
	if ok, err := w.read(ctx, at, &top); !ok {
		return err
	}
	for _, at := range []link{top.Links.Controllers, top.Links.Adapters} {
		controllers, err := listed[controller](ctx, w, at, 16)
		if err != nil {
			return err
		}
		for _, c := range controllers {
			drives, err := listed[disk](ctx, w, c.Links.Drives, hardware.MaxDisks)
			if err != nil {
				return err
			}
			w.drives(drives)
		}
	}
	return nil
}

// smartStorage is where HPE's own tree begins, in the words of iLO 5, and of iLO 4.
func (s system) smartStorage() string {
	var hpe struct {
		Links struct {
			SmartStorage link `json:"SmartStorage"`
		} `json:"Links"`
	}
	for _, vendor := range []string{"Hpe", "Hp"} {
		_ = decode(s.Oem[vendor], &hpe) // absent elsewhere
	}
	return string(hpe.Links.SmartStorage.ID)
}

// chassisDrives reads the drives of bays whose controller the BMC does not see.
func (w *walk) chassisDrives(ctx context.Context) error {
	for _, c := range w.shelves {
		drives, err := listed[disk](ctx, w, c.Drives, hardware.MaxDisks)
		if len(drives) == 0 && err == nil {
			drives, err = linked[disk](ctx, w, c.Links.Drives, hardware.MaxDisks)
		}
		if err != nil {
			return err
		}
		w.drives(drives)
	}
	return nil
}
