package api

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Guest is one KVM virtual machine on a Network.
type Guest struct {
	Base
	Spec   GuestSpec   `json:"spec" doc:"The desired state, written by people."`
	Status GuestStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// guestKind describes the kind.
func guestKind() Kind {
	return Kind{Name: "Guest", Doc: "A KVM virtual machine on a Network.",
		Plural: "guests", Short: []string{"g"}, Writer: RoleOperator,
		Columns: guestColumns, New: func() Object { return new(Guest) }, is: is[*Guest], Part: guestPart(),
		Conditions: func(o Object) *Conditions { return &o.(*Guest).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Guest).references() }}
}

func guestColumns() []Column {
	return []Column{
		of("NETWORK", func(g *Guest) string { return g.Spec.Network }),
		of("CPUS", func(g *Guest) string { return strconv.Itoa(g.Spec.CPUs) }),
		of("MEMORY", func(g *Guest) string { return written(g.Spec.Memory) }),
		of("IMAGE", func(g *Guest) string { return g.Spec.Image }),
		of("STATE", func(g *Guest) string { return fmt.Sprint(g.Spec.State) }),
	}
}

func (g *Guest) references() (l references) {
	l.add("Network", g.Spec.Network, "spec", "network")
	l.add("Image", g.Spec.Image, "spec", "image")
	for i, name := range g.Spec.Ignition.Layers {
		l.add("Layer", name, "spec", "ignition", "layers", i)
	}
	for i, s := range g.Spec.Shares {
		l.add("Secret", s.Secret, "spec", "shares", i, "secret")
	}
	return l
}

// GuestSpec is the desired Guest.
type GuestSpec struct {
	Network   string          `json:"network" doc:"Network that it is plugged into; its Zone is the Network's."`
	CPUs      int             `json:"cpus" doc:"Virtual processors, 1 to 512."`
	Memory    Quantity        `json:"memory" doc:"Memory in bytes, 64Mi to 16Ti."`
	Image     string          `json:"image" doc:"Image that it boots from."`
	Disks     []Disk          `json:"disks,omitempty" doc:"Disks of its own, in the order of their serial numbers."`
	Ignition  GuestIgnition   `json:"ignition,omitzero" doc:"Configuration by Ignition, for an Image configured by it."`
	CloudInit *GuestCloudInit `json:"cloudInit,omitempty" doc:"For an Image that is configured by cloud-init."`
	Shares    []Share         `json:"shares,omitempty" doc:"Directories that it can read; at most 8."`
	Placement Placement       `json:"placement,omitzero" doc:"Which hosts may run it."`
	State     GuestState      `json:"state,omitzero" enum:"Running,Paused,Stopped" doc:"What the Guest should be. Default: Running."`
	// Machine is the board that the Guest sees. A microvm starts faster and has
	// no PCI: no watchdog, no UEFI.
	Machine     string      `json:"machine,omitzero" enum:"q35,microvm" doc:"Board that it sees. A microvm starts faster and has no PCI, UEFI, TPM, display or watchdog. Default: q35."`
	Firmware    string      `json:"firmware,omitzero" enum:"bios,uefi" doc:"Firmware that it boots with; uefi needs q35. Default: bios."`
	Display     string      `json:"display,omitzero" enum:"vga,none" doc:"What VNC shows; only a q35 has vga. Default: vga on a q35, else none."`
	SecureBoot  bool        `json:"secureBoot,omitzero" doc:"Boots only what the keys of Microsoft and the distributions' shim have signed; needs uefi. Default: false."`
	TPM         bool        `json:"tpm,omitzero" doc:"Gives it a TPM 2.0 of its own, whose state is kept with its disks; needs q35. Default: false."`
	Tuning      GuestTuning `json:"tuning,omitzero" doc:"Binds it to parts of its host."`
	Limits      GuestLimits `json:"limits,omitzero" doc:"What it may take from its neighbours on the host."`
	Restart     string      `json:"restart,omitzero" enum:"Always,OnFailure,Never" doc:"When a Guest that should be Running is started again after it ended by itself. Default: Always."`
	StopTimeout Duration    `json:"stopTimeout,omitzero" doc:"How long a graceful stop may take before the Guest is forced off. Default: 2m."`
}

// GuestStopTimeout is the default of a Guest's StopTimeout.
const GuestStopTimeout = 2 * time.Minute

// GuestTuning binds a Guest to parts of its host.
type GuestTuning struct {
	CPUSet    string `json:"cpuSet,omitzero" doc:"Processors of the host that it may use, such as 2-5,8; with one for each of its own, each is bound to one. Default: all."`
	NUMANode  *int   `json:"numaNode,omitempty" doc:"NUMA node that its memory is taken from. Default: any."`
	HugePages bool   `json:"hugePages,omitzero" doc:"Takes its memory from huge pages, reserved when it starts. Default: false."`
}

// GuestLimits bound what a Guest may use of shared resources.
type GuestLimits struct {
	CPUWeight int `json:"cpuWeight,omitzero" doc:"Share of the processors when they are short, 1 to 10000. Default: 100."`
	IOWeight  int `json:"ioWeight,omitzero" doc:"Share of the disks when they are short, 1 to 10000. Default: 100."`
	// Receive and Send are in bytes per second; 0 means unlimited.
	Receive Quantity `json:"receive,omitzero" doc:"Bytes per second from its Network. Default: the Network's guestLimits."`
	Send    Quantity `json:"send,omitzero" doc:"Bytes per second into its Network. Default: the Network's guestLimits."`
	// DiskBytes and DiskOperations are per second, of all its disks together; 0
	// means unlimited.
	DiskBytes      Quantity `json:"diskBytes,omitzero" doc:"Bytes per second read and written, on all its disks together. Default: no limit."`
	DiskOperations int      `json:"diskOperations,omitzero" doc:"Reads and writes per second, on all its disks together. Default: no limit."`
}

// Disk is one disk of a Guest.
type Disk struct {
	Name   string   `json:"name" doc:"Serial number of the disk in the Guest (/dev/disk/by-id/virtio-NAME); at most 20 characters."`
	Size   Quantity `json:"size" doc:"Size in bytes, 1Mi to 1Pi."`
	Retain bool     `json:"retain,omitzero" doc:"Keeps the disk when the Guest is recreated; only a person's request deletes it. Default: false."`
	Format string   `json:"format,omitzero" enum:"qcow2,raw" doc:"Format of the disk; raw is faster and takes no snapshots. Default: qcow2."`
	Bus    string   `json:"bus,omitzero" enum:"virtio-blk,virtio-scsi" doc:"Bus of the disk; virtio-scsi for systems that need a SCSI disk. Default: virtio-blk."`
}

// Buses of a Disk.
const (
	DiskVirtioBlk  = "virtio-blk"
	DiskVirtioSCSI = "virtio-scsi"
)

// MaxDiskName is the length of a virtio disk's serial number, by which the
// Guest finds it: /dev/disk/by-id/virtio-NAME.
const MaxDiskName = 20

// Share is a read-only directory for a Guest: the 9p share of that name.
type Share struct {
	Name   string            `json:"name" doc:"The 9p tag by which the Guest mounts it; at most 31 characters."`
	Secret string            `json:"secret,omitzero" doc:"Secret whose keys are the files; its spec.uses.guests names the Guest. Default: none."`
	Files  map[string]string `json:"files,omitempty" doc:"Files by name, in place of a Secret's; at most 256 KiB. Default: none."`
}

// Limits of Shares.
const (
	maxShares    = 8
	maxShareName = 31      // of QEMU's 9p tags
	maxShareSize = 1 << 18 // of a file, in bytes
)

// ValidateFileName checks the name of a file of a Share.
func ValidateFileName(name string) error {
	if len(name) > 253 || strings.Trim(name, ".") == "" || !regexp.MustCompile(`^[-._a-zA-Z0-9]+$`).MatchString(name) {
		return fmt.Errorf("invalid file name %q: want up to 253 letters, digits, '.', '-' and '_', not only dots", name)
	}
	return nil
}

// GuestIgnition configures a Guest with Ignition.
type GuestIgnition struct {
	Layers    []string          `json:"layers,omitempty" doc:"Layers by name, merged in this order. Default: none."`
	Variables map[string]string `json:"variables,omitempty" doc:"What templates see as .Variables. Default: none."`
}

// GuestCloudInit is data for cloud-init in addition to the Guest's name and
// network.
type GuestCloudInit struct {
	UserData  string            `json:"userData,omitzero" doc:"A #cloud-config, a script, or anything else that cloud-init takes; a template like a Layer, at most 128 KiB. Default: none."`
	Variables map[string]string `json:"variables,omitempty" doc:"What the user data's template sees as .Variables. Default: none."`
}

// maxUserData is in bytes.
const maxUserData = 1 << 17

// Placement restricts where a Guest may run. Its Zone is its Network's.
type Placement struct {
	AntiAffinity string            `json:"antiAffinity,omitzero" doc:"Guests with the same word run on different hosts. Default: none."`
	Labels       map[string]string `json:"labels,omitempty" doc:"Labels that the host must have. Default: any host of the Zone."`
	Migration    string            `json:"migration,omitzero" enum:"Live,Stop,None" doc:"How it leaves its host. Live: while it runs where that is possible, else with a stop. Stop: with a stop. None: only when a person moves it. Default: the Site's."`
}

// GuestStatus is observed and chosen by rackweft.
type GuestStatus struct {
	Host      string       `json:"host,omitzero" doc:"Host that it is on; the only one that may run it."`
	HostUID   string       `json:"hostUID,omitzero" doc:"Of the Machine: another of the same name is another host."`
	Addresses []netip.Addr `json:"addresses,omitempty" doc:"IPv4 first; kept for the Guest's life."`
	MAC       MAC          `json:"mac,omitzero" doc:"MAC of its NIC."`
	State     GuestState   `json:"state,omitzero" doc:"Running, Paused, Stopped or Unknown, as its host last said."`
	// Move is set while the Guest is being moved.
	Move *GuestMove `json:"move,omitempty" doc:"The move under way."`
	// LastMove is the result of the previous move.
	LastMove *GuestMoved `json:"lastMove,omitempty" doc:"The last move that ended."`
	// Left are hosts that must remove what they have of the Guest.
	Left []GuestPlace `json:"left,omitempty" doc:"Hosts that it was on and that have not reported yet that nothing is left."`
	// Request is the last verb requested from its host.
	Request *GuestRequest `json:"request,omitempty" doc:"The request that its host works on."`
	// Result is the result of the last request that its host has done.
	Result     *GuestResult    `json:"result,omitempty" doc:"What came of the last request."`
	Snapshots  []GuestSnapshot `json:"snapshots,omitempty" doc:"Of all its disks, oldest first."`
	Conditions Conditions      `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// GuestMove is a move in progress: status.host is where the Guest runs until
// the move switches it over, by one write.
type GuestMove struct {
	ID        string `json:"id,omitzero" doc:"Unique ID of the move."`
	Reason    string `json:"reason" doc:"Why the Guest moves."`
	To        string `json:"to,omitzero" doc:"Host that it must go to. Default: any."`
	Asked     bool   `json:"asked,omitzero" doc:"A person asked for it: it continues even when its host no longer has to be left."`
	LoseDisks bool   `json:"loseDisks,omitzero" doc:"Its disks are recreated empty on the new host."`
	Mode      string `json:"mode,omitzero" enum:"Live,Stop" doc:"Whether it runs meanwhile."`
	Only      bool   `json:"only,omitzero" doc:"Where Live fails, it is not stopped for the move."`
	Fallback  bool   `json:"fallback,omitzero" doc:"Live has failed: it is stopped for the move."`
	Step      string `json:"step,omitzero" enum:"Choosing,Transfer,Back,Stopping" doc:"Choosing: no host found yet. Transfer: its disks are copied. Back: given up, its host takes it back. Stopping: it stops, to be placed elsewhere without its disks."`
	// Target is the host that it is copied to: it does not run there yet.
	Target   *GuestPlace `json:"target,omitempty" doc:"Host that it is copied to; nothing runs there yet."`
	Started  time.Time   `json:"started" doc:"When the move began."`
	Deadline time.Time   `json:"deadline,omitzero" doc:"When it is given up; the Guest then stays where it was."`
}

// Steps of a GuestMove.
const (
	MoveChoosing = "Choosing" // no suitable host was found yet
	MoveTransfer = "Transfer" // its disks are being copied
	MoveBack     = "Back"     // the move is cancelled: its host is to take it back
	MoveStopping = "Stopping" // it is being stopped, to be placed again without its disks
)

// GuestMoved is a finished move.
type GuestMoved struct {
	From    string    `json:"from" doc:"Host that it left."`
	To      string    `json:"to,omitzero" doc:"Host that it went to."`
	Mode    string    `json:"mode,omitzero" enum:"Live,Stop" doc:"Whether it ran meanwhile."`
	Done    bool      `json:"done" doc:"False: it was given up, and the Guest has stayed."`
	Message string    `json:"message,omitzero" doc:"Why the move failed."`
	Started time.Time `json:"started" doc:"When the move began."`
	Ended   time.Time `json:"ended" doc:"When the move ended."`
}

// Verbs of a Guest: POST /v1/guests/NAME/VERB.
const (
	GuestVerbReset   = GuestReset
	GuestVerbRestart = GuestRestart
	GuestVerbMove    = "move"
)

// GuestResult is the result of a request that a host has done.
type GuestResult struct {
	ID      string    `json:"id" doc:"ID of the request."`
	Verb    string    `json:"verb" doc:"What was asked for."`
	Failed  bool      `json:"failed,omitzero" doc:"Whether the request failed."`
	Message string    `json:"message,omitzero" doc:"Why it failed."`
	Time    time.Time `json:"time" doc:"When the host finished it."`
}

// GuestSnapshot is the state of all disks of a Guest at one moment.
type GuestSnapshot struct {
	Name        string      `json:"name" doc:"Name of the snapshot."`
	Time        time.Time   `json:"time" doc:"When it was taken."`
	Disks       []string    `json:"disks" doc:"Names of the disks that it holds."`
	Consistency Consistency `json:"consistency" enum:"Frozen,Crash,Stopped" doc:"Frozen: the guest agent held the file systems. Crash: as after a loss of power. Stopped: the Guest did not run."`
	Broken      bool        `json:"broken,omitzero" doc:"Some disk no longer has it: it can only be deleted."`
}

// Consistency is the consistency of a copy of disks.
type Consistency string

// The consistencies of a copy.
const (
	ConsistentFrozen  Consistency = "Frozen"  // the Guest's agent froze its file systems
	ConsistentCrash   Consistency = "Crash"   // as after a loss of power
	ConsistentStopped Consistency = "Stopped" // the Guest did not run
)

// MaxSnapshots is the limit of snapshots per Guest.
const MaxSnapshots = 16

// GuestAction is the body of such a request.
type GuestAction struct {
	ID        string `json:"id,omitzero" doc:"The same request is carried out once."`
	To        string `json:"to,omitzero" doc:"move: the host to go to. Default: any that can have it."`
	Mode      string `json:"mode,omitzero" enum:"Live,Stop" doc:"move: Live fails rather than stop the Guest; Stop stops it; unset, as its migration says."`
	LoseDisks bool   `json:"loseDisks,omitzero" doc:"move: its disks stay behind, and it gets empty ones."`
	Snapshot  string `json:"snapshot,omitzero" doc:"snapshot-create, snapshot-revert, snapshot-delete: its name."`
}

// GuestPlace is a host that a Guest was on.
type GuestPlace struct {
	Host    string `json:"host" doc:"Name of the host."`
	HostUID string `json:"hostUID" doc:"UID of the host's Machine."`
	// Since is the store revision from which the host's report counts that nothing is left.
	Since int64 `json:"since,omitzero" doc:"Store revision from which on the host's report that nothing is left counts."`
	// Held is the ID of the move by which the Guest left: the host keeps its copy
	// of the disks until the Guest is on its new host.
	Held string `json:"held,omitzero" doc:"ID of the move by which the Guest left; the host keeps its copy of the disks until the Guest runs on its new host."`
}

// GuestState is what a Guest should be, or what it is.
type GuestState string

// States of a Guest.
const (
	GuestRunning GuestState = "Running"
	GuestPaused  GuestState = "Paused"
	GuestStopped GuestState = "Stopped"
	GuestUnknown GuestState = "Unknown" // its host cannot determine it; never a desired state
)

// Restart policies of a Guest.
const (
	RestartAlways    = "Always"
	RestartOnFailure = "OnFailure"
	RestartNever     = "Never"
)

// How Guests migrate.
const (
	MigrateLive = "Live"
	MigrateStop = "Stop"
	MigrateNone = "None"
)

// Conditions of a Guest.
const (
	CondPlaced = "Placed" // it has a host, or why it has none
)

// SetDefaults implements Object.
func (g *Guest) SetDefaults() {
	g.defaultType("Guest")
	if g.Spec.State == "" {
		g.Spec.State = GuestRunning
	}
	for field, value := range map[*string]string{
		&g.Spec.Machine: "q35", &g.Spec.Firmware: "bios", &g.Spec.Restart: RestartAlways,
	} {
		if *field == "" {
			*field = value
		}
	}
	if g.Spec.Display == "" {
		g.Spec.Display = "none"
		if g.Spec.Machine == "q35" {
			g.Spec.Display = "vga"
		}
	}
}

// Validate implements Object.
func (g *Guest) Validate() FieldErrors {
	e := g.common("Guest")
	e.name(at("spec", "network"), g.Spec.Network)
	e.name(at("spec", "image"), g.Spec.Image)
	e.between(at("spec", "cpus"), g.Spec.CPUs, 1, 512)
	if m := g.Spec.Memory.Value(); m < 64<<20 || m > maxMemory {
		e.add(at("spec", "memory"), "it is not between 64Mi and 16Ti")
	}
	if g.Spec.Placement.Migration != "" {
		e.oneOf(at("spec", "placement", "migration"), g.Spec.Placement.Migration, MigrateLive, MigrateStop, MigrateNone)
	}
	e.oneOf(at("spec", "state"), string(g.Spec.State), string(GuestRunning), string(GuestPaused), string(GuestStopped))
	g.Spec.validateMachine(&e)
	names := map[string]bool{}
	for i, d := range g.Spec.Disks {
		e.name(at("spec", "disks", i, "name"), d.Name)
		if names[d.Name] {
			e.add(at("spec", "disks", i, "name"), "two disks are called %q", d.Name)
		}
		names[d.Name] = true
		if n := d.Size.Value(); n < 1<<20 || n > maxDisk {
			e.add(at("spec", "disks", i, "size"), "it is not between 1Mi and 1Pi")
		}
		if len(d.Name) > MaxDiskName {
			e.add(at("spec", "disks", i, "name"), "it is also the disk's serial number, which has at most %d characters", MaxDiskName)
		}
		if d.Format != "" {
			e.oneOf(at("spec", "disks", i, "format"), d.Format, "qcow2", "raw")
		}
		if d.Bus != "" {
			e.oneOf(at("spec", "disks", i, "bus"), d.Bus, DiskVirtioBlk, DiskVirtioSCSI)
		}
	}
	g.Spec.validateShares(&e)
	if c := g.Spec.CloudInit; c != nil {
		if len(g.Spec.Ignition.Layers) > 0 {
			e.add(at("spec", "cloudInit"), "a Guest is configured either by Ignition or by cloud-init, like its Image: remove cloudInit or ignition")
		}
		if len(c.UserData) > maxUserData {
			e.add(at("spec", "cloudInit", "userData"), "%d bytes are more than 128 KiB", len(c.UserData))
		}
	}
	if n := len(g.Spec.Ignition.Layers); n > maxLayers {
		e.add(at("spec", "ignition", "layers"), "%d are listed, %d at most", n, maxLayers)
	}
	for i, l := range g.Spec.Ignition.Layers {
		e.name(at("spec", "ignition", "layers", i), l)
	}
	return e
}

func (s *GuestSpec) validateShares(e *FieldErrors) {
	if len(s.Shares) > maxShares {
		e.add(at("spec", "shares"), "a Guest has at most %d shares", maxShares)
	}
	names := map[string]bool{}
	for i, share := range s.Shares {
		here := func(parts ...any) []any { return append(at("spec", "shares", i), parts...) }
		e.name(here("name"), share.Name)
		if len(share.Name) > maxShareName {
			e.add(here("name"), "it is also the 9p tag, which has at most %d characters", maxShareName)
		}
		if names[share.Name] {
			e.add(here("name"), "two shares are called %q", share.Name)
		}
		names[share.Name] = true
		if (share.Secret == "") == (len(share.Files) == 0) {
			e.add(here(), "a share holds either a Secret or files: give one of them")
		}
		e.optionalName(here("secret"), share.Secret)
		size := 0
		for name, content := range share.Files {
			if err := ValidateFileName(name); err != nil {
				e.add(here("files", name), "%s", err)
			}
			size += len(content)
		}
		if size > maxShareSize {
			e.add(here("files"), "%d bytes are more than 256 KiB: put them into an Image", size)
		}
	}
}

func (s *GuestSpec) validateMachine(e *FieldErrors) {
	e.oneOf(at("spec", "machine"), s.Machine, "q35", "microvm")
	e.oneOf(at("spec", "firmware"), s.Firmware, "bios", "uefi")
	e.oneOf(at("spec", "display"), s.Display, "vga", "none")
	e.oneOf(at("spec", "restart"), s.Restart, RestartAlways, RestartOnFailure, RestartNever)
	if s.Machine == "microvm" && s.Firmware == "uefi" {
		e.add(at("spec", "firmware"), "a microvm has no UEFI: write machine: q35")
	}
	if s.Machine == "microvm" && s.Display == "vga" {
		e.add(at("spec", "display"), "a microvm has no display: write display: none, or machine: q35")
	}
	if s.SecureBoot && s.Firmware != "uefi" {
		e.add(at("spec", "secureBoot"), "Secure Boot is UEFI's: write firmware: uefi")
	}
	if s.TPM && s.Machine == "microvm" {
		e.add(at("spec", "tpm"), "a microvm has no TPM: write machine: q35")
	}
	if s.StopTimeout < 0 {
		e.add(at("spec", "stopTimeout"), "a timeout is not negative")
	}
	if _, err := ParseCPUSet(s.Tuning.CPUSet); err != nil {
		e.add(at("spec", "tuning", "cpuSet"), "%s", err)
	}
	if n := s.Tuning.NUMANode; n != nil {
		e.between(at("spec", "tuning", "numaNode"), *n, 0, 1023)
	}
	if s.Limits.CPUWeight != 0 {
		e.between(at("spec", "limits", "cpuWeight"), s.Limits.CPUWeight, 1, 10000)
	}
	if s.Limits.IOWeight != 0 {
		e.between(at("spec", "limits", "ioWeight"), s.Limits.IOWeight, 1, 10000)
	}
	if n := s.Limits.Receive.Value(); n < 0 || n > mostLimit {
		e.add(at("spec", "limits", "receive"), "it is not between 0, which is no limit, and 1T")
	}
	if n := s.Limits.Send.Value(); n < 0 || n > mostLimit {
		e.add(at("spec", "limits", "send"), "it is not between 0, which is no limit, and 1T")
	}
	if n := s.Limits.DiskBytes.Value(); n < 0 || n > maxDiskLimit {
		e.add(at("spec", "limits", "diskBytes"), "it is from 0, which is no limit, to 1P")
	}
	e.between(at("spec", "limits", "diskOperations"), s.Limits.DiskOperations, 0, 1_000_000_000)
}

// maxDiskLimit is the largest that QEMU takes (THROTTLE_VALUE_MAX).
const maxDiskLimit = 1_000_000_000_000_000

// Bounds of a Guest, far above what a host has: placement adds them up.
const (
	maxMemory = 16 << 40
	maxDisk   = 1 << 50
)

// Bounds of a list of processors.
const (
	maxCPU    = 8191 // more than any host has
	maxCPUSet = 1024 // characters
)

// ParseCPUSet reads a list of processors as taskset(1) writes it, such as 2-5,8, and returns it sorted, without
// duplicates. An empty text means no processors.
func ParseCPUSet(text string) ([]int, error) {
	if text == "" {
		return nil, nil
	}
	if len(text) > maxCPUSet {
		return nil, fmt.Errorf("invalid list of processors %s: it has %d characters, at most %d are read", quote(text), len(text), maxCPUSet)
	}
	var list []int
	for item := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(item, "-")
		if !ranged {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err != nil || err2 != nil || first > last || last > maxCPU {
			return nil, fmt.Errorf("invalid list of processors %s: want one such as 2-5,8, at most %d", quote(text), maxCPU)
		}
		for cpu := first; cpu <= last; cpu++ {
			list = append(list, int(cpu))
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}
