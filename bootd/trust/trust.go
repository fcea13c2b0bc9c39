// Package trust decides which trust level a boot has proved, and whether that suffices. It is pure: the caller
// provides the evidence.
//
// Judge is the only place that decides. Reached is the highest level for which
// there is evidence in this one request; a level is never carried over from another request of the BootAttempt,
// which may have come from another machine.
package trust

import (
	"fmt"

	"github.com/rackweft/rackweft/api"
)

// Requirement is the level that a Machine's boots must reach.
type Requirement struct {
	Level api.TrustLevel
	Of    string // whose minimum it is, such as "Profile worker"
}

// Required is the strictest minimum of Site, Profile and Machine. The Profile
// may be nil.
func Required(site api.SiteSpec, p *api.Profile, m *api.Machine) Requirement {
	r := Requirement{api.TrustToken, "the Site"}
	if site.Trust.Minimum != "" {
		r.Level = site.Trust.Minimum
	}
	stricter := func(level api.TrustLevel, of string) {
		if level.Index() > r.Level.Index() {
			r = Requirement{level, of}
		}
	}
	if p != nil {
		stricter(p.Spec.Trust.Minimum, "Profile "+p.Metadata.Name)
	}
	stricter(m.Spec.Trust.Minimum, "Machine "+m.Metadata.Name)
	return r
}

// Step is the step of a boot that a request belongs to.
type Step int

// The steps of a boot at which the machine receives something.
const (
	Script Step = iota
	Pointer
	Config
	Join
)

// Evidence is what one request of a boot shows.
type Evidence struct {
	Step Step
	// Chain is the level of the script whose secrets the request presents; for a request for a script, the level
	// that the request itself shows: mac, nonce or bmc. Nothing else carries that level on.
	Chain api.TrustLevel
	// Port says that the request's address was leased at the planned port; else
	// Elsewhere says why not.
	Port      bool
	Elsewhere string
	// Nonce is the state of the attempt's nonce, for the explanation.
	Nonce *api.Nonce
}

// Verdict says what a request has proved, and whether it suffices.
type Verdict struct {
	Reached  api.TrustLevel
	Why      string
	Required Requirement
	// Missing says what the required level lacks; empty when it is reached.
	Missing string
}

// OK reports whether the required level is reached, as far as it can be at this
// step.
func (v Verdict) OK() bool { return v.Missing == "" }

// Judge says what a request has proved and whether that suffices for its step.
func Judge(e Evidence, r Requirement) Verdict {
	v := Verdict{Required: r}
	v.Reached, v.Why = reached(e)
	// The pointer gives the token: no one can have it before.
	if v.Reached.AtLeast(r.Level) || r.Level == api.TrustToken && e.Step < Config {
		return v
	}
	v.Missing = fmt.Sprintf("trust level %s is required (by %s), and this boot has reached %s: %s", r.Level, r.Of, v.Reached, missing(e, r.Level))
	return v
}

func reached(e Evidence) (api.TrustLevel, string) {
	switch {
	case e.Chain == api.TrustBMC:
		return api.TrustBMC, "it presented over TLS the boot URL of this BootAttempt"
	case e.Chain == api.TrustNonce:
		return api.TrustNonce, "it sent the value that this BootAttempt wrote to the system's AssetTag"
	case e.Port:
		return api.TrustAddress, "its address was leased at the planned switch port"
	case e.Step >= Config:
		return api.TrustToken, "it presented the token of this BootAttempt, from an address leased to the Machine"
	}
	return api.TrustMAC, "it uses a MAC of the Machine and an address leased to it"
}

// missing says what a level lacks.
func missing(e Evidence, level api.TrustLevel) string {
	switch level {
	case api.TrustAddress:
		return e.Elsewhere
	case api.TrustNonce:
		return "it did not send the value that this BootAttempt wrote to the system's AssetTag" + nonceText(e.Nonce)
	case api.TrustBMC:
		return "it did not present over TLS the boot URL of this BootAttempt"
	case api.TrustTPM:
		return "this bootd cannot verify a TPM's quote yet"
	}
	return "it did not present the token of this BootAttempt"
}

func nonceText(n *api.Nonce) string {
	switch {
	case n == nil:
		return ", which wrote none: the level was not required yet when the attempt was opened; reprovision the Machine"
	case n.State == api.NonceFailed:
		return ", which could not be written: " + n.Message
	case n.State == api.NoncePending:
		return ", which is not written yet"
	}
	return ": its firmware may not show the tag, or this is not the Machine"
}
