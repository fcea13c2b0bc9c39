package redfish

import (
	"context"
	"errors"
	"net"

	"github.com/rackweft/rackweft/hardware"
)

// inventory walks the few resources that it needs. bmclib's own inventory reads firmware, chassis, power
// and thermal trees as well, for minutes on some BMCs, and swallows what fails.
func (r *driver) inventory(ctx context.Context) (hardware.Inventory, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return hardware.Inventory{}, err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return hardware.Inventory{}, err
	}
	inv := hardware.Inventory{
		Manufacturer: string(sys.Manufacturer), Model: string(sys.Model), Serial: string(sys.SerialNumber),
		UUID: string(sys.UUID), SKU: string(sys.SKU), BIOSVersion: string(sys.BIOSVersion), BMCFirmware: string(m.Firmware),
		MemoryMiB: int64(sys.MemorySummary.GiB * 1024),
		CPUs:      hardware.CPUs{Count: int(sys.ProcessorSummary.Count), Model: string(sys.ProcessorSummary.Model), Cores: int(sys.ProcessorSummary.CoreCount)},
	}
	for _, part := range []func(context.Context, system, *hardware.Inventory) error{r.cpus, r.memory, r.nics, r.disks} {
		err := part(ctx, sys, &inv)
		var no *refusal
		if errors.As(err, &no) && ignoreRefusal(err) == nil {
			inv.Incomplete = append(inv.Incomplete, no.Error())
			continue
		}
		if err != nil {
			return hardware.Inventory{}, err
		}
	}
	return inv, nil
}

// cpus reads the processors themselves: the summary's model is vague on Supermicro, and counts no cores on HPE.
func (r *driver) cpus(ctx context.Context, sys system, inv *hardware.Inventory) error {
	if sys.Processors.ID == "" {
		return nil
	}
	paths, err := r.members(ctx, string(sys.Processors.ID))
	if err != nil {
		return err
	}
	var found hardware.CPUs
	for _, at := range paths {
		var cpu struct {
			Model text   `json:"Model"`
			Type  text   `json:"ProcessorType"`
			Cores number `json:"TotalCores"`
			state
		}
		if _, err := r.get(ctx, at, &cpu); err != nil {
			return err
		}
		if cpu.absent() || cpu.Type != "" && cpu.Type != "CPU" { // GPUs and accelerators are listed as well
			continue
		}
		found.Count++
		found.Cores += int(cpu.Cores)
		found.Model = string(cpu.Model)
	}
	if found.Count > 0 && found.Model != "" {
		inv.CPUs = hardware.CPUs{Count: found.Count, Model: found.Model, Cores: max(found.Cores, inv.CPUs.Cores)}
	}
	return nil
}

// state is the Status object: empty sockets and slots are listed, as Absent.
type state struct {
	Status struct {
		State text `json:"State"`
	} `json:"Status"`
}

func (s state) absent() bool { return s.Status.State == "Absent" }

// memory counts the modules where there is no summary.
func (r *driver) memory(ctx context.Context, sys system, inv *hardware.Inventory) error {
	if inv.MemoryMiB > 0 || sys.Memory.ID == "" {
		return nil
	}
	paths, err := r.members(ctx, string(sys.Memory.ID))
	if err != nil {
		return err
	}
	for _, at := range paths {
		var module struct {
			MiB number `json:"CapacityMiB"`
			state
		}
		if _, err := r.get(ctx, at, &module); err != nil {
			return err
		}
		if !module.absent() {
			inv.MemoryMiB += int64(module.MiB)
		}
	}
	return nil
}

func (r *driver) nics(ctx context.Context, sys system, inv *hardware.Inventory) error {
	if sys.EthernetInterfaces.ID == "" {
		return nil
	}
	paths, err := r.members(ctx, string(sys.EthernetInterfaces.ID))
	if err != nil {
		return err
	}
	for _, at := range paths {
		var port struct {
			ID        text   `json:"Id"`
			MAC       text   `json:"MACAddress"`
			Permanent text   `json:"PermanentMACAddress"`
			Speed     number `json:"SpeedMbps"`
			Link      text   `json:"LinkStatus"`
		}
		if _, err := r.get(ctx, at, &port); err != nil {
			return err
		}
		mac := firstMAC(port.Permanent, port.MAC)
		if mac == "" {
			continue
		}
		// Id, not Name: on HPE Name is what the operating system calls it, a bond for instance.
		inv.NICs = append(inv.NICs, hardware.NIC{Name: string(port.ID), MAC: mac, SpeedMbps: int(port.Speed), Link: string(port.Link)})
	}
	return nil
}

func (r *driver) disks(ctx context.Context, sys system, inv *hardware.Inventory) error {
	drives, err := r.drivePaths(ctx, sys)
	if err != nil {
		return err
	}
	for _, at := range drives {
		var drive struct {
			ID       text   `json:"Id"`
			Bytes    number `json:"CapacityBytes"`
			Serial   text   `json:"SerialNumber"`
			Media    text   `json:"MediaType"`
			Protocol text   `json:"Protocol"`
			state
		}
		if _, err := r.get(ctx, at, &drive); err != nil {
			return err
		}
		if drive.absent() {
			continue
		}
		kind := string(drive.Media)
		if drive.Protocol == "NVMe" || drive.Protocol == "PCIe" && drive.Media == "SSD" { // iDRAC 9 says PCIe
			kind = "NVMe"
		}
		inv.Disks = append(inv.Disks, hardware.Disk{Name: string(drive.ID), Bytes: int64(drive.Bytes), Serial: string(drive.Serial), Type: kind})
	}
	if len(drives) > 0 || sys.SimpleStorage.ID == "" {
		return nil
	}
	return r.simpleDisks(ctx, sys, inv)
}

func (r *driver) drivePaths(ctx context.Context, sys system) ([]string, error) {
	if sys.Storage.ID == "" {
		return nil, nil
	}
	controllers, err := r.members(ctx, string(sys.Storage.ID))
	if ignoreRefusal(err) != nil {
		return nil, err // a refused Storage leaves SimpleStorage to ask
	}
	var drives []string
	for _, at := range controllers {
		var storage struct {
			Drives links `json:"Drives"`
		}
		if _, err := r.get(ctx, at, &storage); err != nil {
			return nil, err
		}
		for _, drive := range storage.Drives {
			drives = append(drives, string(drive.ID))
		}
	}
	return drives, nil
}

// simpleDisks reads what BMCs of the first generation have instead of Storage.
func (r *driver) simpleDisks(ctx context.Context, sys system, inv *hardware.Inventory) error {
	paths, err := r.members(ctx, string(sys.SimpleStorage.ID))
	if err != nil {
		return err
	}
	for _, at := range paths {
		var storage struct {
			Devices []struct {
				Name  text   `json:"Name"`
				Bytes number `json:"CapacityBytes"`
				state
			} `json:"Devices"`
		}
		if _, err := r.get(ctx, at, &storage); err != nil {
			return err
		}
		for _, device := range storage.Devices {
			if !device.absent() && device.Bytes > 0 {
				inv.Disks = append(inv.Disks, hardware.Disk{Name: string(device.Name), Bytes: int64(device.Bytes)})
			}
		}
	}
	return nil
}

// firstMAC is the first that is one, and not all zeroes.
func firstMAC(candidates ...text) string {
	for _, candidate := range candidates {
		mac, err := net.ParseMAC(string(candidate))
		if err == nil && len(mac) == 6 && mac.String() != "00:00:00:00:00:00" {
			return mac.String()
		}
	}
	return ""
}
