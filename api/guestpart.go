package api

import "net/netip"

// PartGuest is the first word of the names of Guests' parts.
const PartGuest = "guest"

// GuestPartName is the name of a Guest's part.
func GuestPartName(guest string) string { return PartGuest + "/" + guest }

// guestPart describes the parts of Guests.
func guestPart() PartKind {
	return PartKind{Name: PartGuest, Named: true, New: func() any { return new(GuestPart) }}
}

// GuestPart is a Guest as compiled for its host. Empty fields have the defaults
// that Guest documents.
type GuestPart struct {
	UID         string       `json:"uid"`
	Network     string       `json:"network,omitzero" doc:"Name of the Network's part; a Guest without one has no NIC."`
	Addresses   []netip.Addr `json:"addresses,omitempty" doc:"IPv4 first."`
	MAC         MAC          `json:"mac,omitzero"`
	CPUs        int          `json:"cpus"`
	Memory      Quantity     `json:"memory"`
	Machine     string       `json:"machine,omitzero" enum:"q35,microvm"`
	Firmware    string       `json:"firmware,omitzero" enum:"bios,uefi"`
	Display     string       `json:"display,omitzero" enum:"vga,none"`
	SecureBoot  bool         `json:"secureBoot,omitzero"`
	TPM         bool         `json:"tpm,omitzero"`
	Tuning      GuestTuning  `json:"tuning,omitzero"`
	Limits      GuestLimits  `json:"limits,omitzero"`
	Kernel      *GuestKernel `json:"kernel,omitempty" doc:"Started directly, in place of the firmware's boot."`
	Disks       []GuestDisk  `json:"disks,omitempty" doc:"In the order in which they are tried for booting."`
	Shares      []GuestShare `json:"shares,omitempty"`
	Config      GuestConfig  `json:"config,omitzero"`
	Restart     string       `json:"restart,omitzero" enum:"Always,OnFailure,Never"`
	StopTimeout Duration     `json:"stopTimeout,omitzero" doc:"How long a graceful stop may take; 2m."`
	// Request is carried out once: the host remembers the last ID.
	Request *GuestRequest `json:"request,omitempty"`
	State   GuestState    `json:"state" enum:"Running,Paused,Stopped"`
	// Transfer is the host's side of a move of the Guest.
	Transfer *GuestTransfer `json:"transfer,omitempty"`
}

// MovePort is the TCP port on which a host receives a Guest that moves to it,
// only from the source of the move.
const MovePort = 16514

// GuestTransfer is one host's side of a move. During the move, State is the
// wanted state of the Guest where it runs.
type GuestTransfer struct {
	ID   string `json:"id" doc:"Of the move."`
	Role string `json:"role" enum:"Source,Target,Back,Left"`
	Live bool   `json:"live,omitzero" doc:"It runs meanwhile; it is tried once."`
	// Peer is the other host: a peer that cannot authenticate as it is refused.
	Peer    HostIdentity `json:"peer"`
	Address netip.Addr   `json:"address,omitzero" doc:"Of the target's underlay, where it listens on port 16514."`
}

// Roles in a GuestTransfer.
const (
	TransferSource = "Source" // gives the Guest up and sends what it has
	TransferTarget = "Target" // receives it, and runs nothing
	TransferBack   = "Back"   // the move is cancelled: the source has the Guest again
	TransferLeft   = "Left"   // the Guest belongs to the target; what is here is kept until a tombstone
)

// HostIdentity identifies a host by its certificate.
type HostIdentity struct {
	Host string `json:"host"`
	UID  string `json:"uid" doc:"Of the Machine."`
	Key  string `json:"key,omitzero" doc:"SHA-256 of its public key."`
}

// GuestKernel is a kernel that QEMU loads. Both are digests of blobs.
type GuestKernel struct {
	Kernel    SHA256   `json:"kernel"`
	Initrd    SHA256   `json:"initrd,omitzero"`
	Arguments []string `json:"arguments,omitempty"`
}

// GuestDisk is a Disk as compiled for the host.
type GuestDisk struct {
	Name   string   `json:"name"`
	Size   Quantity `json:"size"`
	Retain bool     `json:"retain,omitzero"`
	Format string   `json:"format,omitzero" enum:"qcow2,raw"`
	Bus    string   `json:"bus,omitzero" enum:"virtio-blk,virtio-scsi"`
	Image  SHA256   `json:"image,omitzero" doc:"Digest of the blob that it begins as, qcow2 or raw; without one it begins empty."`
}

// GuestShare is a Share as compiled for its host, which fetches the content.
type GuestShare struct {
	Name    string `json:"name"`
	Version string `json:"version" doc:"Changes with what it holds."`
}

// GuestShareContent is the content of a share.
type GuestShareContent struct {
	Version string            `json:"version"`
	Files   map[string]string `json:"files" doc:"What is in them, by their names."`
}

// GuestConfig says how a Guest is configured.
type GuestConfig struct {
	URL string `json:"url,omitzero" doc:"Where the Guest fetches its Ignition config."`
	// IgnitionVersion is the version of the pointer, which the Guest's Ignition
	// must understand.
	IgnitionVersion string `json:"ignitionVersion,omitzero"`
	// CloudInit is set for a Guest that uses cloud-init: its host creates the
	// disk for it, and fetches the user data.
	CloudInit *CloudInitSeed `json:"cloudInit,omitempty"`
}

// CloudInitSeed is data for cloud-init that a host does not know by itself.
type CloudInitSeed struct {
	Domain string `json:"domain,omitzero" doc:"DNS domain of the Guest's name."`
}

// Verbs of a GuestRequest.
const (
	GuestReset   = "reset"   // like the reset button, at once
	GuestRestart = "restart" // a graceful stop and a start, which applies changes of the machine

	GuestSnapshotCreate = "snapshot-create" // of all disks at one moment
	GuestSnapshotRevert = "snapshot-revert" // reverts all disks; of a Stopped Guest only
	GuestSnapshotDelete = "snapshot-delete"
)

// GuestRequest is a verb: done once for each ID.
type GuestRequest struct {
	ID       string `json:"id" doc:"Unique ID; the same request is carried out once."`
	Verb     string `json:"verb" enum:"reset,restart,snapshot-create,snapshot-revert,snapshot-delete" doc:"What was asked for."`
	Snapshot string `json:"snapshot,omitzero" doc:"Its name, for the verbs about snapshots."`
}

// AboutSnapshot reports whether the request is for a snapshot.
func (r *GuestRequest) AboutSnapshot() bool {
	return r != nil && (r.Verb == GuestSnapshotCreate || r.Verb == GuestSnapshotRevert || r.Verb == GuestSnapshotDelete)
}

// GuestObserved is a Guest's state as observed by its host.
type GuestObserved struct {
	State       GuestState      `json:"state" enum:"Running,Paused,Stopped,Unknown" doc:"State of its QEMU."`
	Accelerator string          `json:"accelerator,omitzero" enum:"kvm,tcg" doc:"kvm, or tcg for emulation."`
	Restarts    int             `json:"restarts,omitzero" doc:"By the restart policy, since the agent started."`
	Request     string          `json:"request,omitzero" doc:"ID of the last request that was done."`
	Result      *GuestResult    `json:"result,omitempty" doc:"The result."`
	Snapshots   []GuestSnapshot `json:"snapshots,omitempty" doc:"Snapshots of all its disks, oldest first."`
	Conditions  Conditions      `json:"conditions,omitempty" doc:"What the host says of the Guest."`
	// Transfer is the progress of the host's side of a move.
	Transfer *GuestTransferred `json:"transfer,omitempty" doc:"How far a move has come on this host."`
}

// GuestTransferred is the progress of a host's side of a move.
type GuestTransferred struct {
	ID      string `json:"id" doc:"ID of the move."`
	State   string `json:"state" enum:"Working,Sent,Received,Back,Failed" doc:"How far this host has come with it."`
	Message string `json:"message,omitzero" doc:"Why it failed."`
}

// States of a GuestTransferred.
const (
	TransferWorking  = "Working"
	TransferSent     = "Sent"     // the target has everything, and nothing runs here until bootd sends Back
	TransferReceived = "Received" // everything is here, on disk
	TransferredBack  = "Back"     // it runs here again, or may run
	TransferFailed   = "Failed"   // it cannot succeed: the move must be cancelled
)
