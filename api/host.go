package api

import (
	"net/netip"
	"time"
)

// HostStatus is nodeagent's report about its host.
type HostStatus struct {
	UID          string                `json:"uid" doc:"The Machine's uid that it joined as."`
	AgentVersion string                `json:"agentVersion,omitzero" doc:"Version of nodeagent."`
	OS           string                `json:"os,omitzero" doc:"Operating system, from os-release."`
	Kernel       string                `json:"kernel,omitzero" doc:"Kernel release."`
	BootID       string                `json:"bootID,omitzero" doc:"Kernel's boot ID: another one is another boot."`
	AttemptID    string                `json:"attemptID,omitzero" doc:"The BootAttempt that it joined in."`
	ClockSkew    Duration              `json:"clockSkew,omitzero" doc:"Host clock minus bootd's when it connected."`
	Stateless    bool                  `json:"stateless,omitzero" doc:"No filesystem labelled rackweft-data: state goes with a reboot."`
	CPUs         int                   `json:"cpus,omitzero" doc:"Processors that its kernel runs on."`
	Memory       Quantity              `json:"memory,omitzero" doc:"That its kernel has."`
	NICs         []HostNIC             `json:"nics,omitempty" doc:"Its network interfaces."`
	WireGuardKey string                `json:"wireGuardKey,omitzero" doc:"Its public key, base64 as wg(8) prints it."`
	Epoch        int64                 `json:"epoch,omitzero" doc:"Epoch of the HostSpec that it has."`
	Revision     int64                 `json:"revision,omitzero" doc:"HostSpec revision that it has applied."`
	Parts        map[string]PartStatus `json:"parts,omitempty" doc:"State of each HostSpec part."`
	Bootd        string                `json:"bootd,omitzero" doc:"Name of the machine whose bootd received it."`
	Reported     time.Time             `json:"reported,omitzero" doc:"When bootd received it."`
	// Connected and LastHeartbeat are kept in memory and set when the object is
	// read.
	Connected     bool      `json:"connected,omitzero" doc:"Whether the host holds its stream to bootd."`
	LastHeartbeat time.Time `json:"lastHeartbeat,omitzero" doc:"When it last said anything."`
	// BGP is kept in memory and set when the object is read, without routes.
	BGP *BGPStatus `json:"bgp,omitempty" doc:"The host's BGP sessions; kept in memory, without routes."`
}

// away marks the agent of a host that is not connected.
const away = " (away)"

func (h *HostStatus) agent() string {
	switch {
	case h == nil:
		return ""
	case !h.Connected:
		return h.AgentVersion + away
	}
	return h.AgentVersion
}

// HostNIC is one interface as reported by the kernel.
type HostNIC struct {
	Name      string         `json:"name" doc:"Name of the interface."`
	MAC       MAC            `json:"mac,omitzero" doc:"MAC that it has now."`
	MTU       int            `json:"mtu,omitzero" doc:"MTU in bytes."`
	Up        bool           `json:"up,omitzero" doc:"Whether it has a carrier."`
	Addresses []netip.Prefix `json:"addresses,omitempty" doc:"Addresses with their prefix lengths."`
}

// PartState is the state of a HostSpec part on the host.
type PartState string

// The states of a part.
const (
	PartApplied  PartState = "Applied"
	PartPending  PartState = "Pending"
	PartFailed   PartState = "Failed"
	PartOrphaned PartState = "Orphaned" // continues to run though the HostSpec no longer names it
)

// PartStatus is one part as observed by the host.
type PartStatus struct {
	Digest  string    `json:"digest,omitzero" doc:"Of the part that was applied."`
	State   PartState `json:"state" doc:"Whether the host has applied the part. Orphaned: it keeps running although the HostSpec no longer names it."`
	Message string    `json:"message,omitzero" doc:"Why it is not applied."`
	Time    time.Time `json:"time,omitzero" doc:"When it came into this state."`
	// Guest is the observed state of the Guest of a guest part.
	Guest *GuestObserved `json:"guest,omitempty" doc:"What is seen of the Guest, for a guest part."`
}
