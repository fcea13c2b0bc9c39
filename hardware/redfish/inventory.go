package redfish

import (
	"context"
	"strings"

	"github.com/rackweft/rackweft/hardware"
)

// inventory walks what it needs. bmclib's own inventory reads power and thermal trees as well, for minutes on some BMCs,
// and swallows what fails.
func (r *driver) inventory(ctx context.Context) (hardware.Inventory, error) {
	w, err := r.walk(ctx)
	if err != nil {
		return hardware.Inventory{}, err
	}
	for _, part := range []func(context.Context) error{w.neighbours, w.chassis, w.processors, w.memory, w.nics, w.disks, w.supplies, w.firmware} {
		if err := part(ctx); err != nil {
			return hardware.Inventory{}, err
		}
	}
	return w.inv.Bounded(), nil
}

// walk begins one with the system and its manager.
func (r *driver) walk(ctx context.Context) (*walk, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return nil, err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return nil, err
	}
	return &walk{driver: r, sys: sys, manager: m, inv: &hardware.Inventory{
		Manufacturer: string(sys.Manufacturer), Model: string(sys.Model), Serial: string(sys.SerialNumber),
		UUID: string(sys.UUID), SKU: string(sys.SKU), BIOSVersion: string(sys.BIOSVersion), BMCFirmware: string(m.Firmware),
		MemoryMiB: int64(sys.MemorySummary.GiB * 1024),
		CPUs:      hardware.CPUs{Count: int(sys.ProcessorSummary.Count), Model: string(sys.ProcessorSummary.Model), Cores: int(sys.ProcessorSummary.CoreCount)},
	}}, nil
}

// neighbours finds the systems that are a part of this one: all others, when this is the only one that can be reset.
func (w *walk) neighbours(ctx context.Context) error {
	all, err := listed[system](ctx, w, w.root.Systems, 16)
	if err != nil {
		return err
	}
	for _, sys := range all {
		if strings.TrimSuffix(string(sys.Path), "/") == w.systemPath {
			continue
		}
		if sys.Actions.Reset.Target != "" {
			w.beside = nil
			return nil
		}
		w.beside = append(w.beside, sys)
	}
	return nil
}

// state is the Status object: empty sockets and slots are listed, as Absent.
type state struct {
	Status struct {
		State  text `json:"State"`
		Health text `json:"Health"`
		Rollup text `json:"HealthRollup"`
	} `json:"Status"`
}

func (s state) absent() bool   { return s.Status.State == "Absent" }
func (s state) health() string { return string(s.Status.Health) }

type processor struct {
	ID     text   `json:"Id"`
	Model  text   `json:"Model"`
	Type   text   `json:"ProcessorType"`
	Cores  number `json:"TotalCores"`
	Serial text   `json:"SerialNumber"`
	state
}

// processors reads the processors themselves: the summary's model is vague on Supermicro, and counts no cores on HPE.
// GPUs are listed among them by some, or among the PCIe devices.
func (w *walk) processors(ctx context.Context) error {
	own, err := listed[processor](ctx, w, w.sys.Processors, 64)
	if err != nil {
		return err
	}
	w.cpus(own)
	w.gpus(own)
	for _, sys := range w.beside {
		theirs, err := listed[processor](ctx, w, sys.Processors, 64)
		if err != nil {
			return err
		}
		if w.inv.CPUs.Count == 0 {
			w.cpus(theirs)
		}
		w.gpus(theirs)
	}
	if len(w.inv.GPUs) == 0 {
		return w.cards(ctx)
	}
	return nil
}

func (w *walk) cpus(all []processor) {
	var found hardware.CPUs
	for _, cpu := range all {
		if cpu.absent() || cpu.Type != "" && cpu.Type != "CPU" {
			continue
		}
		found.Count++
		found.Cores += int(cpu.Cores)
		found.Model = string(cpu.Model)
	}
	if found.Count > 0 && found.Model != "" {
		found.Cores = max(found.Cores, w.inv.CPUs.Cores)
		w.inv.CPUs = found
	}
}

func (w *walk) gpus(all []processor) {
	for _, p := range all {
		if !p.absent() && (p.Type == "GPU" || p.Type == "Accelerator") {
			w.inv.GPUs = append(w.inv.GPUs, hardware.GPU{Name: string(p.ID), Model: string(p.Model), Serial: string(p.Serial), Health: p.health()})
		}
	}
}

type module struct {
	ID      text   `json:"Id"`
	Locator text   `json:"DeviceLocator"`
	MiB     number `json:"CapacityMiB"`
	Kind    text   `json:"MemoryDeviceType"`
	Part    text   `json:"PartNumber"`
	Serial  text   `json:"SerialNumber"`
	state
}

// memory lists the modules, and counts them where there is no summary.
func (w *walk) memory(ctx context.Context) error {
	modules, err := listed[module](ctx, w, w.sys.Memory, mostRequests)
	if err != nil {
		return err
	}
	var sum int64
	for _, m := range modules {
		if m.absent() || m.MiB == 0 {
			continue
		}
		sum += int64(m.MiB)
		w.inv.DIMMs = append(w.inv.DIMMs, hardware.DIMM{Slot: or(m.Locator, m.ID), MiB: int64(m.MiB), Type: string(m.Kind),
			Part: string(m.Part), Serial: string(m.Serial), Health: m.health()})
	}
	if w.inv.MemoryMiB == 0 {
		w.inv.MemoryMiB = sum
	}
	return nil
}

// or is the first reported.
func or(texts ...text) string {
	for _, s := range texts {
		if s != "" {
			return string(s)
		}
	}
	return ""
}
