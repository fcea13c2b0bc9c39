package api

// Inventory is a Machine's hardware as reported by its BMC.
type Inventory struct {
	Manufacturer string          `json:"manufacturer,omitzero" doc:"Manufacturer of the system."`
	Model        string          `json:"model,omitzero" doc:"Model of the system."`
	SKU          string          `json:"sku,omitzero" doc:"Manufacturer's product number."`
	Serial       string          `json:"serial,omitzero" doc:"Serial number of the system."`
	UUID         string          `json:"uuid,omitzero" doc:"SMBIOS UUID of the system."`
	BIOSVersion  string          `json:"biosVersion,omitzero" doc:"Version of the system firmware."`
	BMCFirmware  string          `json:"bmcFirmware,omitzero" doc:"Version of the BMC's firmware."`
	CPUs         InventoryCPUs   `json:"cpus,omitzero" doc:"All processors together."`
	MemoryMiB    int64           `json:"memoryMiB,omitzero" doc:"Memory in MiB."`
	NICs         []InventoryNIC  `json:"nics,omitempty" doc:"Network ports."`
	Disks        []InventoryDisk `json:"disks,omitempty" doc:"Drives."`
	Incomplete   []string        `json:"incomplete,omitempty" doc:"What the BMC refused to tell, in its words."`
}

// InventoryCPUs are all processors together.
type InventoryCPUs struct {
	Count int    `json:"count,omitzero" doc:"Number of processors (sockets)."`
	Model string `json:"model,omitzero" doc:"Model of the first processor."`
	Cores int    `json:"cores,omitzero" doc:"Of all processors."`
}

// InventoryNIC is one network port.
type InventoryNIC struct {
	Name      string `json:"name,omitzero" doc:"Name that the BMC gives it."`
	MAC       MAC    `json:"mac,omitzero" doc:"Permanent MAC."`
	SpeedMbps int    `json:"speedMbps,omitzero" doc:"Speed in Mbit/s; 0 when unknown."`
	Link      string `json:"link,omitzero" doc:"LinkUp, LinkDown, NoLink, or empty when unknown."`
}

// InventoryDisk is one drive.
type InventoryDisk struct {
	Name   string `json:"name,omitzero" doc:"Name that the BMC gives it."`
	Serial string `json:"serial,omitzero" doc:"Serial number."`
	Type   string `json:"type,omitzero" doc:"HDD, SSD, NVMe or empty when unknown."`
	Bytes  int64  `json:"bytes,omitzero" doc:"Capacity in bytes."`
}
