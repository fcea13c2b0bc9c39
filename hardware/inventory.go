package hardware

import (
	"github.com/rackweft/rackweft/internal/text"
)

// Inventory is what a server is made of, as its BMC reports. What is not reported is empty.
type Inventory struct {
	Manufacturer string
	Model        string
	Serial       string
	UUID         string
	SKU          string
	BIOSVersion  string
	BMCFirmware  string
	CPUs         CPUs
	MemoryMiB    int64
	DIMMs        []DIMM
	GPUs         []GPU
	NICs         []NIC
	Disks        []Disk
	PSUs         []PSU
	Firmware     []Firmware
	Incomplete   []string // what the BMC refused to tell, in its words
}

// CPUs are all processors together.
type CPUs struct {
	Count int
	Model string
	Cores int // of all processors
}

// DIMM is one memory module that is in its slot.
type DIMM struct {
	Slot   string
	MiB    int64
	Type   string // DDR4, DDR5 and so on
	Part   string // manufacturer's part number
	Serial string
	Health string // OK, Warning, Critical or empty
}

// GPU is one graphics processor or accelerator.
type GPU struct {
	Name   string
	Model  string
	Serial string
	Health string // OK, Warning, Critical or empty
}

// NIC is one network port of the server, with an address of its own.
type NIC struct {
	Name      string
	MAC       string // lower case, with colons
	Model     string // of the adapter
	SpeedMbps int    // 0 when there is no link, or it is not reported
	Link      string // Redfish's LinkStatus: LinkUp, LinkDown, NoLink, or empty
}

// Disk is one drive behind a controller that the BMC can see.
type Disk struct {
	Name   string
	Model  string
	Bytes  int64
	Serial string
	Type   string // SSD, HDD or NVMe
	Health string // OK, Warning, Critical or empty
}

// PSU is one power supply that is in its bay.
type PSU struct {
	Name     string
	Model    string
	Serial   string
	Firmware string
	Watts    int    // capacity; 0 when it is not reported
	Health   string // OK, Warning, Critical or empty
}

// Firmware is the version of one firmware that is installed.
type Firmware struct {
	Name    string
	Version string
}

// The most that is kept of a server, whatever a BMC says: an inventory is stored with its Machine.
const (
	MaxDIMMs      = 64
	MaxGPUs       = 32
	MaxNICs       = 64
	MaxDisks      = 128
	MaxPSUs       = 16
	MaxFirmware   = 64
	maxIncomplete = 16
	maxText       = 128 // bytes of a name, model, serial number or version
	maxWords      = 512 // bytes of what a BMC refused
)

// Bounded is the inventory within the limits: texts on one line and clipped, lists cut at their ends.
func (inv Inventory) Bounded() Inventory {
	clip(maxText, &inv.Manufacturer, &inv.Model, &inv.Serial, &inv.UUID, &inv.SKU, &inv.BIOSVersion, &inv.BMCFirmware, &inv.CPUs.Model)
	inv.DIMMs = bounded(inv.DIMMs, MaxDIMMs, func(d *DIMM) { clip(maxText, &d.Slot, &d.Type, &d.Part, &d.Serial, &d.Health) })
	inv.GPUs = bounded(inv.GPUs, MaxGPUs, func(g *GPU) { clip(maxText, &g.Name, &g.Model, &g.Serial, &g.Health) })
	inv.NICs = bounded(inv.NICs, MaxNICs, func(n *NIC) { clip(maxText, &n.Name, &n.MAC, &n.Model, &n.Link) })
	inv.Disks = bounded(inv.Disks, MaxDisks, func(d *Disk) { clip(maxText, &d.Name, &d.Model, &d.Serial, &d.Type, &d.Health) })
	inv.PSUs = bounded(inv.PSUs, MaxPSUs, func(p *PSU) { clip(maxText, &p.Name, &p.Model, &p.Serial, &p.Firmware, &p.Health) })
	inv.Firmware = bounded(inv.Firmware, MaxFirmware, func(f *Firmware) { clip(maxText, &f.Name, &f.Version) })
	inv.Incomplete = bounded(inv.Incomplete, maxIncomplete, func(s *string) { clip(maxWords, s) })
	return inv
}

func bounded[T any](list []T, most int, clean func(*T)) []T {
	list = list[:min(len(list), most)]
	for i := range list {
		clean(&list[i])
	}
	return list
}

func clip(most int, texts ...*string) {
	for _, s := range texts {
		*s = text.Clip(*s, most)
	}
}
