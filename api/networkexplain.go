package api

import "net/netip"

// NetworkPath is the path of a packet of a Network, as far as bootd knows it
// from the objects, the leases and the hosts' last reports.
type NetworkPath struct {
	Network string     `json:"network"`
	From    PathEnd    `json:"from"`
	To      PathEnd    `json:"to"`
	Steps   []PathStep `json:"steps"`
	// Delivered is false when a step drops the packet, or a host on its path is
	// not ready: the last step says why.
	Delivered bool `json:"delivered"`
}

// PathEnd is the source or the destination of a packet.
type PathEnd struct {
	Address netip.Addr `json:"address"`
	Network string     `json:"network,omitzero" doc:"The Network that it is on; empty outside of all."`
	Guest   string     `json:"guest,omitzero"`
	Host    string     `json:"host,omitzero"`
}

// PathStep is one step of the packet's path.
type PathStep struct {
	Host    string `json:"host,omitzero" doc:"Where; empty where no host does it."`
	What    string `json:"what"`
	Entry   string `json:"entry,omitzero" doc:"What is programmed for it there, as ip(8) and bridge(8) show it."`
	Problem string `json:"problem,omitzero" doc:"Why it goes no further, and what to do."`
}
