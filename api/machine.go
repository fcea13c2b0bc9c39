package api

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Machine is one physical server.
type Machine struct {
	Base
	Spec   MachineSpec   `json:"spec"`
	Status MachineStatus `json:"status,omitzero"`
}

// machineKind describes the kind.
func machineKind() Kind {
	return Kind{Name: "Machine", Plural: "machines", Short: []string{"m"}, Writer: RoleOperator,
		New: func() Object { return new(Machine) }, is: is[*Machine],
		Conditions: func(o Object) *Conditions { return &o.(*Machine).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Machine).references() }}
}

func (m *Machine) references() (l references) {
	l.add("Zone", m.Spec.Zone, "spec", "zone")
	l.add("Profile", m.Spec.Profile, "spec", "profile")
	for i, link := range m.Spec.Links {
		l.add("Subnet", link.Subnet, "spec", "links", i, "subnet")
	}
	if m.Spec.BMC != nil {
		l.add("Secret", m.Spec.BMC.Credentials, "spec", "bmc", "credentials")
	}
	return l
}

// MachineState is what a Machine should be.
type MachineState string

// The states that a person can ask for.
const (
	StateActive      MachineState = "Active"
	StateOff         MachineState = "Off"
	StateMaintenance MachineState = "Maintenance"
)

// MachineSpec is the desired Machine.
type MachineSpec struct {
	Zone     string   `json:"zone,omitzero"`
	Location Location `json:"location,omitzero"`
	Profile  string   `json:"profile,omitzero"`
	Links    []Link   `json:"links"`
	// Loopbacks are at most one of each family.
	Loopbacks []netip.Addr `json:"loopbacks,omitempty" doc:"Pins the host's own addresses, which it has on lo and announces in its Zone; chosen out of the Zone's loopbacks unless set."`
	BMC       *BMC         `json:"bmc,omitempty"`
	Boot      Boot         `json:"boot,omitzero"`
	Trust     Trust        `json:"trust,omitzero"`
	// Variables override the Profile's.
	Variables map[string]string `json:"variables,omitempty" doc:"Override the Profile's."`
	State     MachineState      `json:"state,omitzero" enum:"Active,Off,Maintenance"`
}

// Location says where a Machine stands and what it is cabled to.
type Location struct {
	Rack   string `json:"rack,omitzero"`
	Unit   int    `json:"unit,omitzero"`
	Switch string `json:"switch,omitzero" doc:"For trust level address: the relay's address, or the remote ID that it sends (text, a MAC, or 0x and hexadecimal digits)."`
	Port   string `json:"port,omitzero" doc:"For trust level address: the circuit ID that the relay sends, or what stands in it before a colon (text, or 0x and hexadecimal digits)."`
}

// Link is one network interface: a NIC (by MAC), a bond of NICs, or a VLAN.
type Link struct {
	Name      string       `json:"name" doc:"The interface's name on the host."`
	MAC       MAC          `json:"mac,omitzero"`
	Bond      *Bond        `json:"bond,omitempty"`
	VLAN      *VLAN        `json:"vlan,omitempty"`
	Subnet    string       `json:"subnet,omitzero"`
	Addresses []netip.Addr `json:"addresses,omitempty" doc:"Pins the addresses; DHCP on a provisioning Subnet gives the first of them."`
	MTU       int          `json:"mtu,omitzero" doc:"The Subnet's unless set."`
}

// Bond joins NICs.
type Bond struct {
	Mode    string `json:"mode" enum:"802.3ad,active-backup,balance-xor,balance-rr"`
	Members []MAC  `json:"members"`
}

// VLAN is a tagged interface on another link.
type VLAN struct {
	Link string `json:"link"`
	ID   int    `json:"id"`
}

// BMC says how a Machine's controller is reached.
type BMC struct {
	Address     string `json:"address" doc:"https://host[:port]"`
	Protocol    string `json:"protocol,omitzero" enum:"redfish"`
	Credentials string `json:"credentials" doc:"A Secret with username and password."`
	TLS         BMCTLS `json:"tls,omitzero"`
}

// BMCTLS pins the BMC's certificate.
type BMCTLS struct {
	Fingerprint Fingerprint `json:"fingerprint,omitzero" doc:"sha256:<hex> of the certificate; the first one seen is kept in status unless set."`
}

// UnsolicitedBoot says what happens when a known Machine network-boots and
// nobody asked it to.
type UnsolicitedBoot string

// The answers to an unsolicited boot.
const (
	BootConfirm UnsolicitedBoot = "confirm" // serve it when the BMC confirms a reset and no live agent holds the stream
	BootAllow   UnsolicitedBoot = "allow"
	BootRefuse  UnsolicitedBoot = "refuse"
)

// Boot holds what is particular to one Machine's network boot.
type Boot struct {
	Unsolicited UnsolicitedBoot `json:"unsolicited,omitzero" enum:"confirm,allow,refuse"`
	Firmware    string          `json:"firmware,omitzero" enum:"auto,uefi,bios" doc:"Boot mode sent to the BMC; auto leaves it alone."`
	File        string          `json:"file,omitzero" doc:"Boot file for odd firmware, instead of the one chosen by architecture."`
	VendorPXE   string          `json:"vendorPXE,omitzero" enum:"auto,always,never" doc:"Whether DHCP option 43 goes with PXE offers."`
}

// Phase is where a Machine stands.
type Phase string

// The phases of a Machine.
const (
	PhaseDiscovered     Phase = "Discovered"
	PhaseRegistered     Phase = "Registered"
	PhaseInspecting     Phase = "Inspecting"
	PhaseAvailable      Phase = "Available"
	PhaseProvisioning   Phase = "Provisioning"
	PhaseActive         Phase = "Active"
	PhaseDraining       Phase = "Draining"
	PhaseDeprovisioning Phase = "Deprovisioning"
	PhaseMaintenance    Phase = "Maintenance"
	PhaseFailed         Phase = "Failed"
)

// Conditions of a Machine.
const (
	CondReferences = "References"    // everything that the spec names exists
	CondBMC        = "BMCReachable"  // the BMC answers and takes the password
	CondInspected  = "Inspected"     // the inventory is known
	CondProvision  = "Provisioned"   // the last BootAttempt reached Active
	CondConnected  = "HostConnected" // nodeagent holds its stream
	CondApplied    = "HostApplied"   // every HostSpec part is applied
	CondDrained    = "Drained"       // Guests have left a host whose power is to be touched; there while they leave
	CondFenced     = "Fenced"        // a lost host was switched off, so that its Guests may run elsewhere
	CondHeld       = "Held"          // a brake or a policy holds the Machine back
	CondTrust      = "Trusted"       // the last boot proved what is required, and nothing else took what it was given
)

// DiscoveredLabel marks a Machine that bootd made because an unknown MAC asked
// for a boot. Applying a Machine with that MAC takes it over.
const DiscoveredLabel = "rackweft/discovered"

// MachineStatus is what rackweft observed and chose.
type MachineStatus struct {
	Phase              Phase        `json:"phase,omitzero"`
	ObservedGeneration int64        `json:"observedGeneration,omitzero"`
	Power              string       `json:"power,omitzero" doc:"On, Off or Unknown, as the BMC last said."`
	BMC                BMCStatus    `json:"bmc,omitzero"`
	Inventory          *Inventory   `json:"inventory,omitempty"`
	Addresses          []netip.Addr `json:"addresses,omitempty" doc:"Leased on the provisioning Subnet."`
	// LastSeen is when a Discovered machine last asked for anything.
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// BootAsked is when the Machine last asked for a boot script that no open
	// BootAttempt covers: the machine controller decides on it.
	BootAsked time.Time `json:"bootAsked,omitzero" doc:"When it last network-booted with no BootAttempt open for it."`
	// HostKey is the SHA-256 of the public key that joined: a certificate over
	// any other key is refused, however long it is valid.
	HostKey  string        `json:"hostKey,omitzero" doc:"SHA-256 of the host's public key; certificates over any other key are refused."`
	Attempt  *BootAttempt  `json:"attempt,omitempty" doc:"The BootAttempt under way, or the last."`
	History  []BootAttempt `json:"history,omitempty" doc:"Earlier BootAttempts, newest first, at most five."`
	Requests []Request     `json:"requests,omitempty" doc:"Verbs that people asked for, newest last, at most ten."`
	// AssetTag is there while a nonce takes its place, or may do.
	AssetTag   *SavedAssetTag `json:"assetTag,omitempty" doc:"The system's own AssetTag, while a BootAttempt's nonce takes its place."`
	Host       *HostStatus    `json:"host,omitempty"`
	Conditions Conditions     `json:"conditions,omitempty"`
}

// BMCStatus is what was learned of the BMC.
type BMCStatus struct {
	Fingerprint string `json:"fingerprint,omitzero" doc:"Learned at the first contact, then pinned."`
	// LearnedFrom is the address that Fingerprint was learned from: another
	// address starts over.
	LearnedFrom string    `json:"learnedFrom,omitzero"`
	LastContact time.Time `json:"lastContact,omitzero"`
}

// Stage is how far a BootAttempt has come. Stages are ordered; a boot may skip
// some (iPXE in ROM fetches nothing over TFTP).
type Stage string

// The stages of a BootAttempt, in order.
const (
	StageRequested Stage = "Requested" // the attempt is open; the BMC has not been told yet
	StagePowerOn   Stage = "PowerOn"   // the BMC was told to power on
	StageDHCP      Stage = "DHCP"      // its firmware has an address
	StageLoader    Stage = "Loader"    // iPXE was fetched
	StageScript    Stage = "Script"    // the boot script was served
	StageKernel    Stage = "Kernel"    // the kernel was fetched
	StageInitrd    Stage = "Initrd"    // the initrd was fetched
	StageRootfs    Stage = "Rootfs"    // the root file system was fetched; may come after the next two
	StagePointer   Stage = "Pointer"   // Ignition fetched the pointer
	StageConfig    Stage = "Config"    // Ignition fetched its config with the token
	StageJoined    Stage = "Joined"    // nodeagent joined
	StageApplied   Stage = "Applied"   // the host applied its HostSpec
)

// Stages lists the stages in order.
func Stages() []Stage {
	return []Stage{StageRequested, StagePowerOn, StageDHCP, StageLoader, StageScript, StageKernel,
		StageInitrd, StageRootfs, StagePointer, StageConfig, StageJoined, StageApplied}
}

// Index is the stage's place in Stages, or -1.
func (s Stage) Index() int { return slices.Index(Stages(), s) }

// AttemptResult is how a BootAttempt ended.
type AttemptResult string

// The results of a BootAttempt; empty while it is under way.
const (
	ResultActive AttemptResult = "Active"
	ResultFailed AttemptResult = "Failed"
)

// BootAttempt is one boot of one Machine, from the power command (or a
// confirmed reset) to Active or Failed.
type BootAttempt struct {
	ID     string `json:"id"`
	Number int    `json:"number" doc:"Counts the Machine's attempts."`
	Reason string `json:"reason" doc:"Why it was opened."`
	// Request is the id of the Request that asked for it.
	Request string `json:"request,omitzero"`
	// Retry counts attempts since the last that reached Active or was asked for.
	Retry      int           `json:"retry,omitzero" doc:"Attempts before it that failed in a row."`
	Generation int64         `json:"generation" doc:"The Machine's generation that it boots."`
	Started    time.Time     `json:"started"`
	Deadline   time.Time     `json:"deadline" doc:"Moved on by progress."`
	Stage      Stage         `json:"stage"`
	Stages     []StageTime   `json:"stages,omitempty"`
	Trust      TrustLevel    `json:"trust,omitzero" doc:"What the Machine has proved so far."`
	TrustWhy   string        `json:"trustWhy,omitzero" doc:"How it has proved that."`
	Nonce      *Nonce        `json:"nonce,omitempty" doc:"There when trust level nonce is required."`
	Port       *BootPort     `json:"port,omitempty" doc:"Where its address was leased, as a relay says."`
	Takers     []Taker       `json:"takers,omitempty" doc:"Who took the pointer and the config, and who came for them again; at most 16."`
	Joined     time.Time     `json:"joined,omitzero"`
	Finished   time.Time     `json:"finished,omitzero"`
	Result     AttemptResult `json:"result,omitzero"`
	Message    string        `json:"message,omitzero"`
	Cause      FailureCause  `json:"cause,omitzero" enum:"SecondTaker" doc:"What kind of failure it was, where that makes a difference."`
}

// MaxRetries is how many BootAttempts may fail in a row before bootd leaves the
// Machine Failed for a person to look at.
const MaxRetries = 2

// Open reports whether the attempt is under way.
func (a *BootAttempt) Open() bool { return a != nil && a.Result == "" }

// Reached reports whether the attempt has come to that stage or beyond.
func (a *BootAttempt) Reached(s Stage) bool { return a != nil && a.Stage.Index() >= s.Index() }

// StageTime is when a stage was first reached.
type StageTime struct {
	Stage Stage     `json:"stage"`
	Time  time.Time `json:"time"`
}

// Verb is what a person can ask of a Machine once.
type Verb string

// The verbs.
const (
	VerbReprovision Verb = "reprovision"
	VerbPower       Verb = "power"
	VerbInspect     Verb = "inspect"
	VerbIdentify    Verb = "identify"
)

// Request is one verb that was asked for. A repeated id is the same request.
type Request struct {
	ID       string    `json:"id"`
	Verb     Verb      `json:"verb" enum:"reprovision,power,inspect,identify"`
	Argument string    `json:"argument,omitzero" doc:"power: on, off, reset; identify: on, off."`
	By       string    `json:"by,omitzero"`
	Time     time.Time `json:"time"`
	State    string    `json:"state" enum:"Pending,Running,Done,Failed"`
	Message  string    `json:"message,omitzero"`
}

// The states of a Request.
const (
	RequestPending = "Pending"
	RequestRunning = "Running"
	RequestDone    = "Done"
	RequestFailed  = "Failed"
)

// Inventory is what a Machine is made of, as its BMC says.
type Inventory struct {
	Manufacturer string          `json:"manufacturer,omitzero"`
	Model        string          `json:"model,omitzero"`
	SKU          string          `json:"sku,omitzero"`
	Serial       string          `json:"serial,omitzero"`
	UUID         string          `json:"uuid,omitzero"`
	BIOSVersion  string          `json:"biosVersion,omitzero"`
	BMCFirmware  string          `json:"bmcFirmware,omitzero"`
	CPUs         InventoryCPUs   `json:"cpus,omitzero"`
	MemoryMiB    int64           `json:"memoryMiB,omitzero"`
	NICs         []InventoryNIC  `json:"nics,omitempty"`
	Disks        []InventoryDisk `json:"disks,omitempty"`
	Incomplete   []string        `json:"incomplete,omitempty" doc:"What the BMC refused to tell, in its words."`
}

// InventoryCPUs are all processors together.
type InventoryCPUs struct {
	Count int    `json:"count,omitzero"`
	Model string `json:"model,omitzero"`
	Cores int    `json:"cores,omitzero" doc:"Of all processors."`
}

// InventoryNIC is one network port.
type InventoryNIC struct {
	Name      string `json:"name,omitzero"`
	MAC       MAC    `json:"mac,omitzero"`
	SpeedMbps int    `json:"speedMbps,omitzero"`
	Link      string `json:"link,omitzero" doc:"LinkUp, LinkDown, NoLink, or empty when unknown."`
}

// InventoryDisk is one drive.
type InventoryDisk struct {
	Name   string `json:"name,omitzero"`
	Serial string `json:"serial,omitzero"`
	Type   string `json:"type,omitzero" doc:"HDD, SSD, NVMe or empty when unknown."`
	Bytes  int64  `json:"bytes,omitzero"`
}

// HostStatus is what nodeagent reports of its host.
type HostStatus struct {
	UID          string                `json:"uid" doc:"The Machine's uid that it joined as."`
	AgentVersion string                `json:"agentVersion,omitzero"`
	OS           string                `json:"os,omitzero"`
	Kernel       string                `json:"kernel,omitzero"`
	BootID       string                `json:"bootID,omitzero"`
	AttemptID    string                `json:"attemptID,omitzero" doc:"The BootAttempt that it joined in."`
	ClockSkew    Duration              `json:"clockSkew,omitzero" doc:"Host clock minus bootd's when it connected."`
	Stateless    bool                  `json:"stateless,omitzero" doc:"No filesystem labelled rackweft-data: state goes with a reboot."`
	CPUs         int                   `json:"cpus,omitzero" doc:"Processors that its kernel runs on."`
	Memory       Quantity              `json:"memory,omitzero" doc:"That its kernel has."`
	NICs         []HostNIC             `json:"nics,omitempty"`
	WireGuardKey string                `json:"wireGuardKey,omitzero" doc:"Its public key, base64 as wg(8) prints it."`
	Epoch        int64                 `json:"epoch,omitzero"`
	Revision     int64                 `json:"revision,omitzero" doc:"HostSpec revision that it has applied."`
	Parts        map[string]PartStatus `json:"parts,omitempty"`
	Bootd        string                `json:"bootd,omitzero" doc:"Name of the machine whose bootd received it."`
	Reported     time.Time             `json:"reported,omitzero" doc:"When bootd received it."`
	// Connected and LastHeartbeat are kept in memory and filled in at reading.
	Connected     bool      `json:"connected,omitzero"`
	LastHeartbeat time.Time `json:"lastHeartbeat,omitzero"`
	// BGP is kept in memory and filled in at reading, without routes.
	BGP *BGPStatus `json:"bgp,omitempty"`
}

// HostNIC is one interface as the kernel shows it.
type HostNIC struct {
	Name      string         `json:"name"`
	MAC       MAC            `json:"mac,omitzero"`
	MTU       int            `json:"mtu,omitzero"`
	Up        bool           `json:"up,omitzero"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// PartState is how a HostSpec part stands on the host.
type PartState string

// The states of a part.
const (
	PartApplied  PartState = "Applied"
	PartPending  PartState = "Pending"
	PartFailed   PartState = "Failed"
	PartOrphaned PartState = "Orphaned" // runs on though the HostSpec names it no more
)

// PartStatus is one part as the host observed it.
type PartStatus struct {
	Digest  string    `json:"digest,omitzero" doc:"Of the part that was applied."`
	State   PartState `json:"state"`
	Message string    `json:"message,omitzero"`
	Time    time.Time `json:"time,omitzero"`
	// Guest is what is seen of the Guest of a guest part.
	Guest *GuestObserved `json:"guest,omitempty"`
}

// DrainAnnotation on a Machine, when it is "true", asks that everything leaves
// it: Guests, and traffic that has another way.
const DrainAnnotation = "rackweft/drain"

// Draining reports whether Guests are to leave the host.
func (m *Machine) Draining() bool {
	return m.Metadata.Annotations[DrainAnnotation] == "true" || m.Spec.State != StateActive || m.Status.Phase == PhaseDraining
}

// SetDefaults implements Object.
func (m *Machine) SetDefaults() {
	m.defaultType("Machine")
	if m.Spec.State == "" {
		m.Spec.State = StateActive
	}
	if m.Spec.Boot.Unsolicited == "" {
		m.Spec.Boot.Unsolicited = BootConfirm
	}
	if m.Spec.Boot.Firmware == "" {
		m.Spec.Boot.Firmware = "auto"
	}
	if m.Spec.Boot.VendorPXE == "" {
		m.Spec.Boot.VendorPXE = "auto"
	}
	if m.Spec.BMC != nil && m.Spec.BMC.Protocol == "" {
		m.Spec.BMC.Protocol = "redfish"
	}
}

// Validate implements Object.
func (m *Machine) Validate() FieldErrors {
	e := m.common("Machine")
	e.optionalName(at("spec", "zone"), m.Spec.Zone)
	e.optionalName(at("spec", "profile"), m.Spec.Profile)
	e.oneOf(at("spec", "state"), string(m.Spec.State), "Active", "Off", "Maintenance")
	e.oneOf(at("spec", "boot", "unsolicited"), string(m.Spec.Boot.Unsolicited), "confirm", "allow", "refuse")
	e.oneOf(at("spec", "boot", "firmware"), m.Spec.Boot.Firmware, "auto", "uefi", "bios")
	e.oneOf(at("spec", "boot", "vendorPXE"), m.Spec.Boot.VendorPXE, "auto", "always", "never")
	if strings.ContainsAny(m.Spec.Boot.File, "\n\r\x00") || len(m.Spec.Boot.File) > 127 {
		e.add(at("spec", "boot", "file"), "%q is no boot file name of at most 127 bytes", m.Spec.Boot.File)
	}
	e.trust(m.Spec.Trust.Minimum)
	m.validateLinks(&e)
	m.validateLoopbacks(&e)
	m.validateBMC(&e)
	return e
}

func (m *Machine) validateLoopbacks(e *FieldErrors) {
	for i, a := range m.Spec.Loopbacks {
		here := at("spec", "loopbacks", i)
		if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
			e.add(here, "%s is no unicast address: choose one in the prefixes of the Machine's Zone", a)
		}
		if i > 0 && a.Is4() == m.Spec.Loopbacks[i-1].Is4() || i > 1 {
			e.add(here, "one IPv4 and one IPv6 address at most: other addresses are for spec.services of the Zone")
		}
	}
}

func (m *Machine) validateLinks(e *FieldErrors) {
	if len(m.Spec.Links) == 0 {
		e.add(at("spec", "links"), "at least one link with a MAC is required: it is how the Machine is known when it boots")
		return
	}
	names := map[string]int{}
	macs := map[MAC]string{}
	useMAC := func(where []any, mac MAC) {
		if other, taken := macs[mac]; taken {
			e.add(where, "MAC %s stands at %s already", mac, other)
		}
		macs[mac] = Pointer(where...)
	}
	for i, l := range m.Spec.Links {
		here := at("spec", "links", i)
		e.interfaceName(append(here, "name"), l.Name)
		if j, taken := names[l.Name]; taken {
			e.add(append(here, "name"), "link %d is called %q too", j, l.Name)
		}
		names[l.Name] = i
		e.optionalName(append(here, "subnet"), l.Subnet)
		if l.MTU != 0 {
			e.between(append(here, "mtu"), l.MTU, 576, 9216)
		}
		m.validateLinkKind(e, here, l, names, useMAC)
	}
	if len(macs) == 0 {
		e.add(at("spec", "links"), "no link has a MAC: it is how the Machine is known when it boots")
	}
}

func (m *Machine) validateLinkKind(e *FieldErrors, here []any, l Link, names map[string]int, useMAC func([]any, MAC)) {
	kinds := 0
	if l.MAC != "" {
		kinds++
		useMAC(append(slices.Clone(here), "mac"), l.MAC)
	}
	if l.Bond != nil {
		kinds++
		e.oneOf(append(slices.Clone(here), "bond", "mode"), l.Bond.Mode, "802.3ad", "active-backup", "balance-xor", "balance-rr")
		if len(l.Bond.Members) == 0 {
			e.add(append(slices.Clone(here), "bond", "members"), "a bond has members, named by MAC")
		}
		for i, mac := range l.Bond.Members {
			useMAC(append(slices.Clone(here), "bond", "members", i), mac)
		}
	}
	if l.VLAN != nil {
		kinds++
		e.between(append(slices.Clone(here), "vlan", "id"), l.VLAN.ID, 1, 4094)
		if _, ok := names[l.VLAN.Link]; !ok || l.VLAN.Link == l.Name {
			e.add(append(slices.Clone(here), "vlan", "link"), "no link before this one is called %q", l.VLAN.Link)
		}
	}
	if kinds != 1 {
		e.add(here, "link %q has %d of mac, bond and vlan; it needs exactly one", l.Name, kinds)
	}
}

func (m *Machine) validateBMC(e *FieldErrors) {
	b := m.Spec.BMC
	if b == nil {
		return
	}
	u, err := url.Parse(b.Address)
	if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") || u.User != nil {
		e.add(at("spec", "bmc", "address"), "%q is no BMC address: write https://host or https://host:port", b.Address)
	}
	e.oneOf(at("spec", "bmc", "protocol"), b.Protocol, "redfish")
	e.name(at("spec", "bmc", "credentials"), b.Credentials)
}

// MACs lists every MAC that the spec names, links first, then bond members.
func (m *Machine) MACs() []MAC {
	var macs []MAC
	for _, l := range m.Spec.Links {
		if l.MAC != "" {
			macs = append(macs, l.MAC)
		}
		if l.Bond != nil {
			macs = append(macs, l.Bond.Members...)
		}
	}
	return macs
}
