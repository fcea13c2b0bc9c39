package hardware

// Inventory is what a server is made of, as its BMC tells. What is not told is empty.
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
	NICs         []NIC
	Disks        []Disk
	Incomplete   []string // what the BMC refused to tell, in its words
}

// CPUs are all processors together.
type CPUs struct {
	Count int
	Model string
	Cores int // of all processors
}

// NIC is one network port of the server.
type NIC struct {
	Name      string
	MAC       string // lower case, with colons
	SpeedMbps int    // 0 when there is no link, or it is not told
	Link      string // Redfish's LinkStatus: LinkUp, LinkDown, NoLink, or empty
}

// Disk is one drive behind a controller that the BMC can see.
type Disk struct {
	Name   string
	Bytes  int64
	Serial string
	Type   string // SSD, HDD or NVMe
}
