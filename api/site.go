package api

import (
	"net/netip"
	"strconv"
	"time"
)

// SiteName is the name of the one Site.
const SiteName = "site"

// Site holds the defaults and the limits of everything that one bootd, or one
// group of three, manages.
type Site struct {
	Base
	Spec   SiteSpec   `json:"spec" doc:"The desired state, written by people."`
	Status SiteStatus `json:"status,omitzero" doc:"The observed state, written by rackweft."`
}

// siteKind describes the kind.
func siteKind() Kind {
	return Kind{Name: "Site", Doc: "What one bootd, or one group of them on the same etcd, is in charge of: defaults, brakes and trust. There is one, named site.",
		Plural: "sites", Writer: RoleAdmin, Independent: true,
		Columns: siteColumns, New: func() Object { return new(Site) }, is: is[*Site],
		Conditions: func(o Object) *Conditions { return &o.(*Site).Status.Conditions }}
}

func siteColumns() []Column {
	return []Column{
		of("DOMAIN", func(s *Site) string { return s.Spec.Domain }),
		of("TRUST", func(s *Site) string { return string(s.Spec.Trust.Minimum) }),
		of("PAUSED", func(s *Site) string {
			if s.Spec.Paused {
				return "yes"
			}
			return "no"
		}),
		wide(of("EPOCH", func(s *Site) string { return strconv.FormatInt(s.Status.Epoch, 10) })),
		wide(of("NTP", func(s *Site) string { return join(s.Spec.NTP) })),
		wide(of("DNS", func(s *Site) string { return join(s.Spec.DNS) })),
	}
}

// SiteSpec is the desired Site.
type SiteSpec struct {
	Domain  string       `json:"domain,omitzero" doc:"DNS domain that hosts are in. Default: none."`
	NTP     []netip.Addr `json:"ntp,omitempty" doc:"Time servers for hosts and boots. Default: none."`
	DNS     []netip.Addr `json:"dns,omitempty" doc:"Name servers for hosts and boots. Default: none."`
	SSHKeys []string     `json:"sshKeys,omitempty" doc:"Public keys for the user core on every host. Default: none."`
	// HostMetrics is written into each host's configuration when it is
	// provisioned.
	HostMetrics string `json:"hostMetrics,omitzero" doc:"Where each host serves its metrics, as [address]:port. Default: nowhere."`
	// VNIRange bounds the VXLAN identifiers that rackweft chooses.
	VNIRange VNIRange     `json:"vniRange,omitzero" doc:"VNIs that rackweft may choose, as low-high. Default: 10000-9999999."`
	Trust    SiteTrust    `json:"trust,omitzero" doc:"What every boot must prove, and what follows when a boot was shared."`
	Limits   Limits       `json:"limits,omitzero" doc:"How many machines may be in motion at once."`
	Guests   GuestHosting `json:"guests,omitzero" doc:"What hosts give to Guests."`
	// AttemptWindow is how long a BootAttempt may take without progress.
	AttemptWindow Duration `json:"attemptWindow,omitzero" doc:"How long a BootAttempt may go without progress, 1m to 24h. Default: 30m."`
	Paused        bool     `json:"paused,omitzero" doc:"Stops every power change and every new BootAttempt. Default: false."`
}

// Limits bound how many machines may change at once.
type Limits struct {
	Provisioning Limit `json:"provisioning,omitzero" doc:"BootAttempts under way at once."`
	Power        Limit `json:"power,omitzero" doc:"Machines whose power changes at once."`
}

// Limit bounds a number of machines; 0 means the default.
type Limit struct {
	PerRack int `json:"perRack,omitzero" minimum:"0" doc:"In one rack. Default: 8."`
	Total   int `json:"total,omitzero" minimum:"0" doc:"In the Site. Default: 100."`
}

// GuestHosting configures hosts for Guests.
type GuestHosting struct {
	CPUOvercommit    int      `json:"cpuOvercommit,omitzero" doc:"Virtual processors per hundred processors of a host, 10 to 10000. Default: 400."`
	MemoryOvercommit int      `json:"memoryOvercommit,omitzero" doc:"Memory of Guests per hundred bytes that a host gives to them, 10 to 1000. Default: 100."`
	HostMemory       Quantity `json:"hostMemory,omitzero" doc:"Memory in bytes that a host keeps for itself. Default: 1Gi."`
	// DrainDeadline bounds every drain: what is still on the host then is
	// switched off with it.
	DrainDeadline Duration `json:"drainDeadline,omitzero" doc:"How long Guests may take to leave a host before it is switched off or reprovisioned, 0 to 24h. Default: 15m."`
	// Migration is the default for Guests.
	Migration string `json:"migration,omitzero" enum:"Live,Stop,None" doc:"How Guests leave their host. Live: while they run where that is possible, else with a stop. Stop: with a stop. None: only when a person moves them. Default: Live."`
	// MoveDeadline bounds every move: afterwards the Guest continues where it
	// was.
	MoveDeadline Duration `json:"moveDeadline,omitzero" doc:"How long a Guest may take to move to another host, disks included, 1m to 168h; after that it stays where it was. Default: 10m."`
	// FenceAfter is the policy for lost hosts. A host counts as lost only once
	// its BMC has confirmed that it has no power.
	FenceAfter Duration `json:"fenceAfter,omitzero" doc:"How long a host may be silent before it is switched off through its BMC and its Guests are started elsewhere; at least 2m. Default: never."`
}

// SiteStatus is observed by rackweft.
type SiteStatus struct {
	Epoch      int64      `json:"epoch,omitzero" doc:"Raised by a restore, by which hosts know the bootd before it from the one after it."`
	Recovery   *Recovery  `json:"recovery,omitempty" doc:"After a restore: what bootd waits for, and what hosts have that the backup does not know."`
	Conditions Conditions `json:"conditions,omitempty" doc:"Observed facts, one of each type."`
}

// SetDefaults implements Object.
func (s *Site) SetDefaults() {
	s.defaultType("Site")
	if s.Spec.VNIRange.IsZero() {
		s.Spec.VNIRange = VNIRange{10000, 9999999}
	}
	if s.Spec.Trust.Minimum == "" {
		s.Spec.Trust.Minimum = TrustToken
	}
	if s.Spec.Trust.Retries == nil {
		retries := DefaultTrustRetries
		s.Spec.Trust.Retries = &retries
	}
	if s.Spec.Trust.BMC == "" {
		s.Spec.Trust.BMC = BMCTrustFirstContact
	}
	if s.Spec.AttemptWindow == 0 {
		s.Spec.AttemptWindow = Duration(30 * time.Minute)
	}
	if s.Spec.Guests.CPUOvercommit == 0 {
		s.Spec.Guests.CPUOvercommit = 400
	}
	if s.Spec.Guests.MemoryOvercommit == 0 {
		s.Spec.Guests.MemoryOvercommit = 100
	}
	if s.Spec.Guests.DrainDeadline == 0 {
		s.Spec.Guests.DrainDeadline = Duration(15 * time.Minute)
	}
	if s.Spec.Guests.Migration == "" {
		s.Spec.Guests.Migration = MigrateLive
	}
	if s.Spec.Guests.MoveDeadline == 0 {
		s.Spec.Guests.MoveDeadline = Duration(10 * time.Minute)
	}
	if s.Spec.Guests.HostMemory.IsZero() {
		s.Spec.Guests.HostMemory = Bytes(1 << 30)
	}
	for _, l := range []*Limit{&s.Spec.Limits.Provisioning, &s.Spec.Limits.Power} {
		if l.PerRack == 0 {
			l.PerRack = 8
		}
		if l.Total == 0 {
			l.Total = 100
		}
	}
}

// Validate implements Object.
func (s *Site) Validate() FieldErrors {
	e := s.common("Site")
	if s.Metadata.Name != SiteName {
		e.add(at("metadata", "name"), "the Site is a singleton: its name is %q", SiteName)
	}
	if s.Spec.Domain != "" {
		e.domain(at("spec", "domain"), s.Spec.Domain)
	}
	if s.Spec.HostMetrics != "" {
		if _, err := ListenPort(s.Spec.HostMetrics); err != nil {
			e.add(at("spec", "hostMetrics"), "invalid address to listen on %s: %s", quote(s.Spec.HostMetrics), err)
		}
	}
	e.trust(s.Spec.Trust.Minimum)
	if r := s.Spec.Trust.Retries; r != nil {
		e.between(at("spec", "trust", "retries"), *r, 0, 100)
	}
	e.oneOf(at("spec", "trust", "bmc"), string(s.Spec.Trust.BMC), string(BMCTrustFirstContact), string(BMCTrustPerson))
	if w := time.Duration(s.Spec.AttemptWindow); w < time.Minute || w > 24*time.Hour {
		e.add(at("spec", "attemptWindow"), "%s is not between 1m and 24h", w)
	}
	e.between(at("spec", "guests", "cpuOvercommit"), s.Spec.Guests.CPUOvercommit, 10, 10000)
	e.between(at("spec", "guests", "memoryOvercommit"), s.Spec.Guests.MemoryOvercommit, 10, 1000)
	if d := time.Duration(s.Spec.Guests.DrainDeadline); d < 0 || d > 24*time.Hour {
		e.add(at("spec", "guests", "drainDeadline"), "%s is not between 0 and 24h", d)
	}
	e.oneOf(at("spec", "guests", "migration"), s.Spec.Guests.Migration, MigrateLive, MigrateStop, MigrateNone)
	if d := time.Duration(s.Spec.Guests.MoveDeadline); d < time.Minute || d > 7*24*time.Hour {
		e.add(at("spec", "guests", "moveDeadline"), "%s is not between 1m and 168h", d)
	}
	if d := time.Duration(s.Spec.Guests.FenceAfter); d != 0 && d < 2*time.Minute {
		e.add(at("spec", "guests", "fenceAfter"), "%s is too short: a host is silent for a minute when it or bootd restarts; want at least 2m", d)
	}
	if m := s.Spec.Guests.HostMemory.Value(); m < 0 || m > maxMemory {
		e.add(at("spec", "guests", "hostMemory"), "it is not between 0 and 16Ti")
	}
	for name, l := range map[string]Limit{"provisioning": s.Spec.Limits.Provisioning, "power": s.Spec.Limits.Power} {
		e.between(at("spec", "limits", name, "perRack"), l.PerRack, 1, 10000)
		e.between(at("spec", "limits", name, "total"), l.Total, 1, 100000)
	}
	return e
}
