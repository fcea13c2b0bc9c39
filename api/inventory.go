package api

import "time"

// Inventory is a Machine's hardware as reported by its BMC.
type Inventory struct {
	Manufacturer string              `json:"manufacturer,omitzero" doc:"Manufacturer of the system."`
	Model        string              `json:"model,omitzero" doc:"Model of the system."`
	SKU          string              `json:"sku,omitzero" doc:"Manufacturer's product number."`
	Serial       string              `json:"serial,omitzero" doc:"Serial number of the system."`
	UUID         string              `json:"uuid,omitzero" doc:"SMBIOS UUID of the system."`
	BIOSVersion  string              `json:"biosVersion,omitzero" doc:"Version of the system firmware."`
	BMCFirmware  string              `json:"bmcFirmware,omitzero" doc:"Version of the BMC's firmware."`
	CPUs         InventoryCPUs       `json:"cpus,omitzero" doc:"All processors together."`
	MemoryMiB    int64               `json:"memoryMiB,omitzero" doc:"Memory in MiB."`
	DIMMs        []InventoryDIMM     `json:"dimms,omitempty" doc:"Memory modules in their slots, at most 64."`
	GPUs         []InventoryGPU      `json:"gpus,omitempty" doc:"Graphics processors and accelerators, at most 32."`
	NICs         []InventoryNIC      `json:"nics,omitempty" doc:"Network ports, each MAC once, at most 64. Interfaces to the BMC and VLANs are left out."`
	Disks        []InventoryDisk     `json:"disks,omitempty" doc:"Drives, at most 128."`
	PSUs         []InventoryPSU      `json:"psus,omitempty" doc:"Power supplies in their bays, at most 16."`
	Firmware     []InventoryFirmware `json:"firmware,omitempty" doc:"Versions of installed firmware, at most 64."`
	Incomplete   []string            `json:"incomplete,omitempty" doc:"What the BMC refused to tell, in its words."`
	Read         time.Time           `json:"read,omitzero" doc:"When it was last read."`
	Attempt      string              `json:"attempt,omitzero" doc:"ID of the BootAttempt after which it was read; empty before the first."`
}

// InventoryCPUs are all processors together.
type InventoryCPUs struct {
	Count int    `json:"count,omitzero" doc:"Number of processors (sockets)."`
	Model string `json:"model,omitzero" doc:"Model of the first processor."`
	Cores int    `json:"cores,omitzero" doc:"Of all processors."`
}

// InventoryDIMM is one memory module.
type InventoryDIMM struct {
	Slot   string `json:"slot,omitzero" doc:"Name of the slot."`
	MiB    int64  `json:"mib,omitzero" doc:"Size in MiB."`
	Type   string `json:"type,omitzero" doc:"DDR4, DDR5 and so on, or empty when unknown."`
	Part   string `json:"part,omitzero" doc:"Manufacturer's part number."`
	Serial string `json:"serial,omitzero" doc:"Serial number."`
	Health string `json:"health,omitzero" doc:"OK, Warning, Critical, or empty when unknown."`
}

// InventoryGPU is one graphics processor or accelerator.
type InventoryGPU struct {
	Name   string `json:"name,omitzero" doc:"Name that the BMC gives it."`
	Model  string `json:"model,omitzero" doc:"Model."`
	Serial string `json:"serial,omitzero" doc:"Serial number."`
	Health string `json:"health,omitzero" doc:"OK, Warning, Critical, or empty when unknown."`
}

// InventoryNIC is one network port.
type InventoryNIC struct {
	Name      string `json:"name,omitzero" doc:"Name that the BMC gives it."`
	MAC       MAC    `json:"mac,omitzero" doc:"Permanent MAC."`
	Model     string `json:"model,omitzero" doc:"Model of the adapter."`
	SpeedMbps int    `json:"speedMbps,omitzero" doc:"Speed in Mbit/s; 0 when unknown."`
	Link      string `json:"link,omitzero" doc:"LinkUp, LinkDown, NoLink, or empty when unknown."`
}

// InventoryDisk is one drive.
type InventoryDisk struct {
	Name   string `json:"name,omitzero" doc:"Name that the BMC gives it."`
	Model  string `json:"model,omitzero" doc:"Model."`
	Serial string `json:"serial,omitzero" doc:"Serial number."`
	Type   string `json:"type,omitzero" doc:"HDD, SSD, NVMe or empty when unknown."`
	Bytes  int64  `json:"bytes,omitzero" doc:"Capacity in bytes."`
	Health string `json:"health,omitzero" doc:"OK, Warning, Critical, or empty when unknown."`
}

// InventoryPSU is one power supply.
type InventoryPSU struct {
	Name     string `json:"name,omitzero" doc:"Name that the BMC gives it."`
	Model    string `json:"model,omitzero" doc:"Model, or part number."`
	Serial   string `json:"serial,omitzero" doc:"Serial number."`
	Firmware string `json:"firmware,omitzero" doc:"Version of its firmware."`
	Watts    int    `json:"watts,omitzero" doc:"Capacity in watts; 0 when unknown."`
	Health   string `json:"health,omitzero" doc:"OK, Warning, Critical, or empty when unknown."`
}

// InventoryFirmware is one firmware that is installed.
type InventoryFirmware struct {
	Name    string `json:"name,omitzero" doc:"What it is the firmware of, as the BMC says it."`
	Version string `json:"version,omitzero" doc:"Version."`
}
