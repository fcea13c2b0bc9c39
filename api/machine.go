package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Machine is one physical server.
type Machine struct {
	Base
	Spec   MachineSpec   `json:"spec" doc:"The desired state, written by people."`
	Status MachineStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// machineKind describes the kind.
func machineKind() Kind {
	return Kind{Name: "Machine", Doc: "One physical server.",
		Plural: "machines", Short: []string{"m"}, Writer: RoleOperator,
		Columns: machineColumns, New: func() Object { return new(Machine) }, is: is[*Machine],
		Conditions: func(o Object) *Conditions { return &o.(*Machine).Status.Conditions },
		References: func(o Object) []Reference { return o.(*Machine).references() }}
}

func machineColumns() []Column {
	return []Column{
		of("ZONE", func(m *Machine) string { return m.Spec.Zone }),
		of("RACK/U", rackUnit),
		of("PHASE", func(m *Machine) string { return string(m.Status.Phase) }),
		of("STAGE", func(m *Machine) string { return m.Status.Attempt.Progress() }),
		of("POWER", func(m *Machine) string { return m.Status.Power }),
		of("ADDRESS", func(m *Machine) string { return join(m.Reached()) }),
		wide(of("BMC", func(m *Machine) string {
			if m.Spec.BMC == nil {
				return ""
			}
			return strings.TrimPrefix(m.Spec.BMC.Address, "https://")
		})),
		wide(of("PROFILE", func(m *Machine) string { return m.Spec.Profile })),
		wide(of("MODEL", func(m *Machine) string {
			if i := m.Status.Inventory; i != nil {
				return strings.TrimSpace(i.Manufacturer + " " + i.Model)
			}
			return ""
		})),
		wide(of("SERIAL", func(m *Machine) string {
			if i := m.Status.Inventory; i != nil {
				return i.Serial
			}
			return ""
		})),
		wide(of("AGENT", func(m *Machine) string { return m.Status.Host.agent() })),
		wide(of("KERNEL", func(m *Machine) string {
			if h := m.Status.Host; h != nil {
				return h.Kernel
			}
			return ""
		})),
	}
}

func rackUnit(m *Machine) string {
	l := m.Spec.Location
	if l.Rack == "" && l.Unit == 0 {
		return ""
	}
	return l.Rack + "/" + number(int64(l.Unit))
}

// Reached returns the addresses at which a Machine is reached: those of its
// links that are up and pinned by the spec, else the leases with which it
// boots.
func (m *Machine) Reached() []netip.Addr {
	if m.Status.Host == nil {
		return m.Status.Addresses
	}
	pinned := map[netip.Addr]bool{}
	for _, l := range m.Spec.Links {
		for _, a := range l.Addresses {
			pinned[a] = true
		}
	}
	var found []netip.Addr
	for _, nic := range m.Status.Host.NICs {
		for _, prefix := range nic.Addresses {
			if pinned[prefix.Addr()] {
				found = append(found, prefix.Addr())
			}
		}
	}
	if len(found) == 0 {
		return m.Status.Addresses
	}
	return found
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

// MachineState is the desired state of a Machine.
type MachineState string

// The states that a user can request.
const (
	StateActive      MachineState = "Active"
	StateOff         MachineState = "Off"
	StateMaintenance MachineState = "Maintenance"
)

// MachineSpec is the desired Machine.
type MachineSpec struct {
	Zone     string   `json:"zone,omitzero" doc:"Zone that the host is in. Default: none."`
	Location Location `json:"location,omitzero" doc:"Where it is racked and what it is cabled to."`
	Profile  string   `json:"profile,omitzero" doc:"Profile that it boots. Default: none, it is not provisioned."`
	Links    []Link   `json:"links" doc:"Network interfaces; at least one has a MAC."`
	// Loopbacks are at most one of each family.
	Loopbacks []netip.Addr `json:"loopbacks,omitempty" doc:"Pins the host's own addresses, one of each family at most, which it has on lo and advertises in its Zone. Default: chosen out of the Zone's loopbacks."`
	BMC       *BMC         `json:"bmc,omitempty" doc:"How its BMC is reached; without one bootd cannot power it."`
	Boot      Boot         `json:"boot,omitzero" doc:"What is particular to its network boot."`
	Trust     Trust        `json:"trust,omitzero" doc:"What its boot must prove."`
	// Variables override the Profile's.
	Variables map[string]string `json:"variables,omitempty" doc:"Override the Profile's variables. Default: none."`
	State     MachineState      `json:"state,omitzero" enum:"Active,Off,Maintenance" doc:"What the Machine should be. Maintenance: it keeps running and nothing is done to it. Default: Active."`
}

// Location is where a Machine is and what it is cabled to.
type Location struct {
	Rack   string `json:"rack,omitzero" doc:"Rack that the Machine is in; brakes, reflectors and placement go by it. Default: none."`
	Unit   int    `json:"unit,omitzero" doc:"Lowest rack unit that it takes. Default: unknown."`
	Switch string `json:"switch,omitzero" doc:"For trust level address: the relay's address, or the remote ID that it sends (text, a MAC, or 0x and hexadecimal digits). Default: unknown."`
	Port   string `json:"port,omitzero" doc:"For trust level address: the circuit ID that the relay sends, or the part of it before a colon (text, or 0x and hexadecimal digits). Default: unknown."`
}

// Link is one network interface: a NIC (by MAC), a bond of NICs, or a VLAN.
type Link struct {
	Name      string       `json:"name" doc:"The interface's name on the host."`
	MAC       MAC          `json:"mac,omitzero" doc:"The link is the NIC with this MAC. Default: none; exactly one of mac, bond and vlan is set."`
	Bond      *Bond        `json:"bond,omitempty" doc:"The link is a bond of NICs."`
	VLAN      *VLAN        `json:"vlan,omitempty" doc:"The link is a VLAN on another link."`
	Subnet    string       `json:"subnet,omitzero" doc:"Subnet that the link is on. Default: none."`
	Addresses []netip.Addr `json:"addresses,omitempty" doc:"Pins the addresses; DHCP on a provisioning Subnet gives the first of them. Default: leased, or none."`
	MTU       int          `json:"mtu,omitzero" doc:"MTU in bytes, 576 to 9216. Default: the Subnet's."`
}

// Bond joins NICs.
type Bond struct {
	Mode    string `json:"mode" enum:"802.3ad,active-backup,balance-xor,balance-rr" doc:"Bonding mode, as the kernel names it."`
	Members []MAC  `json:"members" doc:"NICs of the bond, by MAC; at least one."`
}

// VLAN is a tagged interface on another link.
type VLAN struct {
	Link string `json:"link" doc:"Name of the link below it."`
	ID   int    `json:"id" doc:"VLAN ID, 1 to 4094."`
}

// BMC says how to reach a Machine's controller.
type BMC struct {
	Address     string   `json:"address" doc:"URL of the BMC, as https://host or https://host:port; with protocol ipmi as ipmi://host or ipmi://host:port. Default port: 443, or UDP 623."`
	Protocol    string   `json:"protocol,omitzero" enum:"redfish,ipmi" doc:"Protocol spoken to the BMC. Default: redfish."`
	Fallback    string   `json:"fallback,omitzero" enum:"ipmi" doc:"What speaks to the BMC where Redfish does not offer a verb, or does not answer. ipmi: IPMI, on UDP port 623 of the same host. Default: none."`
	IPMI        *BMCIPMI `json:"ipmi,omitempty" doc:"How IPMI is spoken, where protocol or fallback is ipmi."`
	System      string   `json:"system,omitzero" doc:"Id of the system that this Machine is, as its Redfish path ends. Default: the BMC's only system, or the only one that can be reset."`
	Credentials string   `json:"credentials" doc:"A Secret with username and password."`
	TLS         BMCTLS   `json:"tls,omitzero" doc:"How the BMC's certificate is checked."`
	SSH         BMCSSH   `json:"ssh,omitzero" doc:"How the BMC's SSH host key is checked."`
	Console     string   `json:"console,omitzero" enum:"boot,attached" doc:"When bootd has the serial console open, which most BMCs give to one client at a time. boot: while a BootAttempt is open, so that its last lines are kept, and while a person is attached. attached: only while a person is attached (weftctl console). Default: boot."`
}

// BMCTLS pins the BMC's certificate.
type BMCTLS struct {
	Fingerprint Fingerprint `json:"fingerprint,omitzero" doc:"SHA-256 of the certificate, as sha256:HEX. Default: the one in status, which a person has trusted (weftctl bmc trust) or, unless spec.trust.bmc of the Site is person, the first contact has shown."`
}

// BMCSSH pins the BMC's SSH host key.
type BMCSSH struct {
	HostKey HostKey `json:"hostKey,omitzero" doc:"SHA-256 of the host key, as SHA256:BASE64, which ssh-keygen -l prints. Default: the one in status, which a person has trusted (weftctl bmc trust) or, unless spec.trust.bmc of the Site is person, the first console over SSH has shown."`
}

// UnsolicitedBoot is the policy for a known Machine that network-boots without
// a request.
type UnsolicitedBoot string

// Policies for an unsolicited boot.
const (
	BootConfirm UnsolicitedBoot = "confirm" // serve it when the BMC confirms a reset and no live agent holds the stream
	BootAllow   UnsolicitedBoot = "allow"
	BootRefuse  UnsolicitedBoot = "refuse"
)

// Boot holds the settings of one Machine's network boot.
type Boot struct {
	Unsolicited UnsolicitedBoot `json:"unsolicited,omitzero" enum:"confirm,allow,refuse" doc:"What happens when the Machine network-boots unasked. confirm: serve it when the BMC confirms a reset and no agent holds the host's stream. allow: serve it. refuse: do not. Default: confirm."`
	Firmware    string          `json:"firmware,omitzero" enum:"auto,uefi,bios" doc:"Boot mode sent to the BMC; auto leaves it as it is. Default: auto."`
	File        string          `json:"file,omitzero" doc:"Boot file for firmware that needs a special one; at most 127 bytes. Default: chosen by architecture."`
	VendorPXE   string          `json:"vendorPXE,omitzero" enum:"auto,always,never" doc:"Whether DHCP option 43 goes with PXE offers; auto decides by firmware. Default: auto."`
}

// Phase is the phase of a Machine's life.
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
	CondReferences = "References"        // everything that the spec names exists
	CondBMC        = "BMCReachable"      // the BMC answers and takes the password
	CondPassword   = "BMCPasswordChange" // the BMC does nothing until its password is changed; there only then
	CondObeys      = "BMCObeys"          // False while the BMC, which answers, refuses something; there only then
	CondInspected  = "Inspected"         // the inventory is known
	CondProvision  = "Provisioned"       // the last BootAttempt reached Active
	CondConnected  = "HostConnected"     // nodeagent holds its stream
	CondApplied    = "HostApplied"       // every HostSpec part is applied
	CondDrained    = "Drained"           // Guests have left a host before its power is switched; set while they leave
	CondFenced     = "Fenced"            // a lost host was switched off, so that its Guests may run elsewhere
	CondHeld       = "Held"              // a brake or a policy holds the Machine back
	CondHealthy    = "Healthy"           // fans, temperatures and power supplies are well, as the BMC says
	CondTrust      = "Trusted"           // the last boot proved what is required, and nothing else took what it was given
)

// DiscoveredLabel marks a Machine that bootd created because an unknown MAC
// requested a boot. Applying a Machine with that MAC replaces it.
const DiscoveredLabel = "rackweft/discovered"

// MachineStatus is observed and chosen by rackweft.
type MachineStatus struct {
	Phase              Phase        `json:"phase,omitzero" doc:"The Machine's place between Registered and Active."`
	ObservedGeneration int64        `json:"observedGeneration,omitzero" doc:"Generation of the spec that status speaks of."`
	Power              string       `json:"power,omitzero" doc:"On, Off or Unknown, as the BMC last said."`
	BMC                BMCStatus    `json:"bmc,omitzero" doc:"What was learned of the BMC."`
	Inventory          *Inventory   `json:"inventory,omitempty" doc:"What the Machine is made of, as its BMC says."`
	Addresses          []netip.Addr `json:"addresses,omitempty" doc:"Leased on the provisioning Subnet."`
	// LastSeen is the time of a Discovered machine's last request.
	LastSeen time.Time `json:"lastSeen,omitzero" doc:"When a Discovered machine last asked for anything."`
	// BootAsked is the time of the Machine's last request for a boot script
	// that no open BootAttempt covers: the machine controller decides on it.
	BootAsked time.Time `json:"bootAsked,omitzero" doc:"When it last network-booted with no BootAttempt open for it."`
	// HostKey is the SHA-256 of the public key that joined: a certificate for
	// any other key is refused, even while it is valid.
	HostKey  string        `json:"hostKey,omitzero" doc:"SHA-256 of the host's public key; certificates over any other key are refused."`
	Attempt  *BootAttempt  `json:"attempt,omitempty" doc:"The BootAttempt under way, or the last."`
	History  []BootAttempt `json:"history,omitempty" doc:"Earlier BootAttempts, newest first, at most five."`
	Requests []Request     `json:"requests,omitempty" doc:"Verbs that people asked for, newest last, at most ten."`
	// AssetTag is set while a nonce replaces it, or may do so.
	AssetTag *SavedAssetTag `json:"assetTag,omitempty" doc:"The system's own AssetTag, while a BootAttempt's nonce takes its place."`
	// BootURL is set while the BMC has the boot URL of a BootAttempt, or may have it.
	BootURL    *GivenBootURL `json:"bootURL,omitempty" doc:"That the BMC has a BootAttempt's boot URL, for trust level bmc. The URL is a secret, and not shown."`
	Host       *HostStatus   `json:"host,omitempty" doc:"What nodeagent reports of the host."`
	Conditions Conditions    `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// BMCStatus is information read from the BMC.
type BMCStatus struct {
	Fingerprint string `json:"fingerprint,omitzero" doc:"SHA-256 of the certificate, pinned by a person (weftctl bmc trust) or at the first contact."`
	// HostKey is of the BMC's SSH server, where it has one.
	HostKey HostKey `json:"hostKey,omitzero" doc:"SHA-256 of the SSH host key, pinned by a person (weftctl bmc trust) or at the first console over SSH."`
	// TrustedBy is empty for what was learned at the first contact.
	TrustedBy string    `json:"trustedBy,omitzero" doc:"Who has trusted the certificate; empty when it was learned at the first contact or is pinned by the spec."`
	Trusted   time.Time `json:"trusted,omitzero" doc:"When that was."`
	// LearnedFrom is the address of the BMC that showed Fingerprint: for
	// another address a new one is learned.
	LearnedFrom string    `json:"learnedFrom,omitzero" doc:"BMC address that fingerprint and hostKey belong to; another address starts over."`
	LastContact time.Time `json:"lastContact,omitzero" doc:"When the BMC last answered."`
	// Console is known once the console was opened, or was found missing.
	Console ConsoleKind `json:"console,omitzero" enum:"websocket,ssh,sol,none" doc:"How the serial console is reached; none where the BMC has none; empty until it was opened for the first time."`
}

// Stage is the progress of a BootAttempt. Stages are ordered; a boot may skip
// some (iPXE in ROM fetches nothing over TFTP).
type Stage string

// The stages of a BootAttempt, in order.
const (
	StageRequested Stage = "Requested" // the attempt is open; no command was sent to the BMC yet
	StagePowerOn   Stage = "PowerOn"   // the power-on command was sent to the BMC
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

// AttemptResult is the result of a BootAttempt.
type AttemptResult string

// Results of a BootAttempt; empty while it is in progress.
const (
	ResultActive AttemptResult = "Active"
	ResultFailed AttemptResult = "Failed"
	// ResultAborted: another state or another attempt was asked for meanwhile. It is no failure.
	ResultAborted AttemptResult = "Aborted"
)

// BootAttempt is one boot of one Machine, from the power command (or a
// confirmed reset) to its result.
type BootAttempt struct {
	ID     string `json:"id" doc:"Unique ID of the attempt."`
	Number int    `json:"number" doc:"Counts the Machine's attempts."`
	Reason string `json:"reason" doc:"Why it was opened."`
	// Request is the id of the Request that caused it.
	Request string `json:"request,omitzero" doc:"ID of the request that asked for it; empty when none did."`
	// Retry counts attempts since the last one that reached Active or was
	// requested.
	Retry      int   `json:"retry,omitzero" doc:"Attempts before it that failed in a row."`
	Generation int64 `json:"generation" doc:"The Machine's generation that it boots."`
	// Inputs are compared with what is there now: when they differ, retries of a failed attempt begin again.
	Inputs   []string      `json:"inputs,omitempty" doc:"What it boots with, each as KIND NAME UID GENERATION with the first eight digits of the UID; of the latest attempt only."`
	Started  time.Time     `json:"started" doc:"When it was opened."`
	Deadline time.Time     `json:"deadline" doc:"Moved on by progress."`
	Stage    Stage         `json:"stage" doc:"The furthest stage reached."`
	Stages   []StageTime   `json:"stages,omitempty" doc:"When each stage was first reached."`
	Trust    TrustLevel    `json:"trust,omitzero" doc:"What the Machine has proved so far."`
	TrustWhy string        `json:"trustWhy,omitzero" doc:"How it has proved that."`
	Nonce    *Nonce        `json:"nonce,omitempty" doc:"There when trust level nonce is required."`
	Command  *PowerCommand `json:"command,omitempty" doc:"The power command that the BMC was given for it; it is sent once."`
	Reset    *ResetSeen    `json:"reset,omitempty" doc:"What the BMC reported of the attempt's own reset. Later reports are compared with this, because its clock may move."`
	Port     *BootPort     `json:"port,omitempty" doc:"Where its address was leased, as a relay says."`
	Takers   []Taker       `json:"takers,omitempty" doc:"Who took the pointer and the config, and who came for them again; at most 16."`
	Joined   time.Time     `json:"joined,omitzero" doc:"When nodeagent joined."`
	Finished time.Time     `json:"finished,omitzero" doc:"When it ended; unset while it is under way."`
	Result   AttemptResult `json:"result,omitzero" doc:"Active, Failed or Aborted; empty while it is under way."`
	Message  string        `json:"message,omitzero" doc:"Why it failed and what to do, or its progress."`
	Cause    FailureCause  `json:"cause,omitzero" enum:"SecondTaker" doc:"What kind of failure it was, where that makes a difference."`
}

// MaxRetries is how many BootAttempts may fail in a row before bootd leaves the
// Machine Failed for an operator.
const MaxRetries = 2

// Open reports whether the attempt is in progress.
func (a *BootAttempt) Open() bool { return a != nil && a.Result == "" }

// Reached reports whether the attempt has reached that stage or a later one.
func (a *BootAttempt) Reached(s Stage) bool { return a != nil && a.Stage.Index() >= s.Index() }

// Progress returns the stage of an attempt in progress, or where it failed.
func (a *BootAttempt) Progress() string {
	if a == nil || a.Result == ResultActive || a.Result == ResultAborted {
		return ""
	}
	return fmt.Sprintf("%s %d/%d", a.Stage, a.Stage.Index()+1, len(Stages()))
}

// StageTime is when a stage was first reached.
type StageTime struct {
	Stage Stage     `json:"stage" doc:"The stage."`
	Time  time.Time `json:"time" doc:"When it was first reached."`
}

// Verb is an action that a user can request once.
type Verb string

// The verbs.
const (
	VerbReprovision Verb = "reprovision"
	VerbPower       Verb = "power"
	VerbInspect     Verb = "inspect"
	VerbIdentify    Verb = "identify"
	VerbResetBMC    Verb = "reset-bmc" // restarts the BMC itself; the server runs on
)

// Request is one requested verb. A second request with the same id is the same
// request.
type Request struct {
	ID       string    `json:"id" doc:"Unique ID; the same request is carried out once."`
	Verb     Verb      `json:"verb" enum:"reprovision,power,inspect,identify,reset-bmc" doc:"What was asked for."`
	Argument string    `json:"argument,omitzero" doc:"power: on, off, reset; identify: on, off."`
	By       string    `json:"by,omitzero" doc:"Who asked."`
	Time     time.Time `json:"time" doc:"When it was asked."`
	State    string    `json:"state" enum:"Pending,Running,Done,Failed" doc:"Its progress."`
	Message  string    `json:"message,omitzero" doc:"The result."`
}

// The states of a Request.
const (
	RequestPending = "Pending"
	RequestRunning = "Running"
	RequestDone    = "Done"
	RequestFailed  = "Failed"
)

// DrainAnnotation on a Machine, when it is "true", requests that everything
// leaves it: Guests, and traffic that has another path.
const DrainAnnotation = "rackweft/drain"

// Draining reports whether Guests should leave the host.
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
	if m.Spec.BMC != nil {
		m.Spec.BMC.setDefaults()
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
		e.add(at("spec", "boot", "file"), "invalid boot file name %q: want at most 127 bytes, without line breaks or NUL", m.Spec.Boot.File)
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
			e.add(here, "invalid address %s: want a unicast address in the prefixes of the Machine's Zone", a)
		}
		if i > 0 && a.Is4() == m.Spec.Loopbacks[i-1].Is4() || i > 1 {
			e.add(here, "at most one IPv4 and one IPv6 address: others belong in spec.services of the Zone")
		}
	}
}

func (m *Machine) validateLinks(e *FieldErrors) {
	if len(m.Spec.Links) == 0 {
		e.add(at("spec", "links"), "at least one link with a MAC is required: the Machine is recognized by it when it boots")
		return
	}
	names := map[string]int{}
	macs := map[MAC]string{}
	useMAC := func(where []any, mac MAC) {
		if other, taken := macs[mac]; taken {
			e.add(where, "MAC %s is already at %s", mac, other)
		}
		macs[mac] = Pointer(where...)
	}
	for i, l := range m.Spec.Links {
		here := at("spec", "links", i)
		e.interfaceName(append(here, "name"), l.Name)
		if j, taken := names[l.Name]; taken {
			e.add(append(here, "name"), "link %d is also called %q", j, l.Name)
		}
		names[l.Name] = i
		e.optionalName(append(here, "subnet"), l.Subnet)
		if l.MTU != 0 {
			e.between(append(here, "mtu"), l.MTU, 576, 9216)
		}
		m.validateLinkKind(e, here, l, names, useMAC)
	}
	if len(macs) == 0 {
		e.add(at("spec", "links"), "no link has a MAC: the Machine is recognized by it when it boots")
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
			e.add(append(slices.Clone(here), "bond", "members"), "a bond needs members, named by MAC")
		}
		for i, mac := range l.Bond.Members {
			useMAC(append(slices.Clone(here), "bond", "members", i), mac)
		}
	}
	if l.VLAN != nil {
		kinds++
		e.between(append(slices.Clone(here), "vlan", "id"), l.VLAN.ID, 1, 4094)
		if _, ok := names[l.VLAN.Link]; !ok || l.VLAN.Link == l.Name {
			e.add(append(slices.Clone(here), "vlan", "link"), "there is no link %q before this one", l.VLAN.Link)
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
	scheme := "https"
	if b.Protocol == ProtocolIPMI {
		scheme = "ipmi"
	}
	u, err := url.Parse(b.Address)
	if err != nil || u.Scheme != scheme || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.User != nil {
		e.add(at("spec", "bmc", "address"), "invalid BMC address %q: want %[2]s://host or %[2]s://host:port", b.Address, scheme)
	}
	e.oneOf(at("spec", "bmc", "protocol"), b.Protocol, ProtocolRedfish, ProtocolIPMI)
	b.validateIPMI(e)
	if b.Console != "" {
		e.oneOf(at("spec", "bmc", "console"), b.Console, ConsoleBoot, ConsoleAttached)
	}
	if len(b.System) > 255 || strings.ContainsAny(b.System, "/?# ") {
		e.add(at("spec", "bmc", "system"), "invalid system %q: want the last part of its Redfish path", b.System)
	}
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
