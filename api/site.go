package api

import (
	"net/netip"
	"time"
)

// SiteName is the name of the one Site.
const SiteName = "site"

// Site holds what one bootd, or one group of three, is in charge of: its
// defaults and its brakes.
type Site struct {
	Base
	Spec   SiteSpec   `json:"spec"`
	Status SiteStatus `json:"status,omitzero"`
}

// SiteSpec is the desired Site.
type SiteSpec struct {
	Domain  string       `json:"domain,omitzero" doc:"DNS domain that hosts are in."`
	NTP     []netip.Addr `json:"ntp,omitempty"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	SSHKeys []string     `json:"sshKeys,omitempty" doc:"Public keys for the user core on every host."`
	// VNIRange bounds the VXLAN identifiers that rackweft chooses.
	VNIRange VNIRange `json:"vniRange,omitzero" doc:"VNIs that rackweft may choose, as low-high."`
	Trust    Trust    `json:"trust,omitzero"`
	Limits   Limits   `json:"limits,omitzero"`
	// AttemptWindow is how long a BootAttempt may go without progress.
	AttemptWindow Duration `json:"attemptWindow,omitzero" doc:"How long a BootAttempt may go without progress; 30m unless set."`
	Paused        bool     `json:"paused,omitzero" doc:"Stops every power change and every new BootAttempt."`
}

// TrustLevel says how far a Machine has proved who it is.
type TrustLevel string

// Trust levels, from the least to the most.
const (
	TrustMAC   TrustLevel = "mac"   // it has a known MAC
	TrustToken TrustLevel = "token" // it holds the token of a BootAttempt that bootd opened
	TrustTPM   TrustLevel = "tpm"   // its TPM has attested the boot
)

// Trust is what a Machine must reach before it is given Secrets.
type Trust struct {
	Minimum TrustLevel `json:"minimum,omitzero" enum:"mac,token,tpm"`
}

// Limits are the brakes: how many machines may be in motion at once.
type Limits struct {
	Provisioning Limit `json:"provisioning,omitzero"`
	Power        Limit `json:"power,omitzero"`
}

// Limit bounds a number of machines; 0 means the default.
type Limit struct {
	PerRack int `json:"perRack,omitzero" minimum:"0" doc:"8 unless set."`
	Total   int `json:"total,omitzero" minimum:"0" doc:"100 unless set."`
}

// SiteStatus is what rackweft observed.
type SiteStatus struct {
	Epoch      int64      `json:"epoch,omitzero" doc:"Raised by a restore; hosts list again."`
	Conditions Conditions `json:"conditions,omitempty"`
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
	if s.Spec.AttemptWindow == 0 {
		s.Spec.AttemptWindow = Duration(30 * time.Minute)
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
	e.oneOf(at("spec", "trust", "minimum"), string(s.Spec.Trust.Minimum), "mac", "token", "tpm")
	if w := time.Duration(s.Spec.AttemptWindow); w < time.Minute || w > 24*time.Hour {
		e.add(at("spec", "attemptWindow"), "%s is not between 1m and 24h", w)
	}
	for name, l := range map[string]Limit{"provisioning": s.Spec.Limits.Provisioning, "power": s.Spec.Limits.Power} {
		e.between(at("spec", "limits", name, "perRack"), l.PerRack, 1, 10000)
		e.between(at("spec", "limits", name, "total"), l.Total, 1, 100000)
	}
	return e
}

// Secret is a value that is sealed at rest and never printed.
type Secret struct {
	Base
	Spec   SecretSpec   `json:"spec"`
	Status SecretStatus `json:"status,omitzero"`
}

// SecretSpec is write-only: a read returns no data.
type SecretSpec struct {
	Data map[string]string `json:"data,omitempty" doc:"Write-only; a read returns names and digests in status."`
}

// SecretStatus lists what is held without giving it away.
type SecretStatus struct {
	// Digests are keyed with a key of this Site, so that equal values can be
	// told from different ones but a weak one cannot be guessed from them.
	Digests map[string]string `json:"digests,omitempty"`
}

// SetDefaults implements Object.
func (s *Secret) SetDefaults() { s.defaultType("Secret") }

// Validate implements Object.
func (s *Secret) Validate() FieldErrors {
	e := s.common("Secret")
	size := 0
	for k, v := range s.Spec.Data {
		if k == "" || len(k) > 253 {
			e.add(at("spec", "data"), "key %q must have 1 to 253 characters", k)
		}
		size += len(v)
	}
	if size > 1<<19 {
		e.add(at("spec", "data"), "values of %d bytes in all are more than 512 KiB", size)
	}
	return e
}
