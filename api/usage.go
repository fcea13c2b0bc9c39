package api

// UsageRequest requests the usage of a host: at once, and then periodically for
// a limited time. It is repeated while a user watches.
type UsageRequest struct {
	Every Duration `json:"every"`
	For   Duration `json:"for"`
}

// MaxUsageGuests bounds the Guests in a HostUsage.
const MaxUsageGuests = 1024

// HostUsage is the usage of a host and its Guests so far. Counters have no
// defined start and may be reset: only the difference between two reports of
// one stream counts. bootd keeps it in memory only.
type HostUsage struct {
	Uptime Duration     `json:"uptime" doc:"Of the agent, by the monotonic clock."`
	CPUs   int          `json:"cpus"`
	CPU    float64      `json:"cpu" doc:"Seconds that the processors were busy."`
	Memory MemoryUsage  `json:"memory"`
	Disk   DiskUsage    `json:"disk,omitzero" doc:"Of its physical disks."`
	Link   LinkUsage    `json:"link,omitzero" doc:"Of the interface of its underlay."`
	Guests []GuestUsage `json:"guests,omitempty" doc:"Those that run, by name."`
}

// MemoryUsage is in bytes.
type MemoryUsage struct {
	Total int64 `json:"total,omitzero" doc:"What there is; of a Guest, what its balloon leaves it, where that is known."`
	Used  int64 `json:"used" doc:"What cannot be had otherwise; of a Guest, what its QEMU has in the host's memory."`
}

// DiskUsage counts reads and writes.
type DiskUsage struct {
	ReadBytes    uint64 `json:"readBytes,omitzero"`
	WrittenBytes uint64 `json:"writtenBytes,omitzero"`
	Reads        uint64 `json:"reads,omitzero"`
	Writes       uint64 `json:"writes,omitzero"`
	Errors       uint64 `json:"errors,omitzero"`
}

// LinkUsage counts the traffic of an interface. A Guest's is from the Guest's
// point of view.
type LinkUsage struct {
	ReceivedBytes uint64 `json:"receivedBytes,omitzero"`
	SentBytes     uint64 `json:"sentBytes,omitzero"`
	Dropped       uint64 `json:"dropped,omitzero" doc:"Packets of either way."`
}

// GuestUsage is the usage of one Guest since its QEMU was started.
type GuestUsage struct {
	Name   string      `json:"name"`
	UID    string      `json:"uid"`
	CPU    float64     `json:"cpu" doc:"Seconds of the host's processors."`
	Memory MemoryUsage `json:"memory"`
	Disk   *DiskUsage  `json:"disk,omitempty" doc:"Of all its disks; missing while its QEMU does not answer."`
	Link   *LinkUsage  `json:"link,omitempty" doc:"Missing when it has none."`
}

// Usage is the current usage of hosts and Guests: GET /v1/usage.
type Usage struct {
	Hosts  []HostLoad  `json:"hosts"`
	Guests []GuestLoad `json:"guests"`
}

// HostLoad is the usage of a host.
type HostLoad struct {
	Host   string      `json:"host"`
	Zone   string      `json:"zone,omitzero"`
	CPUs   int         `json:"cpus,omitzero"`
	Guests int         `json:"guests" doc:"How many run there."`
	Memory MemoryUsage `json:"memory,omitzero"`
	Load   *Load       `json:"load,omitempty" doc:"Missing while nothing is known of it."`
	// Message says why the usage is unknown.
	Message string `json:"message,omitzero"`
}

// GuestLoad is the usage of a Guest.
type GuestLoad struct {
	Guest   string      `json:"guest"`
	Network string      `json:"network,omitzero"`
	Host    string      `json:"host"`
	CPUs    int         `json:"cpus"`
	Memory  MemoryUsage `json:"memory"`
	Load    *Load       `json:"load,omitempty" doc:"Missing while nothing is known of it."`
}

// Load is a rate per second over about the last two seconds.
type Load struct {
	CPU           float64 `json:"cpu" doc:"Processors that are busy: 1 is one of them, all of the time."`
	ReadBytes     float64 `json:"readBytes"`
	WrittenBytes  float64 `json:"writtenBytes"`
	Reads         float64 `json:"reads"`
	Writes        float64 `json:"writes"`
	ReceivedBytes float64 `json:"receivedBytes"`
	SentBytes     float64 `json:"sentBytes"`
	DiskErrors    float64 `json:"diskErrors"`
	Dropped       float64 `json:"dropped"`
}
